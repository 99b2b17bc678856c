"""Predictions from kernels at initialisation: against formulas, against training, and what a user makes of them."""

import contextlib
import dataclasses
import io
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
import scipy.stats

import ntk_inr as ni
from ntk_inr import cli
from ntk_inr._results import Record
from ntk_inr.study import exploration
from ntk_inr.study.candidate import TIMES, curves, draw_sample, kernel_in_float64, kernels_of, predict, predict_infinite
from ntk_inr.study.exploration import _section
from ntk_inr.study.space import axes_of, parse_values, spaces_of, usual_space
from ntk_inr.study.tuning import Candidate, Tuning
from tests.conftest import types_unchecked

SMALL = {"features": 16, "depth": 1, "repeats": 2}


@pytest.fixture(scope="module", autouse=True)
def _unchecked():
    """One compilation serves all values of a setting, as it does for users."""
    with types_unchecked():
        yield


@pytest.fixture(scope="module")
def chirp():
    return ni.load_task("signal", "chirp", samples=96)


@pytest.fixture(scope="module")
def found(chirp):
    return ni.tune(chirp, "rff", {"scale": (0.5, 16)}, points=4, refine=2, **SMALL)


def test_curves_are_those_of_the_linearised_model(chirp):
    """Against the matrix exponential and a solve, with the largest eigenvalue of all rows."""
    sample = draw_sample(chirp, 96, 0.25, 0)
    apply, params = ni.init(ni.variant("rff", features=64, depth=1), jax.random.key(0), chirp.x)
    kernel = kernel_in_float64(apply, params, sample.points)
    start = np.asarray(apply(params, sample.points), float)
    found = curves(kernel, start, sample)
    n = len(sample.x)
    own, residual = kernel[:n, :n], start - np.concatenate([sample.y, sample.heldout[1]])
    largest = np.linalg.eigvalsh(kernel)[-1]
    for place in (0, 16, 32):
        left = scipy.linalg.expm(-TIMES[place] * own / largest) @ residual[:n]
        outside = residual[n:] - kernel[n:, :n] @ np.linalg.solve(own, residual[:n] - left)
        np.testing.assert_allclose(found.train[place], (left**2).mean(), rtol=1e-6)
        np.testing.assert_allclose(found.heldout[place], (outside**2).mean(), rtol=1e-3)
    values, vectors = np.linalg.eigh(own)
    energy = values * ((vectors.T @ residual[:n])[:, 0] ** 2)
    fine = np.concatenate([[0], np.geomspace(1e-3, TIMES[32], 4000)])
    speed = np.sqrt(np.exp(-2 * np.outer(fine, values / largest)) @ energy) / largest
    assert found.path[32] == pytest.approx(np.trapezoid(speed, fine), rel=0.03)
    assert found.stable_rate == pytest.approx(2 * 96 / largest)
    assert found.cv == pytest.approx(float(ni.moments(own).cv), rel=1e-6)


def test_curves_follow_what_training_follows(chirp):
    """A linear model, a part of whose derivative is under ``stop_gradient``, against the flow of its parameters."""
    sample = draw_sample(chirp, 96, 0.25, 0)

    def features(x, xp):
        waves = x @ (np.pi * np.arange(1, 6, dtype=x.dtype))[None]
        return xp.sin(waves), xp.sin(waves) + 0.3 * xp.cos(2 * waves)

    def apply(params, x):
        seen, all_ = features(x, jnp)
        return seen @ params + jax.lax.stop_gradient((all_ - seen) @ params)

    params = np.random.default_rng(0).normal(size=(5, 1)).astype(np.float32)
    found = predict(apply, params, kernels_of(apply, params, sample), sample)
    n, y = len(sample.x), np.concatenate([sample.y, sample.heldout[1]])
    seen, all_ = features(sample.points.astype(float), np)
    residual = all_ @ params - y
    values = np.linalg.eigvals(seen.T @ all_)
    largest = (np.abs(values) ** 2 / values.real).max()
    flow = seen[:n].T @ all_[:n]

    def moved(time):
        decayed = np.eye(5) - scipy.linalg.expm(-time * flow / largest)
        return -decayed @ np.linalg.solve(flow, seen[:n].T @ residual[:n])

    for place in (0, 16, 32):
        left = residual + all_ @ moved(TIMES[place])
        np.testing.assert_allclose(found.train[place], (left[:n] ** 2).mean(), rtol=1e-4)
        np.testing.assert_allclose(found.heldout[place], (left[n:] ** 2).mean(), rtol=1e-4)
    ways = np.array([moved(time)[:, 0] for time in np.concatenate([[0], np.geomspace(1e-2, TIMES[32], 100)])])
    assert found.path[32] == pytest.approx(np.linalg.norm(np.diff(ways, axis=0), axis=1).sum(), rel=0.06)
    assert found.stable_rate == pytest.approx(2 * 96 / largest, rel=1e-4)


