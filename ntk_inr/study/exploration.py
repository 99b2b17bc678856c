"""How candidates of a search are measured, once each, and where further ones are looked for."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ntk_inr._results import Record
from ntk_inr.kernels.adapters import init
from ntk_inr.networks.settings import with_settings
from ntk_inr.study.candidate import (
    TIMES,
    Curves,
    Kernels,
    Sample,
    kernels_of,
    largest_eigenvalue,
    predict,
    predict_infinite,
    stable_rate,
)
from ntk_inr.study.plan import Plan
from ntk_inr.study.programs import free_programs_if_full
from ntk_inr.study.space import Axis, between
from ntk_inr.study.tuning import Candidate, Tuning, write
from ntk_inr.tasks.interface import Task
from ntk_inr.training.curves import psnr
from ntk_inr.training.fitting import fit
from ntk_inr.training.optimizers import optimizer as make_optimizer

ADAM_FACTOR = 0.4
"""S steps of Adam go about as far as this times S**2 steps of gradient descent; see benchmarks.tune_validation."""
ADAM_REACH = 0.5
"""Adam moves parameters by about this times the learning rate a step, however small the gradient is."""
ADAM_JITTER, ADAM_MEMORY = {"mse": 0.1, "l1": 0.5, "huber": 0.1}, 1000
"""Adam's steps move outputs by about this times the learning rate times the norm of an output's gradient, where they do
not shrink with the loss: for "l1" always, else once Adam has forgotten the first gradients, after 1 / (1 - 0.999).
Predictions are for these losses, whose minimum is where that of the squared error is."""
# Of a mean squared error: nothing is learned more exactly, and no PSNR is infinite.
_LEAST = 1e-40
_GOLDEN = (3 - 5**0.5) / 2


@dataclasses.dataclass
class Search:
    """Measures candidates, once each, and keeps them."""

    task: Task
    plans: dict[str, tuple[nn.Module, Plan]]
    samples: list[Sample]
    tuning: Tuning
    folder: Path | None

    def run(self, spaces: Mapping[str, list[Axis]], refine: int, report: Callable[[str, int, int], None]) -> None:
        """Measure the grid of all axes, then ``refine`` candidates around the best."""
        plan = [
            (name, dict(zip([axis.name for axis in axes], values, strict=True)))
            for name, axes in spaces.items()
            for values in itertools.product(*[axis.grid for axis in axes])
        ]
        total = len(plan) + refine
        for place, (name, values) in enumerate(plan):
            report("candidates", place, total)
            self.measure(name, values)
        best = self.tuning.best
        if best.failure:
            raise ValueError(f"no candidate works; {best.label}: {best.failure}")
        for place, values in enumerate(_refined(self.tuning, spaces[best.variant], refine)):
            report("candidates", len(plan) + place, total)
            self.measure(best.variant, values)
        report("candidates", total, total)

    def measure(self, name: str, values: dict[str, Any]) -> None:
        """Predict for one candidate, unless it is known."""
        settings = Record(values)
        if any(known.variant == name and known.settings == settings for known in self.tuning.candidates):
            return
        began = time.perf_counter()
        candidate = Candidate(name, settings)
        try:
            for repeat, sample in enumerate(self.samples):
                self._repeat(candidate, sample, jax.random.key(self.tuning.settings["seed"] + repeat))
        except ValueError as error:
            candidate = Candidate(name, settings, failure=str(error))
        self.tuning.candidates.append(dataclasses.replace(candidate, seconds=time.perf_counter() - began))
        if self.folder is not None:
            write(self.folder, self.tuning)
        free_programs_if_full()

    def _repeat(self, candidate: Candidate, sample: Sample, key: Any) -> None:
        """Add one prediction to a candidate."""
        asked, (net, plan) = self.tuning.settings, self.plans[candidate.variant]
        if asked["infinite"]:
            try:
                curves = predict_infinite(with_settings(net, candidate.settings), sample, int(jax.random.bits(key)))
            except TypeError as error:  # of a network that has no description to read its limit from
                raise ValueError(str(error)) from error
        else:
            apply, params = init(net, key, jnp.asarray(sample.x), settings=candidate.settings)
            observed = self.task.observe(apply)
            kernels = kernels_of(observed, params, sample)
            if asked["pilot"]:
                before = kernels.own
                params = self._piloted(observed, params, kernels, sample, key, plan)
                kernels = kernels_of(observed, params, sample)
                candidate.drift.append(float(np.linalg.norm(kernels.own - before) / np.linalg.norm(before)))
            curves = predict(observed, params, kernels, sample)
        if not np.isfinite(curves.train).all():
            raise ValueError("its kernel at initialisation is not finite; scale its weights down.")
        self._score(candidate, curves)

    def _piloted(self, observed: Any, params: Any, kernels: Kernels, sample: Sample, key: Any, plan: Plan) -> Any:
        """Return the parameters after the pilot run, which does not see what the sample holds out."""
        asked, task = self.tuning.settings, self.task
        recipe = plan.recipe
        if recipe.optimizer == "sgd":
            rate = stable_rate(largest_eigenvalue(kernels.followed, sample), sample) / 2
            recipe = dataclasses.replace(recipe, learning_rate=rate)
        batch = None if plan.rows is None else min(plan.rows, int(sample.seen.sum()))
        run = fit(
            observed, params, task.x[sample.seen], task.y[sample.seen], steps=asked["pilot"], loss=task.loss, key=key,
            batch_size=batch, data_range=task.data_range,
            optimizer=make_optimizer(**recipe.arguments, steps=asked["steps"]),
        )  # fmt: skip
        if run.status == "diverged":
            raise ValueError(f"diverged in the pilot run at learning rate {recipe.learning_rate:g}.")
        return run.params

    def _score(self, candidate: Candidate, curves: Curves) -> None:
        """Add the PSNR that curves predict, and the score that the objective makes of it, to a candidate."""
        asked, pilot = self.tuning.settings, self.tuning.settings["pilot"]
        steps, floor = self._steps_and_floor(curves, candidate.variant)
        train = psnr(curves.train + floor, self.task.data_range)
        heldout = None if curves.heldout is None else psnr(curves.heldout + floor, self.task.data_range)
        at, budget = np.log(steps), np.log(asked["steps"] - pilot)
        candidate.curve_steps.append([float(f"{pilot + step:.4g}") for step in steps])
        candidate.train_psnr.append(float(np.interp(budget, at, train)))
        candidate.train_curve.append([round(float(value), 3) for value in train])
        candidate.cv.append(curves.cv)
        candidate.stable_rate.append(curves.stable_rate)
        if heldout is not None:
            within = heldout[at <= budget]
            candidate.heldout_psnr.append(float(max(within.max(initial=-math.inf), np.interp(budget, at, heldout))))
            candidate.heldout_curve.append([round(float(value), 3) for value in heldout])
        if asked["objective"] == "heldout":
            candidate.score.append(candidate.heldout_psnr[-1])
        elif asked["objective"] == "fit":
            candidate.score.append(candidate.train_psnr[-1])
        else:
            needed = math.inf
            if (train >= asked["target_psnr"]).any():
                crossing = np.interp(asked["target_psnr"], np.maximum.accumulate(train), at)
                needed = max(1.0, pilot + float(np.exp(crossing)))
            candidate.steps_to_target.append(needed)
            candidate.score.append(-math.log10(needed))

    def _steps_and_floor(self, curves: Curves, variant: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the training's steps after the pilot run at TIMES, and the error that they can't fall below."""
        asked, pilot = self.tuning.settings, self.tuning.settings["pilot"]
        training, pace = self.tuning.training[variant], self.tuning.pace(variant)
        steps = pace.steps_of(pace.time_of(pilot) + TIMES) - pilot
        floor = np.full(len(TIMES), _LEAST)
        if training["optimizer"] != "sgd":
            rate = training["learning_rate"]
            needed = curves.path / (asked["adam_reach"] * rate * curves.push)
            steps = np.maximum(steps, pace.steps_for(pace.effective(pilot) + needed) - pilot)
            loss = str(self.task.loss)  # a name, as was checked
            noisy = pilot + steps > (0 if loss == "l1" else ADAM_MEMORY)
            jitter = ADAM_JITTER[loss] * rate * pace.share_at(pilot + steps)
            floor += np.where(noisy, jitter**2 * curves.gradient, 0)
        return steps, floor


