"""Training with optax: fused steps, history at logarithmic steps, divergence as a result."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr.kernels.api import check_apply, check_params, ntk
from ntk_inr.spectra.moments import moments
from ntk_inr.training.curves import first_reaching, psnr

Status = Literal["finished", "target reached", "diverged"]

# A loss this far above the first one, and above that of an error of the whole data range, counts as
# divergence; waiting for infinity wastes steps.
_BLOW_UP = 1e4


@dataclasses.dataclass(frozen=True)
class FitResult:
    """One training run.

    Attributes:
        params: the parameters at the end; after divergence the last ones with a good loss.
        status: "finished", "target reached" or "diverged".
        steps: steps taken (after divergence, up to the last good one).
        history: columns of equal length, one entry a report: "step", "loss", "psnr" on all training data,
            "seconds" of training so far without compilation; "validation_psnr" and "ntk_mean", "ntk_variance",
            "ntk_cv" where asked for.
        losses: (steps,) loss before each step, on that step's batch.
        full_batch: whether each step saw all data, so that ``losses`` is the training curve itself.
        data_range: span of the values, for PSNR.
    """

    params: Any
    status: Status
    steps: int
    history: dict[str, np.ndarray]
    losses: np.ndarray
    full_batch: bool
    data_range: float

    @property
    def psnr(self) -> np.ndarray:
        """PSNR in dB on all training data: (steps + 1,) for full batch, else at the reports."""
        if not self.full_batch:
            return self.history["psnr"]
        return np.append(psnr(2 * self.losses, self.data_range), self.history["psnr"][-1])

    def steps_to(self, target_psnr: float) -> int | None:
        """Return the first step (for minibatches, report) with at least ``target_psnr`` dB, or None."""
        found = first_reaching(self.psnr, target_psnr)
        return found if found is None or self.full_batch else int(self.history["step"][found])

    def seconds_to(self, target_psnr: float) -> float | None:
        """Return the seconds of training until ``target_psnr``, interpolated between reports, or None."""
        steps = self.steps_to(target_psnr)
        return None if steps is None else float(np.interp(steps, self.history["step"], self.history["seconds"]))


@dataclasses.dataclass(frozen=True)
class _Options:
    """The keyword arguments of ``fit``, checked as far as they can be by themselves."""

    optimizer: Any = None
    steps: int = 1000
    key: Array | None = None
    batch_size: int | None = None
    target_psnr: float | None = None
    validation: tuple[Any, Any] | None = None
    ntk_points: int | None = None
    data_range: float = 1.0
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        _checks.check_positive(self.steps, "steps", integer=True)
        _checks.check_positive(self.data_range, "data_range")
        if self.ntk_points is not None:
            _checks.check_positive(self.ntk_points, "ntk_points", integer=True)
        if self.optimizer is not None and not hasattr(self.optimizer, "update"):
            raise TypeError(
                f"optimizer is {self.optimizer!r}; expected an optax transformation such as optax.adam(1e-3)."
            )


class _State(NamedTuple):
    params: Any
    opt_state: Any
    alive: Array
    steps: Array
    losses: Array


def fit(
    apply: Any,
    params: Any,
    x: Any,
    y: Any,
    *,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 1000,
    key: Array | None = None,
    batch_size: int | None = None,
    target_psnr: float | None = None,
    validation: tuple[Any, Any] | None = None,
    ntk_points: int | None = None,
    data_range: float = 1.0,
    progress: Callable[[int, int], None] | None = None,
) -> FitResult:
    r"""Train on ``(x, y)`` and record the curve.

    The loss is :math:`\frac{1}{2nc}\lVert f - y\rVert^2` (``optax.l2_loss``, averaged). Steps run fused
    on the device between reports, which are spaced logarithmically; the reports' own cost is not in
    "seconds".

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``.
        params: pytree of floating point arrays; not changed.
        x: coordinates (n, d).
        y: values (n, c).
        optimizer: any optax transformation; None is ``optax.adam(1e-3)``.
        steps: number of steps, at least 1.
        key: random key, needed for minibatches.
        batch_size: None is full batch; else each epoch draws batches without replacement, leaving out
            the n mod batch_size examples that its shuffle puts last.
        target_psnr: stop at the first report that reaches it.
        validation: further ``(x, y)`` to report PSNR on.
        ntk_points: record moments of the kernel on this many evenly spaced rows of x.
        data_range: span of the values, for PSNR.
        progress: called with (steps done, steps) at each report.

    Returns:
        :class:`FitResult`. A loss that is not finite, or above 1e4 times both the first one and
        data_range**2 / 2, ends the run with status "diverged" and the last good parameters; it does not raise.

    Raises:
        TypeError: integer coordinates, or an optimizer that is not optax's.
        ValueError: x and y of different n, wrong ranks, NaN, zero steps, a batch larger than n.

    Example:
        >>> import jax, jax.numpy as jnp, optax, ntk_inr as ni
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> apply, params = ni.init(ni.variant("siren", features=32, depth=2), jax.random.key(0), x)
        >>> result = ni.fit(apply, params, x, jnp.sin(5 * x) / 2 + 0.5, optimizer=optax.adam(1e-3), steps=100)
        >>> result.status, bool(result.history["psnr"][-1] > 30)
        ('finished', True)
    """
    options = _Options(optimizer, steps, key, batch_size, target_psnr, validation, ntk_points, data_range, progress)
    return _train(apply, params, x, y, options, seeds=None)[0]


def fit_seeds(apply: Any, params: Any, x: Any, y: Any, **options: Any) -> list[FitResult]:
    """Train several seeds at once under ``vmap``.

    As :func:`fit`, but ``apply`` and ``params`` carry a leading axis of seeds, as
    ``jax.vmap(lambda key: ni.init(net, key, x))(keys)`` returns them. Memory grows with the number of
    seeds. "seconds" is the time of all of them divided by their number; all stop once all reached the target.

    Args:
        apply: stacked, as above.
        params: stacked, as above.
        x: coordinates (n, d), shared.
        y: values (n, c), shared.
        **options: the keyword arguments of :func:`fit`.

    Returns:
        A :class:`FitResult` a seed.

    Raises:
        As :func:`fit`.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> net = ni.variant("siren", features=32, depth=2)
        >>> apply, params = jax.vmap(lambda k: ni.init(net, k, x))(jax.random.split(jax.random.key(0), 3))
        >>> len(ni.fit_seeds(apply, params, x, jnp.sin(x), steps=10))
        3
    """
    return _train(apply, params, x, y, _Options(**options), seeds=len(jax.tree.leaves(params)[0]))


def _train(apply: Any, params: Any, x: Any, y: Any, options: _Options, *, seeds: int | None) -> list[FitResult]:
    """Check, then alternate between fused steps and reports."""
    apply = _checks.as_partial(apply)
    dtype = check_params(params)
    x = _checks.as_coordinates(x).astype(dtype)
    y = _checks.as_values(y, len(x)).astype(dtype)
    _check_outputs(apply, params, x, y, seeds)
    key = _check_batches(options.batch_size, len(x), options.key)
    optimizer, steps = options.optimizer or optax.adam(1e-3), options.steps
    if options.validation is not None:
        x_valid = _checks.as_coordinates(options.validation[0], "validation x").astype(dtype)
        y_valid = _checks.as_values(options.validation[1], len(x_valid), "validation y").astype(dtype)
        options = dataclasses.replace(options, validation=(x_valid, y_valid))

    count, axis = (seeds, (seeds,)) if seeds else (1, ())
    keys = jax.random.split(key, count) if seeds else key
    state = _State(
        jax.tree.map(jnp.asarray, params),
        (jax.vmap(optimizer.init) if seeds else optimizer.init)(params),
        jnp.ones(axis, bool),
        jnp.zeros(axis, jnp.int32),
        jnp.full((*axis, steps), jnp.nan, dtype),
    )
    limit = _BLOW_UP * jnp.maximum(_loss(apply, state.params, x, y, seeds=bool(seeds)), options.data_range**2 / 2)
    advance = functools.partial(_advance, optimizer=optimizer, batch_size=options.batch_size, seeds=bool(seeds))
    jax.block_until_ready(advance(apply, state, keys, limit, x, y, 0, 0))  # compiles

    history: dict[str, list[Any]] = {}
    seconds, done, reached = 0.0, 0, np.zeros(count, bool)
    for stop in _report_steps(steps):
        start = time.perf_counter()
        state = jax.block_until_ready(advance(apply, state, keys, limit, x, y, done, stop))
        seconds, done = seconds + time.perf_counter() - start, stop
        row = _report(apply, state.params, x, y, options, seeds)
        row.update(step=np.minimum(np.atleast_1d(state.steps), stop), seconds=np.full(count, seconds / count))
        for name, column in row.items():
            history.setdefault(name, []).append(column)
        if options.progress is not None:
            options.progress(stop, steps)
        reached = row["psnr"] >= (np.inf if options.target_psnr is None else options.target_psnr)
        if np.all(reached | ~np.atleast_1d(state.alive)):
            break

    def result(seed: int) -> FitResult:
        own = jax.tree.map(lambda leaf: leaf[seed], state) if seeds else state
        status: Status = "target reached" if reached[seed] else "finished" if bool(own.alive) else "diverged"
        taken = int(own.steps)
        columns = {name: np.asarray([row[seed] for row in rows]) for name, rows in history.items()}
        # A seed that diverged has reports that repeat its last good step; the first of them is enough.
        kept = np.unique(columns["step"], return_index=True)[1]
        columns = {name: column[kept] for name, column in columns.items()}
        losses, full_batch = np.asarray(own.losses)[:taken], options.batch_size is None
        return FitResult(own.params, status, taken, columns, losses, full_batch, options.data_range)

    return [result(seed) for seed in range(count)]


def _mean_loss(apply: Partial, params: Any, x: Array, y: Array) -> Array:
    return optax.l2_loss(apply(params, x), y).mean()


@functools.partial(jax.jit, static_argnames="seeds")
def _loss(apply: Partial, params: Any, x: Array, y: Array, *, seeds: bool) -> Array:
    """Return the loss on all of ``(x, y)``, of each seed where there are several."""
    loss = jax.vmap(_mean_loss, in_axes=(0, 0, None, None)) if seeds else _mean_loss
    return loss(apply, params, x, y)


@functools.partial(jax.jit, static_argnames=("optimizer", "batch_size", "seeds"))
def _advance(
    apply: Partial, state: _State, key: Array, limit: Array, x: Array, y: Array, start: Any, stop: Any,
    *, optimizer: optax.GradientTransformation, batch_size: int | None, seeds: bool,
) -> _State:  # fmt: skip
    """Take the steps from ``start`` to ``stop``, both traced: one compilation serves every interval."""
    n = len(x)
    batches = 1 if batch_size is None else n // batch_size

    def single(apply: Partial, state: _State, key: Array, limit: Array) -> _State:
        def shuffle(epoch: Any) -> Array:
            return jax.random.permutation(jax.random.fold_in(key, epoch), n)

        def step(t: Array, carry: tuple[_State, Array]) -> tuple[_State, Array]:
            state, order = carry
            batch = x, y
            if batch_size is not None:
                order = lax.cond(t % batches == 0, lambda: shuffle(t // batches), lambda: order)
                rows = lax.dynamic_slice_in_dim(order, (t % batches) * batch_size, batch_size)
                batch = x[rows], y[rows]
            loss, gradient = jax.value_and_grad(_mean_loss, argnums=1)(apply, state.params, *batch)
            updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
            alive = state.alive & (loss <= limit) & jnp.isfinite(optax.tree.norm(updates))

            def keep(new: Any, old: Any) -> Any:
                return jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, old)

            state = _State(
                keep(optax.apply_updates(state.params, updates), state.params),
                keep(opt_state, state.opt_state),
                alive,
                state.steps + alive,
                state.losses.at[t].set(jnp.where(alive, loss, jnp.nan)),
            )
            return state, order

        order = jnp.arange(n) if batch_size is None else shuffle(start // batches)
        return lax.fori_loop(start, stop, step, (state, order))[0]

    return (jax.vmap(single) if seeds else single)(apply, state, key, limit)


def _report(
    apply: Partial, params: Any, x: Array, y: Array, options: _Options, seeds: int | None
) -> dict[str, np.ndarray]:
    """Return one row of the history; each column has an entry a seed."""
    losses = np.atleast_1d(_loss(apply, params, x, y, seeds=bool(seeds)))
    row = {"loss": losses, "psnr": psnr(2 * losses, options.data_range)}
    if options.validation is not None:
        losses = np.atleast_1d(_loss(apply, params, *options.validation, seeds=bool(seeds)))
        row["validation_psnr"] = psnr(2 * losses, options.data_range)
    if options.ntk_points is not None:
        subset = x[np.linspace(0, len(x) - 1, min(options.ntk_points, len(x))).astype(int)]
        models = [jax.tree.map(lambda leaf, s=s: leaf[s], (apply, params)) for s in range(seeds or 0)]
        found = [moments(ntk(a, p, subset)) for a, p in models or [(apply, params)]]
        for name in ("mean", "variance", "cv"):
            row[f"ntk_{name}"] = np.array([float(getattr(m, name)) for m in found])
    return row


def _report_steps(steps: int) -> list[int]:
    """Return step 0, logarithmically spaced steps, and the last."""
    return np.unique(np.append(0, np.round(np.geomspace(1, steps, 40)))).astype(int).tolist()


def _check_outputs(apply: Partial, params: Any, x: Array, y: Array, seeds: int | None) -> None:
    if seeds:
        apply, params = jax.tree.map(lambda leaf: leaf[0], (apply, params))
    c = check_apply(apply, params, x)
    if c != y.shape[1]:
        raise ValueError(
            f"apply gives {c} outputs but y has {y.shape[1]} columns; build the network with out={y.shape[1]}."
        )


def _check_batches(batch_size: int | None, n: int, key: Array | None) -> Array:
    if batch_size is None:
        return jax.random.key(0)
    _checks.check_positive(batch_size, "batch_size", integer=True)
    if batch_size > n:
        raise ValueError(f"batch_size is {batch_size} but x has {n} rows; expected at most {n}, or None for all.")
    if key is None:
        raise ValueError("batch_size needs key=, a random key for the order of the examples: key=jax.random.key(0).")
    return key
