"""What a study measures of one variant: its kernels, gradient descent beside what they predict, and its training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ntk_inr._results import Record
from ntk_inr.kernels.adapters import init
from ntk_inr.kernels.frozen import is_frozen
from ntk_inr.spectra.dense import moments
from ntk_inr.spectra.eigen import condition_number, eigenvalues, max_learning_rate
from ntk_inr.study.candidate import kernel_in_float64, training_kernel_in_float64
from ntk_inr.study.description import descends, describe, image_of, numbers_of, own_scores
from ntk_inr.study.figures import picture
from ntk_inr.study.fitted import Context, Fitted
from ntk_inr.study.plan import Plan
from ntk_inr.study.record import VariantResult
from ntk_inr.tasks.grid import in_batches
from ntk_inr.tasks.interface import Task
from ntk_inr.training.curves import psnr
from ntk_inr.training.dynamics import predict_training
from ntk_inr.training.fitting import FitResult, fit, fit_seeds

Progress = Callable[[str, int, int], None]

_HEATMAP = 256
_DEFAULT_MEMORY = 4 * 2**30
# Activations, their gradients and temporaries that a training step keeps for each hidden unit.
_FLOATS_PER_UNIT = 8


def measure(
    name: str, net: nn.Module, task: Task, plan: Plan, settings: dict[str, Any], report: Progress,
    keep: Callable[[int, Fitted], Any] | None = None,
) -> VariantResult:  # fmt: skip
    """Return everything that a study keeps of one variant; ``keep`` is called with each seed and what it trained."""
    measurement = _Measurement(name, net, task, settings, report)
    kernels, spectra = measurement.measure_kernels()
    if descends(task):
        measurement.descend(kernels, spectra)
    reconstruction = measurement.train(plan, keep or (lambda seed, found: None))
    if image_of(task) is not None:
        measurement.arrays["reconstruction"] = reconstruction
    else:
        measurement.arrays["picture"] = picture(task.figure(reconstruction))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(measurement.single[0][2]))
    scalars = [Record(figures) for figures in measurement.scalars]
    described, training = Record(numbers_of(net)), Record(plan.described(task))
    return VariantResult(name, describe(net), parameters, scalars, measurement.arrays, described, training)


class _Measurement:
    """One variant, drawn once a seed; each step adds to what is kept.

    Attributes:
        models: ``(apply, observed, params)`` of all seeds, stacked.
        single: the same of each seed.
        points: the coordinates (n, d) that kernels are taken on.
        scalars: figures of each seed.
        arrays: what is kept of all seeds together.
    """

    def __init__(self, name: str, net: nn.Module, task: Task, settings: dict[str, Any], report: Progress) -> None:
        self.name, self.net, self.task, self.report = name, net, task, report
        self.steps, self.seeds = settings["steps"], settings["seeds"]
        self.x, self.y = jnp.asarray(task.x), jnp.asarray(task.y)

        def build(key: Array) -> tuple[Any, Any, Any]:
            apply, params = init(net, key, self.x)
            return apply, task.observe(apply), params

        self.models = jax.vmap(build)(jax.random.split(jax.random.key(settings["seed"]), self.seeds))
        self.single = [jax.tree.map(lambda leaf, s=s: leaf[s], self.models) for s in range(self.seeds)]
        self.rows = np.arange(len(self.x))
        if len(self.x) > settings["kernel_points"]:
            drawn = np.random.default_rng(settings["seed"]).permutation(len(self.x))
            self.rows = np.sort(drawn[: settings["kernel_points"]])
        self.points = self.x[self.rows]
        self.shuffles = jax.random.key(settings["seed"])
        self.scalars: list[dict[str, Any]] = []
        self.arrays: dict[str, Any] = {}

    def measure_kernels(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Take the kernel of each seed and its eigenvalues; return both."""
        kernels, spectra = [], []
        for s, (_, observed, params) in enumerate(self.single):
            self.report(f"{self.name}: kernel", s, self.seeds)
            kernel = _finite(kernel_in_float64(observed, params, self.points), self.name)
            values = np.ascontiguousarray(eigenvalues(kernel))
            self.scalars.append(_kernel_figures(kernel, values))
            kernels.append(kernel.astype(np.float32))
            spectra.append(values)
        self.report(f"{self.name}: kernel", self.seeds, self.seeds)
        self.arrays |= {"kernel": _heatmap(kernels[0]), "eigenvalues": np.stack(spectra)}
        return kernels, spectra

    def descend(self, kernels: list[np.ndarray], spectra: list[np.ndarray]) -> None:
        """Train by gradient descent, and predict it from the kernels."""
        followed, rate = _followed(self.name, self.single, self.points, self.y, kernels, spectra)
        predicted = [
            predict_training(
                jnp.asarray(kernel), observed(params, self.points) - self.y[self.rows], learning_rate=rate,
                steps=self.steps, data_range=self.task.data_range,
            )
            for kernel, (_, observed, params) in zip(followed, self.single, strict=True)
        ]  # fmt: skip
        runs = self._trained("gradient descent", {"optimizer": optax.sgd(rate), "steps": self.steps})
        for figures, (_, observed, _), kernel, run in zip(self.scalars, self.single, kernels, runs, strict=True):
            moved = kernel_in_float64(observed, run.params, self.points)
            figures.update(
                gd_kernel_drift=float(np.linalg.norm(moved - kernel) / np.linalg.norm(kernel)),
                gd_cv_after=float(moments(moved).cv),
                gd_learning_rate=rate, gd_status=run.status, gd_steps=run.steps,
            )  # fmt: skip
        self.arrays["predicted_psnr"] = np.stack([curve.psnr for curve in predicted]).astype(np.float32)
        self.arrays["gd_psnr"] = np.stack([_curve(run, self.steps) for run in runs])

    def train(self, plan: Plan, keep: Callable[[int, Fitted], Any]) -> Any:
        """Train as planned, keep and score what each seed has learned; return the first reconstruction."""
        steps = self.steps
        heldout = self.task.heldout
        runs = self._trained(plan.recipe.optimizer, {**plan.keywords(steps), "validation": heldout})
        reconstructions = []
        context = Context(self.net, self.x.shape[1], self.task, describe(self.net))
        for seed, (figures, (apply, _, _), run) in enumerate(zip(self.scalars, self.single, runs, strict=True)):
            found = Fitted(run, {}, None, apply=trained(apply, run), context=context)
            keep(seed, found)
            reconstruction = self.task.reconstruct(found)
            reconstructions.append(reconstruction)
            scores = own_scores(self.task, reconstruction)
            if heldout is not None and "heldout_psnr" not in scores:
                scores["heldout_psnr"] = _heldout_psnr(self.task, trained(apply, run), run.params)
            figures.update(
                adam_status=run.status, adam_steps=run.steps, adam_seconds=float(run.history["seconds"][-1]),
                **{f"score_{key}": value for key, value in scores.items()},
            )  # fmt: skip
        self.arrays["adam_psnr"] = np.stack([_curve(run, steps) for run in runs])
        self.arrays["adam_loss"] = np.stack([np.append(run.losses, np.full(steps - run.steps, np.nan)) for run in runs])
        self.arrays["adam_seconds"] = np.stack(
            [np.interp(np.arange(steps + 1), run.history["step"], run.history["seconds"]) for run in runs]
        ).astype(np.float32)
        return reconstructions[0]

    def _trained(self, what: str, options: dict[str, Any]) -> list[FitResult]:
        """Train all seeds together where memory allows, else one after the other; all from the same shuffles."""

        def report(done: int, total: int, figures: dict[str, float], seed: int = 0, seeds: int = 1) -> None:
            self.report(f"{self.name}: {what}", seed * total + done, seeds * total)

        options = {"loss": self.task.loss, "data_range": self.task.data_range, "key": self.shuffles, **options}
        if self._fits_together(options.get("microbatch") or options.get("batch_size") or len(self.x)):
            return fit_seeds(*self.models[1:], self.x, self.y, progress=report, **options)
        runs = []
        for s, (_, observed, params) in enumerate(self.single):
            progress = functools.partial(report, seed=s, seeds=self.seeds)
            runs.append(fit(observed, params, self.x, self.y, progress=progress, **options))
        return runs

    def _fits_together(self, rows: int) -> bool:
        """Return whether the training steps of all seeds, of so many rows, fit in half of the memory."""
        units = getattr(self.net, "features", 256) * getattr(self.net, "depth", 4)
        stats = jax.local_devices()[0].memory_stats() or {}
        return self.seeds * rows * units * _FLOATS_PER_UNIT * 4 <= stats.get("bytes_limit", _DEFAULT_MEMORY) // 2


