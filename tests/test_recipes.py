"""Recipes: what is published and what was measured, how options override them, and that results state them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import ntk_inr as ni
from benchmarks import recipes as sweep
from ntk_inr.networks.recipes import MEASURED
from ntk_inr.study.pace import Pace
from ntk_inr.study.plan import TrainingOptions, options_from, plans_of

RESULTS = Path(sweep.__file__).parent / "results" / "recipes" / "cpu" / "results.json"
SMALL = {"features": 8, "depth": 1, "steps": 4}


@pytest.fixture(scope="module")
def task():
    return ni.image_task(np.eye(6, dtype=np.float32), size=None, holdout=0.25, seed=0)


def planned(task, name="siren", **options):
    ((net, plan),) = plans_of(task, name, TrainingOptions(**options), **SMALL).values()
    return net, plan


def test_each_default_is_the_best_that_was_measured_within_the_spread_over_seeds():
    rows = sweep.read(RESULTS)
    whole = [name for name in dict.fromkeys(key[0] for key in rows) if len([k for k in rows if k[0] == name]) >= 10]
    assert set(MEASURED) <= set(whole)
    for name in MEASURED:
        mine = {
            key[1:]: np.array(values) for key, values in rows.items() if key[0] == name and np.isfinite(values).all()
        }
        best, own = mine[sweep.best_of(rows, name)], mine[MEASURED[name]]
        spread = max(np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in (best, own))
        assert own.mean() > best.mean() - max(spread, 0.5), name
        assert ni.networks.recipe(name).source.startswith("benchmarks/recipes.py")


def test_every_variant_has_recipes_that_say_where_they_are_from():
    for name in ni.variants():
        for which in ("default", "published", "same"):
            recipe = ni.networks.recipe(name, which)
            assert recipe.source
            assert isinstance(ni.optimizer(**recipe.arguments, steps=10), optax.GradientTransformation)
    unknown = set(ni.variants()) - set(MEASURED)
    assert all(ni.networks.recipe(name).source.startswith("not measured; ") for name in unknown)


@pytest.mark.parametrize(
    ("name", "rate", "others"),
    [
        ("siren", 1e-4, {"schedule": "constant"}),  # --lr of train_img.py
        ("wire", 5e-3, {"schedule": "exponential", "end": 0.1}),  # LambdaLR(0.1 ** (x / niters)) of wire_image_denoise
        ("fouriernet", 1e-2, {"network": {"scale": 256.0}}),  # lr and input_scale of image_rep.py
        ("bacon", 5e-3, {}),  # experiments/config/img/bacon.ini
        ("hash:levels=4", 1e-2, {"settings": {"b2": 0.99, "eps": 1e-15}}),  # config_hash.json
        ("tanh", 1e-3, {}),
    ],
)
def test_published_recipes_are_those_of_the_sources(name, rate, others):
    recipe = ni.networks.recipe(name, "published")
    assert recipe.learning_rate == rate
    assert {key: getattr(recipe, key) for key in others} == others


def test_a_schedule_ends_where_it_is_told_to():
    for schedule in ("cosine", "linear", "exponential"):
        sgd = ni.optimizer("sgd", learning_rate=0.5, schedule=schedule, end=0.1, steps=11)
        state, weight = sgd.init(np.float32(1)), []
        for _ in range(12):
            update, state = sgd.update(np.float32(1), state)
            weight.append(-float(update))
        np.testing.assert_allclose([weight[0], weight[-1]], [0.5, 0.05], rtol=1e-5)
    with pytest.raises(ValueError, match=r'end=0.1 got schedule="constant"'):
        ni.optimizer("adam", end=0.1)


def test_options_override_a_recipe_field_by_field(task):
    recipe = planned(task, "wire", recipe="published", learning_rate=1e-2, clip=1.0)[1].recipe
    assert (recipe.learning_rate, recipe.schedule, recipe.end, recipe.clip) == (1e-2, "exponential", 0.1, 1.0)
    recipe = planned(task, "wire", recipe="published", schedule="cosine")[1].recipe
    assert (recipe.learning_rate, recipe.end) == (5e-3, None)
    recipe = planned(task, "hash", recipe="published", optimizer_set={"b1": 0.8})[1].recipe
    assert recipe.settings == {"b1": 0.8, "b2": 0.99, "eps": 1e-15}
    # Rates and schedules are of their optimizer.
    recipe = planned(task, "hash", recipe="published", optimizer="lion")[1].recipe
    assert (recipe.learning_rate, recipe.schedule, recipe.settings) == (1e-3, "constant", {})
    assert planned(task, "wire", optimizer="lbfgs")[1].recipe.learning_rate is None


def test_a_published_network_is_built_as_published_unless_its_name_says_otherwise(task):
    assert ni.settings_of(planned(task, "fouriernet", recipe="published")[0])["scale"] == 256.0
    assert ni.settings_of(planned(task, "fouriernet:scale=8", recipe="published")[0])["scale"] == 8
    own = ni.settings_of(ni.variant("fouriernet"))["scale"]
    assert ni.settings_of(planned(task, "fouriernet", recipe="same")[0])["scale"] == own
    # Its published recipe is the best that was measured, so that its default is that, scale and all.
    assert ni.settings_of(planned(task, "fouriernet", recipe="default")[0])["scale"] == 256.0
    module = ni.variant("wire", features=8, depth=1)
    assert planned(task, {"wire": module}, recipe="published")[1].recipe.learning_rate == 1e-3


def test_what_can_not_be_trained_is_refused_before_anything_runs(task):
    for options, message in (
        ({"batch_size": 100}, "batch_size=100 is more than the 27 values"),
        ({"optimizer": "lbfgs", "batch_size": 4}, "trained in batches of 4, but optimizer='lbfgs'"),
        ({"recipe": "best"}, "unknown recipe 'best'; known: default, published, same"),
        ({"optimizer": "adma"}, "unknown optimizer 'adma'; known: acprop"),
        ({"warmup": 50, "schedule": "cosine"}, "above warmup"),
    ):
        with pytest.raises(ValueError, match=message):
            ni.compare(task, "relu", **SMALL, **options)
        with pytest.raises(ValueError, match=message):
            ni.fit_task(task, "relu", **SMALL, **options)
    with pytest.raises(TypeError, match=r"called 'learning_rat'.*Did you mean 'learning_rate'"):
        options_from({"learning_rat": 1.0})


def test_a_study_states_each_recipe_and_what_it_read_from_disk_is_the_same(task, tmp_path):
    asked = {"recipe": "published", "batch_size": 8, "weight_decay": 0.0}
    study = ni.compare(task, ["siren", "wire"], **SMALL, seeds=1, out=tmp_path, **asked)
    assert study.settings["recipe"] == "published"
    assert dict(study["siren"].training) == {
        "recipe": "published", "optimizer": "adam", "learning_rate": 1e-4, "schedule": "constant",
        "source": ni.networks.recipe("siren", "published").source, "batch_size": 8,
    }  # fmt: skip
    assert study["wire"].rate == "0.005 exponential to 0.1 of it"
    assert ni.load_study(tmp_path)["wire"].training == study["wire"].training
    rows = ni.summarize(study).rows
    assert [rows[name]["learning_rate"].text for name in ("siren", "wire")] == [
        study[n].rate for n in ("siren", "wire")
    ]
    page = ni.write_report(study, tmp_path).read_text()
    assert "Adam at 0.005 exponential to 0.1 of it (Saragadam et al. 2023" in page
    assert "trained by its recipe “published”" in page
    with pytest.raises(ValueError, match=r"learning_rate of siren was 0.0001, now 0.001"):
        ni.compare(task, ["siren", "wire"], **SMALL, seeds=1, out=tmp_path, resume=True, **asked | {"recipe": "same"})


def test_what_a_task_holds_out_is_the_validation_set_of_its_training(task):
    fitted = ni.fit_task(task, "siren", **SMALL, recipe="same")
    x, y = task.heldout
    error = fitted.run.apply(fitted.run.params, x) - y
    np.testing.assert_allclose(fitted.run.history["validation_psnr"][-1], -10 * np.log10(np.mean(error**2)), rtol=1e-3)


def test_a_pace_adds_the_rates_of_its_schedule_up():
    pace = Pace("adam", "cosine", 0.1, 3, steps=20, factor=0.4)
    rates = optax.join_schedules([optax.linear_schedule(0, 1, 3), optax.cosine_decay_schedule(1, 17, 0.1)], [3])
    done = np.cumsum([float(rates(step)) for step in range(20)])
    np.testing.assert_allclose(pace.effective(np.arange(1, 21)), done, rtol=1e-5)
    np.testing.assert_allclose(pace.effective(60), 3 * done[-1], rtol=1e-5)  # as a longer run of the same schedule
    np.testing.assert_allclose(pace.steps_of(pace.time_of(np.array([5.0, 13.5, 33.0]))), [5.0, 13.5, 33.0], rtol=1e-5)
    np.testing.assert_allclose(pace.share_at(20), float(rates(19)), rtol=1e-5)
    assert Pace("sgd", "constant", None, 0, 20, 0.4).time_of(7.5) == 7.5


def test_tune_predicts_and_recommends_the_recipe_that_its_command_trains():
    chirp = ni.signal_task("chirp", samples=48)
    asked = {"features": 8, "depth": 1, "steps": 40, "refine": 0, "repeats": 1, "pilot": 3}
    found = ni.tune(chirp, "wire", {"omega": [4.0]}, recipe="published", optimizer_set={"b1": 0.8}, **asked)
    expected = "--recipe published --optimizer adam --learning-rate 0.005 --schedule exponential --optimizer-set b1=0.8"
    assert expected in found.command("chirp")
    told = 'recipe="published", optimizer="adam", learning_rate=0.005, schedule="exponential", optimizer_set='
    assert told + "{'b1': 0.8})" in found.snippet()
    assert "optimizer_set" not in ni.tune(chirp, "rff", {"scale": [4.0]}, optimizer_set={}, **asked).settings
    constant = ni.tune(chirp, "wire", {"omega": [4.0]}, recipe="same", learning_rate=5e-3, **asked)
    later = np.array(found.best.curve_steps) / np.array(constant.best.curve_steps)
    # Steps at a tenth of the rate on average count less.
    assert (later >= 1 - 1e-3).all()
    assert later[0, 30] > 1.05


def test_the_sweep_measures_what_fit_does():
    rate = float(sweep.rates_of(1e-2, "cosine", 20)[7])
    assert rate == pytest.approx(1e-2 * 0.5 * (1 + np.cos(np.pi * 7 / 20)), rel=1e-5)
    measured = sweep.measure("siren", 1e-2, "cosine", 0, sweep.QUICK)
    task = ni.load_task("image", "camera", size=8)
    apply, params = ni.init(ni.variant("siren", features=16, depth=1), jax.random.key(0), task.x)
    adam = ni.optimizer("adam", learning_rate=1e-2, schedule="cosine", steps=20)
    run = ni.fit(apply, params, task.x, task.y, optimizer=adam, steps=20)
    assert measured == pytest.approx(float(run.history["psnr"][-1]), abs=0.05)


def test_recipes_are_values():
    recipe = ni.networks.recipe("hash", "published")
    assert hash(recipe) == hash(dataclasses.replace(recipe))
    assert str(ni.networks.recipe("gauss", "published")) == "adam, 0.005 exponential to 0.1 of it"
