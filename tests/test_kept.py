"""Trained networks on disk: kept, loaded, damaged, gone on from, rendered and exported."""

import contextlib
import errno
import functools
import importlib.util
import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest

import ntk_inr as ni
from ntk_inr import cli
from ntk_inr.networks import BACON, Law, Scheme, Sine, geometric, two_layer_network
from ntk_inr.networks.recipes import Recipe
from ntk_inr.study import kept, weights
from ntk_inr.study.fitted import Context, Fitted
from ntk_inr.study.kept import keep
from ntk_inr.study.legs import legs_of, optimizer_of
from ntk_inr.study.modules import Undescribed, build_module, describe_module
from ntk_inr.study.record import RESULTS
from ntk_inr.training.optimizers import optimizer

TINY = {"features": 8, "depth": 1, "steps": 4, "recipe": "same"}
X = np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2)


class Mine(nn.Module):
    """A module that is not of the package, whose parameters are more than dictionaries."""

    out: int = 1

    @nn.compact
    def __call__(self, x):
        scales = self.param("scales", lambda key: (jnp.ones(()), jnp.full((2,), 2.0)))
        return nn.Dense(self.out)(scales[0] * x * scales[1][None])


def task():
    return ni.image_task(np.random.default_rng(0).random((6, 5, 1)), size=None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a folder of one fit, and what it returned."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    return folder, ni.fit_task(task(), "rff", **TINY, out=folder)


@pytest.fixture
def copy(run, tmp_path):
    """Return a copy of that folder."""
    for path in run[0].iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_what_is_loaded_is_what_was_trained(run):
    folder, fitted = run
    found = ni.load_fit(folder)
    assert type(found) is type(fitted)
    assert found.net == fitted.net == ni.variant("rff", features=8, depth=1)
    assert jax.tree.structure(found.params) == jax.tree.structure(fitted.params)
    jax.tree.map(np.testing.assert_array_equal, found.params, fitted.params)
    for name, column in fitted.history.items():
        np.testing.assert_array_equal(found.history[name], column)
    np.testing.assert_array_equal(found.run.losses, fitted.run.losses)
    assert (found.run.status, found.run.steps, found.scores) == ("finished", 4, pytest.approx(fitted.scores))
    np.testing.assert_array_equal(found(X), fitted(X))
    with pytest.raises(ValueError, match="made from arrays, which are not kept"):
        found.task  # noqa: B018


def test_it_is_called_on_one_point_on_many_and_inside_transformations(run, monkeypatch):
    found = ni.load_fit(run[0])
    expected = np.asarray(found.apply(found.params, X))
    assert isinstance(found(X), np.ndarray)
    assert isinstance(found(jnp.asarray(X)), jax.Array)
    assert found(X[0]).shape == (1,)
    np.testing.assert_allclose(found([float(v) for v in X[0]]), expected[0], atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda found, x: found(x))(found, X), expected, atol=1e-6)
    assert jax.grad(lambda x: found(x)[0])(jnp.asarray(X[0])).shape == (2,)
    monkeypatch.setattr("ntk_inr.study.fitted.MICROBATCH", 2)
    np.testing.assert_allclose(found(X), expected, atol=1e-6)
    with pytest.raises(ValueError, match="x has 3 coordinates a row; expected 2"):
        found(np.zeros((4, 3), np.float32))


PARTS = [
    *[ni.variant(name, features=16, depth=2) for name in ni.variants()],
    BACON(scales=(2, 4)),
    two_layer_network(8, modulation=ni.FourierModulation(3.0), normalization=ni.Sphere("hidden_pre")),
    ni.CoordinateMLP(initializer=geometric(0.4), activation=Sine(omega=3.0), param_dtype=jnp.bfloat16),
    ni.CoordinateMLP(initializer=Scheme(Law(2.0), readout=Law(1.0, "uniform")), head="sigmoid", bias_law=None),
    ni.CoordinateMLP(activation=jnp.sin, head=jax.nn.sigmoid),
    ni.CoordinateMLP(activation=functools.partial(jax.nn.leaky_relu, negative_slope=0.1)),
    ni.CoordinateMLP(sparsity=ni.TopK(k=optax.linear_schedule(8, 4, 100))),
    ni.CoordinateMLP(sparsity=ni.TopK(3, "soft", temperature=optax.cosine_decay_schedule(1.0, 30, 0.1))),
]


