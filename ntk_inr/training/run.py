"""A run of training, prepared: model, data and options, checked and on the devices that will use them."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr.kernels.adapters import training_call
from ntk_inr.kernels.model import check_apply, check_params
from ntk_inr.training import options as checks
from ntk_inr.training.data import Batch, Drawn, Feed, HostData, Ready, Rows, checked, widened
from ntk_inr.training.losses import check_loss
from ntk_inr.training.optimizers import evaluates_again
from ntk_inr.training.optimizers import optimizer as named
from ntk_inr.training.options import Options
from ntk_inr.training.second_order import settings_of, with_solver
from ntk_inr.training.steps import Program, State, advance, after, begin, evaluate, refreshed

FEW, SAMPLE = 2**16, 2**14
"""Up to so many rows, each report is on all; of more, on so many, but for the last report."""
# Remembered, so that runs with the same optimizer share their programs.
_by_parts = functools.lru_cache(optax.contrib.split_real_and_imaginary)
_CACHED, _SHARED = 2**13, 64
"""Rows whose values stay in a CPU's caches for the most part, but no fewer than one for so many parameters."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Hold what a run needs from its first step on: model, data, keys and options, checked and on their devices.

    ``sample`` are rows of the data that stay the same: all, or :data:`SAMPLE` of them, or the first batch of data
    that come by the step, which ``feed`` prepares where they come from the host.
    """

    apply: Partial
    data: Rows | Drawn | HostData
    feed: Feed | None
    sample: Batch
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

    @property
    def whole_batch(self) -> bool:
        """Whether each step sees all of the data."""
        return isinstance(self.data, Rows) and self.data.size is None

    def model(self, state: State) -> Partial:
        """Return ``apply`` with the batch statistics and schedules that training has left in ``state``."""
        return self.apply if state.model is None else state.model

    def advance(self, state: State, start: int, stop: int) -> State:
        """Return the state at step ``stop`` from that at ``start``, whose buffers are reused."""
        if self.by_host:
            return jax.block_until_ready(self._solved(state, start, stop))
        call = functools.partial(advance, program=self.program)
        if self.feed is None:
            return jax.block_until_ready(call(self.apply, state, self.keys, self.limit, self.data, start, stop))
        for t in range(start, stop) if stop > start else [start]:  # a call without steps compiles
            rows = Ready(self._batch(t))
            state = call(self.apply, state, self.keys, self.limit, rows, t, min(t + 1, stop))
        return jax.block_until_ready(state)

    @property
    def by_host(self) -> bool:
        """Whether the host drives the steps, as it does those that solve on a CPU, where XLA's Cholesky is slow."""
        solves = settings_of(self.program.optimizer) is not None
        return solves and jax.default_backend() == "cpu" and self.program.mesh is None and not self.seeds

    def _solved(self, state: State, start: int, stop: int) -> State:
        """Take the steps one by one; none but compile what they need where there are none."""
        for t in range(start, max(stop, start + 1)):
            rows = Ready(self._batch(t)) if self.feed else self.data
            state = refreshed(self.apply, state, rows, t, program=self.program)
            batch = _drawn(rows, self.keys, t, state.last)
            new = after(self.apply, state, batch, self.limit, t, program=self.program)
            state = new if t < stop else state
        return state

    def reported(self, step: int) -> Batch:
        """Return the rows that a report after ``step`` steps is on: fixed ones, or those of the step that comes."""
        return self.sample if isinstance(self.data, Rows) else self._batch(step)

    @property
    def everything(self) -> Batch | None:
        """All rows where reports are on a sample of them, else None."""
        rows = self.data
        return Batch(rows.x, rows.y) if isinstance(rows, Rows) and len(rows.x) > len(self.sample.x) else None

    def _batch(self, step: int) -> Batch:
        """Return the rows of a step, of the last one where there are no more."""
        return _batch_of(self.data, self.feed, self.keys, min(step, self.options.steps - 1))


