import sys

import numpy as np
import pytest
import skimage.metrics

from ntk_inr.tasks import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_psnr_agrees_with_scikit_image(rng):
    target = rng.uniform(size=(9, 40, 3))
    estimate = target + rng.normal(0, 0.1, target.shape)
    expected = skimage.metrics.peak_signal_noise_ratio(target, estimate, data_range=2.5)
    np.testing.assert_allclose(metrics.psnr(estimate, target, data_range=2.5), expected, atol=1e-10)


def test_ssim_of_one_window_is_its_formula(rng, monkeypatch):
    a, b = rng.uniform(size=(2, 7, 7, 2)).astype(np.float32)
    expected = []
    for first, second in zip(a.astype(float).T, b.astype(float).T, strict=True):
        covariance = np.cov(first.ravel(), second.ravel())
        means, c1, c2 = (first.mean(), second.mean()), 0.02**2, 0.06**2
        luminance = (2 * means[0] * means[1] + c1) / (means[0] ** 2 + means[1] ** 2 + c1)
        expected.append(luminance * (2 * covariance[0, 1] + c2) / (np.trace(covariance) + c2))
    np.testing.assert_allclose(metrics.ssim(a, b, data_range=2.0), np.mean(expected), atol=1e-12)
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(
        ImportError, match=r'skimage\.metrics is missing; install it with: pip install "ntk-inr\[report\]"'
    ):
        metrics.ssim(a, b)


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
