import numpy as np
import PIL.Image
import pytest
import skimage.data
import skimage.metrics

import ntk_inr as ni
from ntk_inr.tasks.metrics import EXACT


@pytest.fixture
def save(tmp_path):
    def write(array, name, **options):
        path = tmp_path / name
        picture = array if isinstance(array, PIL.Image.Image) else PIL.Image.fromarray(array)
        picture.save(path, **options)
        return path

    return write


@pytest.fixture
def ramp():
    return np.linspace(0, 1, 48).reshape(6, 8)


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def load(path, **options):
    return ni.image_task(path, size=None, **options).image


@pytest.mark.parametrize(("name", "channels"), [("camera", 1), ("astronaut", 3), ("coffee", 3), ("chelsea", 3)])
def test_bundled_images(name, channels):
    task = ni.image_task(name, size=32)
    assert max(task.image.shape[:2]) == 32
    assert task.image.shape[2] == channels
    assert 0 <= task.image.min() < task.image.max() <= 1


def test_aspect_is_kept_and_small_images_are_not_enlarged(colours):
    assert ni.image_task("coffee", size=60).image.shape == (40, 60, 3)
    assert ni.image_task(colours, size=64).image.shape == (6, 8, 3)


def test_coordinates_are_pixel_centres_in_raster_order():
    task = ni.image_task(np.arange(6.0).reshape(2, 3) / 5, size=None)
    expected = [[r, c] for r in (-0.5, 0.5) for c in (-2 / 3, 0, 2 / 3)]
    np.testing.assert_allclose(task.coordinates, expected, rtol=1e-6)
    np.testing.assert_allclose(task.values[:, 0], np.arange(6) / 5, rtol=1e-6)


def test_eight_and_sixteen_bit_agree(save, ramp):
    eight = load(save((ramp * 255).round().astype(np.uint8), "8.png"))
    sixteen = load(save((ramp * 65535).round().astype(np.uint16), "16.png"))
    np.testing.assert_allclose(eight[:, :, 0], ramp, atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(sixteen[:, :, 0], ramp, atol=1 / 65535)


def test_a_dark_sixteen_bit_image_stays_dark(save, ramp):
    """Its values fit in 8 bits, but its type says 16."""
    dark = load(save((ramp * 200).astype(np.uint16), "dark.png"))
    assert dark.max() < 0.01


@pytest.mark.parametrize("high", [1, 255, 4095])
def test_numbers_are_scaled_alike_in_files_and_arrays(save, high):
    """By their kind and their values, not by what holds them."""
    numbers = np.arange(48).reshape(6, 8) * high // 47
    expected = numbers / {1: 1, 255: 255, 4095: 65535}[high]
    for source in (numbers, numbers.astype(np.int32), *(numbers.astype(kind) for kind in (np.int16, np.uint32))):
        np.testing.assert_allclose(load(source)[:, :, 0], expected, rtol=1e-6)
    for kind in (np.int32, np.int16):
        np.testing.assert_array_equal(load(save(numbers.astype(kind), "n.tif")), load(numbers))
    for name in ("n.png", "n.pgm", "n.tif"):  # 16 bits, which Pillow opens in 32 in some formats
        sixteen = numbers.astype(np.uint16)
        np.testing.assert_array_equal(load(save(sixteen, name)), load(sixteen))


def test_values_beyond_the_range_by_rounding_are_taken_as_its_ends(ramp):
    for array in (ramp * 1.0000001, ramp.astype(np.float16) * np.float16(1.001), ramp * 1.000002 - 1e-6):
        image = load(array)
        assert (image.min(), image.max()) == (0, 1)
    with pytest.raises(ValueError, match=r"from -0\.001 to 1;"):
        load(np.where(ramp > 0.5, 1, ramp - 0.001))
    with pytest.raises(ValueError, match=r"to 1\.0001;"):
        load(ramp * 1.0001)


def test_float_tiff(save, ramp):
    np.testing.assert_allclose(load(save(ramp.astype(np.float32), "f.tiff"))[:, :, 0], ramp, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "P", "1", "L", "LA", "RGBA", "YCbCr"])