def test_every_network_is_built_again_from_json():
    for net in PARTS:
        description = json.loads(json.dumps(describe_module(net), allow_nan=False))
        built = build_module(description)
        assert describe_module(built) == description
        if "schedule" not in json.dumps(description) and "keywords" not in json.dumps(description):
            assert built == net
    gate = build_module(describe_module(PARTS[-2])).sparsity
    assert [float(gate.k(step)) for step in (0, 50, 200)] == [8.0, 6.0, 4.0]


@pytest.mark.parametrize("part", [lambda x: x, optax.join_schedules([lambda t: 1.0, lambda t: 2.0], [3])])
def test_what_has_no_public_name_is_not_described(part):
    with pytest.raises(Undescribed, match="not described by a name"):
        describe_module(ni.CoordinateMLP(activation=part))
    with pytest.raises(Undescribed, match="Mine is not a class"):
        describe_module(ni.CoordinateMLP(encoding=Mine()))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"type": "CoordinateMPL", "fields": {}}, "Did you mean 'CoordinateMLP'"),
        ({"type": "Popen", "fields": {"args": "ls"}}, "unknown class of network 'Popen'"),
        ({"type": "CoordinateMLP", "fields": {"fetures": 8}}, "Did you mean 'features'"),
        ({"type": "CoordinateMLP", "fields": {"features": "8"}}, "features is '8'"),
        ({"type": "CoordinateMLP", "fields": {"residual": "yes"}}, "expected true or false"),
        ({"type": "CoordinateMLP", "fields": {"activation": {"function": "os.system"}}}, "unknown function"),
        ({"type": "CoordinateMLP", "fields": {"activation": {"pickle": "gASV"}}}, "an entry of pickle"),
        ({"type": "CoordinateMLP", "fields": {"param_dtype": {"dtype": "object"}}}, "unknown dtype"),
        ({"type": "Sine", "fields": {}}, "is of a Sine; expected one of a Linen module"),
        ({"type": "CoordinateMLP"}, "has the fields None"),
    ],
)
def test_a_description_that_builds_nothing_is_refused(unchecked, description, message):
    with pytest.raises(ValueError, match=message):
        build_module(description)


def test_leaves_of_every_dtype_keep_their_bits(tmp_path):
    tree = {
        "half": jnp.asarray([1.5, -0.0, jnp.inf], jnp.bfloat16), "complex": np.array([1 - 2j, -0.0 + 1j], np.complex64),
        "nested": {"step": np.int32(7), "none": np.zeros((0, 3), np.float32), "on": np.array(True)},
    }  # fmt: skip
    leaves = weights.flattened(tree)
    assert set(leaves) == {"half", "complex", "nested/step", "nested/none", "nested/on"}
    with (tmp_path / "a").open("wb") as file:
        weights.write(file, leaves)
    again = weights.read(tmp_path / "a", {name: leaf.dtype.name for name, leaf in leaves.items()})
    for name, leaf in leaves.items():
        assert (again[name].dtype, again[name].shape) == (leaf.dtype, leaf.shape)
        assert again[name].tobytes() == leaf.tobytes()
    with pytest.raises(TypeError, match="key has dtype key<fry>"):
        weights.flattened({"key": jax.random.key(0)})


