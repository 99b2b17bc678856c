import numpy as np
import pytest

from ntk_inr.tasks.restored import denoising_task, inpainting_task, super_resolution_task


@pytest.fixture
def image():
    """A linear ramp: block means are the values at block centres."""
    row, column = np.meshgrid((np.arange(16) + 0.5) / 16, (np.arange(24) + 0.5) / 24, indexing="ij")
    return (row + column) / 2


def ramp(x):
    return ((x[:, :1] + 1) / 2 + (x[:, 1:] + 1) / 2) / 2


def test_small_pixels_lie_at_the_centres_of_their_blocks(image):
    task = super_resolution_task(image, factor=4, size=None)
    assert task.seen.shape == (4, 6, 1)
    np.testing.assert_allclose(task.y, ramp(task.x), atol=1e-6)
    assert task.scores(task.reconstruct(ramp))["psnr"] > 100


def test_what_fills_no_block_is_cut_off(image):
    task = super_resolution_task(image, factor=5, size=None)
    assert task.image.shape == (15, 20, 1)
    with pytest.raises(ValueError, match="too few for factor"):
        super_resolution_task(image, factor=12, size=16)


def test_cubic_interpolation_is_the_baseline():
    task = super_resolution_task("camera", factor=2, size=64)
    scores = task.scores(task.baseline)
    assert scores["psnr"] == scores["baseline_psnr"] > 20


def test_gaussian_noise_has_its_sigma(image):
    task = denoising_task(np.tile(image, (8, 8)), sigma=0.2, size=None)
    error = task.y - task.image.reshape(-1, 1)
    np.testing.assert_allclose(error.std(), 0.2, rtol=0.01)
    np.testing.assert_allclose(error.mean(), 0, atol=0.002)


def test_poisson_noise_has_the_variance_of_its_mean():
    task = denoising_task(np.full((128, 128), 0.4), noise="poisson", photons=50, size=None)
    np.testing.assert_allclose(task.y.mean(), 0.4, rtol=0.01)
    np.testing.assert_allclose(task.y.var(), 0.4 / 50, rtol=0.05)


def test_noise_follows_its_seed(image):
    first, again, other = (denoising_task(image, size=None, seed=seed) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest


def test_inpainting_sees_what_the_mask_leaves(image):
    mask = image > 0.5
    task = inpainting_task(image, missing=mask, size=None)
    np.testing.assert_allclose(task.y[:, 0], image[~mask], rtol=1e-6)
    np.testing.assert_allclose(task.y, ramp(task.x), atol=1e-6)
    wrong = np.where(mask[:, :, None], 0, task.image)
    scores = task.scores(wrong)
    np.testing.assert_allclose(scores["missing_psnr"], -10 * np.log10((image[mask] ** 2).mean()), atol=1e-4)
    assert scores["missing_psnr"] < scores["psnr"]
    # The nearest pixel of a ramp is off by little.
    np.testing.assert_allclose(task.baseline[mask], 0.5, atol=0.51)
    np.testing.assert_array_equal(task.baseline[~mask], task.image[~mask])


@pytest.mark.parametrize(
    ("missing", "error", "message"),
    [
        (1.0, ValueError, "expected a share"),
        (0.0, ValueError, "none of the pixels"),
        (np.ones((16, 24), bool), ValueError, "all of the pixels"),
        (np.ones((4, 4), bool), ValueError, "mask of the image's own size"),
        (np.ones((16, 24)), TypeError, "expected booleans"),
    ],
)
def test_bad_masks(image, missing, error, message):
    with pytest.raises(error, match=message):
        inpainting_task(image, missing=missing, size=None)


def test_unknown_noise(unchecked, image):
    with pytest.raises(ValueError, match="Did you mean 'gaussian'"):
        denoising_task(image, noise="gauss")
