"""Gauss–Newton steps by the kernel: an optax transformation that solves where others descend (T12)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr._checks import Precision
from ntk_inr._dtypes import accumulation_dtype
from ntk_inr.kernels.model import check_params, in_parts
from ntk_inr.training.curvature import quadratic
from ntk_inr.training.losses import ExampleLoss, as_loss, check_loss
from ntk_inr.training.passes import values
from ntk_inr.training.solvers import SOLVERS, Problem, SolverPlan, System, plan, system

# By the gain ratio, damping falls to a share of itself, or grows (12.4); where no damping helps there is no lower loss.
_GOOD, _POOR, FALL, _GROWTH, _REFUSED = 0.75, 0.25, 0.1, 4.0, 10.0
DAMPING, LEAST, _MOST = 1e-2, 1e-14, 1e10


class GaussNewtonState(NamedTuple):
    """Hold what a step leaves to the next.

    Attributes:
        damping: in units of the mean eigenvalue of the system that is solved.
        gain: decrease of the loss by the last step over what the linearised model promised.
        accepted: whether the last step lowered the loss; else it was zero.
        evaluations: trial points so far.
        loss: mean loss of the rows before the last step.
        taken: steps so far.
        adam: the state of Adam, where it takes the first steps, else None.
        step: the last step, where there is momentum, else None.
    """

    damping: Array
    gain: Array
    accepted: Array
    evaluations: Array
    loss: Array
    taken: Array
    adam: Any
    step: Any


class _Search(NamedTuple):
    """The search for a damping whose step lowers the loss: what the last trial gave."""

    damping: Array
    gain: Array
    accepted: Array
    trials: Array
    step: Any


@dataclasses.dataclass(frozen=True)
class GaussNewton:
    """The settings of :func:`gauss_newton`, and its two functions."""

    damping: float
    momentum: float
    solver: str
    tries: int
    adam_steps: int
    adam_rate: float
    memory_limit: int | None
    precision: Precision

    def init(self, params: Any) -> GaussNewtonState:
        """Return the state before the first step."""
        dtype = accumulation_dtype(*jax.tree.leaves(params))
        step = jax.tree.map(jnp.zeros_like, params) if self.momentum else None
        damping, one, zero = jnp.asarray(self.damping, dtype), jnp.ones((), dtype), jnp.zeros((), jnp.int32)
        adam = optax.adam(self.adam_rate).init(_real_parts(params)) if self.adam_steps else None
        return GaussNewtonState(damping, one, jnp.array(True), zero, one, zero, adam, step)

    def plan(self, params: Any, n: int, c: int) -> SolverPlan:
        """Return how a step on n coordinates with c outputs is solved, and what memory that takes."""
        leaves = jax.tree.leaves(params)
        size = sum(leaf.size * (2 if jnp.iscomplexobj(leaf) else 1) for leaf in leaves)
        return plan(self.solver, n, c, size, accumulation_dtype(*leaves), self.memory_limit)

    def update(
        self, updates: Any, state: GaussNewtonState, params: Any = None, *, apply: Any = None, x: Any = None,
        y: Any = None, weights: Any = None, loss: Any = "mse", **_: Any,
    ) -> tuple[Any, GaussNewtonState]:  # fmt: skip
        """Return the step and the state after it; ``updates``, the gradient, is not used."""
        if params is None or apply is None or x is None or y is None:
            raise TypeError(
                "gauss_newton's update needs params and the rows that it solves for: "
                "optimizer.update(gradient, state, params, apply=apply, x=x, y=y)."
            )
        x = jnp.asarray(_checks.as_coordinates(x))
        y = _checks.as_values(y, len(x))
        apply, example_loss = _checks.as_partial(apply), as_loss(loss) if not isinstance(loss, ExampleLoss) else loss
        if jax.tree.map(jnp.shape, state) != jax.tree.map(jnp.shape, jax.eval_shape(self.init, params)):
            raise ValueError("the state of gauss_newton is of other parameters; make one with optimizer.init(params).")
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, state, x, y)))
        if not traced:
            check_params(params, finite=False)
        real, parameters = in_parts(apply, params, x)
        before = self._before(state, params)
        prediction = values(real, parameters, x)
        check_loss(example_loss, prediction.shape[1], x, y)
        here = quadratic(example_loss, prediction, y, weights)
        if not traced and not jnp.isfinite(here.loss):  # there is no kernel to solve with
            damping = _next_damping(state.damping, state.gain, jnp.array(False))
            nothing = jax.tree.map(jnp.zeros_like, params)
            return nothing, state._replace(damping=damping, accepted=jnp.array(False), loss=here.loss / len(x))
        problem = Problem(real, parameters, x, here, before)
        solver = self.plan(params, *prediction.shape).solver

        def total(step: Any) -> Array:
            return _loss_after(real, parameters, step, x, y, weights, loss=example_loss)

        def solved() -> tuple[_Search, Any]:
            found = self._search(system(problem, solver, self.precision), here.loss, total, state, traced)
            return found._replace(
                step=jax.tree.map(lambda leaf: jnp.where(found.accepted, leaf, 0), found.step)
            ), state.adam

        def descended() -> tuple[_Search, Any]:
            gradient = jax.tree.map(lambda leaf: leaf / len(x), problem.pulled(here.gradient))
            step, adam = optax.adam(self.adam_rate).update(gradient, state.adam)
            nothing = jnp.zeros((), jnp.int32)
            return _Search(state.damping, state.gain, jnp.array(True), nothing, step), adam

        found, adam = _either(state.taken < self.adam_steps, descended, solved, traced) if self.adam_steps else solved()
        step = _whole(found.step, params)
        return step, GaussNewtonState(
            found.damping, found.gain, found.accepted, state.evaluations + found.trials,
            (here.loss / len(x)).astype(state.loss.dtype), state.taken + 1, adam, step if self.momentum else None,
        )  # fmt: skip

    def _before(self, state: GaussNewtonState, params: Any) -> Any:
        """Return the step that momentum alone would take, of real parameters."""
        if not self.momentum:
            return None

        return jax.tree.map(lambda leaf: self.momentum * leaf, _real_parts(state.step))

    def _search(
        self, system: System, loss: Array, total: Callable[[Any], Array], state: GaussNewtonState, traced: bool
    ) -> _Search:
        """Try steps of growing damping until one lowers the loss."""

        def trial(found: _Search) -> _Search:
            step, promised = system.solve(found.damping)
            after = total(step)
            gain = ((loss - after) / promised).astype(found.gain.dtype)
            accepted = jnp.isfinite(after) & (after < loss) & (promised > 0)
            return _Search(_next_damping(found.damping, gain, accepted), gain, accepted, found.trials + 1, step)

        def unfinished(found: _Search) -> Array:
            return ~found.accepted & (found.trials < self.tries) & (found.damping < _MOST)

        start = trial(_Search(state.damping, state.gain, jnp.array(False), jnp.zeros((), jnp.int32), None))
        if traced:
            return lax.while_loop(unfinished, trial, start)
        while unfinished(start):
            start = trial(start)
        return start


@jax.jit
def _next_damping(damping: Array, gain: Array, accepted: Array) -> Array:
    """Return the damping of the next trial: less after a step that kept its promise, more after one that did not."""
    share = jnp.where(gain > _GOOD, FALL, jnp.where(gain < _POOR, _GROWTH, 1.0))
    return jnp.clip(damping * jnp.where(accepted, share, _REFUSED), LEAST, _MOST).astype(damping.dtype)


@functools.partial(jax.jit, static_argnames="loss")
def _loss_after(
    apply: Partial, params: Any, step: Any, x: Array, y: Array, weights: Array | None, *, loss: ExampleLoss
) -> Array:
    """Return the sum of the losses after a step."""
    each = loss(values(apply, optax.apply_updates(params, step), x), y)
    return (each if weights is None else weights * each).sum()


def _real_parts(tree: Any) -> Any:
    """Return a pytree with pairs of real arrays (2, ...) in place of complex ones."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf.real, leaf.imag]) if jnp.iscomplexobj(leaf) else leaf, tree)