@pytest.mark.parametrize(
    "net",
    [
        ni.CoordinateMLP(features=8, depth=1, normalization="batch"),
        ni.CoordinateMLP(features=8, depth=1, activation="sine", sparsity=ni.TopK(optax.linear_schedule(8, 2, 4))),
    ],
    ids=["batch statistics", "a schedule"],
)
def test_what_training_changes_beside_the_parameters_is_kept(tmp_path, net):
    y = np.float32(X[:, :1] > 0)
    apply, params = ni.init(net, jax.random.key(0), X)
    run = ni.fit(apply, params, X, y, steps=3)
    fitted = Fitted(run, {}, None, apply=run.apply, context=Context(net, 2, task(), "net"))
    keep(tmp_path / "network", fitted)
    found = kept._loaded(tmp_path / "network", None, scores={})
    jax.tree.map(np.testing.assert_array_equal, found.apply.args, run.apply.args)
    np.testing.assert_array_equal(found(X), fitted(X))
    assert np.abs(found(X) - np.asarray(apply(run.params, X))).max() > 1e-6


def test_a_module_of_ones_own_needs_its_code(tmp_path):
    fitted = ni.fit_task(task(), Mine(), steps=2, out=tmp_path / "run")
    found = ni.load_fit(tmp_path / "run")
    assert float(found.params["scales"]["0"]) == float(fitted.params["scales"][0])
    for use in (lambda: found(X), lambda: found.net, lambda: found.export(tmp_path / "x")):
        with pytest.raises(ValueError, match=r"the network is Mine\(out=1\).*pass net="):
            use()
    np.testing.assert_array_equal(ni.load_fit(tmp_path / "run", net=Mine())(X), fitted(X))
    with pytest.raises(ValueError, match="CoordinateMLP has other parameters than were kept"):
        ni.load_fit(tmp_path / "run", net=ni.variant("relu", features=8, depth=1))


def _change(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "network.safetensors").unlink(), FileNotFoundError, "safetensors' is missing"),
        (lambda f: (f / "network.json").unlink(), FileNotFoundError, "an ntk_inr before 0.2 wrote it"),
        (lambda f: (f / "network.json").write_text("{"), ValueError, "not valid JSON"),
        (lambda f: (f / "network.json").write_bytes(b"\xff"), ValueError, "not valid JSON"),
        (lambda f: (f / "network.json").write_text("[]"), ValueError, "holds a list"),
        (lambda f: (f / "network.json").write_text("{}"), ValueError, "not the description of a network"),
        (lambda f: _change(f / "network.json", version=99), ValueError, "version 99, and this ntk_inr reads 1"),
        (lambda f: _change(f / "network.json", network={"type": "New", "fields": {}}), ValueError, "unknown class"),
        (lambda f: (f / RESULTS).unlink(), FileNotFoundError, "no results.json"),
        (lambda f: _change(f / RESULTS, schema="ntk_inr.tune v1"), ValueError, "keeps no trained network"),
    ],
)
def test_damage_is_said(copy, damage, error, message):
    damage(copy)
    with pytest.raises(error, match=message):
        ni.load_fit(copy)