def test_modes_load(save, colours, mode):
    picture = PIL.Image.fromarray(colours).convert(mode)
    suffix = "tiff" if mode in ("CMYK", "YCbCr") else "png"
    image = load(save(picture, f"m.{suffix}"))
    assert image.shape == (6, 8, 1 if mode in ("1", "L", "LA") else 3)
    assert image.dtype == np.float32
    if suffix == "png":
        np.testing.assert_array_equal(load(picture), image)  # as it is in memory
    # A palette or CMYK costs some colour, but the picture stays the same one.
    grey = np.asarray(PIL.Image.fromarray(colours).convert("L")) / 255
    if mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
        np.testing.assert_allclose(load(save(picture, f"n.{suffix}"), grey=True)[:, :, 0], grey, atol=0.02)


def test_alpha_is_laid_over_white(save, colours):
    clear = np.dstack([colours, np.zeros((6, 8), np.uint8)])
    np.testing.assert_allclose(load(save(clear, "clear.png")), 1.0)
    palette = PIL.Image.fromarray(np.zeros((4, 4), np.uint8), mode=None).convert("P")
    np.testing.assert_allclose(load(save(palette, "p.png", transparency=0)), 1.0)
    np.testing.assert_allclose(load(save(np.zeros((4, 4), np.uint8), "g.png", transparency=0)), 1.0)
    np.testing.assert_allclose(load(save(np.zeros((4, 4, 3), np.uint8), "c.png", transparency=(0, 0, 0))), 1.0)


@pytest.mark.parametrize("dtype", ["uint8", ">u2", "int16", ">i4", "uint32", "int64"])
def test_integers_count_by_their_content(dtype):
    levels = 65535 if dtype == ">u2" else 255
    array = np.array([[0, 255], [100, 200]]).astype(dtype)
    np.testing.assert_allclose(load(array)[:, :, 0], array.astype(float) / levels, rtol=1e-6)


def test_tasks_tell_shapes_apart(ramp):
    tall, wide = (ni.image_task(ramp.reshape(shape), size=None) for shape in ((8, 6), (6, 8)))
    assert tall.digest != wide.digest


def test_exif_orientation_is_applied(save, ramp):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image = load(save((ramp * 255).astype(np.uint8), "turned.png", exif=exif))
    assert image.shape == (8, 6, 1)
    np.testing.assert_allclose(image[:, :, 0], np.rot90(ramp, -1), atol=0.01)


def test_holdout_splits_the_pixels_and_repeats(ramp):
    task = ni.image_task(ramp, size=None, holdout=0.5, seed=3)
    assert task.train.sum() == 24
    x, y = task.heldout
    both = np.concatenate([np.c_[task.x, task.y], np.c_[x, y]])
    everything = np.c_[task.coordinates, task.values]
    np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(everything, axis=0))
    again = ni.image_task(ramp, size=None, holdout=0.5, seed=3)
    np.testing.assert_array_equal(task.train, again.train)
    assert task.digest == again.digest != ni.image_task(ramp, size=None, holdout=0.5, seed=4).digest
    assert ni.image_task(ramp, size=None).heldout is None


@pytest.mark.parametrize("name", ["camera", "astronaut"])
def test_scores_agree_with_scikit_image(name):
    task = ni.image_task(name, size=32, holdout=0.25)
    noisy = np.clip(task.image + np.random.default_rng(0).normal(0, 0.1, task.image.shape), 0, 1).astype(np.float32)
    scores = task.scores(noisy)
    ssim = skimage.metrics.structural_similarity(task.image, noisy, data_range=1, channel_axis=2)
    np.testing.assert_allclose(scores["ssim"], ssim, atol=1e-5)
    flat = noisy.reshape(-1, task.image.shape[2])
    for key, mask in (("psnr", task.train), ("heldout_psnr", ~task.train)):
        expected = skimage.metrics.peak_signal_noise_ratio(task.values[mask], flat[mask], data_range=1)
        np.testing.assert_allclose(scores[key], expected, atol=1e-5)


