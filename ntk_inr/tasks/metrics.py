"""Scores of reconstructions: of images, sound, shapes and fields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from ntk_inr import _checks
from ntk_inr._optional import require
from ntk_inr.training import curves

SSIM_WINDOW = 7
# Numbers that are compared at a time.
_PART = 2**22
EXACT_DB = 60.0
"""PSNR in dB from which 8-bit data count as reproduced: the root mean square error, 0.26 of a level, is below the 0.29
of rounding to 8 bits itself (58.9 dB). What lies above is no property of the data."""
EXACT = "> 60 (exact in 8 bits)"
BASELINES = {"fbp_psnr": "filtered back projection", "baseline_psnr": "simple restoration"}
"""Keys of ``task.scores`` that say what a simpler method reaches, not the reconstruction."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A score of a reconstruction.

    Attributes:
        title: what a reader calls it.
        better: which way is better; None where that is not known.
        help: what it is, a line.
        unit: what its numbers are in; empty for pure numbers.
    """

    title: str
    better: Literal["higher", "lower"] | None
    help: str
    unit: str = ""


_METRICS = {
    "psnr": Metric("PSNR", "higher", "PSNR of the reconstruction", "dB"),
    "snr": Metric("SNR", "higher", "signal to noise ratio of the reconstruction", "dB"),
    "ssim": Metric("SSIM", "higher", "structural similarity of the whole image"),
    "iou": Metric("IoU", "higher", "volume of the intersection over that of the union"),
    "fscore": Metric("F-score", "higher", "harmonic mean of how much of each surface lies close to the other"),
    "chamfer": Metric("Chamfer", "lower", "mean distance between the surfaces"),
    "relative_l2": Metric("relative error", "lower", "distance to the solution over its size"),
}
HELD_OUT = {"heldout_": "held-out", "missing_": "missing pixels'"}
"""What the names of scores begin with that are taken where nothing was trained on, and what a reader calls them."""


def metric_of(name: str) -> Metric:
    """Return title, unit and direction of a score by its name in ``task.scores``.

    Example:
        >>> metric_of("heldout_psnr").title, metric_of("chamfer").better, metric_of("my_own").better
        ('held-out PSNR', 'lower', None)
    """
    for start, word in HELD_OUT.items():
        if name.startswith(start):
            known = metric_of(name.removeprefix(start))
            return dataclasses.replace(known, title=f"{word} {known.title}", help=f"{known.help}, where not trained on")
    return _METRICS.get(name, Metric(name.replace("_", " "), None, "score of the reconstruction"))


def counted_psnr(values: Any, *, eight_bit: bool) -> np.ndarray:
    """Return PSNR in dB, of 8-bit data at most :data:`EXACT_DB`, where they count as exact.

    Example:
        >>> counted_psnr([30.0, 141.0], eight_bit=True).tolist()
        [30.0, 60.0]
    """
    values = np.asarray(values, np.float64)
    return np.minimum(values, EXACT_DB) if eight_bit else values


def decibels(value: float, *, eight_bit: bool) -> str:
    """Return PSNR as text, with its unit.

    Example:
        >>> decibels(34.24, eight_bit=True), decibels(141.0, eight_bit=True), decibels(141.0, eight_bit=False)
        ('34.2 dB', '> 60 (exact in 8 bits)', '141.0 dB')
    """
    return EXACT if eight_bit and value > EXACT_DB else f"{value:.1f} dB"


def score_lines(scores: dict[str, float], *, metric: str, eight_bit: bool) -> list[tuple[str, str]]:
    """Return pairs of label and number as text, one a score, that of ``metric`` first.

    Example:
        >>> score_lines({"ssim": 0.9, "psnr": 141.0}, metric="psnr", eight_bit=True)
        [('psnr', '> 60 (exact in 8 bits)'), ('ssim', '0.9')]
    """
    lines = []
    for name in sorted(scores, key=lambda name: name != metric):
        exact = eight_bit and name.endswith("psnr") and scores[name] > EXACT_DB
        lines.append((name.replace("_", " "), EXACT if exact else f"{scores[name]:.4g}"))
    return lines


def psnr(estimate: Any, target: Any, *, data_range: float = 1.0, where: np.ndarray | None = None) -> float:
    r"""Return the peak signal-to-noise ratio in dB, :math:`10\log_{10}(R^2/\mathrm{mse})`.

    Args:
        estimate: any shape.
        target: the same shape.
        data_range: R, the span that values can have; 1 for images in [0, 1].
        where: True for the entries of the first axis that count; None is all of them.

    Returns:
        dB; infinity for equal arrays.

    Raises:
        ValueError: different shapes.

    Example:
        >>> psnr([0.0, 0.5], [0.1, 0.4])
        20.0
    """
    estimate, target = _same_shape(estimate, target)
    squares, count = 0.0, 0
    for a, b in _parts(estimate, target, where):
        squares, count = squares + float(((a - b) ** 2).sum()), count + a.size
    return float(curves.psnr(squares / count if count else np.nan, data_range))


def ssim(estimate: Any, target: Any, *, data_range: float = 1.0) -> float:
    r"""Return the structural similarity with a uniform 7 by 7 window, mean over channels and pixels.

    .. math:: \frac{(2\mu_a\mu_b + C_1)(2\sigma_{ab} + C_2)}{(\mu_a^2+\mu_b^2+C_1)(\sigma_a^2+\sigma_b^2+C_2)}

    with :math:`C_1=(0.01R)^2`, :math:`C_2=(0.03R)^2` and sample covariances, over the windows that lie
    inside the image: scikit-image's default.

    Args:
        estimate: (h, w) or (h, w, c), both sides at least 7.
        target: the same shape.
        data_range: R, the span that values can have.

    Returns:
        At most 1.

    Raises:
        ValueError: different shapes, or a side below 7 pixels.
        ImportError: scikit-image is not installed.

    Example:
        >>> import numpy as np
        >>> round(ssim(np.eye(8), np.eye(8)), 6)
        1.0

    Source: Wang, Bovik, Sheikh & Simoncelli, IEEE Transactions on Image Processing 13 (2004).
    """
    a, b = _same_shape(estimate, target)
    if a.ndim not in (2, 3) or min(a.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"images have shape {a.shape}; SSIM needs (h, w) or (h, w, c) of at least 7 by 7 pixels.")
    similarity = require("skimage.metrics").structural_similarity
    total, edge, height = 0.0, SSIM_WINDOW - 1, max(SSIM_WINDOW, _PART // math.prod(a.shape[1:]))
    places = a.shape[0] - edge
    for start in range(0, places, height):
        stop = min(start + height, places)
        for channel in range(1 if a.ndim == 2 else a.shape[2]):
            one, other = (
                np.asarray(
                    part[start : stop + edge] if part.ndim == 2 else part[start : stop + edge, :, channel], float
                )
                for part in (a, b)
            )
            # Windows that lie inside a strip, which has the rows that its last windows reach.
            total += (stop - start) * float(similarity(one, other, win_size=SSIM_WINDOW, data_range=data_range))
    return total / places / (1 if a.ndim == 2 else a.shape[2])


def snr(estimate: Any, target: Any) -> float:
    r"""Return the signal-to-noise ratio in dB, :math:`10\log_{10}(\sum t^2/\sum(e-t)^2)`.

    Args:
        estimate: any shape.
        target: the same shape, not all zero.

    Returns:
        dB; infinity for equal arrays.

    Raises:
        ValueError: different shapes, or a target that is zero everywhere.

    Example:
        >>> round(snr([0.9, -0.9], [1.0, -1.0]), 6)
        20.0
    """
    error = relative_l2(estimate, target)
    return -20 * float(np.log10(error)) if error else float("inf")


def relative_l2(estimate: Any, target: Any) -> float:
    r"""Return the relative error :math:`\lVert e-t\rVert_2/\lVert t\rVert_2`.

    Args:
        estimate: any shape.
        target: the same shape, not all zero.

    Returns:
        At least 0.

    Raises:
        ValueError: different shapes, or a target that is zero everywhere.

    Example:
        >>> round(relative_l2([1.1, 0.0], [1.0, 0.0]), 6)
        0.1
    """
    estimate, target = _same_shape(estimate, target)
    errors = squares = 0.0
    for a, b in _parts(estimate, target):
        errors, squares = errors + float(((a - b) ** 2).sum()), squares + float((b**2).sum())
    if squares == 0:
        raise ValueError("the target is zero everywhere; an error relative to it has no meaning.")
    return float(np.sqrt(errors) / np.sqrt(squares))


def iou(estimate: Any, target: Any) -> float:
    """Return intersection over union of two sets, given as True where a point belongs to them.

    Args:
        estimate: booleans of any shape.
        target: the same shape.

    Returns:
        In [0, 1]; 1 where both are empty.

    Raises:
        ValueError: different shapes.
        TypeError: not booleans.

    Example:
        >>> iou([True, True, False], [True, False, False])
        0.5
    """
    estimate, target = np.asarray(estimate), np.asarray(target)
    if estimate.dtype != bool or target.dtype != bool:
        raise TypeError(f"got {estimate.dtype} and {target.dtype}; expected booleans, such as field < 0.")
    _check_shapes(estimate, target)
    union = int((estimate | target).sum())
    return int((estimate & target).sum()) / union if union else 1.0


def chamfer(estimate: Any, target: Any) -> float:
    r"""Return the Chamfer distance of two point clouds, the mean of both directions.

    .. math:: \tfrac12\Big(\frac1n\sum_i\min_j\lVert a_i-b_j\rVert + \frac1m\sum_j\min_i\lVert a_i-b_j\rVert\Big)

    Args:
        estimate: points (n, d).
        target: points (m, d).

    Returns:
        A length in the points' own unit (not squared); infinity where exactly one cloud is empty.

    Raises:
        ValueError: not (n, d) of the same d.

    Example:
        >>> chamfer([[0.0, 0.0]], [[3.0, 4.0]])
        5.0
    """
    there, back = _nearest(estimate, target)
    if not len(there) or not len(back):
        return 0.0 if len(there) == len(back) else float("inf")
    return float(there.mean() + back.mean()) / 2


def fscore(estimate: Any, target: Any, *, threshold: float = 0.02) -> float:
    """Return the harmonic mean of how much of each point cloud lies within ``threshold`` of the other.

    Args:
        estimate: points (n, d).
        target: points (m, d).
        threshold: in the points' own unit.

    Returns:
        In [0, 1]; 1 is best, 0 where either is empty.

    Raises:
        ValueError: not (n, d) of the same d.

    Example:
        >>> fscore([[0.0], [1.0]], [[0.0], [5.0]], threshold=0.1)
        0.5

    Source: Knapitsch, Park, Zhou & Koltun, "Tanks and Temples", ACM Transactions on Graphics 36 (2017).
    """
    there, back = _nearest(estimate, target)
    if not len(there) or not len(back):
        return 0.0
    precision, recall = float((there < threshold).mean()), float((back < threshold).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _nearest(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance of each point of one cloud to the other cloud, both ways."""
    import scipy.spatial

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"point clouds have shapes {a.shape} and {b.shape}; expected (n, d) and (m, d).")
    if not len(a) or not len(b):
        return np.full(len(a), np.inf), np.full(len(b), np.inf)
    tree_a, tree_b = scipy.spatial.cKDTree(a), scipy.spatial.cKDTree(b)
    return tree_b.query(a)[0], tree_a.query(b)[0]


def _same_shape(estimate: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    _checks.unmasked((estimate, target), "what is compared")
    estimate, target = np.asarray(estimate), np.asarray(target)
    _check_shapes(estimate, target)
    return estimate, target


def _parts(
    estimate: np.ndarray, target: np.ndarray, where: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield two arrays in float64, a part of their entries after the other; of the first axis those of ``where``."""
    if not estimate.ndim:
        estimate, target = estimate[None], target[None]
    rows = max(1, _PART // max(1, math.prod(estimate.shape[1:])))
    for start in range(0, len(estimate), rows):
        place = slice(start, start + rows)
        a, b = estimate[place], target[place]
        if where is not None:
            a, b = a[where[place]], b[where[place]]
        yield a.astype(np.float64), b.astype(np.float64)


def _check_shapes(estimate: np.ndarray, target: np.ndarray) -> None:
    if estimate.shape != target.shape:
        raise ValueError(f"shapes differ: {estimate.shape} and {target.shape}; they are compared entry by entry.")
