"""The training step, fused over any number of steps on the device, and the evaluation between."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from ntk_inr._checks import all_finite
from ntk_inr._dtypes import accumulation_dtype
from ntk_inr.kernels.adapters import training_call
from ntk_inr.training import sampling
from ntk_inr.training.losses import ExampleLoss
from ntk_inr.training.optimizers import line_search


class State(NamedTuple):
    """Hold all that changes in a run; with several seeds each leaf has a leading axis of them.

    ``losses`` are known up to ``steps``, the steps taken, and 0 after. ``model`` is the ``apply`` of models whose
    statistics or schedules change in training, else None; ``last`` holds the last known losses (n,) of all rows where
    those draw the batches, else None.
    """

    params: Any
    opt_state: Any
    model: Partial | None
    last: Array | None
    alive: Array
    steps: Array
    losses: Array


class Evaluation(NamedTuple):
    """Loss on all of the data, mean square error (None unless the loss is on values), and losses (n,) of the rows."""

    loss: Array
    mse: Array | None
    each: Array


@dataclasses.dataclass(frozen=True)
class Program:
    """Hold the settings that are fixed when a run compiles."""

    optimizer: optax.GradientTransformation
    loss: ExampleLoss
    batch_size: int | None
    sampling: str
    microbatch: int | None
    mesh: Mesh | None
    seeds: bool

    def shared(self, *arrays: Array) -> tuple[Array, ...]:
        """Return arrays (rows, ...) spread over the devices of the mesh, where these can share the rows equally."""
        if self.mesh is None or len(arrays[0]) % self.mesh.size:
            return arrays
        rows = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        return tuple(lax.with_sharding_constraint(array, rows) for array in arrays)

    def losses(self, prediction: Array, y: Array) -> Array:
        """Return the losses (n,) of a prediction (n, c), in a dtype wide enough for sums over many rows."""
        return self.loss(_wide(prediction), _wide(y))

    def replicated(self, tree: Any) -> Any:
        """Return a pytree that is whole on every device of the mesh."""
        if self.mesh is None:
            return tree
        return lax.with_sharding_constraint(tree, NamedSharding(self.mesh, PartitionSpec()))


def _wide(tree: Any) -> Any:
    """Return a pytree in a dtype wide enough for sums, and for the small constants of the optimizers."""
    return jax.tree.map(lambda leaf: leaf.astype(accumulation_dtype(leaf)), tree)


@functools.partial(jax.jit, static_argnames="program")
def evaluate(apply: Partial, params: Any, x: Array, y: Array, *, program: Program) -> Evaluation:
    """Return the losses on ``(x, y)``, ``microbatch`` rows at a time, of each seed where there are several."""
    size = program.microbatch

    def part(apply: Partial, params: Any, rows: tuple[Array, Array]) -> tuple[Array, Array | None]:
        x, y = program.shared(*rows)
        prediction = _wide(apply(params, x))
        square = jnp.square(prediction - y).mean(axis=1) if program.loss.on_values else None
        return program.losses(prediction, y), square

    def single(apply: Partial, params: Any) -> Evaluation:
        if size is None or size >= len(x):
            each, square = part(apply, params, (x, y))
        else:
            padded = [_chunks(array, size, jnp.broadcast_to(array[:1], (size, array.shape[1]))) for array in (x, y)]
            parts = lax.map(lambda rows: part(apply, params, rows), tuple(padded))
            each, square = jax.tree.map(lambda rows: rows.reshape(-1)[: len(x)], parts)
        return Evaluation(each.mean(), None if square is None else square.mean(), each)

    return program.replicated((jax.vmap(single) if program.seeds else single)(apply, params))


@functools.partial(jax.jit, static_argnames=("steps", "program"))
def begin(params: Any, model: Partial | None, last: Array | None, *, steps: int, program: Program) -> State:
    """Return the state before the first of ``steps`` steps, from one program rather than one an array.

    Copied, because the steps write in place: the user's arrays must stay, and no two leaves may share one.
    """

    def single(params: Any, model: Partial | None, last: Array | None) -> State:
        losses = jnp.zeros(steps, accumulation_dtype(*jax.tree.leaves(params)))
        # Where optax has infinity for "not yet", the largest number does as well, and nobody's jax_debug_infs stops it.
        opt_state = jax.tree.map(jnp.nan_to_num, program.optimizer.init(_wide(params)))
        return State(params, opt_state, model, last, jnp.array(True), jnp.zeros((), jnp.int32), losses)

    state = (jax.vmap(single) if program.seeds else single)(params, model, last)
    return program.replicated(jax.tree.map(jnp.copy, state))


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def advance(
    apply: Partial, state: State, key: Array, limit: Array, x: Array, y: Array, start: Any, stop: Any,
    *, program: Program,
) -> State:  # fmt: skip
    """Take the steps from ``start`` to ``stop``, both traced: one compilation serves every interval.

    So a run that is cut in other intervals gives the same bits.
    """
    n, size = len(x), program.batch_size or len(x)
    shuffled = program.batch_size is not None and program.sampling == "shuffle"

    def single(apply: Partial, state: State, key: Array, limit: Array) -> State:
        def step(t: Array, carry: tuple[State, Array]) -> tuple[State, Array]:
            state, order = carry
            rows, weights = None, None
            if shuffled:
                rows, order = sampling.next_rows(key, order, t, size)
            elif state.last is not None:
                rows, weights = sampling.important_rows(key, state.last, t, size)
            loss, gradient, model, each, whole = _gradient(program, apply, state, x, y, rows, weights, t)
            extra: dict[str, Any] = {}
            if isinstance(program.optimizer, optax.GradientTransformationExtraArgs):
                extra = {"value": loss, "grad": gradient, "value_fn": whole}
            updates, opt_state = program.optimizer.update(gradient, state.opt_state, _wide(state.params), **extra)
            alive = state.alive & jnp.isfinite(loss) & (loss <= limit) & all_finite(jax.tree.leaves(updates))

            def keep(new: Any, old: Any) -> Any:
                return jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, old)

            state = State(
                keep(optax.apply_updates(state.params, updates), state.params),
                keep(opt_state, state.opt_state),
                keep(model, state.model),
                None if state.last is None else keep(state.last.at[rows].set(each), state.last),
                alive,
                state.steps + alive,
                state.losses.at[t].set(jnp.where(alive, loss, 0).astype(state.losses.dtype)),
            )
            return state, order

        order = sampling.shuffle(key, start // (n // size), n) if shuffled else jnp.zeros(0, jnp.int32)
        return lax.fori_loop(start, stop, step, (state, order))[0]

    return program.replicated((jax.vmap(single) if program.seeds else single)(apply, state, key, limit))


class _Gradient(NamedTuple):
    """Hold what an optimizer takes from the rows of a step.

    ``model`` is the one after the step, ``each`` the losses (m,) of the rows, and ``whole`` the loss as a function of
    the parameters, None where the rows come in parts.
    """

    loss: Array
    gradient: Any
    model: Any
    each: Array
    whole: Callable[[Any], Array] | None


def _gradient(
    program: Program, apply: Partial, state: State, x: Array, y: Array, rows: Array | None, weights: Array | None,
    t: Any,
) -> _Gradient:  # fmt: skip
    """Return the loss of the rows of step ``t`` and its gradient; ``rows`` None is all of them."""
    m = len(x) if rows is None else len(rows)
    share = _share_of_loss(program, apply, m, t)
    if program.microbatch is not None and program.microbatch < m:
        rows = jnp.arange(m) if rows is None else rows
        weights = jnp.ones(m, x.dtype) if weights is None else weights
        return _accumulated(share, state, x, y, rows, weights, program.microbatch)
    batch = (x, y, weights) if rows is None else (x[rows], y[rows], weights)

    def whole(params: Any) -> Array:
        # An optimizer that searches does so where the parameters can be.
        params = jax.tree.map(lambda new, leaf: new.astype(leaf.dtype), params, state.params)
        return share(params, state.model, *batch)[0]

    def fresh() -> _Gradient:
        (loss, (model, each)), gradient = jax.value_and_grad(share, has_aux=True)(state.params, state.model, *batch)
        return _Gradient(loss, _wide(gradient), model, each, whole)

    search = line_search(state.opt_state)
    if search is None or training_call(apply) is not None or rows is not None:
        return fresh()
    loss, gradient = _last_searched(search, state, fresh)
    return _Gradient(loss, gradient, None, jnp.zeros(0), whole)


def _share_of_loss(program: Program, apply: Partial, m: int, t: Any) -> Callable[..., tuple[Array, tuple[Any, Array]]]:
    """Return the function of parameters, model and rows whose values add up to the loss of all ``m`` rows."""
    call = training_call(apply)

    def share(params: Any, model: Any, x: Array, y: Array, weights: Array | None) -> tuple[Array, tuple[Any, Array]]:
        x, y = program.shared(x, y)
        prediction, model = (apply(params, x), None) if call is None else call(model, params, x, t)
        each = program.losses(prediction, y)
        return (each if weights is None else weights * each).sum() / m, (model, each)

    return share


def _accumulated(
    share: Callable[..., Any], state: State, x: Array, y: Array, rows: Array, weights: Array, size: int
) -> _Gradient:
    """Return the gradient on ``rows``, added up over parts of ``size`` rows, through which the model goes in turn."""
    differentiated = jax.value_and_grad(share, has_aux=True)

    def accumulate(carry: Any, chunk: tuple[Array, Array]) -> tuple[Any, Array]:
        loss, gradient, model = carry
        (value, (model, each)), part = differentiated(state.params, model, x[chunk[0]], y[chunk[0]], chunk[1])
        return (loss + value.astype(loss.dtype), optax.tree.add(gradient, part), model), each

    nothing = jax.tree.map(jnp.zeros_like, _wide(state.params))
    zero = jnp.zeros((), state.losses.dtype), nothing, state.model
    (loss, gradient, model), each = lax.scan(accumulate, zero, (_chunks(rows, size), _chunks(weights, size)))
    return _Gradient(loss, gradient, model, each.reshape(-1)[: len(rows)], None)


def _last_searched(search: Any, state: State, fresh: Callable[[], _Gradient]) -> tuple[Array, Any]:
    """Return the loss and gradient that a line search ended with, which the next step begins with; fresh ones before.

    ``search`` is its state.
    """

    def computed() -> tuple[Array, Any]:
        gradient = fresh()
        return gradient.loss.astype(search.value.dtype), gradient.gradient

    known = (state.steps > 0) & jnp.isfinite(search.value)
    return lax.cond(known, lambda: (search.value, search.grad), computed)


def _chunks(array: Array, size: int, fill: Array | None = None) -> Array:
    """Return an array (n, ...) as (chunks, size, ...), the last chunk filled up from ``fill``, zeros by default."""
    missing = -len(array) % size
    if missing:
        fill = jnp.zeros((size, *array.shape[1:]), array.dtype) if fill is None else fill
        array = jnp.concatenate([array, fill[:missing]])
    return array.reshape(-1, size, *array.shape[1:])