@pytest.mark.slow
def test_gradient_descent_takes_the_steps_that_are_predicted(chirp):
    """A wide network, so that its kernel stays put."""
    tuned = ni.tune(
        chirp, "rff", {"scale": [2.0]}, objective="fit", optimizer="sgd", steps=200, features=1024, depth=1, repeats=1
    )
    apply, params = ni.init(
        ni.variant("rff", features=1024, depth=1), jax.random.key(0), chirp.x, settings={"scale": 2.0}
    )
    rate = tuned.learning_rate(tuned.best)
    run = ni.fit(apply, params, chirp.x, chirp.y, optimizer=optax.sgd(rate), steps=200, data_range=2.0)
    assert abs(run.psnr[-1] - tuned.best.train_psnr[0]) < 0.5


def test_adams_noise_begins_where_its_steps_no_longer_shrink(chirp, monkeypatch):
    """For squares once it has forgotten the first gradients, however large the rate; for absolute values at once."""
    tasks = {"chirp": (chirp, 1000), "torus": (ni.shape_task("torus", points=96), 0)}

    settings = {"learning_rate": 0.1, **SMALL}

    def predicted():
        return {name: ni.tune(task, "rff", {"scale": [4.0]}, **settings).best for name, (task, _) in tasks.items()}

    loud = predicted()
    monkeypatch.setattr(exploration, "ADAM_JITTER", dict.fromkeys(exploration.ADAM_JITTER, 0.0))
    quiet = predicted()
    for name, (_, since) in tasks.items():
        noisy = np.array(quiet[name].curve_steps) > since
        a, b = (np.array(found[name].train_curve) for found in (quiet, loud))
        np.testing.assert_array_equal(a[~noisy], b[~noisy])
        assert (b[noisy] < a[noisy]).all()


def test_adam_gets_no_further_than_its_steps_reach(chirp):
    """A hundredth of the rate takes a hundred times as many steps, where the rate and not the spectrum is the limit."""
    slow, slower = (ni.tune(chirp, "rff", {"scale": [4.0]}, learning_rate=rate, **SMALL) for rate in (1e-7, 1e-9))
    steps, more = (np.array(found.best.curve_steps) for found in (slow, slower))
    np.testing.assert_allclose(more, 100 * steps, rtol=1e-3)
    quick = ni.tune(chirp, "rff", {"scale": [4.0]}, learning_rate=0.1, **SMALL)
    np.testing.assert_allclose(np.array(quick.best.curve_steps), [quick.pace("rff").steps_of(TIMES)] * 2, rtol=1e-3)
    assert quick.best.train_psnr[0] > slow.best.train_psnr[0] + 3


def test_a_sample_is_a_neighbourhood_and_holds_out_a_part():
    task = ni.image_task("camera", size=32, holdout=0.5)
    sample = draw_sample(task, 100, 0.2, 3)
    assert sample.x.shape == (80, 2)
    assert sample.heldout[0].shape == (20, 2)
    assert sample.rows == 512
    assert sample.seen.sum() == 492
    held = {tuple(row) for row in sample.heldout[0]}
    assert not held & {tuple(row) for row in sample.x}
    assert not held & {tuple(row) for row in task.x[sample.seen]}
    # As dense as all rows are: 100 of 512 on the whole square.
    extent = np.ptp(sample.points, axis=0)
    assert 100 / np.prod(extent) == pytest.approx(512 / 4, rel=0.4)
    again = draw_sample(task, 100, 0.2, 3)
    np.testing.assert_array_equal(sample.points, again.points)


@pytest.mark.slow
def test_what_the_task_holds_out_is_not_looked_at():
    task = ni.image_task("camera", size=16, holdout=0.5, grey=True)
    spoiled = ni.image_task(np.where(task.train.reshape(16, 16, 1), task.image, 0.0)[..., 0], holdout=0.5)
    np.testing.assert_array_equal(task.y, spoiled.y)
    one, other = (ni.tune(t, "rff", {"scale": [0.5, 2.0]}, **SMALL) for t in (task, spoiled))
    assert [c.score for c in one.candidates] == [c.score for c in other.candidates]