def _followed(
    name: str, models: Sequence[Any], x: Array, y: Array, kernels: list[np.ndarray], spectra: list[np.ndarray]
) -> tuple[list[np.ndarray], float]:
    """Return the kernels that gradient descent follows, and half of the largest rate at which it is stable."""
    if not is_frozen(models[0][1], models[0][2], x):
        return kernels, _stable_rate(spectra, y) / 2
    followed = [_finite(training_kernel_in_float64(observed, params, x), name) for _, observed, params in models]
    # Where no step is stable, one at which the kernel itself would be shows the growth.
    rate = _stable_rate(followed, y) or _stable_rate(spectra, y)
    return [kernel.astype(np.float32) for kernel in followed], rate / 2


def _heldout_psnr(task: Task, apply: Any, params: Any) -> float:
    x, y = task.heldout  # type: ignore[misc]
    error = in_batches(functools.partial(task.observe(apply), params), x, y.shape[1]) - y
    return float(psnr(np.mean(error.astype(np.float64) ** 2), task.data_range))


def _finite(kernel: np.ndarray, name: str) -> np.ndarray:
    """Return the kernel, or say that it can't be kept in float32."""
    if np.abs(kernel).max() > np.finfo(np.float32).max or not np.isfinite(kernel).all():
        raise ValueError(f"the kernel of {name!r} at initialisation is not finite in float32; scale its weights down.")
    return kernel


