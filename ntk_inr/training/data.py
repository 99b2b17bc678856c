"""Where the rows of a step come from: arrays, a traced sampler, or a function on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr import _checks
from ntk_inr.training import sampling

_AHEAD = 4  # steps whose rows the host prepares while the device computes
_EXPECTED = "(x (m, d), y (m, c)) or (x, y, weights (m,))"


class Batch(NamedTuple):
    """The rows of a step: x (m, d), y (m, c), weights (m,) of their losses or None, and their places (m,) or None."""

    x: Array
    y: Array
    weights: Array | None = None
    rows: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Fixed rows x (n, d) and y (n, c), of which a step takes ``size``, or all where that is None."""

    x: Any
    y: Any
    size: int | None = dataclasses.field(default=None, metadata={"static": True})
    sampling: str = dataclasses.field(default="shuffle", metadata={"static": True})

    def batch(self, key: Array, t: Any, last: Array | None) -> Batch:
        """Return the rows of step ``t``; ``last`` are the scores (n,) that draw them, where there are any."""
        if self.size is None:
            return Batch(self.x, self.y)
        if last is not None:
            rows, weights = sampling.important_rows(key, last, t, self.size)
            return Batch(self.x[rows], self.y[rows], weights, rows)
        draw = sampling.uniform_rows if self.sampling == "uniform" else sampling.shuffled_rows
        rows = draw(key, t, len(self.x), self.size)
        return Batch(self.x[rows], self.y[rows])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """Rows that a traced ``sampler(key, step)`` draws, in no narrower dtype than ``dtype``."""

    sampler: Any
    dtype: Any = dataclasses.field(metadata={"static": True})

    def batch(self, key: Array, t: Any, last: Array | None) -> Batch:
        """Return the rows of step ``t``."""
        drawn = self.sampler(jax.random.fold_in(key, t), t)
        if not isinstance(drawn, tuple) or len(drawn) not in (2, 3):
            raise TypeError(f"data(key, step) gave {type(drawn).__name__}; expected {_EXPECTED}.")
        return Batch(*(widened(jnp.asarray(part), self.dtype) for part in drawn))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ready:
    """The rows of one step, which the host has prepared."""

    rows: Any

    def batch(self, key: Array, t: Any, last: Array | None) -> Batch:
        """Return them."""
        return self.rows


@dataclasses.dataclass(frozen=True)
class HostData:
    """Rows of a step that a function makes on the host; :func:`host_data` makes one.

    Attributes:
        function: ``function(step) -> (x, y)`` or ``(x, y, weights)``.
        name: what a resumed run knows it by.
    """

    function: Callable[[int], Any]
    name: str


def host_data(function: Callable[[int], Any], *, name: str) -> HostData:
    r"""Take the rows of each step from a function on the host: ``ni.fit(apply, params, data=ni.host_data(...))``.

    For what is not in memory: patches of a volume on disk, a loader of one's own. The function is called in a thread
    of its own, for some steps ahead, while the device computes; it must be a function of the step alone, so that a
    resumed run sees the same rows.

    Args:
        function: ``function(step) -> (x (m, d), y (m, c))`` or ``(x, y, weights (m,))``, arrays of NumPy, of the same
            shapes for every step. Weights multiply the losses of the rows, whose mean over m is minimised.
        name: what a checkpoint knows the data by, since a function has no fingerprint: name its file, its
            version and its settings.

    Returns:
        :class:`HostData`.

    Raises:
        TypeError: ``function`` can't be called, or ``name`` is no text.

    Example:
        >>> import jax, numpy as np, ntk_inr as ni
        >>> def patch(step):
        ...     x = np.random.default_rng(step).uniform(-1, 1, (32, 1)).astype("float32")
        ...     return x, np.sin(3 * x)
        >>> apply, params = ni.init(ni.variant("siren", features=16, depth=2), jax.random.key(0), patch(0)[0])
        >>> ni.fit(apply, params, data=ni.host_data(patch, name="sine"), steps=20).status
        'finished'
    """
    if not callable(function):
        raise TypeError(f"function is {type(function).__name__}; expected function(step) -> {_EXPECTED}.")
    if not isinstance(name, str) or not name:
        raise TypeError(f"name is {name!r}; expected a text that tells this data from other data.")
    return HostData(function, name)


