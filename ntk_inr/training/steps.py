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
from ntk_inr.training.data import Batch
from ntk_inr.training.losses import ExampleLoss
from ntk_inr.training.optimizers import line_search
from ntk_inr.training.passes import fresh_part, joined, over_parts, pulled, pushed, values
from ntk_inr.training.second_order import settings_of

CALL_STEPS = 4096
"""The most steps of a fused call, whose losses the state holds."""
_REFRESH_EPOCHS = 5  # between passes over all rows for their scores
_ROWS_AT_ONCE = 2**16  # that are evaluated, where no microbatch is set


class State(NamedTuple):
    """Hold all that changes in a run; with several seeds each leaf has a leading axis of them.

    ``steps`` are the steps taken, and ``losses`` holds the loss of step t at t modulo its length. ``model`` is the
    ``apply`` of models whose statistics or schedules change in training, else None; ``last`` holds the scores (n,) of
    all rows that draw the batches, such as their last known losses, else None.
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
    microbatch: int | None
    mesh: Mesh | None
    seeds: bool
    sampling: str = "shuffle"

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
    return jax.tree.map(lambda leaf: leaf if jnp.iscomplexobj(leaf) else leaf.astype(accumulation_dtype(leaf)), tree)


def _steepest(gradient: Any) -> Any:
    """Return the way in which the loss grows most: of complex parameters JAX's gradient is the conjugate of it."""
    return jax.tree.map(lambda leaf: leaf.conj() if jnp.iscomplexobj(leaf) else leaf, gradient)


@functools.partial(jax.jit, static_argnames="program")
def evaluate(
    apply: Partial, params: Any, x: Array, y: Array, weights: Array | None = None, *, program: Program
) -> Evaluation:
    """Return the losses on ``(x, y)``, ``microbatch`` rows at a time, of each seed where there are several.

    ``weights`` (n,) multiply the losses, but not the square errors.
    """
    size = min(program.microbatch or _ROWS_AT_ONCE, len(x))

    def scores(apply: Partial, params: Any, rows: tuple[Array, Array]) -> tuple[Array, Array | None]:
        x, y = program.shared(*rows)
        prediction = _wide(apply(params, x))
        square = jnp.square(prediction - y).mean(axis=1) if program.loss.on_values else None
        return program.losses(prediction, y), square

    def single(apply: Partial, params: Any) -> Evaluation:
        each, square = over_parts(lambda rows: scores(apply, params, rows), (x, y), size)
        loss = (each if weights is None else weights * each).mean()
        return Evaluation(loss, None if square is None else square.mean(), each)

    return program.replicated((jax.vmap(single) if program.seeds else single)(apply, params))


@functools.partial(jax.jit, static_argnames="program")
def begin(params: Any, model: Partial | None, last: Array | None, *, program: Program) -> State:
    """Return the state before the first step, from one program rather than one an array.

    Copied, because the steps write in place: the user's arrays must stay, and no two leaves may share one.
    """

    def single(params: Any, model: Partial | None, last: Array | None) -> State:
        losses = jnp.zeros(CALL_STEPS, accumulation_dtype(*jax.tree.leaves(params)))
        # Where optax has infinity for "not yet", the largest number does as well, and nobody's jax_debug_infs stops it.
        opt_state = jax.tree.map(jnp.nan_to_num, program.optimizer.init(_wide(params)))
        return State(params, opt_state, model, last, jnp.array(True), jnp.zeros((), jnp.int32), losses)

    state = (jax.vmap(single) if program.seeds else single)(params, model, last)
    return program.replicated(jax.tree.map(jnp.copy, state))


