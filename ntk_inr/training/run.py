"""A run of training, prepared: model, data and options, checked and on the devices that will use them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr.kernels.adapters import training_call
from ntk_inr.kernels.model import check_apply, check_params
from ntk_inr.training import options as checks
from ntk_inr.training.losses import check_loss
from ntk_inr.training.optimizers import optimizer as named
from ntk_inr.training.options import Options
from ntk_inr.training.steps import Program, State, advance, begin, evaluate


@dataclasses.dataclass(frozen=True)
class Run:
    """Hold what a run needs from its first step on: model, data, keys and options, checked and on their devices."""

    apply: Partial
    x: Array
    y: Array
    keys: Array
    limit: Array
    options: Options
    program: Program
    seeds: int | None
    start: State

    @property
    def count(self) -> int:
        """Number of networks that train together: the seeds, or 1."""
        return self.seeds or 1

    def model(self, state: State) -> Partial:
        """Return ``apply`` with the batch statistics and schedules that training has left in ``state``."""
        return self.apply if state.model is None else state.model

    def advance(self, state: State, start: int, stop: int) -> State:
        """Return the state at step ``stop`` from that at ``start``, whose buffers are reused."""
        args = (self.apply, state, self.keys, self.limit, self.x, self.y, start, stop)
        return jax.block_until_ready(advance(*args, program=self.program))


def prepare(apply: Any, params: Any, x: Any, y: Any, options: Options, seeds: int | None) -> Run:
    """Check model, data and options of ``fit`` against one another, and return them as a :class:`Run`."""
    if seeds and options.recorder is not None:
        raise ValueError("recorder= follows one network; record one seed with fit, or pass ntk_points= to fit_seeds.")
    apply = _checks.as_partial(apply)
    params = check_params(params)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    x = _widened(_checks.as_coordinates(x), dtype)
    y = _widened(_checks.as_values(y, len(x)), dtype)
    loss, one = options.example_loss, (apply, params)
    if seeds:
        one = jax.tree.map(lambda leaf: leaf[0], one)
    c = check_apply(*one, x)
    check_loss(loss, c, x, y)
    key = checks.check_batches(options, len(x))
    rows = options.batch_size or len(x)
    mesh = checks.check_mesh(options.mesh, rows, options.microbatch)
    if options.validation is not None:
        x_valid = _widened(_checks.as_coordinates(options.validation[0], "validation x"), dtype)
        y_valid = _widened(_checks.as_values(options.validation[1], len(x_valid), "validation y"), dtype)
        check_loss(loss, c, x_valid, y_valid, "validation y")
        options = dataclasses.replace(options, validation=(x_valid, y_valid))

    optimizer = options.optimizer or named("adam", learning_rate=1e-3)
    program = Program(optimizer, loss, options.batch_size, options.sampling, options.microbatch, mesh, bool(seeds))
    stateful = training_call(apply) is not None
    checks.check_whole_batch(options, jax.eval_shape(optimizer.init, one[1]), rows, stateful)
    keys = jax.random.split(key, seeds) if seeds else key
    if mesh is not None:
        everywhere = NamedSharding(mesh, PartitionSpec())
        apply, params, keys, x, y = jax.device_put((apply, params, keys, x, y), everywhere)

    first = evaluate(apply, params, x, y, program=program)
    last = first.each if options.sampling == "importance" else None
    state = begin(params, apply if stateful else None, last, steps=options.steps, program=program)
    limit = loss.limit(first.loss, options.data_range)
    return Run(apply, x, y, keys, limit, options, program, seeds, state)


def _widened(data: Array, dtype: Any) -> Array:
    """Return data in the parameters' dtype, or in their own where that is wider."""
    return data.astype(jnp.promote_types(data.dtype, dtype))