def prepare(apply: Any, params: Any, data: Any, options: Options, seeds: int | None) -> Run:
    """Check model, data and options of ``fit`` against one another, and return them as a :class:`Run`.

    ``data`` is ``(x, y)``, a sampler, or :class:`HostData`.
    """
    if seeds and options.recorder is not None:
        raise ValueError("recorder= follows one network; record one seed with fit, or pass ntk_points= to fit_seeds.")
    apply = _checks.as_partial(apply)
    params = check_params(params)
    dtype = jnp.finfo(jnp.result_type(*jax.tree.leaves(params))).dtype
    loss, one = options.example_loss, (apply, params)
    if seeds:
        one = jax.tree.map(lambda leaf: leaf[0], one)
    source = _source(data, options, dtype)
    key = checks.check_batches(options, source)
    keys = jax.random.split(key, seeds) if seeds else key
    feed = Feed(source, dtype, options.steps) if isinstance(source, HostData) else None
    everything = Batch(source.x, source.y) if isinstance(source, Rows) else _batch_of(source, feed, keys, 0)
    c = check_apply(*one, everything.x, kind=jnp.floating)
    check_loss(loss, c, everything.x, everything.y)
    rows = options.batch_size or len(everything.x)
    mesh = checks.check_mesh(options.mesh, rows, options.microbatch)
    if options.validation is not None:
        valid = checked(Batch(*options.validation), dtype, "of validation")
        check_loss(loss, c, valid.x, valid.y, "validation y")
        options = dataclasses.replace(options, validation=(valid.x, valid.y))

    stateful = training_call(apply) is not None
    whole = isinstance(source, Rows) and options.batch_size is None
    optimizer, opt_state = _optimizer_of(options, one[1], rows, c, stateful)
    checks.check_whole_batch(options, opt_state, rows, stateful, whole)
    microbatch = options.microbatch
    if microbatch is None and mesh is None and not stateful and not evaluates_again(opt_state):
        microbatch = _cached_rows(params, rows)
    program = Program(optimizer, loss, microbatch, mesh, bool(seeds), options.sampling)
    sample = _sample(everything) if isinstance(source, Rows) else everything
    if mesh is not None:
        everywhere = NamedSharding(mesh, PartitionSpec())
        apply, params, keys, sample = jax.device_put((apply, params, keys, sample), everywhere)
        source = source if feed is not None else jax.device_put(source, everywhere)

    first = evaluate(apply, params, *sample[:3], program=program)
    last = None
    if options.sampling in ("loss", "ntk"):
        last = evaluate(apply, params, source.x, source.y, program=program).each
    state = begin(params, apply if stateful else None, last, program=program)
    limit = jnp.asarray(loss.limit(first.loss, options.data_range))
    return Run(apply, source, feed, sample, keys, limit, options, program, seeds, state)


def _optimizer_of(options: Options, params: Any, rows: int, c: int, stateful: bool) -> tuple[Any, Any]:
    """Return the optimizer and the shapes of its state, checked against the model and the rows of a step."""
    optimizer = options.optimizer or named("adam", learning_rate=1e-3)
    solves = settings_of(optimizer)
    if solves is not None:
        if stateful:
            raise ValueError(
                "gauss_newton got a model whose batch statistics or schedules change in training, which no kernel of "
                'one place describes; take another optimizer, such as ni.optimizer("adam").'
            )
        optimizer = with_solver(solves, solves.plan(params, rows, c).solver)
        return optimizer, jax.eval_shape(optimizer.init, params)
    is_complex = any(map(jnp.iscomplexobj, jax.tree.leaves(params)))
    if is_complex:
        optimizer = _by_parts(optimizer)
    opt_state = jax.eval_shape(optimizer.init, params)
    if is_complex and evaluates_again(opt_state):
        raise ValueError(
            "this optimizer evaluates the loss by itself, which takes real parameters, and params has complex ones; "
            'use another one, such as optimizer="adam".'
        )
    return optimizer, opt_state


def _cached_rows(params: Any, rows: int) -> int | None:
    """Return how many of the rows a CPU computes at once, in less time than large batches; None for all."""
    size = max(_CACHED, sum(leaf.size for leaf in jax.tree.leaves(params)) // _SHARED)
    return size if jax.default_backend() == "cpu" and rows >= 2 * size else None


def _source(data: Any, options: Options, dtype: Any) -> Any:
    """Return where the rows of a step come from."""
    if isinstance(data, tuple):
        x = widened(_checks.as_coordinates(data[0]), dtype)
        return Rows(x, widened(_checks.as_values(data[1], len(x)), dtype), options.batch_size, options.sampling)
    return data if isinstance(data, HostData) else Drawn(_checks.as_partial(data), dtype)


def _batch_of(source: Any, feed: Feed | None, keys: Array, step: int) -> Batch:
    """Return the rows of a step, those of the first seed where there are several."""
    if feed is not None:
        return feed.batch(step)
    batch = _drawn(source, keys if keys.ndim == 0 else keys[0], step)
    return checked(batch, source.dtype, f"that data(key, {step}) gives")


@jax.jit
def _drawn(source: Rows | Drawn | Ready, key: Array, step: Any, last: Array | None = None) -> Batch:
    return source.batch(key, step, last)


def _sample(everything: Batch) -> Batch:
    """Return all rows, or :data:`SAMPLE` of them, the same in every run."""
    n = len(everything.x)
    if n <= FEW:
        return everything
    rows = np.sort(np.random.default_rng(0).choice(n, SAMPLE, replace=False))
    return Batch(everything.x[rows], everything.y[rows])