@pytest.mark.parametrize("at", [0, 9, 100, -1])
def test_a_byte_that_changed_is_noticed(copy, at):
    content = bytearray((copy / "network.safetensors").read_bytes())
    content[at] ^= 1
    (copy / "network.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        ni.load_fit(copy)
    _change(copy / "network.json", sha256=kept._digest(copy / "network.safetensors"))
    with contextlib.suppress(ValueError):  # of a header; a number may be any
        ni.load_fit(copy)


def test_a_task_is_built_again_unless_its_source_has_changed(run, copy):
    origin = {"kind": "signal", "source": "sines", "settings": {"samples": 64}}
    entry = json.loads((copy / "network.json").read_text())["task"]
    digest = ni.load_task("signal", "sines", samples=64).digest
    _change(copy / "network.json", task={**entry, "origin": origin, "digest": digest})
    assert ni.load_fit(copy).task.x.shape == (64, 1)
    for change, message in (
        ({"digest": "0"}, "'sines' has changed since the network was trained"),
        ({"origin": {**origin, "source": "gone.wav"}}, "can't be built again from 'gone.wav'"),
    ):
        _change(copy / "network.json", task={**entry, "origin": origin, "digest": digest, **change})
        found = ni.load_fit(copy)
        found(X)
        with pytest.raises(ValueError, match=message):
            found.task  # noqa: B018


def test_each_network_of_a_comparison_is_loaded(tmp_path):
    study = ni.compare(task(), ["relu", "siren:omega=10"], **TINY, seeds=2, out=tmp_path)
    found = [ni.load_fit(tmp_path, variant="siren:omega=10", seed=seed) for seed in (0, 1)]
    assert found[0].net.activation.omega == 10
    for seed, one in enumerate(found):
        assert one.scores["psnr"] == pytest.approx(study["siren:omega=10"].seeds[seed]["score_psnr"])
        error = one(task().x) - task().y
        assert -10 * np.log10(np.mean(error**2)) == pytest.approx(one.history["psnr"][-1], rel=1e-4)
    assert np.abs(found[0](X) - found[1](X)).max() > 1e-3
    for options, message in (
        ({}, "compares relu, siren:omega=10; choose one by variant="),
        ({"variant": "siren"}, "unknown variant 'siren'"),
        ({"variant": "relu", "seed": 2}, "seed is 2; relu was trained from 2 seeds"),
    ):
        with pytest.raises(ValueError, match=message):
            ni.load_fit(tmp_path, **options)


def _full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "place", ["study.single.save_figure", "tasks.image.ImageTask.save", "tasks.image.ImageTask.reconstruct"]
)
def test_a_disk_that_is_full_after_the_training_loses_nothing(run, tmp_path, monkeypatch, place):
    with monkeypatch.context() as patched:
        patched.setattr(f"ntk_inr.{place}", _full)
        with pytest.raises(OSError, match="No space left") as caught:
            ni.fit_task(task(), "rff", **TINY, out=tmp_path / "run")
    assert "trained and kept in" in caught.value.__notes__[0]
    np.testing.assert_array_equal(ni.load_fit(tmp_path / "run")(X), run[1](X))
    again = ni.fit_task(task(), "rff", **TINY, out=tmp_path / "run", resume=True)
    assert again.scores == pytest.approx(run[1].scores)
    assert (tmp_path / "run" / "reconstruction.png").exists()


def test_a_disk_that_is_full_while_the_network_is_written_leaves_the_earlier_one(run, copy, monkeypatch):
    monkeypatch.setattr(weights, "write", _full)
    with pytest.raises(OSError, match="No space left"):
        keep(copy / "network", run[1])
    monkeypatch.undo()
    np.testing.assert_array_equal(ni.load_fit(copy)(X), run[1](X))
    assert not list(copy.glob(".*"))


def test_another_run_starts_where_one_ended(run, tmp_path):
    folder, fitted = run
    for start in (folder, fitted):
        warm = ni.fit_task(task(), "rff", **TINY, start=start)
        assert warm.history["loss"][0] == fitted.history["loss"][-1]
    with pytest.raises(ValueError, match=r"start= holds .*scale=4\.0.*expected the same"):
        ni.fit_task(task(), "rff:scale=3.0", **TINY, start=folder)
    with pytest.raises(ValueError, match="other parameters than were kept"):
        ni.fit_task(task(), "rff", **{**TINY, "features": 9}, start=folder)


KEPT = {"optimizer": "adam", "schedule": "cosine", "learning_rate": 1e-3, "steps": 600}


def _legs(earlier, **asked):
    return legs_of(earlier, **{"name": "adam", "schedule": "cosine", "learning_rate": 1e-3, "further": None, **asked})


