"""The interface of every task, which is all that training, kernels and studies know of one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr._results import text_table

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
    def x(self) -> np.ndarray:
        """Where it is measured, (n, d) float32 in [-1, 1]."""

    @property
    def y(self) -> np.ndarray:
        """What was measured there, (n, c) float32."""

    @property
    def heldout(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Further rows ``(x, y)`` that are not trained on, or None."""

    @property
    def digest(self) -> str:
        """A fingerprint of everything above: equal tasks have equal ones."""

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

    def reconstruct(self, predict: Callable[[Any], Any]) -> Any:
        """Turn ``predict``: coordinates (n, d) -> (n, c), the network itself, into the signal."""

    def scores(self, reconstruction: Any) -> dict[str, float]:
        """Return how well a reconstruction matches."""

    def figure(self, reconstruction: Any = None) -> Any:
        """Return a ``matplotlib.figure.Figure`` of the signal, beside a reconstruction where there is one."""

    def save(self, reconstruction: Any, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write a reconstruction to a file that other programs open; return its path."""


class PointwiseTask:
    """Share what tasks have in common whose values are the network's own at the coordinates."""

    metric: ClassVar[str] = "psnr"
    large: ClassVar[int] = 2**16
    """Above so many rows a task recommends minibatches of that size."""

    x: Any
    y: Any
    name: Any
    eight_bit: bool = False
    """Whether what reconstructions are compared with came as integers of 8 bits."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # In the class itself, or a dataclass would get a method of its own that shows every pixel.
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, x {self.x.shape}, y {self.y.shape})"

    def __str__(self) -> str:
        kind: Any = getattr(self, "kind", "")
        heldout = 0 if self.heldout is None else len(self.heldout[0])
        rows = {
            "task": f"{self.name} ({kind})",
            "x, where": self.x.shape,
            "y, what": self.y.shape,
            "held out": heldout,
            "loss": self.loss if isinstance(self.loss, str) else getattr(self.loss, "__name__", "callable"),
            "ranked by": self.metric,
        }
        return text_table([(name, str(value)) for name, value in rows.items()], header=0)

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
        return None if len(self.y) <= self.large else self.large

    @property
    def heldout(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows that are not trained on, or None."""
        return None

    @property
    def channels(self) -> int:
        """How many outputs the network has."""
        return int(self.y.shape[1])

    def observe(self, apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Return ``apply`` itself: it is what is measured."""
        return apply


class SampledTask(PointwiseTask):
    """Share what tasks have in common that train on some of the values of a grid and hold out the others."""

    coordinates: Any
    values: Any
    train: Any

    @property
    def x(self) -> np.ndarray:
        """Coordinates that are trained on."""
        return self.coordinates[self.train]

    @property
    def y(self) -> np.ndarray:
        """Values that are trained on."""
        return self.values[self.train]

    @property
    def heldout(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Coordinates and values held out for testing, or None."""
        return None if self.train.all() else (self.coordinates[~self.train], self.values[~self.train])


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
            sha.update(np.ascontiguousarray(part).tobytes())
        else:
            sha.update(repr(part).encode())
    return sha.hexdigest()[:16]
