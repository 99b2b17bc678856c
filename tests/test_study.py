import csv
import json
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntk_inr as ni
from ntk_inr.study.figures import convergence_figure, save_figure
from ntk_inr.study.programs import free_programs_if_full
from ntk_inr.study.record import RESULTS

SMALL = {"features": 16, "depth": 2, "steps": 20, "seeds": 2}
NAMES = ["relu", "pe", "pe+sphere", "pe+hadamard"]


@pytest.fixture(scope="module")
def task():
    return ni.image_task("camera", size=10)


@pytest.fixture(scope="module")
def study(task):
    return ni.compare(task, NAMES, **SMALL)


class Stop:
    """Presses Ctrl-C when a bar called ``at`` moves."""

    def __init__(self, at):
        self.at = at

    def __call__(self, what, done, total):
        if what.startswith(self.at):
            raise KeyboardInterrupt


def test_every_figure_is_what_the_library_computes(study, task):
    """The first seed of a study, taken apart with the public functions."""
    net = ni.variant("pe", features=16, depth=2)
    model = ni.init(net, jax.random.split(jax.random.key(0), 2)[0], task.x)
    result, first = study["pe"], study["pe"].seeds[0]
    m = ni.moments(ni.ntk(*model, task.x))
    np.testing.assert_allclose(first["cv"], m.cv, rtol=1e-4)
    np.testing.assert_allclose(first["ntk_variance"], m.variance, rtol=1e-4)
    np.testing.assert_allclose(result.arrays["eigenvalues"][0].mean(), m.mean, rtol=1e-4)
    run = ni.fit(*model, task.x, task.y, steps=20)
    np.testing.assert_allclose(result.arrays["adam_psnr"][0], run.psnr, rtol=1e-3)
    assert result.parameters == sum(leaf.size for leaf in jax.tree.leaves(model[1]))


def test_gradient_descent_uses_one_stable_rate_for_both_curves(study):
    for result in study.variants:
        largest = result.arrays["eigenvalues"][:, 0].max()
        np.testing.assert_allclose(result.over_seeds("gd_learning_rate"), 100 / largest, rtol=1e-6)
        # One step of the linearised model is one step of the network, up to the step's square.
        np.testing.assert_allclose(result.arrays["predicted_psnr"][:, 0], result.arrays["gd_psnr"][:, 0], atol=1e-3)
        assert np.all(np.diff(result.arrays["predicted_psnr"], axis=1) > -1e-4)


class HalfFrozen(nn.Module):
    """A model that is linear in its parameters, a part of whose derivative training does not see."""

    @nn.compact
    def __call__(self, x):
        weights = self.param("weights", nn.initializers.normal(1.0), (2, 1))
        return x @ weights + 0.5 * jax.lax.stop_gradient(jnp.sin(3 * x) @ weights)


def test_predicted_curves_are_those_of_the_kernel_that_training_follows(task):
    result = ni.compare(task, {"half": HalfFrozen()}, steps=30, seeds=2)["half"]
    np.testing.assert_allclose(result.arrays["predicted_psnr"], result.arrays["gd_psnr"], atol=2e-3)
    assert np.ptp(result.arrays["predicted_psnr"]) > 1


def test_summary_marks_the_best_and_counts_to_a_common_target(study):
    summary = ni.summarize(study)
    assert list(summary.rows) == NAMES
    for result in study.variants:
        assert np.isfinite(result.steps_to(summary.target_psnr)).all()
    cvs = {name: row["cv"].mean for name, row in summary.rows.items()}
    assert [name for name, row in summary.rows.items() if row["cv"].best] == [min(cvs, key=cvs.get)]
    assert summary.conclusion[0].startswith("Best conditioned is pe+hadamard")
    assert any(sentence.startswith("Adding sphere to pe: cv × ") for sentence in summary.conclusion)
    spread = np.std(study["pe"].over_seeds("cv"), ddof=1)
    np.testing.assert_allclose(summary.rows["pe"]["cv"].spread, spread)