def _stable_rate(kernels: Sequence[np.ndarray], y: Array) -> float:
    """Return the largest rate that is stable for all kernels, or their eigenvalues."""
    return min(float(max_learning_rate(kernel, c=y.shape[1])) for kernel in kernels)


def trained(apply: Any, run: FitResult) -> Any:
    """Return the network itself as training left it, with its statistics where they are its own to keep."""
    own: Any = jax.tree.structure(apply)
    return run.apply if jax.tree.structure(run.apply) == own else apply


def _kernel_figures(kernel: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Return what the study keeps of a kernel with those eigenvalues."""
    spread, condition = moments(kernel), condition_number(values)
    return {
        "ntk_mean": float(spread.mean),
        "ntk_variance": float(spread.variance),
        "cv": float(spread.cv),
        "effective_rank": float(spread.effective_rank),
        "condition_number": float(condition.value),
        "condition_resolved": bool(condition.resolved),
    }


def _heatmap(kernel: np.ndarray) -> np.ndarray:
    """Return evenly spaced rows and columns of the kernel over its mean diagonal."""
    rows = np.unique(np.linspace(0, len(kernel) - 1, _HEATMAP).astype(int))
    return (kernel[np.ix_(rows, rows)] / np.diagonal(kernel).mean()).astype(np.float32)


def _curve(run: FitResult, steps: int) -> np.ndarray:
    """Return the PSNR after each step, a straight line between reports where only they know it.

    NaN after the last step, and throughout where the loss is not on values.
    """
    if "psnr" not in run.history:
        return np.full(steps + 1, np.nan, np.float32)
    curve = run.psnr_per_step
    return np.append(curve, np.full(steps + 1 - len(curve), np.nan)).astype(np.float32)
