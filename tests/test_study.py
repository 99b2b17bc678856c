import csv
import dataclasses
import functools
import json
import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import ntk_inr as ni
from ntk_inr._results import Record
from ntk_inr.study.derivatives import check_derivatives
from ntk_inr.study.description import additions, describe
from ntk_inr.study.figures import convergence_figure, save_figure
from ntk_inr.study.programs import free_programs_if_full
from ntk_inr.study.record import RESULTS, Study, VariantResult, _arrays_path
from ntk_inr.study.report import write_csv
from ntk_inr.tasks.metrics import EXACT

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
    run = ni.fit(
        *model, task.x, task.y, optimizer=ni.optimizer(**ni.networks.recipe("pe").arguments, steps=20), steps=20
    )
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
    assert set(summary.rows) == set(NAMES)
    for result in study.variants:
        assert np.isfinite(result.steps_to(summary.target_psnr)).all()
    cvs = {name: row["cv"].mean for name, row in summary.rows.items()}
    assert [name for name, row in summary.rows.items() if row["cv"].best] == [min(cvs, key=cvs.get)]
    said = " ".join(summary.conclusion)
    assert "Lowest cv at initialisation: pe+hadamard with " in said
    assert re.search(r"With normalization Sphere\(.*\) added: pe to pe\+sphere, PSNR ", said)
    spread = np.std(study["pe"].over_seeds("cv"), ddof=1)
    np.testing.assert_allclose(summary.rows["pe"]["cv"].spread, spread)


def doubled(study):
    """Return a study of the same variants and of twins of them, which are a little better conditioned."""
    twins = []
    for result in study.variants:
        seeds = [seed | {"cv": 0.9 * seed["cv"]} for seed in result.seeds]
        twins.append(dataclasses.replace(result, name=f"{result.name} twin", seeds=seeds))
    return dataclasses.replace(study, variants=[*study.variants, *twins])


def test_correlations_have_the_right_sign(study):
    """Against ranks computed by hand, a correlation of +1 must mean: lower cv, fewer steps; not below six networks."""
    assert ni.summarize(study).correlations == []
    summary = ni.summarize(doubled(study))
    found = {(c.figure, c.speed): c.rho for c in summary.correlations}
    cv = scipy.stats.rankdata([row["cv"].mean for row in summary.rows.values()])
    gd = scipy.stats.rankdata([-row["gd_20"].mean for row in summary.rows.values()])
    np.testing.assert_allclose(found["cv", "gd_20"], np.corrcoef(cv, gd)[0, 1])
    five = dataclasses.replace(study, variants=doubled(study).variants[:5])
    assert "Spearman" not in " ".join(ni.summarize(five).conclusion)


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
    assert (content["schema"], content["version"]) == ("ntk_inr.study", 3)
    assert set(content["settings"]) >= {"features", "depth", "steps", "seeds", "seed", "recipe", "kernel_points"}
    assert set(content["environment"]) >= {"ntk_inr", "jax", "flax", "optax", "python", "device"}
    trained = content["variants"][0]["training"]
    assert {"recipe", "optimizer", "learning_rate", "schedule", "source"} <= set(trained)
    assert trained["batch_size"] == 100
    assert content["variants"][1]["numbers"] == {"features": 16, "depth": 2, "encoding.bands": 6}
    assert {entry["kind"] for entry in content["variants"]} == {"network"}
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
    assert [row["variant"] for row in rows] == list(ni.summarize(study).rows)
    by_name = {row["variant"]: row for row in rows}
    np.testing.assert_allclose(float(by_name["pe"]["cv"]), study["pe"].over_seeds("cv").mean())


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
    with pytest.raises(FileExistsError, match="continue it with resume=True"):
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
    assert summary.conclusion[0].startswith("Best IoU after 20 steps of Adam: ")
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
    settings = {"features": 8, "depth": 1, "steps": 6, "out": tmp_path / "run", "record_kernel": True}
    found = ni.fit_task(task, "siren", **settings)
    content = json.loads((tmp_path / "run" / RESULTS).read_text())
    assert content["scores"] == pytest.approx(found.scores)
    written = ["figure.png", "network.safetensors", "reconstruction.wav", RESULTS]
    assert sorted(path.name for path in found.files.values()) == written
    assert all(path.stat().st_size > 100 for path in found.files.values())
    assert (tmp_path / "run" / "history.jsonl").read_text().count('"kernel"') == 5  # steps 0, 1, 2, 4, 6
    with pytest.raises(FileExistsError, match="continue it with resume=True"):
        ni.fit_task(task, "siren", **settings)
    again = ni.fit_task(task, "siren", **settings, resume=True)
    jax.tree.map(np.testing.assert_array_equal, again.run.params, found.run.params)
    assert ni.fit_task(task, "siren", **settings, overwrite=True).scores == pytest.approx(found.scores)


