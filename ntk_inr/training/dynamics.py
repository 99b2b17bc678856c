"""The training curve that a constant kernel predicts (T10)."""

from __future__ import annotations

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

# Below this many steps per coordinate, applying K once a step is cheaper than decomposing it.
_STEPS_PER_POINT = 4


@result
class Prediction:
    """Gradient descent as the kernel predicts it, step by step.

    Attributes:
        loss: (steps + 1,) loss ``sum(residual**2) / (2 n c)`` before the first step and after each, in float64.
        residual: (n, c) residual f - y after the last step.
        learning_rate: the step size.
        data_range: span of the values, for PSNR.
    """

    loss: Any
    residual: Any
    learning_rate: Scalar
    data_range: Scalar = 1.0

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows: where the curve begins and ends."""
        return {
            "steps": len(self.loss) - 1,
            "learning rate": self.learning_rate,
            "loss": f"{self.loss[0]:.4g} to {self.loss[-1]:.4g}",
            "PSNR": f"{self.psnr[0]:.2f} to {self.psnr[-1]:.2f} dB",
        }

    @property
    def psnr(self) -> np.ndarray:
        """PSNR in dB, (steps + 1,)."""
        return psnr(2 * self.loss, float(self.data_range))

    def steps_to(self, target_psnr: float) -> int | None:
        """Return the first step at which PSNR is at least ``target_psnr``, or None."""
        return first_reaching(self.psnr, target_psnr)


def predict_training(K: Any, residual: Any, *, learning_rate: float, steps: int, data_range: float = 1.0) -> Prediction:
    r"""Return the loss of gradient descent on the model linearised where K was taken, (T10.1).

    .. math:: r_t = \Bigl(I - \frac{\eta}{n c} K\Bigr)^t r_0, \qquad
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
        learning_rate: step size eta; stable below :func:`max_learning_rate`.
        steps: number of steps, at least 1.
        data_range: span of the values, for PSNR.

    Returns:
        :class:`Prediction`. An unstable step size gives a growing loss, as it would in training.

    Raises:
        ValueError: shapes that don't match, steps below 1, or a learning rate not above 0.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> curve = ni.predict_training(jnp.eye(2), jnp.ones((2, 1)), learning_rate=1.0, steps=2)
        >>> [float(v) for v in curve.loss]
        [0.5, 0.125, 0.03125]
    """
    _checks.check_positive(learning_rate, "learning_rate")
    _checks.check_positive(steps, "steps", integer=True)
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
    rate = learning_rate / (n * c)
    if not isinstance(K, Eigensystem) and steps > _STEPS_PER_POINT * K.shape[0] and is_symmetric(K):
        K = eigensystem(K)
    start = _checks.as_floating(start, "residual")
    unit = unit_of(start)
    follow = _by_modes if isinstance(K, Eigensystem) else _by_steps
    square, last = follow(K, start / unit, rate, steps)
    loss = np.asarray(square, float) / (2 * n * c) * float(unit) * float(unit)
    return Prediction(loss, np.asarray(last * unit).reshape(n, c), learning_rate, data_range)


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
