import pickle

import numpy as np
import PIL.Image
import pytest

from ntk_inr.tasks import volume, volume_file
from ntk_inr.tasks.volume import volume_task


@pytest.fixture
def video():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 9, 3), dtype=np.uint8)


@pytest.fixture
def small_slabs(monkeypatch):
    """Slabs of one frame, so that what crosses them is tested."""
    monkeypatch.setattr(volume_file, "_SLAB_BYTES", 1)


def nearest(task):
    """Return a predict that looks its coordinates up in the volume."""

    def predict(x):
        places = tuple(((x[:, axis] + 1) / 2 * task.shape[axis]).astype(int) for axis in range(3))
        return task.stack.slab(0, task.shape[0])[places]

    return predict


def test_all_voxels_in_raster_order(video):
    task = volume_task(video)
    assert task.x.shape == (360, 3)
    assert task.heldout is None
    np.testing.assert_allclose(task.y, video.reshape(-1, 3) / 255, rtol=1e-6)
    np.testing.assert_allclose(nearest(task)(task.x), task.y)


@pytest.mark.usefixtures("small_slabs")
def test_drawn_voxels_are_the_right_ones(video):
    task = volume_task(video, rows=100)
    np.testing.assert_allclose(nearest(task)(task.x), task.y)
    x, y = task.heldout
    assert len(x) == 260
    np.testing.assert_allclose(nearest(task)(x), y)
    assert not set(map(tuple, x.tolist())) & set(map(tuple, task.x.tolist()))
    assert task.digest == volume_task(video, rows=100).digest != volume_task(video, rows=100, seed=1).digest


@pytest.mark.usefixtures("small_slabs")
def test_a_file_gives_the_same_as_its_array(tmp_path, video):
    np.save(tmp_path / "v.npy", video)
    task = volume_task(tmp_path / "v.npy", rows=50)
    np.testing.assert_array_equal(task.y, volume_task(video, rows=50).y)
    kept = task.reconstruct(nearest(task))
    np.testing.assert_allclose(kept, video / 255, rtol=1e-6)
    written = task.reconstruct(nearest(task), out=tmp_path / "r.npy")
    assert isinstance(written, np.memmap)
    np.testing.assert_array_equal(written, kept)
    with pytest.raises(FileExistsError):
        task.reconstruct(nearest(task), out=tmp_path / "r.npy")
    np.testing.assert_array_equal(np.load(task.save(kept, tmp_path / "s.npy")), kept)
    assert task.scores(kept)["psnr"] > 140
    assert task.scores(kept)["ssim"] > 0.9999


def test_a_folder_of_images_is_sorted_by_number(tmp_path, video):
    for position, frame in enumerate(video):
        PIL.Image.fromarray(frame).save(tmp_path / f"frame{position + 8}.png")  # 8, 9, 10, 11, 12
    np.testing.assert_array_equal(volume_task(tmp_path).y, volume_task(video).y)
    PIL.Image.fromarray(video[0, :4]).save(tmp_path / "frame13.png")
    with pytest.raises(ValueError, match=r"frame13.* has shape .* but frame8"):
        volume_task(tmp_path)


def test_files_of_several_frames(tmp_path, video):
    task = volume_task(video)
    kept = task.reconstruct(nearest(task))
    np.testing.assert_allclose(volume_task(task.save(kept, tmp_path / "v.tif")).y, task.y, atol=0.5 / 255)
    grey = volume_task(video[..., 0])
    gif = volume_task(grey.save(grey.reconstruct(nearest(grey)), tmp_path / "v.gif"))
    # A GIF comes back in colour, of which all channels are the grey.
    np.testing.assert_allclose(gif.y, np.repeat(grey.y, 3, axis=1), atol=0.5 / 255)
    (tmp_path / "bad.gif").write_text("hello")
    with pytest.raises(ValueError, match="can't be read as an image"):
        volume_task(tmp_path / "bad.gif")


def test_scales():
    def ends(array):
        task = volume_task(array)
        return float(task.y.min()), float(task.y.max())

    ramp = np.arange(8).reshape(2, 2, 2)
    assert ends(ramp / 10) == (0.0, np.float32(0.7))
    assert ends(ramp * 50.0 - 100) == (0.0, 1.0)
    assert ends((ramp * 100).astype(np.uint16)) == (0.0, np.float32(700 / 65535))
    assert ends(ramp > 3) == (0.0, 1.0)
    assert ends(ramp / 7 * 1.0000001) == (0.0, 1.0)
    assert ends(ramp * 0) == (0.0, 0.0)
    counted, marked = (volume_task((ramp > 3).astype(dtype)) for dtype in (np.uint8, bool))
    assert counted.digest != marked.digest


