"""What a training run gives."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from ntk_inr.training.curves import first_reaching, psnr

Status = Literal["finished", "target reached", "ended above the start", "diverged", "interrupted"]


@dataclasses.dataclass(frozen=True)
class FitResult:
    """One training run.

    Attributes:
        params: the parameters at the end; after divergence the last ones with a good loss.
        apply: the model to call with them: as handed in, or with the batch statistics and the step of schedules
            that training left.
        status: "finished", "target reached", "ended above the start" where the loss on all data did, "diverged", or
            "interrupted" by a signal (with ``checkpoint`` only).
        steps: steps taken (after divergence, up to the last good one).
        history: columns of equal length, one entry a report: "step", "loss" and "psnr" on all training data,
            "seconds" of training so far without compilation; "validation_loss" and "validation_psnr", "ntk_mean",
            "ntk_variance", "ntk_cv" where asked for. The PSNRs are there for losses on values only: "mse", "l1"
            and "huber".
        losses: (steps,) loss before each step, on that step's batch.
        full_batch: whether each step saw all data.
        data_range: span of the values, for PSNR.
        loss: name of the loss, or "callable".
        every_step: whether PSNR is known at every step from ``losses``: for the full batch, "mse", and a model
            that runs in training as it does afterwards.
    """

    params: Any
    apply: Any
    status: Status
    steps: int
    history: dict[str, np.ndarray]
    losses: np.ndarray
    full_batch: bool
    data_range: float
    loss: str
    every_step: bool

    @property
    def psnr(self) -> np.ndarray:
        """PSNR in dB on all training data: (steps + 1,) where known at every step, else at the reports."""
        if "psnr" not in self.history:
            raise ValueError(f'loss="{self.loss}" is not on values, so there is no PSNR; look at history["loss"].')
        if not self.every_step:
            return self.history["psnr"]
        return np.append(psnr(2 * self.losses, self.data_range), self.history["psnr"][-1])

    @property
    def psnr_per_step(self) -> np.ndarray:
        """PSNR in dB on all training data (steps + 1,), on straight lines between reports where only they know it."""
        known = self.psnr
        return known if self.every_step else np.interp(np.arange(self.steps + 1), self.history["step"], known)

    def steps_to(self, target_psnr: float) -> int | None:
        """Return the first step (where PSNR is known at reports only, report) with ``target_psnr`` dB, or None."""
        found = first_reaching(self.psnr, target_psnr)
        return found if found is None or self.every_step else int(self.history["step"][found])

    def seconds_to(self, target_psnr: float) -> float | None:
        """Return the seconds of training until ``target_psnr``, interpolated between reports, or None."""
        steps = self.steps_to(target_psnr)
        return None if steps is None else float(np.interp(steps, self.history["step"], self.history["seconds"]))