def test_a_network_is_described_alike_in_every_process():
    """That is how another process knows it again; addresses would differ."""
    said = describe(ni.CoordinateMLP(features=8, depth=1, activation=functools.partial(jax.nn.relu)))
    assert "activation=functools.partial(" in said
    assert "0x" not in said


def test_seeds_train_one_by_one_where_memory_is_short(task, study, monkeypatch):
    monkeypatch.setattr("ntk_inr.study.measurement._DEFAULT_MEMORY", 1)
    alone = ni.compare(task, ["pe"], **SMALL)
    np.testing.assert_allclose(alone["pe"].arrays["adam_psnr"], study["pe"].arrays["adam_psnr"], rtol=1e-3)


def test_nobody_is_fastest_to_what_nobody_reaches(study):
    said = " ".join(ni.summarize(study, 300.0).conclusion)
    assert "No variant reached 300 dB" in said
    assert "Fastest" not in said


@pytest.mark.slow
def test_one_variant_and_a_constant_image_still_conclude():
    study = ni.compare(ni.image_task(np.full((4, 4), 0.5), size=None), ["relu"], **{**SMALL, "seeds": 1, "steps": 1})
    assert ni.summarize(study).conclusion[0].startswith("relu has PSNR ")
    assert ni.summarize(study).conclusion[1].startswith("Its kernel has cv")
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
        ({"resume": True}, "resume=True needs out="),
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


def made(scores, *, psnr=None, status=None, **task):
    """Return a study of three seeds a variant that was not trained: ``{variant: {score: values}}``."""
    described = {"kind": "image", "name": "made", "metric": "psnr", "data_range": 1.0, "loss": "mse", "descends": False}
    described |= {"eight_bit": False, "eight_bit_curves": False, **task}
    variants = []
    for place, (name, own) in enumerate(scores.items()):
        seeds = []
        for seed in range(3):
            figures = dict.fromkeys(["ntk_mean", "ntk_variance", "effective_rank", "condition_number"], 2.0 + place)
            figures |= {
                "cv": 10.0 - place,
                "condition_resolved": True,
                "adam_status": (status or {}).get(name, ["finished"] * 3)[seed],
            }
            seeds.append(Record(figures | {f"score_{key}": values[seed] for key, values in own.items()}))
        curve = np.linspace(5, (psnr or {}).get(name, 20.0), 11, dtype=np.float32)
        curves = {"adam_psnr": np.tile(curve, (3, 1)), "adam_seconds": np.tile(np.arange(11.0), (3, 1))}
        variants.append(VariantResult(name, "Made()", 10, seeds, curves))
    settings = {"steps": 10, "seeds": 3, "learning_rate": 1e-3}
    return Study(Record(described), Record(settings), Record(), None, variants)


def starred(summary, key):
    return [name for name, row in summary.rows.items() if row[key].best]


def test_networks_are_compared_by_their_modules_not_by_their_names():
    plain, power, other = ni.CoordinateMLP(8, 2), lambda u: u**2, lambda u: u**3
    assert additions({"net": plain, "net+sphere": ni.CoordinateMLP(8, 2), "net+hadamard": ni.CoordinateMLP(8, 2)}) == []
    found = additions(
        {
            "a": ni.CoordinateMLP(8, 2, activation=power),
            "b": ni.CoordinateMLP(8, 2, activation=other, normalization="sphere"),  # another function, of the same name
            "c": ni.CoordinateMLP(8, 2, activation=power, normalization="sphere"),
            "d": ni.CoordinateMLP(9, 2, activation=power, sparsity=ni.TopK(k=2)),  # wider, too
        }
    )
    assert [(change.base, change.name, change.component) for change in found] == [("a", "c", "normalization")]


