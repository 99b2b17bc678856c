"""The loop around the fused steps: reports, checkpoints, records, and when to stop."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr.kernels.adapters import training_call
from ntk_inr.kernels.api import ntk
from ntk_inr.kernels.model import check_apply, check_params
from ntk_inr.spectra.dense import moments
from ntk_inr.training import options as checks
from ntk_inr.training.curves import psnr
from ntk_inr.training.interrupts import Interrupts
from ntk_inr.training.losses import check_loss
from ntk_inr.training.optimizers import optimizer as named
from ntk_inr.training.options import Options
from ntk_inr.training.result import FitResult, Status
from ntk_inr.training.saver import Saver
from ntk_inr.training.steps import Program, State, advance, begin, evaluate


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is given, checked and on its devices."""

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
        """Number of seeds, 1 where there is no axis of them."""
        return self.seeds or 1

    def model(self, state: State) -> Partial:
        """Return the model as it is called after training up to ``state``."""
        return self.apply if state.model is None else state.model

    def advance(self, state: State, start: int, stop: int) -> State:
        """Take the steps from ``start`` to ``stop``; ``state`` is used up."""
        args = (self.apply, state, self.keys, self.limit, self.x, self.y, start, stop)
        return jax.block_until_ready(advance(*args, program=self.program))


def train(apply: Any, params: Any, x: Any, y: Any, options: Options, *, seeds: int | None) -> list[FitResult]:
    """Check, then alternate between fused steps, reports, records and checkpoints."""
    run = prepare(apply, params, x, y, options, seeds)
    with Interrupts(options.checkpoint is not None) as interrupts, Saver(run) as saver:
        state, done, seconds, rows = saver.begin()
        state = run.advance(state, done, done)  # compiles
        stops = report_steps(options.steps)
        while not (rows and (len(rows) == len(stops) or _ended(rows[-1], options))):
            stop = stops[len(rows)]
            saver.after(state, done, seconds, rows)
            while done < stop and not interrupts.received:
                until = saver.next(done, stop)
                start = time.perf_counter()
                state = run.advance(state, done, until)
                took = time.perf_counter() - start
                saver.timed(until - done, took)
                seconds, done = seconds + took, until
                saver.after(state, done, seconds, rows)
            if interrupts.received and done < stop:
                saver.save(state, done, seconds, rows)
                rows = [*rows, report(run, state, done, seconds)]
                break
            rows.append(report(run, state, stop, seconds))
            saver.report(rows[-1])
            if options.progress is not None:
                options.progress(stop, options.steps)
        else:
            saver.save(state, done, seconds, rows)
            interrupts.received = None  # it came too late to stop anything
    return [_result(run, apply, state, rows, seed, bool(interrupts.received)) for seed in range(run.count)]


def prepare(apply: Any, params: Any, x: Any, y: Any, options: Options, seeds: int | None) -> Run:
    """Check all that ``fit`` is given and put it where it will run."""
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
    outputs = check_apply(*one, x)
    check_loss(loss, outputs, x, y)
    key = checks.check_batches(options, len(x))
    rows = options.batch_size or len(x)
    mesh = checks.check_mesh(options.mesh, rows, options.microbatch)
    if options.validation is not None:
        x_valid = _widened(_checks.as_coordinates(options.validation[0], "validation x"), dtype)
        y_valid = _widened(_checks.as_values(options.validation[1], len(x_valid), "validation y"), dtype)
        check_loss(loss, outputs, x_valid, y_valid, "validation y")
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
    """Return data in the parameters' dtype, but never rounded to a narrower one."""
    return data.astype(jnp.promote_types(data.dtype, dtype))


def report(run: Run, state: State, done: int, seconds: float) -> dict[str, np.ndarray]:
    """Return one row of the history; each column has an entry a seed."""
    options, seeds, model = run.options, run.seeds, run.model(state)
    row = _scores(run, model, state.params, run.x, run.y)
    if options.validation is not None:
        found = _scores(run, model, state.params, *options.validation)
        row |= {f"validation_{name}": column for name, column in found.items()}
    if options.ntk_points is not None:
        at = run.x[checks.subset(len(run.x), options.ntk_points)]
        models = [jax.tree.map(lambda leaf, s=s: leaf[s], (model, state.params)) for s in range(seeds or 0)]
        kernels = [moments(ntk(a, p, at)) for a, p in models or [(model, state.params)]]
        for name in ("mean", "variance", "cv"):
            row[f"ntk_{name}"] = np.array([float(getattr(m, name)) for m in kernels])
    row["step"] = np.minimum(np.atleast_1d(state.steps), done)
    row["seconds"] = np.full(run.count, seconds / run.count)
    row["alive"] = np.atleast_1d(state.alive)
    return row


def report_steps(steps: int) -> list[int]:
    """Return step 0, logarithmically spaced steps, and the last."""
    return np.unique(np.append(0, np.round(np.geomspace(1, steps, 40)))).astype(int).tolist()


def _scores(run: Run, model: Partial, params: Any, x: Array, y: Array) -> dict[str, np.ndarray]:
    found = evaluate(model, params, x, y, program=run.program)
    row = {"loss": np.atleast_1d(found.loss)}
    if found.mse is not None:
        row["psnr"] = psnr(np.atleast_1d(found.mse), run.options.data_range)
    return row


def _reached(row: dict[str, np.ndarray], options: Options) -> Any:
    if options.target_psnr is None:
        return np.zeros(len(row["step"]), bool)
    return row["psnr"] >= options.target_psnr


def _ended(row: dict[str, np.ndarray], options: Options) -> bool:
    return bool(np.all(_reached(row, options) | ~row["alive"]))


def _result(
    run: Run, apply: Any, state: State, rows: list[dict[str, np.ndarray]], seed: int, interrupted: bool
) -> FitResult:
    own = jax.tree.map(lambda leaf: leaf[seed], state) if run.seeds else state
    if own.model is not None:
        apply = own.model
    elif run.seeds:
        apply = jax.tree.map(lambda leaf: leaf[seed], run.apply)
    status: Status = "finished" if bool(own.alive) else "diverged"
    if _reached(rows[-1], run.options)[seed]:
        status = "target reached"
    elif interrupted and bool(own.alive):
        status = "interrupted"
    elif status == "finished" and rows[-1]["loss"][seed] > rows[0]["loss"][seed]:
        status = "ended above the start"
    taken = int(own.steps)
    columns = {name: np.asarray([row[name][seed] for row in rows]) for name in rows[0] if name != "alive"}
    # A seed that diverged has reports that repeat its last good step; the first of them is enough.
    kept = np.unique(columns["step"], return_index=True)[1]
    options, whole = run.options, run.options.batch_size is None
    return FitResult(
        params=own.params,
        # A function of the user's is no pytree, which a result and all of its parts are.
        apply=_checks.as_partial(apply) if jax.tree_util.all_leaves([apply]) else apply,
        status=status,
        steps=taken,
        history={name: column[kept] for name, column in columns.items()},
        losses=np.asarray(own.losses)[:taken],
        full_batch=whole,
        data_range=options.data_range,
        loss=run.program.loss.name,
        every_step=whole and run.program.loss.name == "mse" and own.model is None,
    )
