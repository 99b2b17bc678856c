"""The keyword arguments of ``fit``, and their checks before anything runs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh

from ntk_inr import _checks
from ntk_inr.training.data import Drawn, Rows
from ntk_inr.training.losses import ExampleLoss, as_loss
from ntk_inr.training.optimizers import evaluates_again

SAMPLING = ("shuffle", "uniform", "loss", "ntk")
KEEP = ("last", "best")


@dataclasses.dataclass(frozen=True)
class Options:
    """Hold the keyword arguments of ``fit``; each is checked as far as it can be without the data."""

    optimizer: Any = None
    steps: int = 1000
    key: Array | None = None
    loss: str | Callable[[Any, Any], Any] = "mse"
    batch_size: int | None = None
    sampling: str = "shuffle"
    microbatch: int | None = None
    stop_at: float | None = None
    validation: tuple[Any, Any] | None = None
    ntk_points: int | None = None
    data_range: float = 1.0
    report_every: int | None = None
    progress: Callable[[int, int, dict[str, float]], None] | None = None
    recorder: Any = None
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: float = 60.0
    checkpoint_keep: int = 3
    keep: str = "last"
    resume: bool | str = True
    overwrite: bool = False
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        _checks.check_options(microbatch=self.microbatch)
        for name in ("steps", "ntk_points", "checkpoint_keep", "report_every"):
            if getattr(self, name) is not None:
                _checks.check_positive(getattr(self, name), name, integer=True)
        _checks.check_positive(self.data_range, "data_range")
        _checks.check_positive(self.checkpoint_every, "checkpoint_every")
        _checks.check_choice(self.sampling, SAMPLING, "sampling")
        _checks.check_choice(self.keep, KEEP, "keep")
        if not isinstance(self.resume, bool):
            _checks.check_choice(self.resume, ("further",), "resume")
        if self.optimizer is not None and not hasattr(self.optimizer, "update"):
            raise TypeError(
                f"optimizer is {self.optimizer!r}; expected an optax transformation such as optax.adam(1e-3) or "
                'ni.optimizer("adam").'
            )
        if self.recorder is not None and not hasattr(self.recorder, "record"):
            raise TypeError(f"recorder is {self.recorder!r}; expected a ni.Recorder(...).")
        if self.stop_at is not None and not self.example_loss.on_values:
            raise ValueError(
                f'stop_at={self.stop_at} needs a loss on values ("mse", "l1", "huber"); got loss={self.loss!r}.'
            )
        if self.sampling != SAMPLING[0] and self.batch_size is None:
            raise ValueError(f'sampling="{self.sampling}" draws minibatches; give batch_size= too.')

    @property
    def example_loss(self) -> ExampleLoss:
        """The loss as a function of predictions and values, which the loop calls."""
        return as_loss(self.loss, self.data_range)


def check_batches(options: Options, source: Any) -> Array:
    """Return the random key that orders or draws the rows of the steps; raise where they can't be had."""
    size, key = options.batch_size, options.key
    if not isinstance(source, Rows):
        for name, value, rest in (("batch_size", size, None), ("sampling", options.sampling, SAMPLING[0])):
            if value != rest:
                raise ValueError(f"{name}={value!r} got data=, which says what the rows of a step are; leave one out.")
        if key is None and isinstance(source, Drawn):
            raise ValueError("data= needs key=, a random key that the sampler draws with: key=jax.random.key(0).")
        return jax.random.key(0) if key is None else key
    if size is None:
        return jax.random.key(0)
    _checks.check_positive(size, "batch_size", integer=True)
    n = len(source.x)
    if size > n:
        raise ValueError(f"batch_size is {size} but x has {n} rows; expected at most {n}, or None for all.")
    if key is None:
        raise ValueError("batch_size needs key=, a random key for the order of the examples: key=jax.random.key(0).")
    return key


def check_whole_batch(options: Options, opt_state: Any, rows: int, has_state: bool, whole: bool) -> None:
    """Raise where the optimizer needs the full batch, or the model equal microbatches, and the options have others."""
    size = options.microbatch
    parts = size is not None and size < rows
    if evaluates_again(opt_state) and (not whole or parts):
        what = f"microbatch={size}" if whole else "data=" if options.batch_size is None else f"batch_size={rows}"
        raise ValueError(
            f"{what} got an optimizer that searches along a line (L-BFGS), whose steps compare losses of one and the "
            'same batch; expected the full batch, or another optimizer such as ni.optimizer("adam").'
        )
    if has_state and parts and size is not None and rows % size:
        raise ValueError(
            f"microbatch={size} does not divide the {rows} rows of a step, and this model keeps statistics of its "
            "batches, which rows that fill up the last one would change; choose a divisor."
        )


def check_mesh(mesh: Mesh | None, rows: int, microbatch: int | None) -> Mesh | None:
    """Return ``mesh`` with Auto axes; raise where its devices can't share the rows of a step equally."""
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise TypeError(f'mesh is {mesh!r}; expected a jax.sharding.Mesh: jax.make_mesh((4,), ("rows",)).')
    for name, count in (("a step", rows), ("microbatch", microbatch)):
        if count is not None and count % mesh.size:
            raise ValueError(
                f"{name} has {count} rows, which {mesh.size} devices can't share equally; expected a multiple of "
                f"{mesh.size}: set batch_size or microbatch, or leave {count % mesh.size} rows out."
            )
    if mesh.is_multi_process:
        raise ValueError("mesh has devices of several processes; fit takes those of one: jax.local_devices().")
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def subset(n: int, points: int) -> np.ndarray:
    """Return the indices of ``points`` evenly spaced rows of n, of all rows where there are fewer."""
    return np.linspace(0, n - 1, min(points, n)).astype(int)