def test_variants_rank_by_the_tasks_own_metric_and_kernels_come_after():
    """A field that is learnt fast may have a surface that is not."""
    scores = {"siren": {"iou": [0.85, 0.86, 0.84]}, "relu": {"iou": [0.96, 0.96, 0.95]}}
    summary = ni.summarize(made(scores, psnr={"siren": 60, "relu": 20}, kind="shape", metric="iou"))
    assert summary.conclusion[0].startswith("Best IoU after 10 steps of Adam: relu with 0.957")
    assert list(summary.rows) == ["relu", "siren"]
    assert next(iter(summary.groups)) == "quality"
    kernels = [place for place, said in enumerate(summary.conclusion) if "cv" in said]
    assert kernels
    assert min(kernels) > 0


@pytest.mark.parametrize(
    ("metric", "scores", "best", "key"),
    [
        ("psnr", {"psnr": {"a": [50.0] * 3, "b": [30.0] * 3}, "heldout_psnr": {"a": [9.0] * 3, "b": [20.0] * 3}},
         ["b"], "score_heldout_psnr"),
        ("psnr", {"psnr": {"a": [50.0] * 3, "b": [30.0] * 3}, "missing_psnr": {"a": [9.0] * 3, "b": [20.0] * 3}},
         ["b"], "score_missing_psnr"),
        ("relative_l2", {"relative_l2": {"a": [0.5] * 3, "b": [0.1] * 3}}, ["b"], "score_relative_l2"),
        ("mine", {"mine": {"a": [0.5] * 3, "b": [0.9] * 3}}, ["b"], "score_mine"),
        # Of those within two standard errors none is the best.
        ("snr", {"snr": {"a": [29.0, 31.0, 33.0], "b": [28.0, 30.0, 32.0], "c": [9.0, 9.1, 9.2]}},
         ["a", "b"], "score_snr"),
        ("snr", {"snr": {"a": [7.0] * 3, "b": [7.0] * 3}}, [], "score_snr"),
        ("snr", {"snr": {"a": [7.0, None, 9.0], "b": [5.0] * 3, "c": [4.0] * 3}}, ["b"], "score_snr"),
    ],
)  # fmt: skip
def test_the_mark_is_for_what_is_better_for_sure(metric, scores, best, key):
    names = list(next(iter(scores.values())))
    by_variant = {name: {score: values[name] for score, values in scores.items()} for name in names}
    summary = ni.summarize(made(by_variant, metric=metric))
    assert summary.goal.key == key
    assert starred(summary, key) == best
    assert next(iter(summary.rows)) in (best or names)


def test_what_diverged_in_a_seed_is_not_ranked():
    scores = {"wild": {"psnr": [40.0] * 3}, "tame": {"psnr": [20.0] * 3}, "dull": {"psnr": [10.0] * 3}}
    summary = ni.summarize(made(scores, status={"wild": ["finished", "diverged", "finished"]}))
    assert list(summary.rows) == ["tame", "dull", "wild"]
    assert starred(summary, "score_psnr") == ["tame"]
    assert "wild in 1 of 3 seeds" in " ".join(summary.conclusion)


def test_baselines_are_of_a_kind_of_their_own(tmp_path):
    study = made({"siren": {"psnr": [30.0] * 3}, "relu": {"psnr": [18.0] * 3}}, kind="tomography")
    baseline = Record({"name": "filtered back projection", "kind": "baseline", "scores": {"psnr": 28.4}})
    study = dataclasses.replace(study, baselines=(baseline,))
    for result in study.variants:
        result.arrays["kernel"] = result.arrays["eigenvalues"] = np.ones((1, 1))
    again = ni.load_study(study.save(tmp_path / "new").parent)
    # Before, each seed had the baseline's score, which made a column whose cells were all the best.
    content = json.loads((tmp_path / "new" / RESULTS).read_text())
    for key in ("baselines", "additions", "warnings"):
        del content[key]
    for entry in content["variants"]:
        del entry["kind"], entry["numbers"]
        entry["seeds"] = [seed | {"score_fbp_psnr": 28.4} for seed in entry["seeds"]]
    (tmp_path / "new" / RESULTS).write_text(json.dumps(content | {"version": 2}))
    for each in (again, ni.load_study(tmp_path / "new")):
        summary = ni.summarize(each)
        assert list(summary.rows) == ["siren", "relu"]
        line = summary.lines("quality")["filtered back projection (baseline)"]
        assert [(cell.text, cell.best) for cell in line] == [("28.4", False)]
        assert "Baseline, filtered back projection: PSNR 28.4 dB; better is siren." in summary.conclusion
        figure = convergence_figure(each, summary)
        assert "filtered back projection\n(baseline)" in figure.axes[0].get_legend_handles_labels()[1]
        write_csv(summary, tmp_path / "table.csv")
        kinds = [row["kind"] for row in csv.DictReader((tmp_path / "table.csv").read_text().splitlines())]
        assert kinds == ["network", "network", "baseline"]