def _either(which: Array, first: Callable[[], Any], second: Callable[[], Any], traced: bool) -> Any:
    """Return what one of two functions gives, the first where ``which``."""
    return lax.cond(which, first, second) if traced else first() if which else second()


def _whole(step: Any, params: Any) -> Any:
    """Return a step in real and imaginary parts as one of the parameters, in their dtypes."""

    def join(leaf: Array, like: Array) -> Array:
        return (lax.complex(leaf[0], leaf[1]) if jnp.iscomplexobj(like) else leaf).astype(like.dtype)

    return jax.tree.map(join, step, params)


def gauss_newton(
    *,
    damping: float = DAMPING,
    momentum: float = 0.0,
    solver: str = "auto",
    tries: int = 8,
    adam_steps: int = 0,
    adam_rate: float = 1e-3,
    memory_limit: int | None = None,
    precision: Precision = "highest",
) -> optax.GradientTransformationExtraArgs:
    r"""Train by solving with the kernel, which takes the spectrum out of the pace of training (T12).

    .. math:: \delta = -J^\top S(\lambda I + SKS)^{-1}S^{-1}g,\qquad K = JJ^\top,\quad S^2 = \Lambda

    with g and :math:`\Lambda` the gradient and Hessian of the loss in the predictions (:math:`(K + \lambda I)^{-1}` of
    the residual for "mse"). Every mode of the kernel then shrinks at nearly the same pace (12.3), as far as the
    network is like its linearisation. The step is tried; where the loss does not fall, damping grows and the same K is
    factored again, ``tries`` times at most, after which the step is zero. The gain ratio (12.4) sets the next damping.

    It is an optax transformation whose ``update`` takes the model and its rows, as that of ``optax.lbfgs`` takes a
    value function: ``update(gradient, state, params, apply=apply, x=x, y=y)``, with ``weights=`` (n,) and ``loss=`` as
    of :func:`fit` if wanted. The gradient is not used and may be None. Outside ``jit`` the steps are driven from the
    host, which on a CPU is several times faster than one traced program. In :func:`fit` it is
    ``optimizer=ni.gauss_newton()``, and ``--optimizer gauss-newton`` on the command line.

    Args:
        damping: of the first step, in units of the mean eigenvalue of the system, so that it means the same for any n,
            c, width and unit.
        momentum: share of the last step that a step begins with, for minibatches (12.5).
        solver: what is solved for. "function": values at the n coordinates, a system of n c equations, all of
            ``ni.ntk``. "shared": the same with one factorisation of n equations for all outputs, whose gain ratio says
            whether it serves. "parameters": P equations, for P < n c. "cg": conjugate gradients with products by the
            kernel, preconditioned by some of its columns (12.7), for what fits neither. "auto": the smallest system
            that fits in memory.
        tries: trial points of one step at most.
        adam_steps: how many of the first steps are Adam's, for networks that are not like their linearisation at the
            start: 50 for ``gauss``, 200 for ``wire``.
        adam_rate: their learning rate.
        memory_limit: bytes that the solver may take; None is what is left.
        precision: of the kernel's products on GPU and TPU.

    Returns:
        An optax transformation.

    Raises:
        ValueError: an unknown solver, a number out of range; in ``update`` a system that does not fit in memory, y
            whose shape is not that of the predictions.
        TypeError: ``update`` without params, apply, x or y.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> x = jnp.linspace(-1, 1, 64)[:, None]
        >>> apply, params = ni.init(ni.variant("siren", features=32, depth=2), jax.random.key(0), x)
        >>> result = ni.fit(apply, params, x, jnp.sin(9 * x) / 2 + 0.5, optimizer=ni.gauss_newton(), steps=8)
        >>> bool(result.history["psnr"][-1] > 80)
        True

    Source:
        Levenberg 1944 and Marquardt 1963 (doi 10.1137/0111030), the step; Rende et al. 2024 (arXiv 2310.05715), solved
        in the space of the values; Goldshlager et al. 2024 (arXiv 2401.10190), momentum.
    """
    _checks.check_positive(damping, "damping")
    _checks.check_positive(tries, "tries", integer=True)
    _checks.check_choice(solver, SOLVERS, "solver")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum!r}; expected a share of the last step, from 0 to below 1.")
    _checks.check_options(memory_limit=memory_limit, precision=precision)
    _checks.check_positive(adam_steps, "adam_steps", integer=True, least=0)
    _checks.check_positive(adam_rate, "adam_rate")
    first = int(adam_steps), float(adam_rate)
    settings = GaussNewton(float(damping), float(momentum), solver, int(tries), *first, memory_limit, precision)
    return _transformation(settings)


@functools.lru_cache(maxsize=128)
def _transformation(settings: GaussNewton) -> optax.GradientTransformationExtraArgs:
    return optax.GradientTransformationExtraArgs(settings.init, settings.update)


def has_stalled(opt_state: Any) -> Any:
    """Return whether :func:`gauss_newton` found no step that lowers the loss, at any damping; False of others."""
    if not isinstance(opt_state, GaussNewtonState):
        return False
    return ~opt_state.accepted & (opt_state.damping >= _MOST)


def with_solver(settings: GaussNewton, solver: str) -> optax.GradientTransformationExtraArgs:
    """Return the transformation with the solver that was planned for a run, which another process then takes, too."""
    return _transformation(dataclasses.replace(settings, solver=solver))


def settings_of(optimizer: Any) -> GaussNewton | None:
    """Return the settings of what :func:`gauss_newton` made, None of any other optimizer."""
    own = getattr(getattr(optimizer, "update", None), "__self__", None)
    return own if isinstance(own, GaussNewton) else None
