"""The training curve that a constant kernel predicts (T10)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ntk_inr import _checks
from ntk_inr._dtypes import at_precision, unit_of
from ntk_inr._results import Scalar, result
from ntk_inr.spectra.eigen import Eigensystem, eigensystem
from ntk_inr.spectra.symmetry import is_symmetric
from ntk_inr.training.curves import first_reaching, psnr
from ntk_inr.training.second_order import DAMPING, FALL, LEAST

# Below this many steps per coordinate, applying K once a step is cheaper than decomposing it.
_STEPS_PER_POINT = 4


@result
class Prediction:
    """Gradient descent, or Gauss–Newton, as the kernel predicts it, step by step.

    Attributes:
        loss: (steps + 1,) loss ``sum(residual**2) / (2 n c)`` before the first step and after each, in float64.
        residual: (n, c) residual f - y after the last step.
        learning_rate: the step size; None of Gauss–Newton steps.
        data_range: span of the values, for PSNR.
        damping: (steps,) of Gauss–Newton steps; None of gradient descent.
    """

    loss: Any
    residual: Any
    learning_rate: Scalar | None
    data_range: Scalar = 1.0
    damping: Any = None

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows: where the curve begins and ends."""
        return {
            "steps": len(self.loss) - 1,
            **({"learning rate": self.learning_rate} if self.damping is None else {"damping": _ends(self.damping)}),
            "loss": _ends(self.loss),
            "PSNR": f"{self.psnr[0]:.2f} to {self.psnr[-1]:.2f} dB",
        }

    @property
    def psnr(self) -> np.ndarray:
        """PSNR in dB, (steps + 1,)."""
        return psnr(2 * self.loss, float(self.data_range))

    def steps_to(self, target_psnr: float) -> int | None:
        """Return the first step at which PSNR is at least ``target_psnr``, or None."""
        return first_reaching(self.psnr, target_psnr)


def _ends(column: Any) -> str:
    return f"{column[0]:.4g} to {column[-1]:.4g}"


def predict_training(
    K: Any,
    residual: Any,
    *,
    learning_rate: float | None = None,
    damping: Any = None,
    steps: int,
    data_range: float = 1.0,
) -> Prediction:
    r"""Return the loss of gradient descent, or of Gauss–Newton, on the model linearised where K was taken.

    .. math:: r_t = \Bigl(I - \frac{\eta}{n c} K\Bigr)^t r_0 \quad\text{(T10.1)}, \qquad
        r_{t+1} = \lambda_t(K + \lambda_t I)^{-1} r_t \quad\text{(12.2)}, \qquad
        \mathcal L_t = \frac{1}{2 n c}\lVert r_t\rVert^2

    Exact for the linearised model, and for the network as far as its kernel stays put. The loss is
    that of :func:`fit` under full-batch ``optax.sgd(learning_rate)``.

    Of a network that holds some of its derivative under ``stop_gradient`` (``ni.explain(...).frozen``), K is its
    :func:`training_kernel`, (10.4). That is not symmetric, so all steps are taken one by one.

    Args:
        K: "trace" kernel (n, n), which lets each output evolve alone (exact at infinite width); its
            :class:`Eigensystem`; or the "full" kernel (n, n, c, c), which is exact at any width. Of :func:`ntk`, or of
            :func:`training_kernel`.
        residual: f - y at the start, (n, c).
        learning_rate: step size eta of gradient descent; stable below :func:`max_learning_rate`.
        damping: instead, lambda of :func:`gauss_newton` in units of K's mean eigenvalue: a number, one a step, or
            "adaptive", what :func:`gauss_newton` would choose where every step kept its promise.
        steps: number of steps, at least 1.
        data_range: span of the values, for PSNR.

    Returns:
        :class:`Prediction`. An unstable step size gives a growing loss, as it would in training.

    Raises:
        ValueError: shapes that don't match, steps below 1, a learning rate or damping not above 0, both or neither,
            or damping for a K that is not symmetric.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> curve = ni.predict_training(jnp.eye(2), jnp.ones((2, 1)), learning_rate=1.0, steps=2)
        >>> [float(v) for v in curve.loss]
        [0.5, 0.125, 0.03125]
        >>> curve = ni.predict_training(jnp.eye(2), jnp.ones((2, 1)), damping=1.0, steps=2)
        >>> [float(v) for v in curve.loss]
        [0.5, 0.125, 0.03125]
    """
    _checks.check_positive(steps, "steps", integer=True)
    if (learning_rate is None) == (damping is None):
        raise ValueError("predict_training takes learning_rate= or damping=, one of them.")
    if learning_rate is None:
        dampings = _dampings(damping, steps)
    else:
        _checks.check_positive(learning_rate, "learning_rate")
    shape = (K.values if isinstance(K, Eigensystem) else K).shape
    residual = _checks.as_values(residual, shape[0], "residual")
    n, c = residual.shape
    if len(shape) == 4:
        if shape != (n, n, c, c):
            raise ValueError(f'K has shape {shape}; the "full" kernel of a residual {(n, c)} has {(n, n, c, c)}.')
        K = _checks.as_floating(jnp.moveaxis(jnp.asarray(K), 2, 1).reshape(n * c, n * c), "K")
        start = residual.reshape(-1, 1)
    else:
        K, start = K if isinstance(K, Eigensystem) else _checks.as_kernel(K), residual
    if learning_rate is None:
        return _by_solving(K, _checks.as_floating(start, "residual"), dampings, (n, c), data_range)
    rate = learning_rate / (n * c)
    if not isinstance(K, Eigensystem) and steps > _STEPS_PER_POINT * K.shape[0] and is_symmetric(K):
        K = eigensystem(K)
    start = _checks.as_floating(start, "residual")
    unit = unit_of(start)
    follow = _by_modes if isinstance(K, Eigensystem) else _by_steps
    square, last = follow(K, start / unit, rate, steps)
    loss = np.asarray(square, float) / (2 * n * c) * float(unit) * float(unit)
    return Prediction(loss, np.asarray(last * unit).reshape(n, c), learning_rate, data_range)