def test_psnr_beyond_8_bits_is_exact_everywhere():
    scores = {"a": {"psnr": [70.0, 90.0, 141.0]}, "b": {"psnr": [50.0, 55.0, 90.0]}, "c": {"psnr": [80.0, 61.0, 61.0]}}
    study = made(scores, psnr=dict.fromkeys("abc", 100.0), eight_bit=True, eight_bit_curves=True)
    summary = ni.summarize(study)
    texts = {name: row["score_psnr"].text for name, row in summary.rows.items()}
    assert texts == {"a": EXACT, "b": "55.0 ± 5.0", "c": EXACT}
    assert starred(summary, "score_psnr") == []  # b's seeds differ by more than is between them
    assert summary.rows["a"]["score_psnr"].mean == pytest.approx(301 / 3)
    assert summary.rows["a"]["adam_10"].text == EXACT
    assert summary.target_psnr == 60
    assert any("58.9 dB" in note for note in summary.notes)
    axis = convergence_figure(study, summary).axes[0]
    assert EXACT in [text.get_text() for text in axis.texts]
    assert axis.get_ylim()[1] < 65
    raw = ni.summarize(made(scores, psnr=dict.fromkeys("abc", 100.0)))
    assert (raw.rows["c"]["score_psnr"].text, raw.target_psnr) == ("67.3 ± 11", 100)
    assert list(raw.rows) == ["a", "c", "b"]


def test_a_task_of_second_derivatives_warns_of_networks_without_them(tmp_path):
    """Before training, in what is kept, and with the settings that defaults stood for."""
    task = ni.pde_task("poisson", points=4, resolution=8)
    with pytest.warns(UserWarning, match="The Laplacian of relu is zero"):
        found = ni.fit_task(task, "relu", features=8, depth=1, steps=1, recipe="same", out=tmp_path / "run")
    assert found.run.status == "finished"
    content = json.loads((tmp_path / "run" / RESULTS).read_text())
    assert "Laplacian" in content["warnings"][0]
    used = {"features": 8, "depth": 1, "learning_rate": 1e-3, "schedule": "constant", "batch_size": len(task.x)}
    assert content["settings"] == content["settings"] | used
    study = dataclasses.replace(made({"relu": {"psnr": [9.0] * 3}}), warnings=tuple(content["warnings"]))
    assert content["warnings"][0] in ni.summarize(study).conclusion
    assert check_derivatives(task, {"siren": ni.variant("siren", features=8, depth=1)}) == []
    once = ni.pde_task("poisson-gradients", resolution=8)
    assert check_derivatives(once, {"relu": ni.variant("relu", features=8, depth=1)}) == []


@pytest.mark.slow
def test_voxels_held_out_are_what_a_volume_is_ranked_by():
    task = ni.volume_task("orbits", rows=300)
    study = ni.compare(task, ["relu"], **{**SMALL, "seeds": 1}, kernel_points=32)
    assert ni.summarize(study).goal.key == "score_heldout_psnr"


def test_arrays_lie_under_names_that_every_system_takes(tmp_path):
    assert _arrays_path(tmp_path, "siren:omega=10").name == "siren_omega=10.npz"
    (tmp_path / "arrays").mkdir()
    (tmp_path / "arrays" / "a:b.npz").touch()  # of version 0.1
    assert _arrays_path(tmp_path, "a:b").name == "a:b.npz"