@functools.partial(jax.jit, static_argnames="program", donate_argnames="state")
def advance(
    apply: Partial, state: State, key: Array, limit: Array, data: Any, start: Any, stop: Any, *, program: Program
) -> State:
    """Take the steps from ``start`` to ``stop``, both traced, on ``data.batch(key, t, last)`` at step t.

    One compilation serves every interval, so a run that is cut in other intervals gives the same bits.
    """

    def single(apply: Partial, state: State, key: Array, limit: Array) -> State:
        def step(t: Array, state: State) -> State:
            state = refreshed(apply, state, data, t, program=program)
            return after(apply, state, data.batch(key, t, state.last), limit, t, program=program)

        return lax.fori_loop(start, stop, step, state)

    return program.replicated((jax.vmap(single) if program.seeds else single)(apply, state, key, limit))


@functools.partial(jax.jit, static_argnames="program")
def refreshed(apply: Partial, state: State, data: Any, t: Any, *, program: Program) -> State:
    """Return the state with new scores of all rows, every so many epochs, where the kernel gives them.

    The score of a row is how far a step of gradient descent moves its prediction, ``norm((J J^T g)_i)``.
    """
    last = state.last
    if program.sampling != "ntk" or last is None:
        return state
    x, y = data.x, data.y
    model = apply if state.model is None else state.model

    def scores() -> Array:
        gradient = jax.grad(lambda prediction: program.losses(prediction, y).sum())(values(model, state.params, x))
        direction = _steepest(pulled(model, state.params, x, gradient))
        return jnp.linalg.norm(pushed(model, state.params, x, direction), axis=1).astype(last.dtype)

    every = max(1, _REFRESH_EPOCHS * len(x) // data.size)
    return state._replace(last=lax.cond(t % every == 0, scores, lambda: last))


def after(apply: Partial, state: State, batch: Batch, limit: Array, t: Any, *, program: Program) -> State:
    """Return the state after step ``t`` on the rows of a batch, as it was where their loss is no good."""
    if settings_of(program.optimizer) is not None:
        loss, updates, opt_state, model, each = _solved(apply, state, batch, program)
    else:
        loss, updates, opt_state, model, each = _descended(apply, state, batch, t, program)
    last = state.last if program.sampling != "loss" or state.last is None else state.last.at[batch.rows].set(each)
    alive = state.alive & jnp.isfinite(loss) & (loss <= limit) & all_finite(jax.tree.leaves(updates))

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, old)

    return State(
        keep(optax.apply_updates(state.params, updates), state.params),
        keep(opt_state, state.opt_state),
        keep(model, state.model),
        keep(last, state.last),
        alive,
        state.steps + alive,
        state.losses.at[t % CALL_STEPS].set(jnp.where(alive, loss, 0).astype(state.losses.dtype)),
    )


def _descended(apply: Partial, state: State, batch: Batch, t: Any, program: Program) -> tuple[Any, ...]:
    """Return loss, update, state of the optimizer, model and losses of the rows, of a step by the gradient."""
    loss, gradient, model, each, whole = rows_gradient(apply, state, batch, t, program=program)
    extra: dict[str, Any] = {}
    if isinstance(program.optimizer, optax.GradientTransformationExtraArgs):
        extra = {"value": loss, "grad": gradient, "value_fn": whole}
    updates, opt_state = program.optimizer.update(gradient, state.opt_state, _wide(state.params), **extra)
    return loss, updates, opt_state, model, each


def _solved(apply: Partial, state: State, batch: Batch, program: Program) -> tuple[Any, ...]:
    """Return the same of a step that solves with the rows themselves."""
    x, y = program.shared(batch.x, batch.y)
    updates, opt_state = program.optimizer.update(
        None, state.opt_state, state.params, apply=apply, x=x, y=y, weights=batch.weights, loss=program.loss
    )
    each = program.losses(apply(state.params, x), y) if program.sampling == "loss" else None
    return opt_state.loss, updates, opt_state, None, each


class Gradient(NamedTuple):
    """Hold what an optimizer takes from the rows of a step.

    ``model`` is the one after the step, ``each`` the losses (m,) of the rows, and ``whole`` the loss as a function of
    the parameters.
    """

    loss: Array
    gradient: Any
    model: Any
    each: Array
    whole: Callable[[Any], Array]