def test_legs_of_a_training():
    first = {"schedule": "cosine", "learning_rate": 1e-3, "until": 600}
    assert _legs(None, steps=600) == _legs(KEPT, steps=600) == [first]
    more = _legs(KEPT, steps=900, further="linear", learning_rate=1e-4)
    assert more == [first, {"schedule": "linear", "learning_rate": 1e-4, "until": 900}]
    assert _legs({**KEPT, "legs": more}, steps=900, further="linear", learning_rate=1e-4) == more
    constant = _legs({**KEPT, "schedule": "constant"}, schedule="constant", steps=900)
    assert constant == [{"schedule": "constant", "learning_rate": 1e-3, "until": 900}]
    for asked, message in (
        ({"steps": 900}, 'cosine to its end at step 600; say how .* over the further 300 steps: further="constant"'),
        ({"steps": 300}, "steps=300 is fewer than the 600"),
        ({"steps": 600, "further": "linear"}, "further='linear' needs more steps than the 600"),
        ({"steps": 600, "learning_rate": 1e-2}, "learning_rate=0.01 is not the 0.001"),
        ({"steps": 900, "schedule": "linear"}, "can't go on from a run of adam with the schedule cosine"),
    ):
        with pytest.raises(ValueError, match=message):
            _legs(KEPT, **asked)
    with pytest.raises(ValueError, match="there is none to go on from"):
        _legs(None, steps=5, further="linear")


def test_the_rate_follows_its_legs():
    """That of gradient descent is its update, by the formulas of the schedules."""
    legs = [(None, 0.5, 4), ("linear", 0.2, 6), ("constant", 0.1, 8)]
    legs = [{"schedule": schedule or "cosine", "learning_rate": rate, "until": end} for schedule, rate, end in legs]
    sgd = optimizer_of(Recipe(optimizer="sgd"), legs)
    state, rates = sgd.init(jnp.ones(())), []
    for _ in range(8):
        update, state = sgd.update(jnp.ones(()), state)
        rates.append(-float(update))
    cosine = [0.5 * (1 + np.cos(np.pi * t / 4)) / 2 for t in range(4)]
    np.testing.assert_allclose(rates, [*cosine, 0.2, 0.1, 0.1, 0.1], rtol=1e-5)
    with pytest.raises(ValueError, match="ends at step 4; expected more than the 4"):
        optimizer("adam", steps=4, legs=[("linear", 0.1, 4)])


def test_a_run_of_other_settings_is_not_gone_on_from(run, copy):
    before = (copy / RESULTS).read_text()
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        ni.fit_task(task(), "rff", **TINY, seed=1, out=copy, resume=True)
    with pytest.raises(FileNotFoundError, match="not the checkpoints that its training would go on from"):
        ni.fit_task(task(), "rff", **TINY, out=copy, resume=True)
    assert (copy / RESULTS).read_text() == before


