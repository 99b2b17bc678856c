"""What holds for every task."""

import functools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import pytest

import ntk_inr as ni
from ntk_inr.tasks import registry, shape
from ntk_inr.tasks.audio import audio_task
from ntk_inr.tasks.grid import grid_coordinates, in_batches
from ntk_inr.tasks.image import image_task
from ntk_inr.tasks.interface import IndirectTask, Task, fingerprint
from ntk_inr.tasks.pde import pde_task
from ntk_inr.tasks.registry import kind_of, load_task
from ntk_inr.tasks.restored import denoising_task, inpainting_task, super_resolution_task
from ntk_inr.tasks.shape import shape_task
from ntk_inr.tasks.signal import signal_task
from ntk_inr.tasks.tomography import tomography_task
from ntk_inr.tasks.volume import volume_task

TASKS = {
    "image": lambda: image_task("camera", size=16, holdout=0.25),
    "colour": lambda: image_task("coffee", size=12),
    "signal": lambda: signal_task("steps", samples=64, holdout=0.5),
    "super-resolution": lambda: super_resolution_task("camera", size=16),
    "denoising": lambda: denoising_task("camera", size=16, noise="poisson"),
    "inpainting": lambda: inpainting_task("chelsea", size=16),
    "audio": lambda: audio_task("chord", seconds=0.02),
    "volume": lambda: volume_task("orbits", rows=100),
    "sdf": lambda: shape_task("sphere", points=60, resolution=12),
    "occupancy": lambda: shape_task("torus", points=60, resolution=12, kind="occupancy"),
    "eikonal": lambda: shape_task("sphere", points=60, resolution=12, kind="eikonal"),
    "tomography": lambda: tomography_task(angles=4, size=12),
    "poisson": lambda: pde_task("poisson", points=4, resolution=8),
    "helmholtz": lambda: pde_task("helmholtz", points=4, resolution=8),
    "heat": lambda: pde_task("heat", points=4, resolution=8),
    "gradients": lambda: pde_task("poisson-gradients", resolution=12),
}


@functools.cache
def built(name):
    return TASKS[name]()


@pytest.fixture(params=list(TASKS))
def task(request, monkeypatch):
    monkeypatch.setattr(shape, "_COMPARED_POINTS", 500)
    monkeypatch.setattr(shape, "_SHOWN_CELLS", 12)
    return built(request.param)


def linear(task):
    """A network without layers, which compiles at once."""
    d = task.x.shape[1]
    params = 0.3 * jax.random.normal(jax.random.key(0), (d, task.channels))
    return (lambda params, x: jnp.asarray(x) @ params), params


def test_the_tasks_have_every_kind_and_class():
    """So that a new one stands in TASKS, and every law is tested on it."""
    tasks = [built(name) for name in TASKS]
    assert {task.kind for task in tasks} == set(registry.TASKS)
    public = {getattr(ni.tasks, name) for name in ni.tasks.__all__ if name.endswith("Task")} - {Task, IndirectTask}
    assert {type(task) for task in tasks} == public


def test_every_task_has_the_interface(task):
    assert isinstance(task, Task)
    assert task.x.dtype == task.y.dtype == np.float32
    assert task.x.shape[0] == task.y.shape[0]
    assert np.abs(task.x).max() <= 1
    assert np.isfinite(task.y).all()
    assert task.data_range > 0
    assert task.sampling is None or 0 < task.sampling < len(task.x)
    assert isinstance(task.loss, str) or callable(task.loss)
    assert hash(task.loss) == hash(task.loss)
    assert len(task.digest) == 16
    again = pickle.loads(pickle.dumps(task))
    assert again.digest == task.digest
    np.testing.assert_array_equal(again.y, task.y)
    if task.heldout is not None:
        assert task.heldout[0].shape[1:] == task.x.shape[1:]
        assert task.heldout[1].shape[1:] == task.y.shape[1:]


