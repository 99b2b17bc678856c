"""Losses by name; each says whether it compares values, and from which size on a run has diverged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ntk_inr import _checks

# A loss this far above the first one, and above that of an error of the whole data range, counts as
# divergence; waiting for infinity wastes steps.
_BLOW_UP = 1e4

HUBER_DELTA = 0.1  # of the data range: errors of values in [0, 1] hardly reach the usual 1

_NAMED: dict[str, Callable[[Array, Array, float], Array]] = {
    "mse": lambda f, y, _: optax.l2_loss(f, y),
    "l1": lambda f, y, _: jnp.abs(f - y),
    "huber": lambda f, y, data_range: optax.huber_loss(f, y, delta=HUBER_DELTA * data_range),
    "bce": lambda f, y, _: optax.sigmoid_binary_cross_entropy(f, y),
}


@dataclasses.dataclass(frozen=True)
class ExampleLoss:
    """Map predictions (n, c') and values (n, c) to one loss an example; equal for equal settings, so jit compiles once.

    Attributes:
        name: "mse", "l1", "huber", "bce" or "callable".
        data_range: span of the values, which sets where Huber's loss turns linear.
        function: the user's, where there is one.
    """

    name: str
    data_range: float = 1.0
    function: Callable[[Any, Any], Any] | None = None

    def __call__(self, prediction: Array, y: Array) -> Array:
        """Return the losses (n,) of ``prediction`` (n, c') for ``y`` (n, c)."""
        if self.function is not None:
            return self.function(prediction, y)
        return _NAMED[self.name](prediction, y, self.data_range).mean(axis=1)

    @property
    def on_values(self) -> bool:
        """Whether predictions are values like y, so that PSNR means something."""
        return self.name in ("mse", "l1", "huber")

    def limit(self, first: Any, data_range: float) -> Any:
        """Return the loss above which a run that begins with the loss ``first`` counts as diverged.

        The scale of a user's loss is unknown, and a run may rightly begin near its zero: only a loss that
        is not finite counts then.
        """
        first = np.asarray(first)
        if self.function is not None:
            return np.full_like(first, jnp.finfo(first.dtype).max)
        delta = HUBER_DELTA * data_range
        whole = {"mse": data_range**2 / 2, "l1": data_range, "huber": delta * (data_range - delta / 2)}
        return _BLOW_UP * np.maximum(first, whole.get(self.name, math.log(2)))


def as_loss(loss: str | Callable[[Any, Any], Any], data_range: float = 1.0) -> ExampleLoss:
    r"""Return the loss that a name or a function of ``(prediction, y)`` stands for.

    With an error e = f - y of each output, averaged over outputs: "mse" is e²/2, "l1" is |e|, "huber" is e²/2 up
    to delta = 0.1 data_range and delta (|e| - delta/2) beyond, "bce" is -y log s(f) - (1 - y) log(1 - s(f)) of
    logits f.

    Args:
        loss: a name, or ``loss(prediction (n, c'), y (n, c)) -> (n,)``.
        data_range: span of the values.

    Returns:
        :class:`ExampleLoss`.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a function.

    Example:
        >>> import jax.numpy as jnp
        >>> as_loss("l1")(jnp.zeros((2, 1)), jnp.ones((2, 1))).tolist()
        [1.0, 1.0]

    Source:
        Huber 1964, Robust estimation of a location parameter.
    """
    if isinstance(loss, str):
        _checks.check_choice(loss, _NAMED, "loss")
        return ExampleLoss(loss, float(data_range) if loss == "huber" else 1.0)
    if not callable(loss):
        raise TypeError(
            f"loss is {loss!r}; expected one of {', '.join(map(repr, _NAMED))}, or a function "
            "(prediction (n, c'), y (n, c)) -> (n,), one loss an example."
        )
    return ExampleLoss("callable", function=loss)


def check_loss(loss: ExampleLoss, c: int, x: Array, y: Array, name: str = "y") -> None:
    """Raise where ``loss`` can't compare predictions of ``c`` columns with ``y``, called ``name``."""
    if loss.function is not None:
        losses = jax.eval_shape(loss.function, jax.ShapeDtypeStruct((len(x), c), x.dtype), y)
        if getattr(losses, "shape", None) != (len(x),):
            got = f"shape {losses.shape}" if hasattr(losses, "shape") else type(losses).__name__
            raise ValueError(
                f"loss(prediction, y) gave {got} for {len(x)} examples; expected ({len(x)},), one loss an example. "
                "Average over the outputs, not over the examples: .mean(axis=1)."
            )
        return
    if c != y.shape[1]:
        raise ValueError(
            f"apply gives {c} outputs but {name} has {y.shape[1]} columns; build the network with "
            f"out={y.shape[1]}, or give as many columns as it has outputs."
        )
    if loss.name == "bce" and bool(((y < 0) | (y > 1)).any()):
        raise ValueError(
            f'{name} lies in [{float(y.min()):g}, {float(y.max()):g}]; loss="bce" expects probabilities in [0, 1] '
            "(and apply to give logits)."
        )
