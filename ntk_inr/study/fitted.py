"""A trained network: what came of its training, and everything that one does with it afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ntk_inr import _checks
from ntk_inr._results import Record, result, static
from ntk_inr.study.description import eight_bits
from ntk_inr.study.export import write_program
from ntk_inr.tasks.grid import MICROBATCH, Progress
from ntk_inr.tasks.interface import Task
from ntk_inr.tasks.metrics import score_lines
from ntk_inr.tasks.registry import TASKS, load_task
from ntk_inr.tasks.rendering import render
from ntk_inr.training.result import FitResult


class Context:
    """What a trained network was made of: its module, how many coordinates it takes, and its task.

    Two are equal where they are the same object, so that it can be part of a result's structure.

    Args:
        net: the module; None where ``missing`` says why there is none.
        inputs: d of the coordinates.
        task: the task, or what was kept of it: "name", "digest", "origin", "description".
        text: the module that was trained, as a line with every setting.
        missing: what to tell who asks for a module that isn't there.
    """

    def __init__(
        self, net: nn.Module | None, inputs: int, task: Task | Mapping[str, Any], text: str, missing: str = ""
    ) -> None:
        self.module, self.inputs, self.text, self.missing = net, inputs, text, missing
        self._task = task

    @property
    def net(self) -> nn.Module:
        """The module, or a ``ValueError`` that says how to give it."""
        if self.module is None:
            raise ValueError(self.missing)
        return self.module

    @property
    def described(self) -> Mapping[str, Any]:
        """What is kept of the task."""
        if isinstance(self._task, Mapping):
            return self._task
        return described_task(self._task)

    @functools.cached_property
    def task(self) -> Task:
        """The task, built again from its source where it is not at hand.

        Raises:
            ValueError: it came from arrays, its source can't be read any more, or has changed.
        """
        kept = self._task
        if not isinstance(kept, Mapping):
            return kept
        if kept.get("origin") is None:
            raise ValueError(
                f"the task {kept['name']!r} was made from arrays, which are not kept; make it again, and take "
                "the network itself: found(x)."
            )
        kind, source, settings = (kept["origin"][name] for name in ("kind", "source", "settings"))
        try:
            task = load_task(kind, source, **settings)
        except (OSError, ValueError, TypeError, ImportError) as error:
            raise ValueError(f"the task {kept['name']!r} can't be built again from {source!r}: {error}") from error
        if task.digest != kept["digest"]:
            raise ValueError(
                f"{source!r} has changed since the network was trained: its task has the digest {task.digest}, "
                f"and had {kept['digest']}. Put the earlier file back, or load_task the present one yourself."
            )
        return task


def suffix_of(kind: str) -> str:
    """Return the suffix of the file that a reconstruction of a kind of task is written to."""
    return TASKS[kind].writes if kind in TASKS else ".png"


def described_task(task: Task) -> dict[str, Any]:
    """Return, for JSON, what is kept of a task: how it is known, built again and rendered."""
    return {
        "name": task.name, "kind": task.kind, "digest": task.digest, "origin": task.origin,
        "description": task.describe(),
    }  # fmt: skip


@result
class Fitted:
    """A trained network, which is called on coordinates: ``found(x)``.

    ``x`` is (n, d), or a single point (d,); the values are (n, c) or (c,), of NumPy where ``x`` is. Many rows are
    computed in batches. It is a pytree, and may be called inside ``jit``, ``vmap`` and ``grad``.

    Attributes:
        run: the training.
        scores: of the reconstruction, by the task's own metrics.
        reconstruction: what the task makes of the network; None where it was loaded.
        files: what was written, by what it is; empty without a folder.
        baselines: what simpler methods reach, a dict each with "name", "kind" ("baseline") and "scores".
        apply: the network as a function, ``apply(params, x): (n, d) -> (n, c)``, with its fixed matrices, batch
            statistics and the step of its schedules; None for a module of one's own that :func:`load_fit` was not
            given.
    """

    run: FitResult
    scores: dict[str, Any]
    reconstruction: Any
    files: Record = static(default=Record())
    baselines: tuple[Record, ...] = static(default=())
    apply: Any = None
    context: Context | None = static(default=None)

    def __call__(self, x: Any) -> Any:
        """Return the network's values at coordinates ``x``.

        Raises:
            TypeError: integer coordinates.
            ValueError: coordinates of another length, or a module of one's own that is not there.
        """
        if self.apply is None:
            self._context.net  # noqa: B018  (which says what is missing)
        single = np.ndim(x) == 1
        rows = _checks.as_coordinates(x[None] if hasattr(x, "ndim") and single else [x] if single else x, finite=False)
        if rows.shape[1] != self._context.inputs:
            raise ValueError(
                f"x has {rows.shape[1]} coordinates a row; expected {self._context.inputs}, as the network was trained."
            )
        values = _in_batches(self.apply, self.params, rows)
        values = values[0] if single else values
        return values if isinstance(x, jax.Array) else np.asarray(values)

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows: how the training ended, the scores, and what was written."""
        files = {name: str(path) for name, path in self.files.items()}
        return {"status": self.run.status, "steps": self.run.steps, **self.scores, **files}

    @property
    def params(self) -> Any:
        """The trained parameters, a pytree."""
        return self.run.params

    @property
    def history(self) -> dict[str, Any]:
        """Columns of the training's reports: "step", "loss", "psnr", "seconds", ...; see :class:`FitResult`."""
        return self.run.history

    @property
    def net(self) -> nn.Module:
        """The Linen module.

        Raises:
            ValueError: a module of one's own that :func:`load_fit` was not given.
        """
        return self._context.net

    @property
    def task(self) -> Task:
        """The task that was fitted; of a network that was loaded, it is built again from its source.

        Raises:
            ValueError: it came from arrays, its source can't be read any more, or has changed.
        """
        return self._context.task

    @property
    def _context(self) -> Context:
        assert self.context is not None
        return self.context

    @property
    def suffix(self) -> str:
        """Suffix of the file that the network's signal is written to, such as ".png"."""
        return suffix_of(self._context.described["kind"])

    def render(
        self,
        path: str | Path,
        *,
        size: int | None = None,
        slice: int | float | str | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Path:
        """Write what the network gives at another resolution; the signal that it was trained on is not needed.

        Args:
            path: the file to write; its suffix says what it will be.
            size: longer side in pixels or voxels, samples of a sound, cells a side of a mesh; None is as fitted.
            slice: of a volume, a single picture, as :func:`ntk_inr.tasks.render` takes it.
            overwrite: replace the file if it exists.
            progress: called with the rows that are done, and all of them.

        Returns:
            The path.

        Raises:
            FileExistsError: the file exists.
            ValueError: what :func:`ntk_inr.tasks.render` refuses.
        """
        options: Any = {"size": size, "slice": slice, "overwrite": overwrite, "progress": progress}
        return render(self._context.described["description"], self, path, **options)

    def export(
        self, path: str | Path, *, platforms: Sequence[str] = ("cpu", "cuda", "tpu"), overwrite: bool = False
    ) -> Path:
        """Write the network as a program of StableHLO, which JAX calls without this package.

        It takes (n, d) coordinates for any n::

            network = jax.export.deserialize(bytearray(pathlib.Path("photo.stablehlo").read_bytes()))
            network.call(x)

        Args:
            path: the file to write.
            platforms: what it shall run on: "cpu", "cuda", "rocm", "tpu".
            overwrite: replace the file if it exists.

        Returns:
            The path.

        Raises:
            FileExistsError: the file exists.
            ImportError: flatbuffers is missing (``pip install "ntk-inr[export]"``).
            ValueError: an unknown platform.
        """
        if self.apply is None:
            self._context.net  # noqa: B018
        return write_program(
            self.apply, self.params, self._context.inputs, path, platforms=platforms, overwrite=overwrite
        )

    def score_lines(self, task: Task) -> list[tuple[str, str]]:
        """Return scores as a label and a number each, by the task's metric first; those of baselines are last."""
        shown: Callable[..., Any] = functools.partial(
            score_lines, metric=task.metric, eight_bit=eight_bits(task)["eight_bit"]
        )
        others = [
            (f"baseline, {other['name']}: {label}", text)
            for other in self.baselines
            for label, text in shown(other["scores"])
        ]
        return shown(self.scores) + others


@jax.jit
def _values(apply: Any, params: Any, x: Any) -> Any:
    return apply(params, x)


def _in_batches(apply: Any, params: Any, x: Any) -> Any:
    """Return ``apply(params, x)``, of many rows so many at a time; the last batch is filled up."""
    n = len(x)
    if n <= MICROBATCH or isinstance(x, jax.core.Tracer):
        return _values(apply, params, x)
    parts = []
    for start in range(0, n, MICROBATCH):
        rows = x[start : start + MICROBATCH]
        missing = MICROBATCH - len(rows)
        padded = jnp.concatenate([rows, jnp.broadcast_to(rows[-1:], (missing, rows.shape[1]))]) if missing else rows
        parts.append(_values(apply, params, padded)[: len(rows)])
    return jnp.concatenate(parts)