def test_correlations_have_the_right_sign(study):
    """Against ranks computed by hand, a correlation of +1 must mean: lower cv, fewer steps."""
    summary = ni.summarize(study)
    found = {(c.figure, c.speed): c.rho for c in summary.correlations}

    def rank(values):
        return np.argsort(np.argsort(values))

    cv = rank([summary.rows[name]["cv"].mean for name in NAMES])
    gd = rank([-summary.rows[name]["gd_20"].mean for name in NAMES])
    np.testing.assert_allclose(found["cv", "gd_20"], np.corrcoef(cv, gd)[0, 1])


def test_a_target_never_reached_ranks_last(study):
    summary = ni.summarize(study, target_psnr=90.0)
    assert {row["steps_to_target"].text for row in summary.rows.values()} == {"not reached"}
    assert summary.target_source == "as asked for"
    assert all(c.speed != "steps_to_target" for c in summary.correlations)  # all tied: no ranks


def test_round_trip(study, tmp_path):
    study.save(tmp_path / "a")
    again = ni.load_study(tmp_path / "a")
    assert again.settings == study.settings
    assert [r.seeds for r in again.variants] == [r.seeds for r in study.variants]
    for ours, theirs in zip(study.variants, again.variants, strict=True):
        for name, array in ours.arrays.items():
            np.testing.assert_array_equal(array, theirs.arrays[name])
    assert ni.summarize(again).conclusion == ni.summarize(study).conclusion


def test_json_states_what_repeats_the_run(study, tmp_path):
    content = json.loads(study.save(tmp_path / "a").read_text())
    assert (content["schema"], content["version"]) == ("ntk_inr.study", 2)
    assert set(content["settings"]) >= {"features", "depth", "steps", "seeds", "seed", "learning_rate", "kernel_points"}
    assert set(content["environment"]) >= {"ntk_inr", "jax", "flax", "optax", "python", "device"}
    assert content["variants"][1]["network"].startswith("CoordinateMLP(features=16, depth=2, out=1, encoding=NeRFEncod")


def test_report_is_one_file_that_needs_no_network(study, tmp_path):
    study.save(tmp_path / "a")
    page = ni.write_report(study, tmp_path / "a").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == len(NAMES) + 1
    for name in [*NAMES, "convergence"]:
        for suffix in ("png", "svg"):
            assert (tmp_path / "a" / "figures" / f"{name}.{suffix}").stat().st_size > 5000
    rows = list(csv.DictReader((tmp_path / "a" / "results.csv").read_text().splitlines()))
    assert [row["variant"] for row in rows] == NAMES
    np.testing.assert_allclose(float(rows[1]["cv"]), study["pe"].over_seeds("cv").mean())


