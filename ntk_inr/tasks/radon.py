"""The parallel-beam Radon transform of any field, and filtered back projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array


def ray_points(x: Any, samples: int) -> tuple[Array, Array]:
    r"""Return points along rays, as (row, column), and the length that each stands for.

    The ray of angle :math:`\theta` and offset s is :math:`\{s\,n + t\,d\}` with
    :math:`n=(-\sin\theta, \cos\theta)`, :math:`d=(\cos\theta, \sin\theta)`, cut at the unit circle.

    Args:
        x: (n, 2): :math:`2\theta/\pi - 1` for angles from 0 to :math:`\pi`, and s, both in [-1, 1].
        samples: points a ray, at the middles of equal pieces.

    Returns:
        points (n, samples, 2) and lengths (n, 1).
    """
    x = jnp.asarray(x)
    angle, offset = (x[:, :1] + 1) * (np.pi / 2), x[:, 1:]
    half = jnp.sqrt(jnp.maximum(1 - offset**2, 0))
    t = half * jnp.asarray((2 * np.arange(samples) + 1) / samples - 1, x.dtype)[None, :]
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    points = jnp.stack([t * cosine - offset * sine, t * sine + offset * cosine], axis=-1)
    return points, 2 * half / samples


def line_integrals(apply: Callable[[Any, Any], Any], samples: int) -> Callable[[Any, Any], Any]:
    r"""Return ``(params, x) -> (n, c)``: the integrals of a field along rays, by the midpoint rule.

    .. math:: (Rf)(\theta, s) = \int f(s\,n + t\,d)\,dt,\quad |s\,n + t\,d| \le 1

    Differentiable by parameters and, as any function of JAX, by x.

    Args:
        apply: the field, ``(params, points (m, 2) as (row, column)) -> (m, c)``.
        samples: points a ray; the error falls as its inverse square for smooth fields.

    Returns:
        A function of parameters and rays (n, 2), as :func:`ray_points` takes them.

    Example:
        >>> import jax.numpy as jnp
        >>> integrals = line_integrals(lambda params, x: params + 0 * x[:, :1], samples=8)
        >>> print(integrals(3.0, jnp.array([[-1.0, 0.0], [0.5, 0.6]])))  # 3 times the chord's length
        [[6. ]
         [4.8]]
    """

    def integrate(params: Any, x: Any) -> Array:
        points, length = ray_points(x, samples)
        values = apply(params, points.reshape(-1, 2))
        return values.reshape(len(x), samples, -1).sum(axis=1) * length

    return integrate


def interpolate(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the values (...) of a square image (size, size) at points (..., 2) in [-1, 1], bilinear, 0 outside."""
    import scipy.ndimage

    places = ((np.moveaxis(points, -1, 0) + 1) * len(image) - 1) / 2
    return scipy.ndimage.map_coordinates(image, places, order=1, mode="constant")


def radon(image: np.ndarray, x: np.ndarray, samples: int) -> np.ndarray:
    """Return the integrals (n,) of a bilinear image along rays (n, 2), within the unit circle."""
    points, length = ray_points(x, samples)
    sums = interpolate(image, np.asarray(points, np.float64)).sum(axis=1)
    return (sums * np.asarray(length)[:, 0]).astype(np.float32)


# Not skimage.transform.iradon, which gives the same to 2e-6 for odd sizes and equally spaced angles: images of even
# sizes it turns about a pixel instead of their middle, which costs 9 dB here, and to it all angles weigh the same.
def filtered_back_projection(sinogram: np.ndarray, angles: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Reconstruct an image from a sinogram by the ramp filter and back projection.

    Args:
        sinogram: (angles, offsets), offsets at the centres of equal pieces of [-1, 1].
        angles: in radians in [0, pi), in any order. Each stands for the part of the half turn that is nearest to
            it; gaps of more than three times the usual one count as not measured.
        points: (n, 2) as (row, column).

    Returns:
        (n,).

    Source: A. C. Kak & M. Slaney, "Principles of Computerized Tomographic Imaging" (1988), section 3.3.
    """
    count = sinogram.shape[1]
    padded = 2 ** int(np.ceil(np.log2(2 * count)))
    # The ramp as the transform of its samples in space, which keeps the mean of the image right.
    lags = np.minimum(np.arange(padded), padded - np.arange(padded))
    ramp = np.where(lags == 0, 0.25, np.where(lags % 2 == 1, -1 / (np.pi * np.maximum(lags, 1)) ** 2, 0))
    spectrum = np.fft.rfft(sinogram, padded, axis=1) * np.fft.rfft(ramp)[None, :]
    filtered = np.fft.irfft(spectrum, padded, axis=1)[:, :count] * (count / 2)
    offsets = (2 * np.arange(count) + 1) / count - 1
    total = np.zeros(len(points))
    for angle, weight, projection in zip(angles, _shares(angles), filtered, strict=True):
        along = points[:, 1] * np.cos(angle) - points[:, 0] * np.sin(angle)
        total += weight * np.interp(along, offsets, projection)
    return total


def _shares(angles: np.ndarray) -> np.ndarray:
    """Return the part of a half turn that each angle stands for."""
    places, place, times = np.unique(angles, return_inverse=True, return_counts=True)
    gaps = np.diff(places, append=places[0] + np.pi)
    usual = np.median(gaps)
    gaps = np.where(gaps > 3 * usual, usual, gaps) if len(places) > 2 else gaps
    return ((gaps + np.roll(gaps, 1)) / 2 / times)[place]
