"""What tasks do with signals that are large beside memory; the limits are lowered, so that small ones are."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import scipy.io.wavfile

import ntk_inr as ni
from ntk_inr.tasks import cost, grid, image, interface, metrics, pictures, volume, volume_file, wav
from ntk_inr.tasks.grid import GridPoints, grid_coordinates, in_batches
from ntk_inr.tasks.image import training_rows

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)


@pytest.mark.parametrize("sides", [(7,), (5, 3), (4, 3, 6)])
def test_places_of_a_grid_are_those_of_its_array(sides):
    whole, points = grid_coordinates(sides), GridPoints(sides)
    axes = [(2 * np.arange(side) + 1) / side - 1 for side in sides]
    np.testing.assert_allclose(
        whole, np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(sides)), rtol=1e-6
    )
    for start in range(len(whole)):
        for stop in range(start, len(whole) + 1, 2):
            np.testing.assert_array_equal(points[start:stop], whole[start:stop])
    np.testing.assert_array_equal(points[np.arange(len(whole))[::-1]], whole[::-1])


def test_a_network_is_traced_once_and_its_parameters_are_no_constants():
    traces = []

    def predict(x):
        traces.append(type(x))
        return jnp.tanh(x @ weights)

    weights = jnp.ones((2, 3))
    x = grid_coordinates((10, 7))
    steps = []
    found = in_batches(predict, x, 3, batch=16, progress=lambda done, total: steps.append((done, total)))
    np.testing.assert_allclose(found, np.tanh(x @ np.ones((2, 3))), rtol=1e-5)
    assert len(traces) == 1
    assert steps == [(16, 70), (32, 70), (48, 70), (64, 70), (70, 70)]
    program = grid.compiled(predict, (16, 2))
    assert jax.make_jaxpr(program)(x[:16]).consts  # the weights, handed in


def test_what_is_no_function_of_jax_is_called_as_it_is():
    table = np.arange(70.0).reshape(10, 7)

    def predict(x):
        row, column = (((x[:, axis] + 1) / 2 * side).astype(int) for axis, side in enumerate(table.shape))
        return table[row, column][:, None]

    found = in_batches(predict, GridPoints((10, 7)), 1, batch=16, finish=lambda values: 2 * values)
    np.testing.assert_array_equal(found[:, 0], 2 * np.arange(70))


def test_all_rows_at_once_are_refused_and_a_minibatch_is_not(monkeypatch):
    task = ni.image_task(PICTURE)
    monkeypatch.setattr(interface, "MOST_IN_MEMORY", 1000)
    with pytest.raises(ValueError, match=r"744 rows and would take 14\.9 kB.*task\.rows\(indices\).*a smaller size="):
        _ = task.x
    with pytest.raises(ValueError, match="fewer rows="):
        _ = ni.volume_task(PICTURE[None]).y
    assert task.rows([0, 743])[1].shape == (2, 3)
    assert "744" in repr(task)
    assert "744" in str(task)
    assert task.describe()["values"] == 3 * 744


def test_chunks_and_strips_change_no_figure(monkeypatch):
    task = ni.image_task(PICTURE, holdout=0.3)
    noisy = np.clip(task.image + np.random.default_rng(1).normal(0, 0.1, task.image.shape), 0, 1)
    whole, bytes_, error = task.scores(noisy), pictures.eight_bit_pixels(noisy), pictures.error_panel(noisy, task.image)
    sound = ni.audio_task("sweep")
    decibels = sound.scores(0.9 * sound.samples)
    monkeypatch.setattr(metrics, "_PART", 500)
    monkeypatch.setattr(pictures, "_STRIP", 200)
    for name, value in task.scores(noisy).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-12)
    np.testing.assert_array_equal(pictures.eight_bit_pixels(noisy), bytes_)
    np.testing.assert_allclose(pictures.error_panel(noisy, task.image).values, error.values)
    for name, value in sound.scores(0.9 * sound.samples).items():
        np.testing.assert_allclose(value, decibels[name], rtol=1e-9)


def test_a_share_of_many_rows_is_drawn_chunk_by_chunk(monkeypatch):
    monkeypatch.setattr(image, "_CHUNK", 100)
    train = training_rows(1050, 0.3, 0)
    assert (~train).sum() == 315
    counts = [(~train[start : start + 100]).sum() for start in range(0, 1050, 100)]
    assert 10 < min(counts[:-1]) < max(counts) < 50
    assert (train == training_rows(1050, 0.3, 0)).all()
    assert (train != training_rows(1050, 0.3, 1)).any()


def test_rows_that_are_held_out_are_bounded(monkeypatch):
    monkeypatch.setattr(interface, "MOST_HELDOUT", 20)
    task = ni.image_task(PICTURE, holdout=0.5)
    x, y = task.heldout
    assert x.shape == (20, 2)
    places = {tuple(row) for row in task.x.tolist()}
    assert not places & {tuple(row) for row in x.tolist()}
    assert y.shape == (20, 3)


@pytest.mark.parametrize(("dtype", "middle", "full"), [("i2", 0, 32768), ("f4", 0, 1), ("u1", 128, 128)])
def test_sound_is_read_part_by_part(tmp_path, monkeypatch, dtype, middle, full):
    sound = np.random.default_rng(0).uniform(-0.9, 0.9, (1001, 2))
    stored = (full * sound + middle).astype(dtype)
    scipy.io.wavfile.write(tmp_path / "sound.wav", 8000, stored)
    whole = wav.read_wav(tmp_path / "sound.wav")
    monkeypatch.setattr(wav, "_PART", 64)
    parts = wav.read_wav(tmp_path / "sound.wav")
    np.testing.assert_array_equal(parts.channels, whole.channels)
    np.testing.assert_allclose(whole.channels, (stored.astype(float) - middle) / full, atol=1e-7)
    assert (parts.rate, parts.eight_bit) == (8000, dtype == "u1")


def test_frames_of_files_are_decoded_once_and_many_of_them_to_disk(tmp_path, monkeypatch):
    for position in range(4):
        PIL.Image.fromarray(PICTURE[position:][:20]).save(tmp_path / f"{position}.png")
    expected = np.stack([PICTURE[position:][:20] for position in range(4)]) / np.float32(255)
    monkeypatch.setattr(volume_file, "_MOST_IN_MEMORY", 100)
    task = ni.volume_task(tmp_path)
    assert isinstance(task.stack.read.array, np.memmap)
    monkeypatch.setattr(volume_file, "load_frame", None)  # nothing is read again
    chosen = np.random.default_rng(0).integers(0, task.n, 50)
    np.testing.assert_allclose(task.rows(chosen)[1], expected.reshape(-1, 3)[chosen], rtol=1e-6)
    monkeypatch.undo()
    monkeypatch.setattr(volume_file, "_MOST_IN_MEMORY", 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 10))
    with pytest.raises(ValueError, match=r"frames take 7\.44 kB decoded.*set TMPDIR"):
        ni.volume_task(tmp_path)


@pytest.mark.parametrize("kind", ["image", "audio", "volume", "signal", "shape", "tomography", "pde"])
def test_what_would_fail_at_the_end_is_refused_before(kind, tmp_path, monkeypatch):
    source, settings, suffix, smaller = {
        "image": ("camera", {"size": 16}, ".png", "a smaller size="),
        "audio": ("chord", {"seconds": 0.1}, ".wav", "fewer seconds="),
        "volume": ("orbits", {}, ".npy", "fewer rows="),
        "signal": ("steps", {}, ".csv", "a shorter signal"),
        "shape": ("torus", {"points": 20, "resolution": 8}, ".ply", "a smaller resolution="),
        "tomography": ("shepp-logan", {"size": 16}, ".png", "a smaller size="),
        "pde": ("poisson", {}, ".npy", "a smaller resolution="),
    }[kind]
    task, out = ni.load_task(kind, source, **settings), tmp_path / f"new/found{suffix}"
    task.check(out=out)
    assert not out.parent.exists()
    with pytest.raises(ValueError, match="expected a name that ends in"):
        task.check(out=tmp_path / "found.unknown")
    with monkeypatch.context() as patch:
        patch.setattr(cost, "available_on_host", lambda: 10)
        with pytest.raises(ValueError, match=f"reconstruction of .* of memory and there are 10 B; take {smaller}"):
            task.check()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 10))
        with pytest.raises(ValueError, match=r"of disk and .* has 10 B left"):
            task.check(out=out)
        with pytest.raises(ValueError, match=r"of disk and .* has 10 B left"):
            ni.tasks.render(task.describe(), lambda x: x, out)
    out.parent.mkdir()
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        task.check(out=out)


def test_a_missing_package_is_named_before(monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    task = ni.shape_task("torus", points=20, resolution=8)
    task.check()
    with pytest.raises(ImportError, match=r'trimesh is missing.*"ntk-inr\[shape\]"'):
        task.check(out="found.ply")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_a_reconstruction_that_fails_in_the_middle_loses_nothing(tmp_path, monkeypatch, error, suffix):
    monkeypatch.setattr(volume, "in_batches", lambda *args, **kwargs: in_batches(*args, batch=100, **kwargs))
    task, path = ni.volume_task(PICTURE[None]), tmp_path / f"found{suffix}"
    path.write_text("older")

    def stop(done, total):
        if done > 300:
            raise error("full")

    with pytest.raises(error):
        task.reconstruct(lambda x: x, out=path, overwrite=True, progress=stop)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "older"
    task.reconstruct(lambda x: x, out=path, overwrite=True)
    assert path.stat().st_size > 1000


def test_a_reduced_picture_says_so():
    assert ni.image_task("camera").summary == "camera 512 × 512"
    task = ni.image_task(np.zeros((800, 1200), np.uint8) + np.arange(1200, dtype=np.uint8))
    assert task.summary == "array 1200 × 800, fitted at 512 × 341"
    described = json.loads(json.dumps(task.describe()))
    assert described["summary"] == task.summary
    assert (described["rows"], described["values"], described["noun"]) == (512 * 341, 512 * 341, "pixels")
    assert ni.volume_task("orbits", rows=100).summary == "orbits 24 × 32 × 32, fitted at 100 of 24,576 voxels"
    assert ni.audio_task("chord").summary == "chord, 1 s at 8000 Hz"


_PHOTO = """
import pathlib, re, sys, functools, numpy as np, jax, jax.numpy as jnp, ntk_inr as ni
task = ni.image_task(sys.argv[1], size=None)
params = 0.1 * jax.random.normal(jax.random.key(0), (2, 3))
predict = lambda x: jnp.sin(x @ params)
rng = np.random.default_rng(0)
for _ in range(3):
    task.rows(rng.integers(0, task.n, 65536))
task.check(out=sys.argv[2])
found = task.reconstruct(predict, out=sys.argv[2])
task.scores(found)
task.figure(found).savefig(sys.argv[2] + ".figure.png")
# Not getrusage, whose maximum begins with what the process that started this one had.
print(task.summary, re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="says how much memory was taken at most")
def test_a_photo_of_eight_megapixels_goes_end_to_end_within_memory(tmp_path):
    rows, columns = np.ogrid[:2160, :3840]
    photo = np.stack([rows % 256 + 0 * columns, columns % 256 + 0 * rows, (rows * columns // 997) % 256], axis=-1)
    PIL.Image.fromarray(photo.astype(np.uint8)).save(tmp_path / "photo.png", compress_level=1)
    command = [sys.executable, "-c", _PHOTO, str(tmp_path / "photo.png"), str(tmp_path / "found.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *words, kilobytes = done.stdout.split()
    assert " ".join(words) == "photo.png 3840 × 2160"
    assert int(kilobytes) < 2 * 2**20, "the whole process took more than 2 GiB"
    with PIL.Image.open(tmp_path / "found.png") as picture:
        assert picture.size == (3840, 2160)