@pytest.mark.slow
def test_the_pilot_run_does_not_see_what_the_sample_holds_out(chirp, monkeypatch):
    seen = []

    def fit(apply, params, x, y, **options):
        seen.append(np.asarray(x))
        return ni.fit(apply, params, x, y, **options)

    monkeypatch.setattr(exploration, "fit", fit)
    tuned = ni.tune(chirp, "siren", {"omega": [10.0, 20.0]}, pilot=5, sample=40, **SMALL)
    assert len(seen) == 4
    for call, repeat in zip(seen, (0, 1, 0, 1), strict=True):
        sample = draw_sample(chirp, 40, 0.2, repeat)
        assert len(call) == 96 - 8
        assert not np.isin(sample.heldout[0], call).any()
    assert all(0 < drift < 10 for candidate in tuned.candidates for drift in candidate.drift)
    assert any("in 5 steps" in sentence for sentence in tuned.recommendation)


@pytest.mark.slow
def test_the_ranking_is_that_of_training():
    """Held-out PSNR of eight trainings of two seeds, which the search does not see."""
    task = ni.load_task("signal", "chirp", samples=256, holdout=0.5)
    scales = [0.5, 2.0, 8.0, 32.0]
    tuned = ni.tune(task, "rff", {"scale": scales}, steps=200, features=48, depth=2)
    x, y = task.heldout
    measured = []
    for scale in scales:
        errors = []
        for seed in range(2):
            net = ni.networks.with_settings(ni.variant("rff", features=48, depth=2), {"encoding.scale": scale})
            apply, params = ni.init(net, jax.random.key(seed), task.x)
            run = ni.fit(apply, params, task.x, task.y, steps=200)
            errors.append(float(((apply(run.params, jnp.asarray(x)) - y) ** 2).mean()))
        measured.append(-np.log(np.mean(errors)))
    assert scipy.stats.spearmanr([c.mean for c in tuned.candidates], measured)[0] > 0.75
    assert measured[scales.index(tuned.best.settings["encoding.scale"])] == max(measured)


@pytest.mark.slow
def test_the_infinite_kernel_is_taken_where_asked(chirp):
    net = ni.variant("rff", features=16, depth=2)
    sample = draw_sample(chirp, 96, 0.2, 0)
    predicted = predict_infinite(net, sample, 0)
    with jax.enable_x64(True):
        kernel = np.asarray(ni.infinite_kernel(net)(jnp.asarray(sample.x, jnp.float64)).ntk)
    assert predicted.cv == pytest.approx(float(ni.moments(kernel).cv), rel=1e-6)
    tuned = ni.tune(chirp, "rff", {"scale": [1.0, 4.0]}, infinite=True, **SMALL)
    assert tuned.best.settings["encoding.scale"] in (1.0, 4.0)


def test_refinement_lies_between_the_neighbours_of_the_best(found):
    grid, further = found.candidates[:4], found.candidates[4:]
    values = [c.settings["encoding.scale"] for c in grid]
    best = max(grid, key=lambda c: c.mean).settings["encoding.scale"]
    place = values.index(best)
    assert len(further) == 2
    for candidate in further:
        assert values[max(place - 1, 0)] < candidate.settings["encoding.scale"] < values[min(place + 1, 3)]


def test_golden_section_closes_in():
    along = {value: -((np.log(value) - 1) ** 2) for value in (0.1, 1.0, 10.0, 100.0)}
    for _ in range(12):
        new = _section(along, whole=False, logarithmic=True)
        along[new] = -((np.log(new) - 1) ** 2)
    assert max(along, key=along.get) == pytest.approx(np.e, rel=0.02)
    whole = {value: -abs(value - 6) for value in (1, 4, 16)}
    while (new := _section(whole, whole=True, logarithmic=True)) is not None:
        whole[new] = -abs(new - 6)
    assert max(whole, key=whole.get) == 6