def shuffled(
    rows: Callable[[np.ndarray], tuple[Any, Any]], n: int, batch_size: int, key: Array, *, name: str
) -> HostData:
    """Take shuffled batches of n rows that only a function has: those that :func:`fit` takes of arrays, with its key.

    Args:
        rows: ``rows(indices (m,)) -> (x (m, d), y (m, c))``, as a task has it.
        n: how many rows there are; any number, since no order of them is kept.
        batch_size: rows of a step.
        key: random key of their order.
        name: what a checkpoint knows the data by, such as the task's digest.

    Returns:
        :class:`HostData`.

    Example:
        >>> import jax, ntk_inr as ni
        >>> task = ni.image_task("camera", size=16)
        >>> data = ni.training.shuffled(task.rows, task.n, 64, jax.random.key(0), name=task.digest)
        >>> data.function(0)[0].shape
        (64, 2)
    """
    _checks.check_positive(n, "n", integer=True)
    _checks.check_positive(batch_size, "batch_size", integer=True)
    batches = n // batch_size
    if not batches:
        raise ValueError(f"batch_size is {batch_size} but there are {n} rows; expected at most as many.")

    def batch(step: int) -> tuple[Any, Any]:
        words = np.asarray(sampling.epoch_words(key, step // batches))
        places = step % batches * batch_size + np.arange(batch_size)
        return rows(sampling.permuted(words, places, n))

    return HostData(batch, f"{name}, {n} rows in batches of {batch_size}, {jax.random.key_data(key).tolist()}")


class Feed:
    """Prepare the rows of coming steps of :class:`HostData` in a thread, and hand out those of one step."""

    def __init__(self, data: HostData, dtype: Any, steps: int) -> None:
        self._data, self._dtype, self._steps = data, dtype, steps
        self._thread = ThreadPoolExecutor(1, "ntk_inr.data")
        self._ahead: dict[int, Future[Batch]] = {}
        self._shapes: Any = None

    def batch(self, step: int) -> Batch:
        """Return the rows of ``step``, and have those of the next ones prepared."""
        for t in range(step, min(step + _AHEAD, self._steps)):
            if t not in self._ahead:
                self._ahead[t] = self._thread.submit(self._made, t)
        batch = self._ahead[step].result()
        self._ahead = {t: future for t, future in self._ahead.items() if t >= step}
        shapes = jax.tree.map(lambda part: (part.shape, part.dtype), batch)
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            raise ValueError(
                f"data gave {_said(shapes)} at step {step}, but {_said(self._shapes)} before; expected the same "
                "shapes and dtypes at every step."
            )
        return batch

    def close(self) -> None:
        """Let go of what is prepared."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _made(self, step: int) -> Batch:
        parts = self._data.function(step)
        if not isinstance(parts, tuple) or len(parts) not in (2, 3):
            raise TypeError(f"data's function gave {type(parts).__name__} at step {step}; expected {_EXPECTED}.")
        return checked(Batch(*parts), self._dtype, f"of step {step}")


def checked(batch: Batch, dtype: Any, where: str) -> Batch:
    """Return the rows of a step in no narrower dtype than ``dtype``, or say what is wrong with them."""
    x = widened(_checks.as_coordinates(batch.x, f"x {where}"), dtype)
    y = widened(_checks.as_values(batch.y, len(x), f"y {where}"), dtype)
    weights = batch.weights
    if weights is not None:
        weights = widened(jnp.asarray(weights), dtype)
        _checks.check_finite(weights, f"weights {where}")
        if weights.shape != (len(x),):
            raise ValueError(f"weights {where} have shape {weights.shape}; expected ({len(x)},), one for a row of x.")
    return Batch(x, y, weights)


def widened(data: Array, dtype: Any) -> Array:
    """Return data in the parameters' dtype, or in their own where that is wider."""
    return data.astype(jnp.promote_types(data.dtype, dtype))


def _said(shapes: Any) -> str:
    return ", ".join(f"{shape} {np.dtype(dtype)}" for shape, dtype in (part for part in shapes if part is not None))