def test_rows_are_those_of_x_and_y_in_any_order(task):
    chosen = np.random.default_rng(0).integers(0, task.n, (40,))
    for indices in (chosen, np.sort(chosen), jnp.asarray(chosen[:3]), [0]):
        x, y = task.rows(indices)
        assert x.dtype == y.dtype == np.float32
        np.testing.assert_array_equal(x, task.x[np.asarray(indices)])
        np.testing.assert_array_equal(y, task.y[np.asarray(indices)])
    assert task.n == len(task.x)
    assert task.describe()["values"] == task.y.size


def test_a_task_is_built_again_from_its_origin(task):
    origin = json.loads(json.dumps(task.origin))
    assert load_task(origin["kind"], origin["source"], **origin["settings"]).digest == task.digest


def test_what_is_observed_has_gradients_and_a_loss_per_example(task):
    apply, params = linear(task)
    measured = task.observe(apply)
    prediction, x, y = measured(params, task.x), task.x, jnp.asarray(task.y)
    assert prediction.shape[0] == len(x)
    if callable(task.loss):
        losses = task.loss(prediction, y)
        assert losses.shape == (len(x),)
    else:
        assert prediction.shape == y.shape
    if measured is apply:
        return
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(measured(p, x) ** 2)))(params)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_reconstruction_scores_figure_and_file(task, tmp_path):
    import matplotlib.pyplot as plt

    apply, params = linear(task)
    found = task.reconstruct(lambda x: apply(params, x))
    scores = task.scores(found)
    assert task.metric in scores
    assert all(isinstance(value, float) for value in scores.values())
    for figure in (task.figure(), task.figure(found)):
        figure.savefig(tmp_path / "figure.png", dpi=30)
        plt.close(figure)
    suffix = {"audio": ".wav", "shape": ".ply"}.get(task.kind, ".npy")
    path = task.save(found, tmp_path / f"found{suffix}")
    assert path.stat().st_size > 0
    with pytest.raises(FileExistsError, match="overwrite=True"):
        task.save(found, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["figure.png", f"found{suffix}"]
    with pytest.raises(ValueError, match="expected a name that ends in"):
        task.save(found, tmp_path / "found.unknown")


def test_a_diverged_network_scores_no_number_and_still_draws(task):
    import matplotlib.pyplot as plt

    found = task.reconstruct(lambda x: np.full((len(x), task.channels), np.nan))
    assert not task.scores(found)[task.metric] > 0
    figure = task.figure(found)
    figure.canvas.draw()
    plt.close(figure)


RENDERED = {
    "image": (".npy", 32, (32, 32, 1)), "colour": (".npy", 30, (20, 30, 3)), "signal": (".npy", 100, (100, 1)),
    "super-resolution": (".npy", 20, (20, 20, 1)), "inpainting": (".npy", 4, (3, 4, 3)),
    "volume": (".npy", 8, (6, 8, 8, 3)), "tomography": (".npy", 9, (9, 9, 1)), "poisson": (".npy", 5, (5, 5, 1)),
    "gradients": (".npy", 6, (6, 6, 1)), "audio": (".wav", 320, 320), "occupancy": (".ply", 9, None),
}  # fmt: skip


@pytest.mark.parametrize("name", RENDERED)
def test_a_network_is_rendered_from_a_description_alone(name, tmp_path):
    """At the size that was fitted as it is reconstructed, and at any other."""
    task, (suffix, size, shape) = built(name), RENDERED[name]
    apply, params = linear(task)
    predict, described, steps = functools.partial(apply, params), json.loads(json.dumps(task.describe())), []
    kept = task.save(task.reconstruct(predict), tmp_path / f"kept{suffix}")
    same = ni.tasks.render(described, predict, tmp_path / f"same{suffix}", progress=lambda *done: steps.append(done))
    assert steps[-1][0] == steps[-1][1] > 0
    if suffix == ".npy":
        np.testing.assert_allclose(np.load(same), np.load(kept), atol=1e-6)
    else:
        assert same.read_bytes() == kept.read_bytes()
    other = ni.tasks.render(described, predict, tmp_path / f"other{suffix}", size=size)
    if suffix == ".npy":
        assert np.load(other).shape == shape
    elif suffix == ".wav":
        again = audio_task(other)
        assert (again.n, again.rate) == (shape, 2 * task.rate)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        ni.tasks.render(described, predict, same)
    with pytest.raises(ValueError, match="expected a name that ends in"):
        ni.tasks.render(described, predict, tmp_path / "other.unknown")
    assert len(list(tmp_path.iterdir())) == 3


def test_a_slice_of_a_volume_is_a_picture(tmp_path):
    described = built("volume").describe()

    def predict(x):
        return 0.5 + 0.4 * x

    whole = np.load(ni.tasks.render(described, predict, tmp_path / "whole.npy"))
    for cut, expected in {5: whole[5], "row=3": whole[:, 3], "column=31": whole[:, :, 31]}.items():
        path = ni.tasks.render(described, predict, tmp_path / "cut.npy", slice=cut, overwrite=True)
        np.testing.assert_allclose(np.load(path), expected, atol=1e-6)
    between = np.load(ni.tasks.render(described, predict, tmp_path / "between.npy", slice=2.5, size=64))
    np.testing.assert_allclose(between[::2, ::2, 0].mean(), (whole[2, ..., 0] + whole[3, ..., 0]).mean() / 2, atol=1e-6)
    assert between.shape == (64, 64, 3)
    for cut, message in {24: "from 0 to 23", "depth=3": '"row=40"', "row=x": "expected the number"}.items():
        with pytest.raises(ValueError, match=message):
            ni.tasks.render(described, predict, tmp_path / "no.png", slice=cut)
    with pytest.raises(ValueError, match="is no volume"):
        ni.tasks.render(built("image").describe(), predict, tmp_path / "no.png", slice=0)


PICTURE = np.random.default_rng(0).integers(0, 256, (8, 9), dtype=np.uint8)
TAKEN = {
    "image": (lambda source: image_task(source, size=None), PICTURE),
    "colour": (lambda source: image_task(source, size=None), np.stack([PICTURE] * 3, axis=2)),
    "denoising": (lambda source: denoising_task(source, size=None), PICTURE / np.float32(255)),
    "inpainting": (lambda source: inpainting_task(source, size=None), PICTURE),
    "mask": (lambda missing: inpainting_task(PICTURE, missing=missing, size=None), PICTURE > 99),
    "signal": (signal_task, PICTURE.astype(np.int32)),
    "audio": (lambda source: audio_task(source, rate=8), np.sin(PICTURE[0], dtype=np.float32)),
    "volume": (volume_task, np.stack([PICTURE] * 2)),
    "tomography": (lambda source: tomography_task(source, size=8, angles=3), PICTURE),
    "angles": (lambda angles: tomography_task(size=8, angles=angles), np.arange(5.0)),
    "gradients": (lambda source: pde_task("poisson-gradients", image=source), PICTURE),
}
HOLDERS = {
    "JAX": jnp.asarray,
    "lists": np.ndarray.tolist,
    "the other byte order": lambda array: array.astype(array.dtype.newbyteorder("S")),
    "neither contiguous nor writable": lambda array: np.broadcast_to(array[..., None], (*array.shape, 2))[..., 0],
}


@pytest.mark.parametrize("name", list(TAKEN))
@pytest.mark.parametrize("holder", list(HOLDERS))
def test_numbers_count_whatever_holds_them(name, holder):
    make, array = TAKEN[name]
    np.testing.assert_array_equal(make(HOLDERS[holder](array)).y, make(array).y)


@pytest.mark.parametrize("name", ["denoising", "audio"])
def test_half_precision_holds_numbers_too(name):
    make, array = TAKEN[name]
    for dtype in (jnp.bfloat16, jnp.float16):
        half = jnp.asarray(array, dtype)
        np.testing.assert_array_equal(make(half).y, make(np.asarray(half, np.float32)).y)


@pytest.mark.parametrize("name", list(TAKEN))
def test_what_is_masked_is_never_taken_for_known(name):
    make, array = TAKEN[name]
    np.testing.assert_array_equal(make(np.ma.array(array)).y, make(array).y)
    hidden = np.ma.array(array, mask=np.arange(array.size).reshape(array.shape) == 1)
    for source in (hidden, list(hidden)):
        with pytest.raises(ValueError, match=r"1 masked values.*filled\(value\)"):
            make(source)


@pytest.mark.parametrize("source", [None, [[1.0], [1.0, 2.0]], np.array(["a", "b"]), np.array(3.0), 5, {}])
def test_what_holds_no_numbers_is_refused_in_our_words(unchecked, source):
    for make, _ in [TAKEN[name] for name in ("image", "signal", "audio", "volume")] + [(shape_task, None)]:
        with pytest.raises((TypeError, ValueError), match=r"expected|different lengths"):
            make(source)


def test_a_folder_does_not_hide_what_is_bundled_but_a_file_does(tmp_path, monkeypatch):
    bundled = {
        "camera": ("image", {"size": 8}),
        "shepp-logan": ("tomography", {"size": 8, "angles": 2}),
        "orbits": ("volume", {"rows": 9}),
        "torus": ("shape", {"points": 10}),
        "chord": ("audio", {}),
        "sines": ("signal", {}),
        "poisson-gradients": ("pde", {"resolution": 8}),
    }
    monkeypatch.chdir(tmp_path)
    (tmp_path / "camera").mkdir()  # what pde_task takes, too
    for name, (kind, settings) in bundled.items():
        expected = load_task(kind, name, **settings).digest
        (tmp_path / name).mkdir(exist_ok=True)
        assert load_task(kind, name, **settings).digest == expected
        assert kind_of(name) == kind
    PIL.Image.fromarray(PICTURE).save("orbits/0.png")
    assert volume_task("./orbits").shape == volume_task(tmp_path / "orbits").shape == (1, 8, 9, 1)
    (tmp_path / "camera").rmdir()
    PIL.Image.fromarray(PICTURE).save("camera", format="png")
    assert image_task("camera").image.shape == (8, 9, 1)


def test_a_task_of_derivatives_trains():
    """What the interface's docstring shows, with the loss that fit has."""
    task = pde_task("helmholtz", points=10, frequencies=(0.5, 1.0), resolution=16)
    apply, params = ni.init(ni.variant("siren", features=16, depth=1), jax.random.key(0), task.x)
    result = ni.fit(task.observe(apply), params, task.x, task.y, optimizer=optax.adam(3e-3), steps=60)
    assert result.losses[-1] < 0.5 * result.losses[0]


def test_microbatches_change_nothing_and_keep_one_shape():
    x = grid_coordinates((7, 3))
    shapes = set()

    def predict(x):
        shapes.add(x.shape)
        return x[:, :1] * 2 + x[:, 1:]

    np.testing.assert_array_equal(in_batches(predict, x, 1, batch=4), predict(x))
    assert shapes == {(4, 2), (21, 2)}
    np.testing.assert_array_equal(in_batches(predict, x, 1, batch=100), predict(x))
    with pytest.raises(ValueError, match="expected \\(n, 3\\)"):
        in_batches(predict, x, 3)


def test_fingerprints_tell_shapes_and_types_apart():
    a = np.zeros((2, 3), np.float32)
    assert fingerprint(a, 1) == fingerprint(a.copy(), 1)
    assert len({fingerprint(a, 1), fingerprint(a, 2), fingerprint(a.T, 1), fingerprint(a.astype(np.int32), 1)}) == 4
