"""Bundled solids as implicit functions: negative inside, at most the distance to the surface in size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Field = Callable[[np.ndarray], np.ndarray]


def sphere(points: np.ndarray) -> np.ndarray:
    """Return the exact signed distance to a sphere of radius 0.75."""
    return np.linalg.norm(points, axis=-1) - 0.75


def torus(points: np.ndarray) -> np.ndarray:
    """Return the exact signed distance to a torus in the plane of the first two axes, radii 0.55 and 0.25."""
    ring = np.hypot(points[..., 0], points[..., 1]) - 0.55
    return np.hypot(ring, points[..., 2]) - 0.25


def gyroid(points: np.ndarray) -> np.ndarray:
    """Return a thick gyroid of period 1 inside a ball of radius 0.85; its values bound the distance from below."""
    k = 2 * np.pi
    x, y, z = np.moveaxis(k * points, -1, 0)
    wave = np.sin(x) * np.cos(y) + np.sin(y) * np.cos(z) + np.sin(z) * np.cos(x)
    # No gradient of the wave is longer than sqrt(3) k, which makes this 1-Lipschitz.
    return np.maximum((np.abs(wave) - 0.5) / (np.sqrt(3) * k), np.linalg.norm(points, axis=-1) - 0.85)


def csg(points: np.ndarray) -> np.ndarray:
    """Return a cube cut by a ball, less a cylinder along each axis; its values bound the distance from below."""
    beyond = np.abs(points) - 0.6
    cube = np.linalg.norm(np.maximum(beyond, 0), axis=-1) + np.minimum(beyond.max(axis=-1), 0)
    ball = np.linalg.norm(points, axis=-1) - 0.8
    cylinders = [np.hypot(points[..., i], points[..., j]) - 0.35 for i, j in ((0, 1), (1, 2), (2, 0))]
    return np.maximum(np.maximum(cube, ball), -np.minimum.reduce(cylinders))


SOLIDS: dict[str, Field] = {"sphere": sphere, "torus": torus, "gyroid": gyroid, "csg": csg}


def gradient(field: Field, points: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Return the gradient of a field by central differences, (n, 3)."""
    shifts = step * np.eye(3)
    return np.stack([field(points + shift) - field(points - shift) for shift in shifts], axis=-1) / (2 * step)