def rows_gradient(apply: Partial, state: State, batch: Batch, t: Any = 0, *, program: Program) -> Gradient:
    """Return the loss of the rows of step ``t`` and its gradient."""
    x, y, weights, _ = batch
    share = _share_of_loss(program, apply, len(x), t)
    if program.microbatch is not None and program.microbatch < len(x):
        return _accumulated(share, state, (x, y, weights), program.microbatch)

    def whole(params: Any) -> Array:
        return share(_like(params, state.params), state.model, x, y, weights)[0]

    def fresh() -> Gradient:
        differentiated = jax.value_and_grad(share, has_aux=True)
        (loss, (model, each)), gradient = differentiated(state.params, state.model, x, y, weights)
        return Gradient(loss, _steepest(_wide(gradient)), model, each, whole)

    search = line_search(state.opt_state)
    if search is None or training_call(apply) is not None:
        return fresh()
    loss, gradient = _last_searched(search, state, fresh)
    return Gradient(loss, gradient, None, jnp.zeros(0), whole)


def _share_of_loss(program: Program, apply: Partial, m: int, t: Any) -> Callable[..., tuple[Array, tuple[Any, Array]]]:
    """Return the function of parameters, model and rows whose values add up to the loss of all ``m`` rows."""
    call = training_call(apply)

    def share(params: Any, model: Any, x: Array, y: Array, weights: Array | None) -> tuple[Array, tuple[Any, Array]]:
        x, y = program.shared(x, y)
        prediction, model = (apply(params, x), None) if call is None else call(model, params, x, t)
        each = program.losses(prediction, y)
        return (each if weights is None else weights * each).sum() / m, (model, each)

    return share


def _accumulated(share: Callable[..., Any], state: State, rows: Any, size: int) -> Gradient:
    """Return the gradient on ``rows``, added up over parts of ``size`` of them, through which the model goes in turn.

    The last part begins early where it would not be full; what it shares with the one before has no weight in it.
    """
    m = len(rows[0])
    differentiated = jax.value_and_grad(share, has_aux=True)

    zero, firsts = jnp.zeros((), state.losses.dtype), jnp.arange(0, m, size)

    def weighed(first: Array) -> Any:
        (x, y, weights), new = fresh_part(rows, first, size)
        fresh = new.astype(zero.dtype)
        return x, y, fresh if weights is None else fresh * weights

    def accumulate(carry: Any, first: Array) -> tuple[Any, Array]:
        loss, gradient, model = carry
        (value, (model, each)), more = differentiated(state.params, model, *weighed(first))
        return (loss + value.astype(loss.dtype), optax.tree.add(gradient, more), model), each

    def whole(params: Any) -> Array:
        params = _like(params, state.params)

        def add(total: Array, first: Array) -> tuple[Array, None]:
            return total + share(params, state.model, *weighed(first))[0].astype(total.dtype), None

        return lax.scan(add, zero, firsts)[0]

    nothing = jax.tree.map(jnp.zeros_like, _wide(state.params))
    (loss, gradient, model), each = lax.scan(accumulate, (zero, nothing, state.model), firsts)
    return Gradient(loss, _steepest(gradient), model, joined(each, m), whole)


def _like(params: Any, own: Any) -> Any:
    """Return parameters in the dtypes that the model has, where an optimizer evaluates it at others."""
    return jax.tree.map(lambda new, leaf: new.astype(leaf.dtype), params, own)


def _last_searched(search: Any, state: State, fresh: Callable[[], Gradient]) -> tuple[Array, Any]:
    """Return the loss and gradient that a line search ended with, which the next step begins with; fresh ones before.

    ``search`` is its state.
    """

    def computed() -> tuple[Array, Any]:
        gradient = fresh()
        return gradient.loss.astype(search.value.dtype), gradient.gradient

    known = (state.steps > 0) & jnp.isfinite(search.value)
    return lax.cond(known, lambda: (search.value, search.grad), computed)
