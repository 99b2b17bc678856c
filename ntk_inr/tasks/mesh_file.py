"""Mesh files in and out, and the solids that shape tasks are made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ntk_inr._optional import require
from ntk_inr.tasks.files import bundled_name, existing_file, new_file, reading
from ntk_inr.tasks.grid import GridPoints, grid_coordinates
from ntk_inr.tasks.mesh_distance import MeshDistance
from ntk_inr.tasks.polygon_file import READERS, read_polygons
from ntk_inr.tasks.solids import SOLIDS, Field, gradient
from ntk_inr.tasks.surface import extract_surface, inside_on_grid, sample_surface
from ntk_inr.tasks.topology import joined
from ntk_inr.tasks.triangulation import triangulate

SUFFIXES = (".obj", ".ply", ".stl", ".off", ".glb")
"""What meshes are written as."""
_HALF_EXTENT = 0.9
_MESHED_AT = 96
_PROJECTIONS = 4
_COMPARED_AT = 24
# Cells whose field is taken at a time.
_CELLS = 2**18


@dataclasses.dataclass(frozen=True)
class Solid:
    """A solid shape in [-1, 1]^3, by its mesh, its field, or both.

    Attributes:
        name: what to call it.
        vertices: (v, 3) of its surface.
        faces: (f, 3), counter-clockwise from outside.
        field: negative inside; None where the surface is open, or crosses itself or is inside out in parts.
        analytic: whether ``field`` is a closed form, of which the mesh is an approximation.
        centre: (3,) where the origin lies in the file's own unit.
        scale: length of 1 in the file's own unit.
    """

    name: str
    vertices: np.ndarray
    faces: np.ndarray
    field: Field | None
    analytic: bool
    centre: np.ndarray
    scale: float

    def sample(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return points (n, 3) on the surface, uniform by area, and unit normals there."""
        points, normals = sample_surface(self.vertices, self.faces, n, rng)
        if self.analytic and self.field is not None:
            for _ in range(_PROJECTIONS):
                slope = gradient(self.field, points)
                points = points - self.field(points)[:, None] * slope / (slope**2).sum(axis=1, keepdims=True)
            normals = gradient(self.field, points)
            normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return points, normals

    def inside(self, resolution: int) -> np.ndarray:
        """Return a mask (r, r, r) that is True for the cell centres of [-1, 1]^3 inside the solid."""
        if self.analytic and self.field is not None:
            points, inside = GridPoints((resolution,) * 3), np.empty(resolution**3, bool)
            for start in range(0, len(points), _CELLS):
                inside[start : start + _CELLS] = self.field(points[start : start + _CELLS].astype(np.float64)) < 0
            return inside.reshape((resolution,) * 3)
        return inside_on_grid(self.vertices, self.faces, resolution)


def load_solid(source: Any) -> Solid:
    """Return a bundled solid, or the mesh of a file moved and scaled into [-1, 1]^3."""
    if name := bundled_name(source, SOLIDS):
        field = SOLIDS[name]
        values = field(grid_coordinates((_MESHED_AT,) * 3).astype(np.float64)).reshape((_MESHED_AT,) * 3)
        mesh = extract_surface(values)
        return Solid(name, mesh.vertices, mesh.faces, field, True, np.zeros(3), 1.0)
    path = existing_file(source, "mesh", tuple(SOLIDS))
    with reading(path, "a triangle mesh", " Expected .obj, .ply, .stl, .off or .glb."):
        vertices, faces = _triangles(path)
    if not len(faces):
        raise ValueError(f"{str(path)!r} holds no triangles; expected a surface, not points or lines.")
    used = vertices[np.unique(faces)]
    if not np.isfinite(used).all():
        raise ValueError(f"{str(path)!r} has {int((~np.isfinite(used)).sum())} NaN or infinite coordinates.")
    low, high = used.min(axis=0), used.max(axis=0)
    centre, scale = (low + high) / 2, float((high - low).max()) / 2 / _HALF_EXTENT
    if scale == 0:
        raise ValueError(f"{str(path)!r} is a single point; expected a surface with an extent.")
    vertices, faces, closed = joined((vertices - centre) / scale, faces)
    if not len(faces):
        raise ValueError(f"{str(path)!r} has no triangle with an area; expected a surface.")
    distance = MeshDistance(vertices, faces) if closed else None
    if distance is not None and not _agrees(distance, inside_on_grid(vertices, faces, _COMPARED_AT)):
        distance = None
    return Solid(path.name, vertices, faces, distance, False, centre, scale)


def _triangles(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices (v, 3) and triangles (f, 3) of a file, whose polygons are cut into triangles."""
    if path.suffix.lower() in READERS:
        vertices, polygons = read_polygons(path)
        return vertices, triangulate(vertices, polygons)
    trimesh = require("trimesh", "shape")
    mesh = trimesh.load_mesh(path, process=False)
    mesh = mesh.to_mesh() if isinstance(mesh, trimesh.Scene) else mesh
    return np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces)


def _agrees(field: Field, inside: np.ndarray) -> bool:
    """Return whether a distance has its sign by the nearest face where the surface winds around a place.

    It does unless bodies overlap, lie in each other or face different ways. Cells at the surface are left out.
    """
    distance = field(grid_coordinates(inside.shape).astype(np.float64))
    far = np.abs(distance) > 2 / len(inside)
    return bool(((distance < 0) == inside.ravel())[far].all())


def save_mesh(vertices: np.ndarray, faces: np.ndarray, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write a triangle mesh as ``.obj``, ``.ply``, ``.stl``, ``.off`` or ``.glb``; return the path."""
    if not len(faces):
        raise ValueError("the reconstruction has no surface to save: its field has one sign everywhere. Train longer.")
    trimesh = require("trimesh", "shape")
    with new_file(path, SUFFIXES, overwrite=overwrite) as written:
        # As text, coordinates have so many digits after the point that a small unit keeps its shape.
        digits = max(8, 8 - int(np.floor(np.log10(max(float(np.ptp(vertices, axis=0).max()), 1e-300)))))
        text = {"digits": digits} if written.suffix.lower() in (".obj", ".off") else {}
        trimesh.Trimesh(vertices, faces, process=False).export(written, **text)
    return Path(path)