def test_an_exported_network_needs_no_ntk_inr(run, tmp_path):
    pytest.importorskip("flatbuffers")
    found, path = ni.load_fit(run[0]), tmp_path / "net.stablehlo"
    assert found.export(path) == path
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        found.export(path)
    with pytest.raises(ValueError, match="unknown platform 'gpu'"):
        found.export(path, platforms=["gpu"])
    np.save(tmp_path / "x.npy", X)
    code = """
import sys, numpy as np
sys.modules["ntk_inr"] = None
import jax.export
network = jax.export.deserialize(bytearray(open("net.stablehlo", "rb").read()))
x = np.load("x.npy")
assert network.call(x[:2]).shape == (2, 1)
np.save("values.npy", network.call(x))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    # Another program of the same operations, which its compiler may order otherwise.
    np.testing.assert_allclose(np.load(tmp_path / "values.npy"), found(X), rtol=2e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ni.variants())
def test_every_variant_is_kept_and_exported(tmp_path, name):
    pytest.importorskip("flatbuffers")
    net = ni.variant(name, features=8, depth=2)
    run = ni.fit(*ni.init(net, jax.random.key(0), X), X, X[:, :1], steps=1)
    keep(tmp_path / "a", Fitted(run, {}, None, apply=run.apply, context=Context(net, 2, task(), "")))
    found = kept._loaded(tmp_path / "a", None, scores={})
    for one, other in zip(*map(jax.tree.leaves, (found.params, run.params)), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(found(X), run.apply(run.params, X), atol=1e-5)
    path = found.export(tmp_path / "b", platforms=["cpu"])
    values = jax.export.deserialize(bytearray(path.read_bytes())).call(X)
    np.testing.assert_allclose(values, found(X), atol=1e-5)


def test_commands_render_and_export(unchecked, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(np.arange(60, dtype=np.uint8).reshape(5, 4, 3)).save("photo.png")
    small = ["--features", "8", "--depth", "1", "--steps", "2"]
    assert cli.run(["fit", "photo.png", *small, "--record"]) == 0
    printed = capsys.readouterr().out
    assert "photo.png 4 × 5; 51 parameters for 60 values." in printed
    assert "A kernel that is recorded:" in printed
    assert "step 2 of 2" in printed
    assert (tmp_path / "runs/fit-photo/history.jsonl").read_text().count('"kernel"') == 3
    assert cli.run(["render", "runs/fit-photo", "--size", "15"]) == 0
    with PIL.Image.open("runs/fit-photo/render-15.png") as picture:
        assert picture.size == (12, 15)
    assert cli.run(["render", "runs/fit-photo", "--size", "15"]) == 2
    assert "pass --overwrite to replace it" in capsys.readouterr().err
    assert cli.run(["render", "photo.png"]) == 2
    assert cli.run(["fit", "photo.png", *small, "--schedule", "cosine", "--out", "cosine"]) == 0
    asked = ["fit", "photo.png", *small[:-1], "5", "--schedule", "cosine", "--out", "cosine", "--resume"]
    assert cli.run(asked) == 2
    assert 'over the further 3 steps: --further constant, "cosine"' in capsys.readouterr().err
    installed = importlib.util.find_spec("flatbuffers") is not None
    assert cli.run(["export", "runs/fit-photo", "a.stablehlo"]) == (0 if installed else 2)
    assert (tmp_path / "a.stablehlo").exists() == installed


def test_more_steps_go_on_as_the_longer_run_would(tmp_path):
    """To the bit at a constant rate; after a schedule's end by the rate that is asked for."""
    small = {"features": 8, "depth": 1, "recipe": "same"}
    whole = ni.fit_task(task(), "relu", **small, steps=5)
    ni.fit_task(task(), "relu", **small, steps=3, out=tmp_path / "a")
    longer = ni.fit_task(task(), "relu", **small, steps=5, out=tmp_path / "a", resume=True)
    jax.tree.map(np.testing.assert_array_equal, longer.params, whole.params)
    assert ni.load_fit(tmp_path / "a").run.steps == 5
    small |= {"optimizer": "sgd", "schedule": "cosine", "learning_rate": 0.1, "out": tmp_path / "b"}
    first = ni.fit_task(task(), "relu", **small, steps=3)
    with pytest.raises(ValueError, match="follows the schedule cosine to its end at step 3"):
        ni.fit_task(task(), "relu", **small, steps=4, resume=True)
    small["learning_rate"] = 0.05
    asked = {**small, "steps": 4, "resume": True, "further": "constant"}
    further = ni.fit_task(task(), "relu", **asked)
    gradient = jax.grad(lambda p: 0.5 * jnp.mean((first.apply(p, task().x) - task().y) ** 2))(first.params)
    expected = jax.tree.map(lambda p, g: p - 0.05 * g, first.params, gradient)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), further.params, expected)
    kept_legs = json.loads((tmp_path / "b" / RESULTS).read_text())["settings"]["legs"]
    assert [(leg["schedule"], leg["until"]) for leg in kept_legs] == [("cosine", 3), ("constant", 4)]
    jax.tree.map(np.testing.assert_array_equal, ni.fit_task(task(), "relu", **asked).params, further.params)
