"""How far a training comes with its steps: what its optimizer and schedule make of the time of gradient descent."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from ntk_inr.training.optimizers import rate_of


@dataclasses.dataclass(frozen=True)
class Pace:
    r"""The pace of a training.

    After s steps it has the *effective* steps :math:`S(s) = \sum_{t<s}\alpha_t/\alpha`, with alpha the largest rate;
    beyond the steps that are planned it goes on as a longer training of the same schedule would on average. S effective
    steps of Adam count as :math:`\mathtt{factor}\,S^2` steps of gradient descent at half of its stable rate.

    Attributes:
        optimizer: "sgd", or one like Adam.
        schedule: of the rate.
        end: share of the rate that is left at the end.
        warmup: steps in which the rate grows.
        steps: that are planned.
        factor: above.
    """

    optimizer: str
    schedule: str
    end: float | None
    warmup: int
    steps: int
    factor: float

    @property
    def _constant(self) -> bool:
        return self.schedule == "constant" and not self.warmup

    @functools.cached_property
    def _rates(self) -> np.ndarray:
        """The rates over their largest, of each step (steps,)."""
        rate = rate_of(1.0, self.schedule, self.end, self.steps, self.warmup)
        return np.array(rate(np.arange(self.steps)), float) if callable(rate) else np.full(self.steps, float(rate))

    @functools.cached_property
    def _done(self) -> np.ndarray:
        """The effective steps after each number of steps (steps + 1,)."""
        return np.concatenate([[0.0], np.cumsum(self._rates)])

    def effective(self, steps: Any) -> Any:
        """Return the effective steps after so many."""
        if self._constant:
            return steps
        within = np.interp(steps, np.arange(self.steps + 1), self._done)
        return np.where(np.asarray(steps) <= self.steps, within, np.asarray(steps) * self._done[-1] / self.steps)

    def steps_for(self, effective: Any) -> Any:
        """Return the steps that have so many effective ones."""
        if self._constant:
            return effective
        within = np.interp(effective, self._done, np.arange(self.steps + 1))
        beyond = np.asarray(effective) * self.steps / self._done[-1]
        return np.where(np.asarray(effective) <= self._done[-1], within, beyond)

    def time_of(self, steps: Any) -> Any:
        """Return the steps of gradient descent at half of its stable rate that steps of the training count as."""
        effective = self.effective(steps)
        return effective if self.optimizer == "sgd" else self.factor * effective**2

    def steps_of(self, time: Any) -> Any:
        """Return the steps of the training that come as far as so many of gradient descent, if the rate lets them."""
        return self.steps_for(time if self.optimizer == "sgd" else (time / self.factor) ** 0.5)

    def share_at(self, steps: Any) -> Any:
        """Return the rate of a step over the largest; after the last as at the last."""
        return np.interp(steps, np.arange(1, self.steps + 1), self._rates)