@pytest.mark.slow
def test_interrupted_run_keeps_what_is_done_and_resumes_without_repeating(task, study, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ni.compare(task, NAMES[:3], **SMALL, out=out, progress=Stop("pe+sphere"))
    partial = ni.load_study(out)
    assert [r.name for r in partial.variants] == NAMES[:2]
    assert not partial.complete
    assert "interrupted" in ni.write_report(partial, out).read_text()

    started = []
    whole = ni.compare(
        task, NAMES[:3], **SMALL, out=out, resume=True, progress=lambda what, done, total: started.append(what)
    )
    assert {what.split(":")[0] for what in started} == {"variants", "pe+sphere"}
    assert whole.complete
    assert [r.name for r in whole.variants] == NAMES[:3]
    assert whole["pe"].seeds[0]["cv"] == study["pe"].seeds[0]["cv"]


def test_figures_are_the_same_bytes_each_time(study, tmp_path):
    again = []
    for name in "ab":
        save_figure(convergence_figure(study, ni.summarize(study)), tmp_path / name)
        again.append([(tmp_path / f"{name}.{suffix}").read_bytes() for suffix in ("png", "svg")])
    assert again[0] == again[1]


def test_resume_before_anything_was_done_starts(task, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ni.compare(task, ["relu"], **SMALL, out=tmp_path / "run", progress=Stop("relu"))
    assert ni.compare(task, ["relu"], **SMALL, out=tmp_path / "run", resume=True).complete


def test_resume_refuses_other_settings(task, study, tmp_path):
    study.save(tmp_path / "run")
    with pytest.raises(ValueError, match="steps was 20, now 21"):
        ni.compare(task, NAMES, **{**SMALL, "steps": 21}, out=tmp_path / "run", resume=True)
    other = ni.image_task("camera", size=9)
    with pytest.raises(ValueError, match="task or choice of rows was"):
        ni.compare(other, NAMES, **SMALL, out=tmp_path / "run", resume=True)


def test_results_are_never_overwritten_unasked(study, tmp_path):
    study.save(tmp_path / "run")
    before = (tmp_path / "run" / RESULTS).read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        study.save(tmp_path / "run")
    assert (tmp_path / "run" / RESULTS).read_bytes() == before
    study.save(tmp_path / "run", overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        study.save(tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_overwriting_forgets_the_older_study_at_once(task, study, tmp_path):
    study.save(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        ni.compare(task, ["relu"], **SMALL, out=tmp_path / "run", overwrite=True, progress=Stop("relu"))
    assert not (tmp_path / "run" / RESULTS).exists()


def test_broken_folders_are_refused(unchecked, study, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no results\.json"):
        ni.load_study(tmp_path)
    study.save(tmp_path / "run")
    (tmp_path / "run" / "arrays" / "pe.npz").unlink()
    with pytest.raises(FileNotFoundError, match="copy the whole folder"):
        ni.load_study(tmp_path / "run")
    path = tmp_path / "run" / RESULTS
    for text, message in [
        ("{", "not valid JSON"),
        ("[]", "not a study"),
        (
            json.dumps({"schema": "ntk_inr.study", "version": 99, "environment": {"ntk_inr": "9.0"}}),
            "schema version 99",
        ),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            ni.load_study(tmp_path / "run")


def test_divergence_of_one_variant_does_not_end_the_comparison(task):
    networks = {"wild": ni.CoordinateMLP(16, 2, activation=lambda u: u**5), "tame": ni.CoordinateMLP(16, 2)}
    study = ni.compare(task, networks, **SMALL, learning_rate=0.3)
    assert [seed["adam_status"] for seed in study["wild"].seeds] == ["diverged"] * 2
    assert study["tame"].seeds[0]["adam_status"] == "finished"
    assert any("Diverged" in sentence and "wild" in sentence for sentence in ni.summarize(study).conclusion)


def test_a_kernel_that_overflows_names_its_network(task):
    with pytest.raises(ValueError, match="kernel of 'wild' at initialisation is not finite"):
        ni.compare(task, {"wild": ni.CoordinateMLP(16, 2, activation=lambda u: 1e30 * u**3)}, **SMALL)


@pytest.mark.slow
def test_modules_of_ones_own_held_out_pixels_and_a_sampled_kernel(tmp_path):
    task = ni.image_task("astronaut", size=12, holdout=0.5)
    net = ni.CoordinateMLP(16, 1, out=3, encoding=ni.GaussianFourier(features=16, scale=2.0))
    study = ni.compare(task, {"my rff/1": net}, **{**SMALL, "seeds": 1}, kernel_points=20, out=tmp_path / "run")
    result = study["my rff/1"]
    assert result.arrays["eigenvalues"].shape == (1, 20)
    assert result.arrays["reconstruction"].shape == (12, 12, 3)
    summary = ni.summarize(study)
    assert "score_heldout_psnr" in [column.key for column in summary.columns]
    assert len(summary.conclusion) >= 1
    assert ni.write_report(ni.load_study(tmp_path / "run"), tmp_path / "run").exists()


@pytest.mark.slow
def test_a_shape_is_scored_by_its_own_metrics(tmp_path):
    """With a loss that is not on values: no PSNR, no prediction; and no surface at all is no error."""
    task = ni.shape_task("torus", kind="occupancy", points=300, resolution=12)
    study = ni.compare(task, ["relu", "siren"], **{**SMALL, "seeds": 1}, kernel_points=64, out=tmp_path / "run")
    summary = ni.summarize(study)
    keys = [column.key for column in summary.columns]
    assert {"score_iou", "score_chamfer"} <= set(keys)
    assert not [key for key in keys if "predicted" in key or "adam_" in key or "target" in key]
    assert "best IoU with Adam has" in summary.conclusion[0]
    page = ni.write_report(ni.load_study(tmp_path / "run"), tmp_path / "run").read_text()
    assert "300 values trained on" in page
    assert "Gradient descent" not in page


@pytest.mark.slow
def test_kernels_are_of_what_a_task_measures():
    task = ni.tomography_task("shepp-logan", size=12, angles=6)
    study = ni.compare(task, ["siren"], **{**SMALL, "seeds": 1})
    key = jax.random.split(jax.random.key(0), 1)[0]
    apply, params = ni.init(ni.variant("siren", features=16, depth=2), key, task.x)
    m = ni.moments(ni.ntk(task.observe(apply), params, task.x))
    np.testing.assert_allclose(study["siren"].seeds[0]["cv"], m.cv, rtol=1e-4)
    summary = ni.summarize(study)
    assert {"score_psnr", "score_ssim", "gd_20"} <= {column.key for column in summary.columns}
    assert study["siren"].arrays["picture"].shape[2] == 3


def test_one_network_on_a_task_keeps_everything(tmp_path):
    task = ni.load_task("audio", "chord", seconds=0.02)
    settings = {"features": 8, "depth": 1, "steps": 6, "out": tmp_path / "run"}
    found = ni.fit_task(task, "siren", **settings)
    content = json.loads((tmp_path / "run" / RESULTS).read_text())
    assert content["scores"] == pytest.approx(found.scores)
    assert sorted(path.name for path in found.files.values()) == ["figure.png", "reconstruction.wav", RESULTS]
    assert all(path.stat().st_size > 100 for path in found.files.values())
    assert (tmp_path / "run" / "history.jsonl").read_text().count('"kernel"') == 5  # steps 0, 1, 2, 4, 6
    with pytest.raises(FileExistsError, match="--resume"):
        ni.fit_task(task, "siren", **settings)
    again = ni.fit_task(task, "siren", **settings, resume=True)
    jax.tree.map(np.testing.assert_array_equal, again.run.params, found.run.params)
    assert ni.fit_task(task, "siren", **settings, overwrite=True).scores == pytest.approx(found.scores)


def test_seeds_train_one_by_one_where_memory_is_short(task, study, monkeypatch):
    monkeypatch.setattr("ntk_inr.study.compare._DEFAULT_MEMORY", 1)
    alone = ni.compare(task, ["pe"], **SMALL)
    np.testing.assert_allclose(alone["pe"].arrays["adam_psnr"], study["pe"].arrays["adam_psnr"], rtol=1e-3)


def test_nobody_is_fastest_to_what_nobody_reaches(study):
    said = ni.summarize(study, 300.0).conclusion[0]
    assert "no variant reached 300 dB" in said
    assert "fastest" not in said


@pytest.mark.slow
def test_one_variant_and_a_constant_image_still_conclude():
    study = ni.compare(ni.image_task(np.full((4, 4), 0.5), size=None), ["relu"], **{**SMALL, "seeds": 1, "steps": 1})
    assert ni.summarize(study).conclusion[0].startswith("relu has cv")
    assert ni.summarize(study).correlations == []
    with pytest.raises(KeyError, match="not in this study"):
        study["pe"]
    study.variants.clear()
    with pytest.raises(ValueError, match="no finished variant"):
        ni.summarize(study)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": []}, "variants is empty"),
        ({"variants": ["relu", "relu"]}, "names relu more than once"),
        ({"variants": ["sirne"]}, "Did you mean 'siren'"),
        ({"steps": 0}, "steps is 0"),
        ({"seeds": 0}, "seeds is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"resume": True}, "resume needs out="),
        ({"resume": True, "overwrite": True, "out": "nowhere"}, "contradict"),
    ],
)
def test_bad_input(task, change, message):
    with pytest.raises(ValueError, match=message):
        ni.compare(task, **{"variants": ["relu"], **SMALL, **change})


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts what only Linux tells")
def test_programs_are_let_go_of_only_when_maps_run_short():
    function = jax.jit(lambda x: x + 1)
    function(1.0)
    free_programs_if_full()
    assert function._cache_size() == 1
    free_programs_if_full(share=0.0)
    assert function._cache_size() == 0
