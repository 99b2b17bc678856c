"""Polygons cut into triangles, also those that are not convex."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_THIN = 1e-9


def triangulate(vertices: np.ndarray, polygons: Iterable[np.ndarray]) -> np.ndarray:
    """Return triangles (f, 3) of polygons, given as arrays (m, n) for each number n of corners."""
    return np.concatenate([np.zeros((0, 3), np.int64), *(_of_one_size(vertices, corners) for corners in polygons)])


def _of_one_size(vertices: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Return the triangles of polygons (m, n): fans where all triangles of one face the same way, else ears."""
    if corners.shape[1] == 3:
        return corners
    a, b, c = corners[:, :1], corners[:, 1:-1], corners[:, 2:]
    normals = np.cross(vertices[b] - vertices[a], vertices[c] - vertices[a])
    whole = normals.sum(axis=1, keepdims=True)
    convex = ((normals * whole).sum(axis=2) > _THIN * (whole**2).sum(axis=2)).all(axis=1)
    fans = np.stack([np.broadcast_to(a, b.shape), b, c], axis=2)[convex].reshape(-1, 3)
    others = zip(corners[~convex], whole[~convex, 0], strict=True)
    return np.concatenate([fans, *(polygon[_ears(vertices[polygon], normal)] for polygon, normal in others)])


def _ears(points: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Return (n - 2, 3) places of the corners of a polygon's triangles, ear by ear (Meisters 1975).

    Corners without area, as on a straight side, are not cut off while others can be: they would leave slivers. Where
    the polygon crosses itself, the flattest corner is.
    """
    axis = int(np.abs(normal).argmax())
    flat = points[:, [(axis + 1) % 3, (axis + 2) % 3]] * [1, np.sign(normal[axis]) or 1]
    least = _THIN * abs(normal[axis])
    left, triangles = list(range(len(points))), []
    while len(left) > 3:
        corners = np.stack([np.roll(left, 1), left, np.roll(left, -1)], axis=1)
        a, b, c = np.moveaxis(flat[corners], 1, 0)
        area = _turn(a, b, c)
        at = next((i for i in range(len(left)) if area[i] > least and _is_empty(flat[left], a[i], b[i], c[i])), None)
        at = int(np.abs(area).argmin()) if at is None else at
        triangles.append(corners[at])
        del left[at]
    return np.array([*triangles, left])


def _turn(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return twice the areas of triangles in the plane, negative where they turn clockwise."""
    ab, ac = b - a, c - a
    return ab[..., 0] * ac[..., 1] - ab[..., 1] * ac[..., 0]


def _is_empty(points: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> bool:
    """Return whether no point lies in a triangle or on its sides, but at its corners."""
    within = (_turn(a, b, points) >= 0) & (_turn(b, c, points) >= 0) & (_turn(c, a, points) >= 0)
    at_corner = np.any([(points == corner).all(axis=1) for corner in (a, b, c)], axis=0)
    return not (within & ~at_corner).any()