def test_small_images_have_no_ssim(ramp):
    task = ni.image_task(ramp, size=None)
    assert "ssim" not in task.scores(task.image)
    assert task.scores(task.image)["psnr"] == np.inf


def test_reconstruct_clips_and_shapes(ramp):
    task = ni.image_task(ramp, size=None)
    image = task.reconstruct(lambda x: 3 * x[:, :1])
    assert image.shape == (6, 8, 1)
    assert (image.min(), image.max()) == (0.0, 1.0)


def test_files_that_are_no_images(unchecked, tmp_path, save, ramp):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    whole = save((ramp * 255).astype(np.uint8), "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name, error, message in [
        ("missing.png", FileNotFoundError, "no file"),
        ("camra", FileNotFoundError, "no bundled image of that name"),
        ("empty.png", ValueError, "is empty"),
        ("text.png", ValueError, "can't be read as an image"),
        ("cut.png", ValueError, "can't be read as an image"),
        (".", ValueError, "is a folder"),
    ]:
        with pytest.raises(error, match=message):
            ni.image_task(tmp_path / name if name != "camra" else name)


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros((1, 1)), ValueError, "has 1 pixel"),
        (np.zeros((0, 4)), ValueError, "empty"),
        (np.zeros(5), ValueError, "expected \\(h, w\\)"),
        (np.full((4, 4), np.nan), ValueError, "holds 16 NaN"),
        (np.full((4, 4), 255.0), ValueError, "expected in \\[0, 1\\]"),
        (np.full((4, 4), -3), ValueError, "expected 0 to 255"),
        (np.zeros((4, 4), complex), TypeError, "dtype complex"),
    ],
)
def test_arrays_that_are_no_images(array, error, message):
    with pytest.raises(error, match=message):
        ni.image_task(array, size=None)


@pytest.mark.parametrize(("setting", "message"), [({"holdout": 1.0}, "holdout is 1.0"), ({"size": 1}, "size is 1")])
def test_bad_settings(ramp, setting, message):
    with pytest.raises(ValueError, match=message):
        ni.image_task(ramp, **setting)


def test_a_colour_photo_has_three_columns():
    assert ni.image_task(skimage.data.astronaut(), size=16).y.shape == (256, 3)


def test_a_task_knows_whether_its_data_came_in_8_bits(save, ramp):
    grey = (255 * ramp).astype(np.uint8)
    kinds = {
        "camera": True, save(grey, "grey.png"): True, save(ramp.astype(np.float32), "floats.tif"): False,
        save(257 * grey.astype(np.uint16), "wide.png"): False,
    }  # fmt: skip
    for source, eight_bit in kinds.items():
        assert ni.image_task(source, size=8).eight_bit is eight_bit
    for dtype, eight_bit in {"u1": True, "i8": True, "u2": False, "f4": False}.items():
        assert ni.image_task((grey > 99).astype(dtype), size=None).eight_bit is eight_bit
    assert ni.volume_task(np.stack([grey, grey])).eight_bit
    assert not ni.volume_task("orbits").eight_bit
    assert ni.tomography_task("camera", size=8, angles=4).eight_bit
    assert ni.tasks.inpainting_task(grey, size=None).eight_bit
    assert ni.pde_task("poisson-gradients", image=grey, resolution=8).eight_bit


def test_a_figure_calls_what_is_beyond_8_bits_exact(ramp):
    for task, said in (
        (ni.image_task((255 * ramp).astype(np.uint8)), f"reconstruction,\n{EXACT}"),
        (ni.image_task(ramp), "reconstruction, 80.0 dB"),
    ):
        assert said in [axis.get_title(loc="left") for axis in task.figure(np.abs(task.image - 1e-4)).axes]