def _refined(tuning: Tuning, axes: Sequence[Axis], budget: int) -> Iterator[dict[str, Any]]:
    """Yield settings around the best by golden section, one axis after the other, as results come in."""
    open_axes = [axis for axis in axes if axis.continuous]
    for turn, axis in enumerate(open_axes):
        share = budget // len(open_axes) + (turn < budget % len(open_axes))
        variant = tuning.best.variant
        others = {name: value for name, value in tuning.best.settings.items() if name != axis.name}
        while True:
            along = {
                c.settings[axis.name]: c.mean
                for c in tuning.candidates
                if c.variant == variant and {n: v for n, v in c.settings.items() if n != axis.name} == others
            }
            # Those of a search that is resumed count too.
            if len(set(along) - set(axis.grid)) >= share:
                break
            new = _section(along, isinstance(axis.grid[0], int), axis.grid[0] > 0)
            if new is None:
                break
            yield {**others, axis.name: new}


def _section(along: dict[Any, float], whole: bool, logarithmic: bool) -> Any:
    """Return the next value of a golden section around the best so far; None where nothing lies between."""
    values = sorted(along)
    place = values.index(max(along, key=lambda value: along[value]))
    scale = (math.log, math.exp) if logarithmic else (float, float)
    best = scale[0](values[place])
    sides = [scale[0](values[i]) for i in (place - 1, place + 1) if 0 <= i < len(values)]
    for side in sorted(sides, key=lambda side: -abs(side - best)):
        new = scale[1](best + _GOLDEN * (side - best))
        new = round(new) if whole else between(new, *sorted((values[place], scale[1](side))))
        if new not in along:
            return new
    return None
