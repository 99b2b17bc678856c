"""Shapes as a task: signed distance, occupancy or the eikonal equation, of meshes and of bundled solids."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ntk_inr import _checks, style
from ntk_inr.tasks import metrics
from ntk_inr.tasks.cost import Cost
from ntk_inr.tasks.derivatives import value_and_gradient
from ntk_inr.tasks.eikonal import EikonalLoss
from ntk_inr.tasks.grid import GridPoints, Progress, axis_centres, grid_coordinates, in_batches
from ntk_inr.tasks.interface import IndirectTask, Loss, fingerprint
from ntk_inr.tasks.mesh_file import SUFFIXES, Solid, load_solid, save_mesh
from ntk_inr.tasks.origin import with_origin
from ntk_inr.tasks.solids import SOLIDS
from ntk_inr.tasks.surface import Surface, extract_surface, sample_surface

Formulation = Literal["sdf", "occupancy", "eikonal"]
_NEAR = (0.1, 0.02)
_BOX_MARGIN = 0.02
_COMPARED_POINTS = 30_000
_SHOWN_CELLS = 40
_SHOWN_FACES = 20_000


@dataclasses.dataclass(frozen=True)
class ShapeTask(IndirectTask):
    """Fit a solid in [-1, 1]^3 as a field: its signed distance, its occupancy, or a solution of the eikonal equation.

    Attributes:
        name: what to call it in a report.
        formulation: "sdf", "occupancy" or "eikonal".
        solid: the true shape.
        x: points (n, 3).
        y: (n, 1) signed distance, negative inside; or 1 inside and 0 outside; or (n, 4) what
            :class:`EikonalLoss` compares with.
        resolution: r of the grid r x r x r that reconstructions are taken on.
        eikonal_loss: the weights of the eikonal formulation.
        origin: how :func:`ntk_inr.load_task` builds it again.
    """

    kind: ClassVar[str] = "shape"
    large: ClassVar[int] = 2**13
    noun: ClassVar[str] = "points"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES
    smaller: ClassVar[str] = "a smaller resolution="

    name: str
    formulation: Formulation
    solid: Solid
    x: np.ndarray
    y: np.ndarray
    resolution: int
    eikonal_loss: EikonalLoss
    origin: Any = None

    @property
    def differentiates(self) -> bool:
        """Whether derivatives of the network by x are a part of it."""
        return self.formulation == "eikonal"

    @property
    def metric(self) -> str:  # type: ignore[override]
        """The key of the scores to rank by: "iou", or "fscore" where an open surface has no inside."""
        return "fscore" if self.solid.field is None else "iou"

    @property
    def loss(self) -> Loss:
        """L1 of distances, cross-entropy of logits, or the eikonal loss."""
        if self.formulation == "eikonal":
            return self.eikonal_loss
        return "l1" if self.formulation == "sdf" else "bce"

    @functools.cached_property
    def digest(self) -> str:
        """A fingerprint of the points and of what is known there."""
        return fingerprint(self.formulation, self.x, self.y, self.resolution, self.eikonal_loss)

    def observe(self, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Return ``apply``; for the eikonal formulation its value and gradient (n, 4)."""
        return super().observe(apply) if self.formulation == "eikonal" else apply

    def measure(self, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Return value and gradient (n, 4), for the eikonal formulation."""
        return value_and_gradient(apply)

    def describe(self) -> dict[str, Any]:
        """Return, for JSON, what is fitted: kind, name, rows and values trained on, and what rendering needs."""
        unit = {"centre": [float(value) for value in self.solid.centre], "scale": float(self.solid.scale)}
        return super().describe() | {"formulation": self.formulation, "resolution": self.resolution, **unit}

    def cost(self, out: str | Path | None = None) -> Cost:
        """Return what a reconstruction, its scores and its figure take of memory, and its file of disk."""
        return surface_cost(self.resolution, out)

    def signal_of(self, predict: Callable[[Any], Any], progress: Progress | None = None) -> Surface:
        """Return the field on a grid and its surface by marching cubes.

        Args:
            predict: (n, 3) -> (n, 1): a distance that is negative inside, or for occupancy a logit that is
                positive inside.
            progress: called with the cells that are done, and all of them.
        """
        return surface_of(predict, self.resolution, self.formulation, progress)

    def scores(self, reconstruction: Surface) -> dict[str, float]:
        """Return how close a reconstructed surface is to the true one.

        Returns:
            "iou" of the cells of the grid (unless the true surface is open), "chamfer" (a length in units of
            which the cube has 2 a side; smaller is better) and "fscore" within 1 % of that side, of 30000
            points on each surface.
        """
        rng = np.random.default_rng(1)
        points = sample_surface(reconstruction.vertices, reconstruction.faces, _COMPARED_POINTS, rng)[0]
        true = self._true_points
        scores = {"chamfer": metrics.chamfer(points, true), "fscore": metrics.fscore(points, true, threshold=0.02)}
        if self.solid.field is None:
            return scores
        return {"iou": metrics.iou(reconstruction.values < 0, self._inside)} | scores

    def figure(self, reconstruction: Surface | None = None) -> Any:
        """Return the surface, a reconstructed one, and the field of the latter in the middle."""
        panels = [(self.name, self.solid.vertices, self.solid.faces)]
        if reconstruction is not None:
            scores = self.scores(reconstruction)
            step = -(-self.resolution // _SHOWN_CELLS)
            coarse = extract_surface(reconstruction.values[::step, ::step, ::step])
            title = f"reconstruction, {'F-score' if self.metric == 'fscore' else 'IoU'} {scores[self.metric]:.3f}"
            panels.append((title, coarse.vertices, coarse.faces))
        if len(self.solid.faces) > _SHOWN_FACES:
            panels[0] = (self.name, *self._drawable())
        with style.figure_style():
            across = len(panels) + (reconstruction is not None)
            # Constrained layout takes the room of titles from axes in three dimensions.
            figure = style.pyplot().figure(figsize=(3.9 * across, 3.9), layout="none")
            figure.subplots_adjust(left=0.03, right=0.95, bottom=0.12, top=0.9, wspace=0.15)
            for position, panel in enumerate(panels):
                _draw_surface(figure.add_subplot(1, across, position + 1, projection="3d"), *panel)
            if reconstruction is not None:
                self._draw_slice(figure, figure.add_subplot(1, across, across), reconstruction.values)
        return figure

    def save(self, reconstruction: Surface, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the surface as ``.obj``, ``.ply``, ``.stl``, ``.off`` or ``.glb``, in the unit of the mesh's file."""
        vertices = reconstruction.vertices * self.solid.scale + self.solid.centre
        return save_mesh(vertices, reconstruction.faces, path, overwrite=overwrite)

    def _drawable(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the true surface with few enough triangles to draw; of an open one an even choice of them."""
        solid, shape = self.solid, (_SHOWN_CELLS,) * 3
        if solid.field is None:
            return solid.vertices, solid.faces[:: -(-len(solid.faces) // _SHOWN_FACES)]
        mesh = extract_surface(solid.field(grid_coordinates(shape).astype(np.float64)).reshape(shape))
        return mesh.vertices, mesh.faces

    @functools.cached_property
    def _inside(self) -> np.ndarray:
        return self.solid.inside(self.resolution)

    @functools.cached_property
    def _true_points(self) -> np.ndarray:
        return self.solid.sample(_COMPARED_POINTS, np.random.default_rng(0))[0]

    def _draw_slice(self, figure: Any, axis: Any, values: np.ndarray) -> None:
        middle, places = values[:, :, len(values) // 2], axis_centres(len(values))
        reach = max(float(np.quantile(np.abs(np.nan_to_num(middle)), 0.95)), 1e-6)
        drawn = axis.pcolormesh(places, places, middle.T, cmap="RdBu", vmin=-reach, vmax=reach, rasterized=True)
        if self.solid.field is not None:
            truth = self._inside[:, :, len(values) // 2].T.astype(float)
            axis.contour(places, places, truth, levels=[0.5], colors=[style.MEASURED], linewidths=1)
        if middle.min() < 0 < middle.max():
            axis.contour(places, places, middle.T, levels=[0], colors=[style.PREDICTED], linewidths=1)
        axis.set(title="field in the middle", xlabel="x (black true, orange found)", ylabel="y", aspect="equal")
        axis.grid(False)
        figure.colorbar(drawn, ax=axis, shrink=0.75)


def surface_of(
    predict: Callable[[Any], Any], resolution: int, formulation: str, progress: Progress | None = None
) -> Surface:
    """Return the field of a network on a grid of so many cells a side, negative inside, and its surface."""
    inwards = np.negative if formulation == "occupancy" else None
    points = GridPoints((resolution,) * 3)
    values = in_batches(predict, points, 1, finish=inwards, progress=progress).reshape((resolution,) * 3)
    return extract_surface(values)


def surface_cost(resolution: int, out: str | Path | None) -> Cost:
    """Return what a surface on a grid of so many cells a side takes, made, scored, drawn and written."""
    modules = [("matplotlib", "report"), ("skimage.measure", "report")]
    modules += [("trimesh", "shape")] if out is not None else []
    # A few surfaces across the cube, two triangles a cell, in the longest of the formats.
    faces = 12 * resolution**2
    return Cost(20 * resolution**3 + 200 * faces + 2**28, 0 if out is None else 60 * faces, tuple(modules))


@with_origin("shape", SOLIDS)
def shape_task(
    source: str | Path,
    *,
    kind: Formulation = "sdf",
    points: int = 30_000,
    resolution: int = 64,
    eikonal_loss: EikonalLoss | None = None,
    seed: int = 0,
) -> ShapeTask:
    """Make a task of a solid, given by a mesh or bundled.

    A mesh is moved and scaled so that its longest side reaches from -0.9 to 0.9. Of the points one half lies
    near the surface (at distances of about 0.1 and of about 0.02), the other half anywhere in the cube; for "sdf"
    a tenth of all lie on the surface instead. For "eikonal" one half lies on the surface, and outside the box
    around it the box's distance is known as a bound.

    Distances to meshes, to the sphere and to the torus are exact. For the gyroid and the CSG solid the values
    are closed forms with the right sign and zero that are never larger than the distance.

    Args:
        source: a mesh file that trimesh reads (.obj, .ply, .stl, .off, .glb), of triangles or of plane polygons; or
            "sphere", "torus", "gyroid", "csg".
        kind: "sdf" learns signed distances (negative inside), "occupancy" logits of being inside, "eikonal" a
            signed distance from surface points and normals alone.
        points: n, how many points to train on.
        resolution: cells a side of the grid that the surface is reconstructed on.
        eikonal_loss: weights of that formulation; None are those of IGR with a weak term off the surface.
        seed: of the points.

    Returns:
        :class:`ShapeTask`.

    Raises:
        FileNotFoundError: no such file, and no bundled solid of that name.
        ValueError: not a mesh, NaN, or not watertight where inside and outside are needed.
        ImportError: trimesh missing (``pip install "ntk-inr[shape]"``).

    Example:
        >>> task = shape_task("torus", points=1000)
        >>> task.x.shape, task.y.shape, task.loss, task.metric
        ((1000, 3), (1000, 1), 'l1', 'iou')

    Source: Park et al., "DeepSDF" (CVPR 2019), arXiv 1901.05103; Mescheder et al., "Occupancy Networks" (CVPR 2019),
    arXiv 1812.03828; Gropp et al., "Implicit Geometric Regularization for Learning Shapes" (ICML 2020),
    arXiv 2002.10099.
    """
    _checks.check_choice(kind, ("sdf", "occupancy", "eikonal"), "kind")
    _checks.check_positive(points, "points", integer=True, least=10)
    _checks.check_positive(resolution, "resolution", integer=True, least=8)
    _checks.check_positive(seed, "seed", integer=True, least=0)
    solid = load_solid(source)
    if solid.field is None and kind != "eikonal":
        raise ValueError(
            f"{solid.name} is not watertight (it has holes, bodies that overlap, or faces that disagree on which side "
            f'is out), so inside and outside, which kind="{kind}" needs, are not defined. Close it with trimesh\'s '
            'mesh.fill_holes(), in MeshLab ("Close Holes") or in Blender ("Fill Holes"), unite its bodies (Blender: '
            '"Boolean", "Union"), or take kind="eikonal", which needs no inside.'
        )
    rng = np.random.default_rng(seed)
    x, y = (_eikonal_points if kind == "eikonal" else _field_points)(solid, kind, points, rng)
    loss = EikonalLoss() if eikonal_loss is None else eikonal_loss
    label = solid.name if kind == "sdf" else f"{solid.name}, {kind}"
    return ShapeTask(label, kind, solid, x.astype(np.float32), y.astype(np.float32), resolution, loss)


def _field_points(solid: Solid, kind: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    on = n // 10 if kind == "sdf" else 0
    near = n // 2 - on
    surface = solid.sample(on + near, rng)[0]
    spread = np.repeat(_NEAR, [near - near // 2, near // 2])[:, None]
    close = np.clip(surface[on:] + spread * rng.standard_normal((near, 3)), -1, 1)
    x = np.concatenate([surface[:on], close, rng.uniform(-1, 1, (n - on - near, 3))])
    assert solid.field is not None
    field = solid.field(x)
    field[:on] = 0.0
    return x, (field if kind == "sdf" else field < 0)[:, None]


def _eikonal_points(solid: Solid, kind: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    surface, normals = solid.sample(n // 2, rng)
    x = np.concatenate([surface, rng.uniform(-1, 1, (n - len(surface), 3))])
    y = np.zeros((n, 4))
    y[: len(surface)] = np.concatenate([np.ones((len(surface), 1)), normals], axis=1)
    low, high = solid.vertices.min(axis=0) - _BOX_MARGIN, solid.vertices.max(axis=0) + _BOX_MARGIN
    bound = np.linalg.norm(np.maximum(np.maximum(low - x, x - high), 0), axis=1)
    y[bound > 0, :2] = np.stack([-np.ones(n), bound], axis=1)[bound > 0]
    return x, y


def _draw_surface(axis: Any, title: str, vertices: np.ndarray, faces: np.ndarray) -> None:
    if len(faces):
        axis.plot_trisurf(*vertices.T, triangles=faces, color=style.PALETTE[5], linewidth=0, antialiased=False)
    axis.set(title=title, xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1), box_aspect=(1, 1, 1))
    axis.view_init(elev=28, azim=-55)
    axis.tick_params(labelsize=6, pad=-2)
    for side in (axis.xaxis, axis.yaxis, axis.zaxis):
        side.set_ticks([-1, 0, 1])
