import numpy as np
import pytest
import skimage.metrics

from ntk_inr.tasks import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(32, 24), (9, 40, 3)])
@pytest.mark.parametrize("data_range", [1.0, 2.5])
def test_psnr_and_ssim_agree_with_scikit_image(rng, shape, data_range):
    target = rng.uniform(size=shape)
    estimate = target + rng.normal(0, 0.1, shape)
    axis = 2 if len(shape) == 3 else None
    expected = skimage.metrics.structural_similarity(target, estimate, data_range=data_range, channel_axis=axis)
    np.testing.assert_allclose(metrics.ssim(estimate, target, data_range=data_range), expected, atol=1e-10)
    expected = skimage.metrics.peak_signal_noise_ratio(target, estimate, data_range=data_range)
    np.testing.assert_allclose(metrics.psnr(estimate, target, data_range=data_range), expected, atol=1e-10)


def test_ssim_of_float32_images_agrees_with_scikit_image(rng):
    target = rng.uniform(size=(20, 20)).astype(np.float32)
    estimate = np.clip(target + rng.normal(0, 0.1, target.shape), 0, 1).astype(np.float32)
    expected = skimage.metrics.structural_similarity(target, estimate, data_range=1.0)
    np.testing.assert_allclose(metrics.ssim(estimate, target), expected, atol=1e-5)


def test_snr_of_a_known_error(rng):
    target = rng.normal(size=1000)
    np.testing.assert_allclose(metrics.snr(1.01 * target, target), 40, atol=1e-9)
    assert metrics.snr(target, target) == np.inf
    with pytest.raises(ValueError, match="zero everywhere"):
        metrics.snr(target, 0 * target)


def test_iou_counts_points(rng):
    a, b = rng.uniform(size=(2, 5, 6)) > 0.4
    points = [{tuple(place) for place in np.argwhere(mask)} for mask in (a, b)]
    assert metrics.iou(a, b) == len(points[0] & points[1]) / len(points[0] | points[1])
    assert metrics.iou(np.zeros(3, bool), np.zeros(3, bool)) == 1.0
    with pytest.raises(TypeError, match="expected booleans"):
        metrics.iou([0, 1], [1, 1])


def test_chamfer_and_fscore_against_all_pairs(rng):
    a, b = rng.normal(size=(40, 3)), rng.normal(size=(30, 3))
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    there, back = distances.min(1), distances.min(0)
    np.testing.assert_allclose(metrics.chamfer(a, b), (there.mean() + back.mean()) / 2)
    precision, recall = (there < 0.5).mean(), (back < 0.5).mean()
    np.testing.assert_allclose(metrics.fscore(a, b, threshold=0.5), 2 * precision * recall / (precision + recall))
    assert metrics.chamfer(a, np.zeros((0, 3))) == np.inf
    assert metrics.fscore(a, np.zeros((0, 3))) == 0.0


def test_shapes_must_match():
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.psnr(np.zeros(3), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="at least 7 by 7"):
        metrics.ssim(np.zeros((6, 9)), np.zeros((6, 9)))
    with pytest.raises(ValueError, match="point clouds"):
        metrics.chamfer(np.zeros((3, 2)), np.zeros((3, 3)))
