"""The kernel while a network trains: moments, top eigenvalues, alignment and drift, to memory and to files."""

from __future__ import annotations

import functools
import json
import os
import uuid
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from ntk_inr import _checks
from ntk_inr._dtypes import unit_of
from ntk_inr._optional import require
from ntk_inr.kernels.api import ntk
from ntk_inr.spectra.dense import moments
from ntk_inr.spectra.eigen import energy_shares
from ntk_inr.spectra.lanczos import top_eigenpairs
from ntk_inr.training.losses import ExampleLoss
from ntk_inr.training.options import subset


class Recorder:
    r"""Record the kernel of a fixed subset of the data at chosen steps: ``ni.fit(..., recorder=recorder)``.

    With K_t the kernel at step t, r_t the gradient of the loss at the outputs (f - y for "mse") and u_k the
    eigenvector of the k-th largest eigenvalue, it records the moments of K_t, its largest eigenvalues, the shares
    :math:`\lVert u_k^\top r_t\rVert^2 / \lVert r_t\rVert^2` and :math:`\lVert u_k^\top y\rVert^2 / \lVert y\rVert^2`,
    and the drift :math:`\lVert K_t - K_0\rVert_F / \lVert K_0\rVert_F`.

    Each line of the JSONL file is written and flushed when it is known, so a killed run keeps what it had: "event" is
    "start", "report" (a row of the history of :func:`fit`) or "kernel". A run that is resumed from a checkpoint cuts
    the file back to that checkpoint and goes on.

    Args:
        points: rows of x, evenly spaced, that the kernel is taken on; 0 takes none, and keeps the reports alone.
        every: steps between records; None is steps 0, 1, 2, 4, 8, ... The first and last step are always there.
        top: how many eigenvalues and shares.
        jsonl: file to write; one that exists is not overwritten.
        tensorboard: folder to write events for TensorBoard to; needs the extra "tensorboard".
        overwrite: whether an existing ``jsonl`` may be replaced.

    Raises:
        ValueError: a number below 1, or ``points`` below 0.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> from ntk_inr.training.recorder import Recorder
        >>> x = jnp.linspace(-1, 1, 32)[:, None]
        >>> model = ni.init(ni.variant("siren", features=16, depth=2), jax.random.key(0), x)
        >>> recorder = Recorder(points=16)
        >>> run = ni.fit(*model, x, jnp.sin(3 * x), steps=4, recorder=recorder)
        >>> history = recorder.history
        >>> history["step"].tolist(), history["eigenvalues"].shape, float(history["drift"][0])
        ([0, 1, 2, 4], (4, 8), 0.0)
    """

    def __init__(
        self,
        points: int = 256,
        *,
        every: int | None = None,
        top: int = 8,
        jsonl: str | os.PathLike[str] | None = None,
        tensorboard: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> None:
        _checks.check_positive(points, "points", integer=True, least=0)
        for name, value in (("every", 1 if every is None else every), ("top", top)):
            _checks.check_positive(value, name, integer=True)
        self.points, self.every, self.top, self.overwrite = points, every, top, overwrite
        self.jsonl = None if jsonl is None else Path(jsonl)
        self.tensorboard = tensorboard
        self._first: np.ndarray | None = None
        self._lines: list[dict[str, Any]] = []
        self._file: Any = None
        self._writer: Any = None

    @property
    def history(self) -> dict[str, np.ndarray]:
        """The records as columns by name, one entry each: "step", "ntk_mean", "eigenvalues" (records, top), "drift"."""
        rows = [line for line in self._lines if line["event"] == "kernel"]
        names = [name for name in rows[0] if name != "event"] if rows else []
        columns = {name: np.array([row[name] for row in rows]) for name in names}
        # What is not finite was written as None.
        return {name: column.astype(float) if column.dtype == object else column for name, column in columns.items()}

    @property
    def settings(self) -> list[Any]:
        """The settings that a resumed run must have in common with its checkpoint: points, every, top."""
        return [self.points, self.every, self.top]

    def begin(
        self, apply: Any, params: Any, x: Array, y: Array, loss: ExampleLoss, steps: int,
        lines: list[dict[str, Any]] | None,
    ) -> None:  # fmt: skip
        """Compute the kernel at the start and take over ``lines``, an earlier part; refuse files of other runs."""
        self._steps, self._loss = steps, loss
        self._new = lines is None and not self.overwrite
        rows = subset(len(x), self.points)
        if self.points:
            self._x, self._y = x[rows], y[rows]
            self._first = np.asarray(ntk(apply, params, self._x))
        if lines is None:
            if self._new and self.jsonl is not None and self.jsonl.exists():
                raise FileExistsError(
                    f"{str(self.jsonl)!r} exists; choose another file for the records, or pass overwrite=True to "
                    "replace it."
                )
            lines = [{"event": "start", "run": uuid.uuid4().hex, "points": len(rows), "steps": steps}]
        elif self.jsonl is not None and self.jsonl.exists():
            written = _complete_lines(self.jsonl)
            if written and written[: len(lines)] != lines[: len(written)]:
                raise FileExistsError(
                    f"{str(self.jsonl)!r} is of another run than the checkpoint; choose another file for the records."
                )
        self._lines = list(lines)

    def open(self, done: int) -> None:
        """Open the files for writing, cut back to what was recorded up to step ``done``."""
        if self.jsonl is not None:
            self.jsonl.parent.mkdir(parents=True, exist_ok=True)
            if self._new:
                self.jsonl.touch(exist_ok=False)  # which fails where another run has made it since
            partial = self.jsonl.with_name(f"{self.jsonl.name}.{os.getpid()}.tmp")
            partial.write_text("".join(json.dumps(line) + "\n" for line in self._lines))
            partial.replace(self.jsonl)
            self._file = self.jsonl.open("a")
        if self.tensorboard is not None:
            tensorboard = require("tensorboardX", "tensorboard")
            self._writer = tensorboard.SummaryWriter(str(self.tensorboard), purge_step=done + 1 if done else None)

    def close(self) -> None:
        """Close the files that :meth:`open` opened."""
        for opened in (self._file, self._writer):
            if opened is not None:
                opened.close()
        self._file = self._writer = None

    def lines(self) -> list[dict[str, Any]]:
        """Return the records so far, one dictionary for each line of the file."""
        return list(self._lines)

    def next(self, done: int) -> int:
        """Return the first step after ``done`` to record."""
        if not self.points:
            return self._steps
        after = (done // self.every + 1) * self.every if self.every else 1 << done.bit_length()
        return min(after, self._steps)

    def record(self, step: int, apply: Any, params: Any) -> None:
        """Record the kernel at ``step`` if that is one to record and not recorded yet."""
        last = next((line["step"] for line in reversed(self._lines) if line["event"] == "kernel"), -1)
        if self._first is None or step <= last or (step and step != self.next(step - 1)):
            return
        kernel = ntk(apply, params, self._x)
        # Not a whole decomposition: LAPACK's threads wait for each other for long where other processes run too.
        top = top_eigenpairs(kernel, min(self.top, len(self._x)), key=jax.random.key(0))
        shares = _shares(apply, params, self._x, self._y, top.vectors, loss=self._loss)
        figures = moments(kernel)
        unit = unit_of(self._first)
        first = self._first / unit
        change = np.linalg.norm(np.asarray(kernel) / unit - first)
        row: dict[str, Any] = {
            f"ntk_{name}": float(getattr(figures, name)) for name in ("mean", "variance", "cv", "effective_rank")
        }
        row |= {
            "eigenvalues": np.asarray(top.values).tolist(),
            "residual_alignment": np.asarray(shares[0]).tolist(),
            "target_alignment": np.asarray(shares[1]).tolist(),
            "drift": float(change / (np.linalg.norm(first) or np.nan)),
        }
        self._write({"event": "kernel", "step": step, **row})

    def report(self, row: dict[str, float]) -> None:
        """Write a row of the run's history."""
        self._write({"event": "report", **row})

    def _write(self, line: dict[str, Any]) -> None:
        # JSON has no infinity, which the PSNR of a perfect fit is.
        line = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in line.items()}
        self._lines.append(line)
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._writer is not None:
            for name, value in line.items():
                for i, number in enumerate(value if isinstance(value, list) else [value]):
                    if name not in ("event", "step") and number is not None:
                        self._writer.add_scalar(
                            f"{name}/{i}" if isinstance(value, list) else name, number, line["step"]
                        )
            self._writer.flush()


@functools.partial(jax.jit, static_argnames="loss")
def _shares(apply: Any, params: Any, x: Array, y: Array, vectors: Array, *, loss: ExampleLoss) -> tuple[Array, Array]:
    """Return the shares (k,) of energy along ``vectors`` (n, k), of the loss's gradient at the outputs and of y."""
    residual = jax.grad(lambda f: loss(f, y).sum())(apply(params, x))

    return energy_shares(vectors, residual), energy_shares(vectors, y)


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without a last line that was cut off in the middle."""
    lines = []
    for text in path.read_text().splitlines(keepends=True):
        if not text.endswith("\n"):
            break
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            return [{"event": "not a record"}]
    return lines