def test_ranges_and_lists():
    net = ni.variant("rff", features=16)
    (axis,) = axes_of(net, {"scale": (0.25, 4)}, 5)
    assert axis.name == "encoding.scale"
    np.testing.assert_allclose(axis.grid, [0.25, 0.5, 1, 2, 4])
    (axis,) = axes_of(ni.variant("pe"), {"bands": (1, 6)}, 8)
    assert axis.grid == (1, 2, 3, 4, 5, 6)
    assert not axis.continuous
    (axis,) = axes_of(net, {"scale": [4, 1]}, 8)
    assert axis.grid == (1.0, 4.0)
    assert parse_values("0.25:32") == (0.25, 32)
    assert parse_values("1,2") == [1, 2]
    for name in ni.variants():
        net = ni.variant(name, features=16)
        assert len(axes_of(net, None, 3)) == 1, usual_space(net)


@pytest.mark.slow
def test_several_variants_take_the_settings_that_they_have(chirp):
    tuned = ni.tune(chirp, ["rff", "relu"], {"scale": [1.0, 4.0]}, **SMALL)
    assert [(c.variant, c.settings) for c in tuned.candidates] == [
        ("rff", {"encoding.scale": 1.0}), ("rff", {"encoding.scale": 4.0}), ("relu", {}),
    ]  # fmt: skip
    assert tuned.best.variant == "rff"
    mine = ni.tune(chirp, {"mine": ni.variant("relu", features=8, depth=1)}, {"features": [4, 8]}, repeats=1)
    assert mine.best.label in ("mine:features=4", "mine:features=8")


@pytest.mark.slow
def test_a_candidate_that_does_not_work_is_reported_and_the_others_are_ranked(chirp):
    tuned = ni.tune(chirp, "pe+topk", {"k": [4, 8, 16], "features": [8, 16]}, **SMALL)
    failed = [c for c in tuned.candidates if c.failure]
    assert [c.settings for c in failed] == [{"sparsity.k": 16, "features": 8}]
    assert "only 8 units" in failed[0].failure
    assert "1 could not be tried" in tuned.recommendation[-1]


@pytest.mark.slow
def test_steps_to_a_target(chirp):
    common = {"objective": "speed", "optimizer": "sgd", "refine": 0, **SMALL}
    near = ni.tune(chirp, "rff", {"scale": [2.0]}, target_psnr=12, **common)
    far = ni.tune(chirp, "rff", {"scale": [2.0]}, target_psnr=18, **common)
    assert 1 <= near.best.steps_to_target[0] < far.best.steps_to_target[0]
    never = ni.tune(chirp, "relu", {"features": [16]}, target_psnr=200, **common)
    assert never.describe(never.best) == "never"
    assert "never" in never.recommendation[0]


class _Stop:
    def __init__(self, at):
        self.at = at

    def __call__(self, what, done, total):
        if done == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("at", [pytest.param(3, marks=pytest.mark.slow), 5], ids=["in the grid", "while refining"])
def test_an_interrupted_search_goes_on(chirp, found, tmp_path, monkeypatch, at):
    space = {"scale": (0.5, 16)}
    with pytest.raises(KeyboardInterrupt):
        ni.tune(chirp, "rff", space, points=4, refine=2, out=tmp_path, progress=_Stop(at), **SMALL)
    kept = ni.load_tuning(tmp_path)
    assert len(kept.candidates) == at
    assert not kept.complete
    with pytest.raises(FileExistsError, match="resume=True"):
        ni.tune(chirp, "rff", space, points=4, refine=2, out=tmp_path, **SMALL)
    with pytest.raises(ValueError, match="settings repeats=2, this one 3"):
        ni.tune(chirp, "rff", space, out=tmp_path, resume=True, **SMALL | {"repeats": 3})
    drawn = []
    monkeypatch.setattr(exploration, "init", lambda *a, **settings: drawn.append(settings) or ni.init(*a, **settings))
    whole = ni.tune(chirp, "rff", space, points=4, refine=2, out=tmp_path, resume=True, **SMALL)
    assert len(drawn) == 2 * (6 - at)
    assert [c.score for c in whole.candidates] == [c.score for c in found.candidates]
    assert ni.load_tuning(tmp_path).complete


def test_results_survive_a_round_trip(found, tmp_path):
    odd = Candidate("relu", Record(), score=[-np.inf], steps_to_target=[np.inf], heldout_psnr=[np.nan])
    whole = Tuning(found.task, found.settings, found.environment, [*found.candidates, odd])
    whole.save(tmp_path / "new")
    again = ni.load_tuning(tmp_path / "new")
    assert dataclasses.asdict(again.best) == dataclasses.asdict(found.best)
    assert again.candidates[-1].score == [-np.inf]
    assert again.candidates[-1].steps_to_target == [np.inf]
    (tmp_path / "new" / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="not of a search"):
        ni.load_tuning(tmp_path / "new")


