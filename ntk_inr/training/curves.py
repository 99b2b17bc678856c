"""Figures read off a training curve: PSNR, and the index at which it first reaches a target."""

from __future__ import annotations

from typing import Any

import numpy as np


def psnr(mse: Any, data_range: float = 1.0) -> Any:
    r"""Return the peak signal-to-noise ratio in dB, :math:`10\log_{10}(R^2/\mathrm{mse})`.

    Args:
        mse: mean squared error, any shape; 0 gives infinity.
        data_range: R, the span of the values; 1 for images in [0, 1].

    Returns:
        float64 of the shape of ``mse``.

    Example:
        >>> float(psnr(0.01))
        20.0
    """
    with np.errstate(divide="ignore"):
        return 20 * np.log10(data_range) - 10 * np.log10(np.asarray(mse, np.float64))


def first_reaching(values: np.ndarray, target: float) -> int | None:
    """Return the first index at which ``values`` (a curve in dB) is at or above ``target``, or None."""
    hits = np.flatnonzero(np.asarray(values) >= target)
    return int(hits[0]) if hits.size else None
