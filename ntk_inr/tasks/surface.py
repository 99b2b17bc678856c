"""Triangle meshes: extraction from a field, sampling, inside and outside on a grid."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ntk_inr._optional import require
from ntk_inr._results import result
from ntk_inr.tasks.grid import axis_centres

# Layers of a grid that are told inside from outside at a time.
_LAYERS = 32


@result
class Surface:
    """A field on a grid of [-1, 1]^3 and its zero level.

    Attributes:
        values: (r, r, r) at cell centres, negative inside.
        vertices: (v, 3); none where the field has no zero level.
        faces: (f, 3) indices of vertices, counter-clockwise from outside.
    """

    values: Any
    vertices: Any
    faces: Any


def extract_surface(values: np.ndarray) -> Surface:
    """Return the zero level of a field (r, r, r) by marching cubes; what crosses the cube's sides is closed there."""
    finite = np.nan_to_num(values, nan=1.0, posinf=1.0, neginf=-1.0)
    if not (finite < 0).any():
        return Surface(values, np.zeros((0, 3)), np.zeros((0, 3), int))
    padded = np.pad(finite, 1, constant_values=max(float(np.abs(finite).max()), 1e-6))
    measure = require("skimage.measure")
    with warnings.catch_warnings():
        # scikit-image 0.26 sets an array's shape, which NumPy 2.5 deprecates; the result is the same.
        warnings.filterwarnings("ignore", "Setting the shape on a NumPy array", DeprecationWarning)
        vertices, faces, _, _ = measure.marching_cubes(padded, 0.0, gradient_direction="descent")
    # The padding shifts indices by one.
    return Surface(values, (2 * (vertices - 1) + 1) / len(values) - 1, faces)


def face_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return normals (f, 3) as long as twice the triangle's area."""
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    return np.cross(b - a, c - a)


def sample_surface(
    vertices: np.ndarray, faces: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return points (n, 3) uniform by area and the unit normals there; none of an empty mesh."""
    if not len(faces):
        return np.zeros((0, 3)), np.zeros((0, 3))
    normals = face_normals(vertices, faces)
    areas = np.linalg.norm(normals, axis=1)
    chosen = rng.choice(len(faces), n, p=areas / areas.sum())
    u, v = rng.uniform(size=(2, n, 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    a, b, c = np.moveaxis(vertices[faces[chosen]], 1, 0)
    return a + u * (b - a) + v * (c - a), normals[chosen] / areas[chosen, None]


def inside_on_grid(vertices: np.ndarray, faces: np.ndarray, resolution: int) -> np.ndarray:
    """Return (r, r, r) True where a cell centre of [-1, 1]^3 lies inside a closed mesh.

    A line along the last axis through each column of cells is cut with the triangles above and below it; the
    number of surfaces entered less those left is the winding number.
    """
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    # Off the centres by less than anyone sees, so that no line meets an edge.
    centres = axis_centres(resolution)
    shift = np.array([np.sqrt(2), np.sqrt(3)]) * 1e-7
    low = np.minimum(np.minimum(a, b), c)[:, :2] - shift
    high = np.maximum(np.maximum(a, b), c)[:, :2] - shift
    first = np.clip(np.ceil(((low + 1) * resolution - 1) / 2), 0, resolution).astype(int)
    last = np.clip(np.floor(((high + 1) * resolution - 1) / 2) + 1, 0, resolution).astype(int)
    across = np.maximum(last - first, 0)
    counts = across.prod(axis=1)
    face = np.repeat(np.arange(len(faces)), counts)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    i, j = first[face, 0] + place // across[face, 1], first[face, 1] + place % across[face, 1]

    point = np.stack([centres[i], centres[j]], axis=1) + shift
    a, b, c = a[face], b[face], c[face]

    def turn(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
        return (q[:, 0] - p[:, 0]) * (r[:, 1] - p[:, 1]) - (q[:, 1] - p[:, 1]) * (r[:, 0] - p[:, 0])

    area, wa, wb, wc = turn(a, b, c), turn(b, c, point), turn(c, a, point), turn(a, b, point)
    met = (area != 0) & (np.sign(wa) == np.sign(area)) & (np.sign(wb) == np.sign(area)) & (np.sign(wc) == np.sign(area))
    height = (wa[met] * a[met, 2] + wb[met] * b[met, 2] + wc[met] * c[met, 2]) / area[met]
    above = np.clip(np.ceil(((height + 1) * resolution - 1) / 2), 0, resolution).astype(int)
    # A triangle seen counter-clockwise from above faces up: the line leaves the solid there.
    columns, leaving = np.stack([i[met], j[met], above]), -np.sign(area[met]).astype(np.int32)
    inside = np.empty((resolution,) * 3, bool)
    for start in range(0, resolution, _LAYERS):
        here = (columns[0] >= start) & (columns[0] < start + _LAYERS)
        layers = inside[start : start + _LAYERS]
        change = np.zeros((len(layers), resolution, resolution + 1), np.int32)
        np.add.at(change, (columns[0, here] - start, *columns[1:, here]), leaving[here])
        np.cumsum(change, axis=2, out=change)
        layers[...] = change[:, :, :-1] > 0
    return inside