def test_what_is_recommended_runs(found, chirp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(found.command("signal", "chirp", "--set", "samples=96"))
    assert words[:2] == ["ntk-inr", "fit"]
    words[words.index("--steps") + 1] = "3"
    assert cli.run(words[1:]) == 0
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(found.snippet('ni.load_task("signal", "chirp", samples=96)').replace("steps=500", "steps=3"), {})
    assert "psnr" in printed.getvalue()
    first = found.recommendation[0]
    assert first.startswith(f"Train {found.best.label}: the best held-out PSNR within 500 steps")
    assert "±" in first


def test_rivals_are_those_within_two_standard_errors():
    close = [Candidate("a", Record(k=1), score=[10.0, 12.0]), Candidate("a", Record(k=2), score=[10.5, 11.3])]
    # Worse by 1 in each repeat, though both repeats differ by 2.
    worse = Candidate("a", Record(k=3), score=[9.0, 11.0])
    tuned = Tuning(Record(), Record(objective="fit"), Record(), [worse, *close])
    assert tuned.best is close[0]
    assert tuned.rivals == [close[1]]


def test_one_repeat_claims_no_certainty():
    tried = [Candidate("a", Record(k=k), score=[float(k)]) for k in (1, 2)]
    tuned = Tuning(Record(), Record(objective="fit", steps=500, target_psnr=30), Record(), tried)
    said = tuned.recommendation
    assert said[0].endswith("predicted to be 2.0 dB.")
    assert "one repeat can't tell" in said[1]
    assert not any("standard errors" in sentence for sentence in said)


def test_the_plot_shows_every_candidate_and_the_budget(found):
    figure = found.plot()
    left, right = figure.axes
    line = left.containers[0].lines[0]
    np.testing.assert_allclose(
        line.get_xdata(orig=False), sorted(c.settings["encoding.scale"] for c in found.candidates)
    )
    assert left.get_ylabel() == "predicted PSNR [dB]"
    assert found.best.label in left.get_title(loc="left")
    assert len(right.lines) == 3


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"space": {"scale": (8, 0.5)}}, "which is reversed; expected \\(low, high\\)"),
        ({"space": {"scale": (2, 2)}}, "which is empty"),
        ({"space": {"scale": []}}, "is empty; give a range"),
        ({"space": {"scale": 2.0}}, "expected a range \\(low, high\\) or a list"),
        ({"space": {"scale": ("a", "b")}}, "this setting takes finite numbers"),
        ({"space": {"scale": (1, 2, 3)}}, "a tuple is a range"),
        ({"space": {"features": (1.5, 8)}}, "this setting takes whole numbers"),
        ({"space": {"scale": (-1.0, 2.0)}}, "scale is -1.0"),
        ({"space": {"omega": (1, 2)}}, "unknown setting of CoordinateMLP 'omega'; known: features, depth"),
        ({"objective": "best"}, "unknown objective 'best'"),
        ({"objective": "speed"}, "give target_psnr="),
        ({"optimizer": "lion"}, "rff is trained by lion, and predictions are for adam, adamw, sgd"),
        ({"sample": 97}, "sample is 97, but chirp has only 96 rows to train on"),
        ({"sample": 2}, "2 rows are too few to hold any out"),
        ({"points": 1}, "points is 1"),
        ({"infinite": True, "pilot": 5}, "infinite=True and pilot=5 exclude each other"),
        ({"pilot": 500}, "pilot is 500 and steps is 500"),
        ({"resume": True}, "resume=True needs out="),
        ({"variants": []}, "variants is empty"),
        ({"variants": "rfff"}, "Did you mean 'rff'"),
    ],
)
def test_mistakes_are_named(chirp, changed, message):
    arguments = {"variants": "rff", "space": {"scale": (1.0, 2.0)}, **changed}
    with pytest.raises((ValueError, TypeError), match=message):
        ni.tune(chirp, arguments.pop("variants"), arguments.pop("space"), **arguments)


