"""The interface of every task, which is all that training, kernels and studies know of one."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr._results import text_table
from ntk_inr.kernels.memory import describe
from ntk_inr.tasks.cost import Cost, check_cost
from ntk_inr.tasks.files import check_new
from ntk_inr.tasks.grid import Progress

MOST_IN_MEMORY = 2**31
"""Bytes that x and y of all rows may take together."""
MOST_HELDOUT = 2**16
"""Rows that :attr:`Task.heldout` has at most."""

Loss = str | Callable[[Any, Any], Any]
"""A name ("mse", "l1", "bce") or ``loss(prediction (n, c'), y (n, c)) -> (n,)``."""


@runtime_checkable
class Task(Protocol):
    """Describe a signal to fit: what of it is measured, and how a reconstruction is judged.

    With ``apply, params = ni.init(net, key, task.x)`` every task works as::

        measured = task.observe(apply)
        result = ni.fit(measured, params, task.x, task.y, loss=task.loss)
        kernel = ni.ntk(measured, params, task.x)
        scores = task.scores(task.reconstruct(lambda x: apply(result.params, x)))

    Of a signal too large for memory, ``task.rows(indices)`` gives the rows of a minibatch.

    Example:
        >>> import ntk_inr as ni
        >>> isinstance(ni.signal_task("chirp", samples=64), ni.tasks.Task)
        True
    """

    @property
    def name(self) -> str:
        """What to call it in a report."""

    @property
    def kind(self) -> str:
        """The family: "image", "signal", "audio", "shape", ..."""

    @property
    def n(self) -> int:
        """How many rows are trained on."""

    def rows(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return some of the n rows: x (k, d) and y (k, c), both float32, of integers (k,) in any order."""

    @property
    def x(self) -> np.ndarray:
        """Where it is measured, (n, d) float32 in [-1, 1]; refused where x and y would take more than 2 GiB."""

    @property
    def y(self) -> np.ndarray:
        """What was measured there, (n, c) float32; refused as x is."""

    @property
    def heldout(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Further rows ``(x, y)`` that are not trained on, at most 65536 of them, or None."""

    @property
    def digest(self) -> str:
        """A fingerprint of everything above: equal tasks have equal ones."""

    @property
    def origin(self) -> Any:
        """How :func:`ntk_inr.load_task` builds it again: "kind", "source", "settings"; None for arrays."""

    def describe(self) -> dict[str, Any]:
        """Return, for JSON, what :func:`ntk_inr.tasks.render` has to know of it."""

    @property
    def data_range(self) -> float:
        """Span of y, for the PSNR of a training curve."""

    @property
    def metric(self) -> str:
        """The key of :meth:`scores` that results are ranked by; larger is better, save for "chamfer", "relative_l2"."""

    @property
    def loss(self) -> Loss:
        """What training minimises."""

    @property
    def sampling(self) -> int | None:
        """How many rows a minibatch would usually have, or None for all of them."""

    @property
    def channels(self) -> int:
        """How many outputs the network has: c of ``apply``, not of what is observed."""

    def observe(self, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Turn a network ``(params, x) -> (n, c)`` into what is measured of it, ``(params, x) -> (n, c')``."""

    def reconstruct(
        self, predict: Callable[[Any], Any], *, out: str | Path | None = None, progress: Progress | None = None
    ) -> Any:
        """Turn ``predict``: coordinates (n, d) -> (n, c), the network itself, into the signal, kept in ``out`` too."""

    def scores(self, reconstruction: Any) -> dict[str, float]:
        """Return how well a reconstruction matches."""

    def figure(self, reconstruction: Any = None) -> Any:
        """Return a ``matplotlib.figure.Figure`` of the signal, beside a reconstruction where there is one."""

    def save(self, reconstruction: Any, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a reconstruction to a file that other programs open; return its path."""


def first_row(task: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return one row of a task, x (1, d) and y (1, c), which tells the shapes of all."""
    return task.rows(np.arange(1))


IN_MEMORY = 2**28
"""Bytes of x and y above which their rows are made for each step."""


def bytes_of_rows(task: Any) -> int:
    """Return the bytes that x and y of all rows take together."""
    return task.n * sum(part.nbytes for part in first_row(task))


class PointwiseTask:
    """Share what tasks have in common whose values are the network's own at the coordinates."""

    metric: ClassVar[str] = "psnr"
    large: ClassVar[int] = 2**16
    """Above so many rows a task recommends minibatches of that size."""
    noun: ClassVar[str] = "rows"
    """What a row is called."""
    smaller: ClassVar[str] = "a part of the data"
    """What to take where the rows are too many for memory."""

    x: Any
    y: Any
    name: Any
    eight_bit: bool = False
    """Whether what reconstructions are compared with came as integers of 8 bits."""
    origin: Any = None
    """How :func:`ntk_inr.load_task` builds the task again; None where it was made of arrays."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # In the class itself, or a dataclass would get a method of its own that shows every pixel.
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        x, y = first_row(self)
        return f"{type(self).__name__}({self.name!r}, x {(self.n, x.shape[1])}, y {(self.n, y.shape[1])})"

    def __str__(self) -> str:
        kind: Any = getattr(self, "kind", "")
        x, y = first_row(self)
        heldout = self.heldout
        rows = {
            "task": f"{self.name} ({kind})",
            "x, where": (self.n, x.shape[1]),
            "y, what": (self.n, y.shape[1]),
            "held out": 0 if heldout is None else len(heldout[0]),
            "loss": self.loss if isinstance(self.loss, str) else getattr(self.loss, "__name__", "callable"),
            "ranked by": self.metric,
        }
        return text_table([(name, str(value)) for name, value in rows.items()], header=0)

    @property
    def n(self) -> int:
        """How many rows are trained on."""
        return len(self.x)

    def rows(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return some of the n rows, x (k, d) and y (k, c)."""
        return self.x[indices], self.y[indices]

    @property
    def summary(self) -> str:
        """What is fitted, in a few words: "photo.png 1200 × 800, fitted at 512 × 341"."""
        return f"{self.name}, {self.n:,} {self.noun}"

    def describe(self) -> dict[str, Any]:
        """Return, for JSON, what is fitted: kind, name, rows and values trained on, and what rendering needs."""
        y = first_row(self)[1]
        kind: Any = getattr(self, "kind", "")
        counts = {"rows": self.n, "values": self.n * y.shape[1], "noun": self.noun}
        return {"kind": kind, "name": self.name, "summary": self.summary, "channels": self.channels, **counts}

    def cost(self, out: str | Path | None = None) -> Cost:
        """Return what a reconstruction, its scores and its figure take of memory, and its file of disk."""
        return Cost()

    def check(self, *, out: str | Path | None = None, overwrite: bool = False) -> None:
        """Refuse, before any work, what a reconstruction would fail over: memory, disk, a missing package, a name.

        Args:
            out: the file that it will be written to; None for none.
            overwrite: whether that may exist.

        Raises:
            ValueError: not enough memory or disk, or a suffix that :meth:`Task.save` does not know.
            FileExistsError: ``out`` exists.
            ImportError: a package that the end needs is missing.
        """
        suffixes: Any = getattr(self, "suffixes", ())
        if out is not None and suffixes:
            check_new(out, suffixes, overwrite=overwrite)
        check_cost(self.cost(out), out, what=f"the reconstruction of {self.name}", smaller=self.smaller)

    def reconstruct(
        self,
        predict: Callable[[Any], Any],
        *,
        out: str | Path | None = None,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Turn a network into the signal.

        Args:
            predict: the network itself, coordinates (rows, d) -> (rows, channels); compiled where JAX can trace it.
            out: a file to write the signal to as well, as :meth:`Task.save` does; None writes none.
            overwrite: replace the file if it exists.
            progress: called with the rows that are done, and all of them.

        Returns:
            The signal: of an image (h, w, c), of a sound (n,), of a shape its surface.
        """
        if out is not None:
            self.check(out=out, overwrite=overwrite)
        signal = self.signal_of(predict, progress)
        if out is not None:
            self.save(signal, out, overwrite=overwrite)  # type: ignore[attr-defined]
        return signal

    def signal_of(self, predict: Callable[[Any], Any], progress: Progress | None = None) -> Any:
        """Return what :meth:`reconstruct` does, which checks and writes."""
        raise NotImplementedError

    @property
    def baselines(self) -> dict[str, Any]:
        """Reconstructions by simpler methods, by their names: to be held beside those of networks, not among them."""
        return {}

    @property
    def loss(self) -> Loss:
        """What training minimises."""
        return "mse"

    @property
    def data_range(self) -> float:
        """Span of the values; 1 for those in [0, 1]."""
        return 1.0

    @property
    def sampling(self) -> int | None:
        """How many rows a minibatch would usually have, or None for all of them."""
        return None if self.n <= self.large else self.large

    @property
    def heldout(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows that are not trained on, or None."""
        return None

    @property
    def channels(self) -> int:
        """How many outputs the network has."""
        return int(first_row(self)[1].shape[1])

    def observe(self, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Return ``apply`` itself: it is what is measured."""
        return apply


class OnDemandTask(PointwiseTask):
    """Share what tasks have in common that make the rows that are asked for, and x and y of all of them on demand.

    They define :meth:`PointwiseTask.rows` and ``n``.
    """

    @property
    def n(self) -> int:
        """How many rows are trained on."""
        raise NotImplementedError

    @property
    def x(self) -> np.ndarray:
        """Coordinates (n, d) that are trained on."""
        return self._both[0]

    @property
    def y(self) -> np.ndarray:
        """Values (n, c) that are trained on."""
        return self._both[1]

    @functools.cached_property
    def _both(self) -> tuple[np.ndarray, np.ndarray]:
        needed = bytes_of_rows(self)
        if needed > MOST_IN_MEMORY:
            raise ValueError(
                f"x and y of {self.name} have {self.n:,} rows and would take {describe(needed)}; train on "
                f"task.rows(indices), which makes the rows of a minibatch, or take {self.smaller}."
            )
        return self.rows(np.arange(self.n))

    def __getstate__(self) -> dict[str, Any]:
        # Without what is cached, which can be many times the signal.
        names = {field.name for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in self.__dict__.items() if name in names}


class SampledTask(OnDemandTask):
    """Share what tasks have in common that train on some of the places of a grid and hold out the others.

    They define :meth:`at`: coordinates and values at places of the grid.
    """

    train: Any

    def at(self, places: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return coordinates (k, d) and values (k, c) at places (k,) of the grid in raster order."""
        raise NotImplementedError

    @functools.cached_property
    def n(self) -> int:
        """How many of the grid's places are trained on."""
        return int(np.count_nonzero(self.train))

    @functools.cached_property
    def _trained(self) -> np.ndarray | None:
        """The places that are trained on, None where all are."""
        return None if self.n == len(self.train) else np.flatnonzero(self.train).astype(np.int32)

    def rows(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return some of the n rows, x (k, d) and y (k, c)."""
        return self.at(np.asarray(indices) if self._trained is None else self._trained[indices])

    @property
    def heldout(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Coordinates and values held out for testing, at most 65536 rows of them; None where all are trained on."""
        if self._trained is None:
            return None
        others = np.flatnonzero(~self.train)
        if len(others) > MOST_HELDOUT:
            others = np.sort(np.random.default_rng(0).choice(others, MOST_HELDOUT, replace=False))
        return self.at(others)


class IndirectTask(PointwiseTask):
    """Share what tasks have in common that measure integrals or derivatives of a field, not its values."""

    @property
    def data_range(self) -> float:
        """Span of what is measured."""
        return float(self.y.max() - self.y.min())

    @property
    def channels(self) -> int:
        """How many outputs the network has: the field's one, whatever is measured of it."""
        return 1

    @property
    def differentiates(self) -> bool:
        """Whether derivatives of the network by x are a part of it."""
        return False

    def measure(self, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Return what is measured of ``apply`` as a function of parameters and x."""
        raise NotImplementedError

    def observe(self, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Return :meth:`measure` of ``apply`` as a pytree of its arrays, which passes through ``jit`` and ``vmap``."""
        return Partial(_Measurement(self), _checks.as_partial(apply))


@dataclasses.dataclass(frozen=True, eq=False)
class _Measurement:
    """Call ``task.measure``; equal for the same task, so that models that differ in arrays share a compilation."""

    task: IndirectTask

    def __call__(self, apply: Any, params: Any, x: Any) -> Any:
        return self.task.measure(apply)(params, x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Measurement) and self.task is other.task

    def __hash__(self) -> int:
        return id(self.task)


def fingerprint(*parts: Any) -> str:
    """Return a digest of arrays (shape, dtype, content) and settings in 16 hexadecimal digits."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            sha.update(f"{part.shape}{part.dtype.str}".encode())
            for piece in pieces(part):
                sha.update(np.ascontiguousarray(piece).data)
        else:
            sha.update(repr(part).encode())
    return sha.hexdigest()[:16]


def pieces(array: np.ndarray, size: int = 2**22) -> list[np.ndarray]:
    """Return an array cut along its first axis into parts of about ``size`` numbers, so that none is copied whole."""
    if array.size <= size or array.ndim == 0:
        return [array]
    step = max(1, size // math.prod(array.shape[1:]))
    return [array[start : start + step] for start in range(0, len(array), step)]
