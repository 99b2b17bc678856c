"""Exact signed distance to a closed triangle mesh."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ntk_inr.tasks.surface import face_normals

_PAIRS = 2**18
_FIRST_NEIGHBOURS = 8
_SIZE_CLASSES = 8


class MeshDistance:
    """Signed distance to a closed mesh with consistent faces; call it with points (n, 3).

    The nearest triangle is looked for among those of nearest centroids; more of them are taken until no other
    can be nearer. The sign is that of the pseudonormal of the face, edge or vertex that is nearest.

    Source: J. A. Baerentzen & H. Aanaes, "Signed Distance Computation Using the Angle Weighted Pseudonormal",
    IEEE Transactions on Visualization and Computer Graphics 11 (2005).
    """

    def __init__(self, vertices: np.ndarray, faces: np.ndarray) -> None:
        self.vertices, self.faces = np.asarray(vertices, np.float64), np.asarray(faces)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return signed distances (n,), negative inside."""
        points = np.asarray(points, np.float64)
        best = np.full(len(points), np.inf)
        sign = np.ones(len(points))
        for members, tree, radius in self._classes:
            rows, k = np.arange(len(points)), min(_FIRST_NEIGHBOURS, len(members))
            while len(rows):
                left = []
                for part in np.array_split(rows, -(-len(rows) * k // _PAIRS)):
                    reach, near = tree.query(points[part], k=[*range(1, k + 1)])
                    self._improve(points, part, members[near], best, sign)
                    left.append(part[(reach[:, -1] - radius < best[part]) & (k < len(members))])
                rows, k = np.concatenate(left), min(4 * k, len(members))
        return sign * best

    @functools.cached_property
    def _classes(self) -> list[tuple[np.ndarray, Any, float]]:
        """Groups of triangles of similar size: indices, a tree of centroids, and the largest distance to a corner."""
        import scipy.spatial

        corners = self.vertices[self.faces]
        centroids = corners.mean(axis=1)
        radii = np.linalg.norm(corners - centroids[:, None], axis=2).max(axis=1)
        size = np.minimum(np.log2(radii.max() / np.maximum(radii, 1e-300)).astype(int), _SIZE_CLASSES - 1)
        classes = []
        for value in np.unique(size):
            members = np.flatnonzero(size == value)
            classes.append((members, scipy.spatial.cKDTree(centroids[members]), float(radii[members].max())))
        return classes

    @functools.cached_property
    def _pseudonormals(self) -> np.ndarray:
        """Normals (f, 7, 3) of each face's corners, of its edges ab, ac, bc, and of the face itself."""
        own = face_normals(self.vertices, self.faces)
        own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-300)
        corners = self.vertices[self.faces]
        at_vertices = np.zeros_like(self.vertices)
        for corner in range(3):
            sides = [corners[:, (corner + turn) % 3] - corners[:, corner] for turn in (1, 2)]
            sides = [side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-300) for side in sides]
            angle = np.arccos(np.clip((sides[0] * sides[1]).sum(axis=1), -1, 1))
            np.add.at(at_vertices, self.faces[:, corner], angle[:, None] * own)
        edges = np.sort(self.faces[:, [[0, 1], [0, 2], [1, 2]]], axis=2).reshape(-1, 2)
        unique, inverse = np.unique(edges, axis=0, return_inverse=True)
        at_edges = np.zeros((len(unique), 3))
        np.add.at(at_edges, inverse.ravel(), np.repeat(own, 3, axis=0))
        return np.concatenate([at_vertices[self.faces], at_edges[inverse.reshape(-1, 3)], own[:, None]], axis=1)

    def _improve(
        self, points: np.ndarray, rows: np.ndarray, near: np.ndarray, best: np.ndarray, sign: np.ndarray
    ) -> None:
        """Compare n points with k triangles each, ``near`` (n, k), and keep the distances that became smaller."""
        p = points[rows][:, None]
        closest, feature = _closest(p, *np.moveaxis(self.vertices[self.faces[near]], 2, 0))
        distance = np.linalg.norm(p - closest, axis=2)
        distance = np.where(np.isnan(distance), np.inf, distance)  # a triangle without area
        one = np.arange(len(rows)), distance.argmin(axis=1)
        nearer = distance[one] < best[rows]
        normal = self._pseudonormals[near[one], feature[one]]
        outward = ((points[rows] - closest[one]) * normal).sum(axis=1)
        best[rows[nearer]] = distance[one][nearer]
        sign[rows[nearer]] = np.where(outward[nearer] < 0, -1.0, 1.0)


def _closest(p: np.ndarray, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest point to p of each triangle, and its part: corners 0 to 2, edges ab 3, ac 4, bc 5, face 6.

    Source: C. Ericson, "Real-Time Collision Detection" (2005), section 5.1.5.
    """

    def dot(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.einsum("nki,nki->nk", u, v)

    ab, ac = b - a, c - a
    d1, d2, d3, d4, d5, d6 = (dot(side, p - corner) for corner in (a, b, c) for side in (ab, ac))
    va, vb, vc = d3 * d6 - d5 * d4, d5 * d2 - d1 * d6, d1 * d4 - d3 * d2
    along = d4 - d3, d5 - d6
    regions = [
        (d1 <= 0) & (d2 <= 0),
        (d3 >= 0) & (d4 <= d3),
        (d6 >= 0) & (d5 <= d6),
        (vc <= 0) & (d1 >= 0) & (d3 <= 0),
        (vb <= 0) & (d2 >= 0) & (d6 <= 0),
        (va <= 0) & (along[0] >= 0) & (along[1] >= 0),
    ]
    zero, one = np.zeros_like(d1), np.ones_like(d1)
    with np.errstate(divide="ignore", invalid="ignore"):
        w = along[0] / (along[0] + along[1])
        total = va + vb + vc
        first = np.select(regions, [zero, one, zero, d1 / (d1 - d3), zero, 1 - w], vb / total)
        second = np.select(regions, [zero, zero, one, zero, d2 / (d2 - d6), w], vc / total)
    feature = np.select(regions, [zero.astype(int) + code for code in range(6)], 6)
    return a + first[..., None] * ab + second[..., None] * ac, feature