def test_signals_that_teach_nothing_are_refused():
    flat = ni.image_task(np.full((8, 8), 0.5))
    with pytest.raises(ValueError, match=r"is constant, 0\.5 everywhere"):
        ni.tune(flat, "rff")
    occupancy = ni.shape_task("sphere", kind="occupancy", points=50)
    with pytest.raises(ValueError, match="trained by the loss 'bce'"):
        ni.tune(occupancy, "rff")
    with pytest.raises(ValueError, match="no candidate works; pe\\+topk:k=64"):
        ni.tune(ni.load_task("signal", "chirp", samples=64), "pe+topk", {"k": [64]}, features=16, depth=1)


def test_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--features", "16", "--depth", "1", "--repeats", "2", "--points", "3", "--refine", "1"]
    asked = ["tune", "signal", "chirp", "--set", "samples=96", "--over", "scale=0.5:16"]
    assert cli.run([*asked, *small]) == 0
    printed = capsys.readouterr().out
    for expected in ("Train rff:scale=", "ni.load_task("):
        assert expected in printed
    assert re.search(
        r"ntk-inr fit signal chirp --set samples=96 --variant rff:encoding.scale=\S+ --features 16 --depth 1 ", printed
    )
    assert (tmp_path / "runs/tune-chirp/tune.png").stat().st_size > 10_000
    assert cli.run([*asked, *small, "--resume"]) == 0
    assert cli.run([*asked, *small]) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.run(["tune", "signal", "chirp", "--over", "scale"]) == 2
    assert "write name=low:high" in capsys.readouterr().err
    assert cli.run(["tune", "signal", "chirp", "--over", "scale=a:b"]) == 2
    assert "neither a range" in capsys.readouterr().err
    assert cli.run(["fit", "signal", "chirp", "--variant", "siren:omgea=3"]) == 2
    assert "Did you mean" in capsys.readouterr().err


def test_axes_keep_their_ends_and_know_real_numbers_written_whole():
    whole = ni.CoordinateMLP(16, 2, activation=ni.networks.Sine(omega=30))
    assert usual_space(whole) == {"activation.omega": (3.75, 120.0)}
    assert axes_of(whole, {"omega": (0.5, 60.0)}, 3)[0].grid == (0.5, 5.477, 60.0)
    narrow = axes_of(whole, {"omega": (30.001, 30.009)}, 4)[0].grid
    assert (narrow[0], narrow[-1], len(set(narrow))) == (30.001, 30.009, 4)
    assert 100.1 < _section({100.1: 1.0, 100.6: 0.0, 101.1: 0.0}, False, True) < 100.6
    with pytest.raises(ValueError, match="in it already"):
        axes_of(ni.variant("rff"), {"scale": [1.0], "sigma": [2.0]}, 3)


def test_a_setting_of_some_networks_is_theirs_and_mistakes_show():
    networks = {name: ni.variant(name) for name in ("gauss", "siren")}
    axes = spaces_of(networks, {"width": (0.01, 1.0)}, 3)
    assert {name: [axis.name for axis in found] for name, found in axes.items()} == {
        "gauss": ["activation.width"], "siren": [],
    }  # fmt: skip
    for space, message in ({"width": (1.0, 0.01)}, "reversed"), ({"nope": (1, 2)}, "unknown setting"):
        with pytest.raises(ValueError, match=message):
            spaces_of(networks, space, 3)


@pytest.mark.slow
def test_another_network_of_the_same_name_is_not_resumed(chirp, tmp_path):
    first, other = (ni.CoordinateMLP(features=8, depth=1, activation=name) for name in ("relu", "sine"))
    ni.tune(chirp, first, {"features": [8]}, refine=0, out=tmp_path / "tune", **SMALL)
    for network, space in (other, {"features": [8]}), (first, {"depth": [1]}):
        with pytest.raises(ValueError, match="resume with"):
            ni.tune(chirp, network, space, refine=0, out=tmp_path / "tune", resume=True, **SMALL)
    small = {"steps": 2, "seeds": 1}
    ni.compare(chirp, {"mine": first}, out=tmp_path / "study", **small)
    with pytest.raises(ValueError, match="mine was"):
        ni.compare(chirp, {"mine": other}, out=tmp_path / "study", resume=True, **small)


def test_failures_rank_last_even_behind_what_never_gets_there(found):
    never, failed = Candidate("rff", Record(), score=[-np.inf]), Candidate("rff", Record(), failure="no")
    ranked = Tuning(found.task, found.settings, found.environment, [failed, never]).ranked
    assert ranked == [never, failed]