def _dampings(damping: Any, steps: int) -> np.ndarray:
    """Return the damping of each step (steps,)."""
    if isinstance(damping, str):
        _checks.check_choice(damping, ("adaptive",), "damping")
        return np.maximum(DAMPING * FALL ** np.arange(steps), LEAST)
    values = np.asarray(damping, float)
    if values.shape not in ((), (steps,)) or not (values > 0).all() or not np.isfinite(values).all():
        raise ValueError(f'damping={damping!r}; expected a number above 0, {steps} of them, or "adaptive".')
    return np.broadcast_to(values, (steps,))


def _by_solving(K: Any, start: Array, dampings: np.ndarray, shape: tuple[int, int], data_range: float) -> Prediction:
    """Follow Gauss–Newton steps mode by mode, in float64."""
    if not isinstance(K, Eigensystem):
        if not is_symmetric(K):
            raise ValueError("damping= got a K that is not symmetric; give that of ni.ntk, which the steps solve with.")
        K = eigensystem(K)
    values, vectors = np.maximum(np.asarray(K.values, float), 0), np.asarray(K.vectors, float)
    weights = dampings[:, None] * values.mean()
    factors = np.cumprod(np.concatenate([np.ones((1, len(values))), weights / (values[None] + weights)]), axis=0)
    projected = vectors.T @ np.asarray(start, float)
    loss = factors**2 @ np.square(projected).sum(axis=1) / (2 * math.prod(shape))
    last = (vectors @ (factors[-1][:, None] * projected)).reshape(shape)
    return Prediction(loss, last, None, data_range, np.array(dampings))


def _by_modes(system: Eigensystem, start: Array, rate: float, steps: int) -> tuple[Array, Array]:
    projected = jnp.asarray(system.vectors).T @ start
    energy = (projected**2).sum(axis=1)
    factor = 1 - rate * jnp.asarray(system.values)

    def remaining(t: Array) -> Array:
        # Where there is nothing, an unstable step makes nothing of it.
        return jnp.where(energy > 0, factor ** (2 * t) * energy, 0).sum()

    square = lax.map(remaining, jnp.arange(steps + 1))
    last = jnp.where(projected != 0, factor[:, None] ** steps * projected, 0)
    return square, jnp.asarray(system.vectors) @ last


@jax.jit(static_argnames="steps")
@at_precision
def _by_steps(K: Array, start: Array, rate: Any, steps: int) -> tuple[Array, Array]:
    def step(residual: Array, _: None) -> tuple[Array, Array]:
        return residual - rate * (K @ residual), (residual**2).sum()

    last, square = lax.scan(step, start.astype(K.dtype), length=steps)
    return jnp.append(square, (last**2).sum()), last
