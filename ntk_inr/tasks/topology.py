"""Whether triangles enclose a solid, told by how they are joined, whatever their shape and size are."""

from __future__ import annotations

from typing import Any

import numpy as np

from ntk_inr._optional import require

_SAME_CORNER = 1e-8
_SLIVER = 1e-9
_ROUNDS = 50


def joined(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return a mesh whose equal corners are one, and whether it is closed: then counter-clockwise from outside.

    Corners are one where they agree to a part in 1e8 of the mesh's size. A mesh is closed where each edge is run
    through as often one way as the other. That stays so as corners become one, whereas the number of faces at an edge
    does not: triangles without area fold away, and sheets come to touch.
    """
    vertices, faces = _merged(vertices, faces)
    closed = enclosing(vertices, faces)
    if closed is None:
        return vertices, _distinct(faces), False
    faces = _without_slivers(vertices, closed)
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    volume = np.einsum("fi,fi->", a, np.cross(b, c))
    return vertices, faces[:, ::-1] if volume < 0 else faces, True


def enclosing(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray | None:
    """Return the faces as they enclose something, repeated ones once and turned where need be; None if there is a hole.

    Of faces that lie on each other with opposite sides out, as between two bodies that touch, none counts, unless all
    do so, as in files that show both sides of a surface.
    """
    for chosen in (_cancelled(faces), _distinct(faces)):
        if len(chosen) and is_closed(chosen):
            return chosen
        if len(chosen) and _every_edge_is_shared(chosen):
            mesh = require("trimesh", "shape").Trimesh(vertices, chosen, process=False)
            mesh.fix_normals()
            turned = np.asarray(mesh.faces)
            if is_closed(turned):
                return turned
    return None


def is_closed(faces: np.ndarray) -> bool:
    """Return whether each edge is run through as often one way as the other."""
    edges, way = _edges(faces)
    return not np.bincount(np.unique(edges, axis=0, return_inverse=True)[1].ravel(), weights=way).any()


def _every_edge_is_shared(faces: np.ndarray) -> bool:
    """Return whether the faces at each edge can be turned so that one goes on where the other ends."""
    return not (np.unique(_edges(faces)[0], axis=0, return_counts=True)[1] % 2).any()


def _edges(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges (3 f, 2) of faces with the smaller corner first, and 1 or -1 for the way each is run through."""
    edges = faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    return np.sort(edges, axis=1), np.where(edges[:, 0] < edges[:, 1], 1, -1)


def _merged(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a mesh of the corners in use, near ones as one, without the faces that this folds away."""
    import scipy.sparse.csgraph
    import scipy.spatial

    corners = vertices[faces].reshape(-1, 3) + 0.0  # of the two zeros both are the same
    points, exact = np.unique(corners, axis=0, return_inverse=True)
    reach = _SAME_CORNER * float(np.ptp(points, axis=0).max())
    pairs = scipy.spatial.cKDTree(points).query_pairs(reach, output_type="ndarray")
    graph = scipy.sparse.coo_matrix((np.ones(len(pairs)), pairs.T), (len(points), len(points)))
    near = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    points, faces = points[np.unique(near, return_index=True)[1]], near[exact.ravel()].reshape(-1, 3)
    a, b, c = faces.T
    return points, faces[(a != b) & (b != c) & (c != a)]


def _keys(faces: np.ndarray) -> tuple[Any, Any, np.ndarray]:
    """Return the first place of each set of corners, which set each face has, and 1 or -1 for which side is out."""
    _, first, which = np.unique(np.sort(faces, axis=1), axis=0, return_index=True, return_inverse=True)
    a, b, c = faces.T
    return first, which.ravel(), np.where((a < b) ^ (b < c) ^ (c < a), 1, -1)


def _distinct(faces: np.ndarray) -> np.ndarray:
    """Return each face once, as it is first."""
    return faces[np.sort(_keys(faces)[0])]


def _cancelled(faces: np.ndarray) -> np.ndarray:
    """Return each face once with the side out that more of its repetitions have, without those that are even."""
    first, which, side = _keys(faces)
    more = np.bincount(which, weights=side, minlength=len(first))
    kept = np.where((more * side[first] < 0)[:, None], faces[first][:, ::-1], faces[first])
    return kept[np.argsort(first)][more[np.argsort(first)] != 0]


def _without_slivers(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return a closed mesh without triangles whose corners lie on a line, which have no normal.

    The face across the longest side of such a triangle is cut in two at the corner between, which covers the same.
    """
    faces = faces.copy()
    for _ in range(_ROUNDS):
        p = vertices[faces]
        sides = np.linalg.norm(np.roll(p, -1, axis=1) - p, axis=2)  # of corner i and the next
        area = np.linalg.norm(np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]), axis=1)
        slivers = np.flatnonzero(area < _SLIVER * sides.max(axis=1) ** 2)
        if not len(slivers):
            break
        changed: set[int] = set()
        for sliver in slivers.tolist():
            a, c, b = np.roll(faces[sliver], -int(sides[sliver].argmax())).tolist()
            back = np.flatnonzero(((faces == c) & (np.roll(faces, -1, axis=1) == a)).any(axis=1)).tolist()
            across = next((face for face in back if face not in changed), None)
            if sliver in changed or across is None:
                continue
            d = int(np.setdiff1d(faces[across], [a, c])[0])
            faces[sliver], faces[across] = (c, b, d), (b, a, d)
            changed |= {sliver, across}
        if not changed:
            break
        faces = _cancelled(faces)
    return faces