@pytest.mark.usefixtures("small_slabs")
def test_what_pickles_is_where_the_frames_are(tmp_path, monkeypatch, video):
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", np.tile(video, (50, 1, 1, 1)))
    (tmp_path / "frames").mkdir()
    for position, frame in enumerate(video):
        PIL.Image.fromarray(frame).save(f"frames/{position}.png")
    tasks = volume_task("v.npy", rows=9), volume_task("frames", rows=9)
    for task in tasks:
        packed = pickle.dumps(task.stack)
        assert len(packed) < 2000
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "elsewhere")
        np.testing.assert_array_equal(pickle.loads(packed).slab(1, 3), task.stack.slab(1, 3))


def test_images_of_pillow_are_frames(tmp_path, video):
    pictures = [PIL.Image.fromarray(frame) for frame in video]
    np.testing.assert_array_equal(volume_task(pictures).y, volume_task(video).y)
    pictures[0].save(tmp_path / "v.tif", save_all=True, append_images=pictures[1:])
    with PIL.Image.open(tmp_path / "v.tif") as opened:
        np.testing.assert_array_equal(volume_task(opened).y, volume_task(video).y)
    assert volume_task(pictures[0]).shape == (1, 8, 9, 3)
    with pytest.raises(ValueError, match="frames of one size"):
        volume_task([pictures[0], pictures[1].crop((0, 0, 3, 3))])


@pytest.mark.parametrize("high", [1, 255])
def test_pages_of_32_bits_are_as_their_numbers_are_in_bytes(tmp_path, high):
    numbers = np.random.default_rng(0).integers(0, high + 1, (3, 4, 5))
    pages = [PIL.Image.fromarray(page.astype(np.int32)) for page in numbers]
    pages[0].save(tmp_path / "n.tif", save_all=True, append_images=pages[1:])
    for source in (tmp_path / "n.tif", numbers, numbers.astype(np.uint32)):
        np.testing.assert_allclose(volume_task(source).y, numbers.reshape(-1, 1) / high, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_tiff_frames_of_32_bits_are_scaled_by_all_of_them(tmp_path, dtype):
    stack = (np.arange(3 * 4 * 5).reshape(3, 4, 5) * 100).astype(dtype)
    frames = [PIL.Image.fromarray(frame) for frame in stack]
    frames[0].save(tmp_path / "stack.tif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(volume_task(tmp_path / "stack.tif").y, volume_task(stack).y)
    frames[0].save(tmp_path / "0.tif")
    PIL.Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "1.png")
    (tmp_path / "stack.tif").unlink()
    with pytest.raises(ValueError, match="differ in the kind of their numbers"):
        volume_task(tmp_path)


def test_larger_than_memory_is_refused_with_the_way_out(monkeypatch, video):
    monkeypatch.setattr(volume, "_MOST_IN_MEMORY", 1000)
    with pytest.raises(ValueError, match="pass out="):
        volume_task(video).reconstruct(lambda x: x)


def test_the_number_of_outputs_is_checked(video):
    with pytest.raises(ValueError, match="expected \\(n, 3\\): a network with 3 outputs"):
        volume_task(video).reconstruct(lambda x: x[:, :1])


def test_what_is_no_volume(tmp_path):
    (tmp_path / "v.mp4").write_text("x")
    np.savez(tmp_path / "v.npz", np.ones(3))
    (tmp_path / "v.npy").write_text("x")
    (tmp_path / "none").mkdir()
    hole = np.ones((2, 2, 2))
    hole[1, 0, 0] = np.nan
    for source, message in [
        (tmp_path / "v.mp4", "ffmpeg"),
        (tmp_path / "v.npz", "no volume"),
        (tmp_path / "v.npy", "can't be read"),
        (tmp_path / "none", "holds no images"),
        (hole, "1 NaN or infinite values of 8"),
        (np.ones((2, 2)), "expected \\(t, h, w\\)"),
        (np.ones((1, 1, 1)), "1 voxel"),
    ]:
        with pytest.raises(ValueError, match=message):
            volume_task(source)
    with pytest.raises(FileNotFoundError, match="orbits"):
        volume_task("orbit")
