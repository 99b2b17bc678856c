"""What a training run gives."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ntk_inr._results import Scalar, result, static
from ntk_inr.training.curves import first_reaching, psnr

Status = Literal["finished", "target reached", "ended above the start", "stalled", "diverged", "interrupted"]


@result
class FitResult:
    """One training run.

    Attributes:
        params: the parameters at the end, or those of the best report where these were asked for; after divergence
            the last ones with a good loss.
        apply: the model to call with them, a pytree: as handed in, or with the batch statistics and the step of
            schedules that training left.
        status: "finished", "target reached", "ended above the start" where the loss on all data did, "stalled" where
            :func:`gauss_newton` finds no step that lowers the loss, as at the end of its precision, "diverged", or
            "interrupted" by a signal (with ``checkpoint`` only).
        steps: steps taken (after divergence, up to the last good one).
        history: columns of equal length, one entry a report: "step", "loss" and "psnr" on the training data (on a
            sample of them where there are more than 65,536 rows, but for the last entry; on the coming step's rows
            where data come by the step),
            "seconds" of training so far without compilation; "validation_loss" and "validation_psnr", "ntk_mean",
            "ntk_variance", "ntk_cv" where asked for. The PSNRs are there for losses on values only: "mse", "l1"
            and "huber".
        losses: (steps,) loss before each step, on that step's batch.
        full_batch: whether each step saw all data.
        data_range: span of the values, for PSNR.
        loss: name of the loss, or "callable".
        every_step: whether PSNR is known at every step from ``losses``: for the full batch, "mse", and a model
            that runs in training as it does afterwards.
        best_step: the step that ``params`` are of with ``keep="best"``, else None.
    """

    params: Any
    apply: Any
    status: Status = static()
    steps: Scalar
    history: dict[str, Any]
    losses: Any
    full_batch: bool = static()
    data_range: Scalar
    loss: str = static()
    every_step: bool = static()
    best_step: Scalar | None = None

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows: how the training ended."""
        ends = {name: column[-1] for name, column in self.history.items() if name != "step"}
        return {"status": self.status, "steps": self.steps, **ends, "loss is": self.loss}

    @property
    def psnr(self) -> np.ndarray:
        """PSNR in dB on all training data: (steps + 1,) where known at every step, else at the reports."""
        if "psnr" not in self.history:
            raise ValueError(f'loss="{self.loss}" is not on values, so there is no PSNR; look at history["loss"].')
        if not self.every_step:
            return self.history["psnr"]
        return np.append(psnr(2 * self.losses, float(self.data_range)), self.history["psnr"][-1])

    @property
    def psnr_per_step(self) -> np.ndarray:
        """PSNR in dB on all training data (steps + 1,), on straight lines between reports where only they know it."""
        known = self.psnr
        return known if self.every_step else np.interp(np.arange(self.steps + 1), self.history["step"], known)

    def steps_to(self, target_psnr: float) -> int | None:
        """Return the first step (where PSNR is known at reports only, report) with ``target_psnr`` dB, or None."""
        first = first_reaching(self.psnr, target_psnr)
        return first if first is None or self.every_step else int(self.history["step"][first])

    def seconds_to(self, target_psnr: float) -> float | None:
        """Return the seconds of training until ``target_psnr``, interpolated between reports, or None."""
        steps = self.steps_to(target_psnr)
        return None if steps is None else float(np.interp(steps, self.history["step"], self.history["seconds"]))
