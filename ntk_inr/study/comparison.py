"""Compare variants on a task: kernel, predicted curve, gradient descent, Adam."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ntk_inr import _checks
from ntk_inr._results import Record
from ntk_inr._text import printable
from ntk_inr.kernels.adapters import init
from ntk_inr.kernels.frozen import is_frozen
from ntk_inr.networks.catalogue import networks_of
from ntk_inr.spectra.dense import moments
from ntk_inr.spectra.eigen import condition_number, eigenvalues, max_learning_rate
from ntk_inr.study import record
from ntk_inr.study.candidate import check_room, kernel_in_float64, training_kernel_in_float64
from ntk_inr.study.derivatives import check_derivatives
from ntk_inr.study.description import (
    additions,
    baselines_of,
    descends,
    describe,
    describe_task,
    image_of,
    numbers_of,
    own_scores,
    training_settings,
)
from ntk_inr.study.environment import environment
from ntk_inr.study.figures import picture
from ntk_inr.study.programs import free_programs_if_full
from ntk_inr.study.record import Study, VariantResult
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


def compare(
    task: Task,
    variants: str | nn.Module | Sequence[str] | Mapping[str, nn.Module],
    *,
    features: int = 256,
    depth: int = 4,
    steps: int = 500,
    seeds: int = 3,
    learning_rate: float = 1e-3,
    seed: int = 0,
    kernel_points: int = 4096,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Study:
    """Measure conditioning and convergence of variants on one task.

    For each variant and seed: the kernel at initialisation in float64 on the training coordinates,
    its moments, eigenvalues and condition number; the curve that it predicts for gradient descent at
    half the largest stable step (T10); full-batch gradient descent at that step, to hold beside it;
    and Adam, for quality. Like is compared with like: predictions are for gradient descent alone, and for the
    mean square error alone: with any other loss, or on more data than a batch, both curves are left out. Of a network
    that holds some of its derivative under ``stop_gradient`` they follow :func:`training_kernel`.

    Kernels are of what the task measures, ``task.observe(apply)``: for an image the values themselves, for a
    tomograph integrals of them.

    Args:
        task: what to fit, such as ``ni.image_task("camera")`` or any other :class:`ntk_inr.tasks.interface.Task`.
        variants: names as :func:`ntk_inr.variant` takes them ("siren:omega=10"), one or several; or a Linen module
            (n, d) -> (n, c), or a mapping from names of your own to such modules. ``features`` and ``depth`` do not
            apply to modules.
        features: width of the hidden layers.
        depth: number of hidden layers.
        steps: training steps, of Adam and of gradient descent each.
        seeds: independent initialisations a variant; trained together where memory allows.
        learning_rate: of Adam.
        seed: the first random seed.
        kernel_points: kernels are taken on at most this many training coordinates, drawn at random.
        out: folder to keep results in, variant by variant; None keeps them in memory.
        overwrite: replace results that ``out`` holds.
        resume: go on from results that ``out`` holds, without repeating finished variants.
        progress: called with (what, done, total).

    Returns:
        :class:`Study`, also under ``out`` if given.

    Raises:
        ValueError: no or unknown or repeated variants, sizes below 1, a resumed study with other settings,
            a kernel that is not finite.
        FileExistsError: ``out`` is not empty and neither ``overwrite`` nor ``resume`` was given, or someone else is
            writing to it.

    Example:
        >>> import numpy as np, ntk_inr as ni
        >>> task = ni.image_task(np.eye(6), size=None)
        >>> study = ni.compare(task, ["relu", "pe"], features=16, depth=2, steps=5, seeds=1)
        >>> [result.name for result in study.variants]
        ['relu', 'pe']
    """
    task = readable(task)
    networks = networks_of(variants, features=features, depth=depth, out=task.channels)
    for name, value in {"steps": steps, "seeds": seeds, "kernel_points": kernel_points}.items():
        _checks.check_positive(value, name, integer=True)
    check_room(min(kernel_points, len(task.x)), "kernel_points")
    _checks.check_positive(learning_rate, "learning_rate")
    _checks.check_positive(seed, "seed", integer=True, least=0)
    named = not isinstance(variants, Mapping | nn.Module)
    settings = {
        "features": features if named else None, "depth": depth if named else None, "steps": steps, "seeds": seeds,
        **training_settings(task, "adam", learning_rate), "seed": seed, "kernel_points": kernel_points,
    }  # fmt: skip
    study = Study(
        Record(describe_task(task)), Record(settings), Record(environment()), image_of(task), [],
        baselines=baselines_of(task), additions=tuple(additions(networks)),
        warnings=tuple(check_derivatives(task, networks)),
    )  # fmt: skip
    with record.results_folder(out, overwrite=overwrite, resume=resume) as folder:
        if folder is not None and resume and (folder / record.RESULTS).exists():
            study = _taken_up(folder, study, networks)
        return _measured(study, networks, task, folder, progress or (lambda what, done, total: None))


def _measured(
    study: Study, networks: Mapping[str, nn.Module], task: Task, folder: Path | None, report: Progress
) -> Study:
    """Return the study with the variants that were missing, each written to ``folder`` as it comes."""
    finished = {result.name for result in study.variants}
    for position, (name, net) in enumerate(networks.items()):
        report("variants", position, len(networks))
        if name in finished:
            continue
        result = _measure(name, net, task, study.settings, report)
        study = dataclasses.replace(study, variants=[*study.variants, result])
        if folder is not None:
            record.save_arrays(folder, result)
            record.save_index(folder, study)
        free_programs_if_full()
    order = list(networks)
    variants = sorted(
        study.variants, key=lambda result: order.index(result.name) if result.name in order else len(order)
    )
    study = dataclasses.replace(study, variants=variants, complete=True)
    if folder is not None:
        record.save_index(folder, study)
    report("variants", len(networks), len(networks))
    return study


def _measure(name: str, net: nn.Module, task: Task, settings: dict[str, Any], report: Progress) -> VariantResult:
    """Return everything that the study keeps of one variant."""
    steps, seeds = settings["steps"], settings["seeds"]
    x, y = jnp.asarray(task.x), jnp.asarray(task.y)
    keys = jax.random.split(jax.random.key(settings["seed"]), seeds)

    def build(key: Array) -> tuple[Any, Any, Any]:
        apply, params = init(net, key, x)
        return apply, task.observe(apply), params

    models = jax.vmap(build)(keys)
    single = [jax.tree.map(lambda leaf, s=s: leaf[s], models) for s in range(seeds)]
    rows = np.arange(len(x))
    if len(x) > settings["kernel_points"]:
        rows = np.sort(np.random.default_rng(settings["seed"]).permutation(len(x))[: settings["kernel_points"]])

    scalars: list[dict[str, Any]] = []
    kernels, spectra = [], []
    for s, (_, observed, params) in enumerate(single):
        report(f"{name}: kernel", s, seeds)
        kernel = _finite(kernel_in_float64(observed, params, x[rows]), name)
        values = np.ascontiguousarray(eigenvalues(kernel))
        scalars.append(_kernel_figures(kernel, values))
        kernels.append(kernel.astype(np.float32))
        spectra.append(values)
    report(f"{name}: kernel", seeds, seeds)
    training = Training(task, steps, net, settings["seed"])

    def train(what: str, optimizer: optax.GradientTransformation, **options: Any) -> list[FitResult]:
        def progress(done: int, total: int) -> None:
            report(f"{name}: {what}", done, total)

        return training.run(models[1:], x, y, optimizer=optimizer, progress=progress, **options)

    arrays = {"kernel": _heatmap(kernels[0]), "eigenvalues": np.stack(spectra)}
    if descends(task):
        followed, gd_rate = _followed(name, single, x[rows], y, kernels, spectra)
        predicted = [
            predict_training(
                jnp.asarray(kernel), observed(params, x[rows]) - y[rows], learning_rate=gd_rate, steps=steps,
                data_range=task.data_range,
            )
            for kernel, (_, observed, params) in zip(followed, single, strict=True)
        ]  # fmt: skip
        gd = train("gradient descent", optax.sgd(gd_rate))
        for figures, (_, observed, _), kernel, slow in zip(scalars, single, kernels, gd, strict=True):
            moved = kernel_in_float64(observed, slow.params, x[rows])
            figures.update(
                gd_kernel_drift=float(np.linalg.norm(moved - kernel) / np.linalg.norm(kernel)),
                gd_cv_after=float(moments(moved).cv),
                gd_learning_rate=gd_rate, gd_status=slow.status, gd_steps=slow.steps,
            )  # fmt: skip
        arrays["predicted_psnr"] = np.stack([curve.psnr for curve in predicted]).astype(np.float32)
        arrays["gd_psnr"] = np.stack([_curve(run, steps) for run in gd])
    adam = train("Adam", optax.adam(settings["learning_rate"]), batch_size=task.sampling)
    found = []
    for figures, (apply, _, _), run in zip(scalars, single, adam, strict=True):
        found.append(task.reconstruct(functools.partial(trained(apply, run), run.params)))
        scores = own_scores(task, found[-1])
        if task.heldout is not None and "heldout_psnr" not in scores:
            scores["heldout_psnr"] = _heldout_psnr(task, trained(apply, run), run.params)
        figures.update(
            adam_status=run.status, adam_steps=run.steps, adam_seconds=float(run.history["seconds"][-1]),
            **{f"score_{key}": value for key, value in scores.items()},
        )  # fmt: skip
    arrays["adam_psnr"] = np.stack([_curve(run, steps) for run in adam])
    arrays["adam_loss"] = np.stack([np.append(run.losses, np.full(steps - run.steps, np.nan)) for run in adam])
    arrays["adam_seconds"] = np.stack(
        [np.interp(np.arange(steps + 1), run.history["step"], run.history["seconds"]) for run in adam]
    ).astype(np.float32)
    if image_of(task) is not None:
        arrays["reconstruction"] = found[0]
    else:
        arrays["picture"] = picture(task.figure(found[0]))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(single[0][2]))
    return VariantResult(name, describe(net), parameters, list(map(Record, scalars)), arrays, Record(numbers_of(net)))


def _followed(
    name: str, models: Sequence[Any], x: Array, y: Array, kernels: list[np.ndarray], spectra: list[np.ndarray]
) -> tuple[list[np.ndarray], float]:
    """Return the kernels that gradient descent follows, and half of the largest rate at which it is stable."""
    if not is_frozen(models[0][1], models[0][2], x):
        return kernels, _stable_rate(spectra, y) / 2
    found = [_finite(training_kernel_in_float64(observed, params, x), name) for _, observed, params in models]
    # Where no step is stable, one at which the kernel itself would be shows the growth.
    rate = _stable_rate(found, y) or _stable_rate(spectra, y)
    return [kernel.astype(np.float32) for kernel in found], rate / 2


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
    found, condition = moments(kernel), condition_number(values)
    return {
        "ntk_mean": float(found.mean),
        "ntk_variance": float(found.variance),
        "cv": float(found.cv),
        "effective_rank": float(found.effective_rank),
        "condition_number": float(condition.value),
        "condition_resolved": bool(condition.resolved),
    }


@dataclasses.dataclass(frozen=True)
class Training:
    """How the variants of a study are trained: on one task, for as many steps, from the same shuffles."""

    task: Task
    steps: int
    net: nn.Module
    seed: int

    def run(
        self, models: tuple[Any, Any], x: Array, y: Array, *, progress: Callable[[int, int], None], **options: Any
    ) -> list[FitResult]:
        """Train all seeds together where memory allows, else one after the other."""
        options = {
            "steps": self.steps, "loss": self.task.loss, "data_range": self.task.data_range,
            "key": jax.random.key(self.seed), **options,
        }  # fmt: skip
        seeds = len(jax.tree.leaves(models[1])[0])
        units = getattr(self.net, "features", 256) * getattr(self.net, "depth", 4)
        needed = seeds * (options.get("batch_size") or len(x)) * units * _FLOATS_PER_UNIT * 4
        stats = jax.local_devices()[0].memory_stats() or {}
        if needed <= stats.get("bytes_limit", _DEFAULT_MEMORY) // 2:
            return fit_seeds(*models, x, y, progress=progress, **options)
        runs = []
        for s in range(seeds):

            def report(done: int, total: int, s: int = s) -> None:
                progress(s * total + done, seeds * total)

            apply, params = jax.tree.map(lambda leaf, s=s: leaf[s], models)
            runs.append(fit(apply, params, x, y, progress=report, **options))
        return runs


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


def readable(task: Task) -> Task:
    """Return the task under a name that every file can hold, since some have their file's name."""
    name = printable(task.name)
    return dataclasses.replace(task, name=name) if name != task.name and dataclasses.is_dataclass(task) else task


def _taken_up(folder: Path, wanted: Study, networks: Mapping[str, nn.Module]) -> Study:
    """Return the study with the variants that are done already, or say why the folder holds another one."""
    found = record.load_study(folder)
    # Results of version 2 lack some settings; the size that modules have is a part of their descriptions.
    asked = {key: value for key, value in wanted.settings.items() if value is not None and key in found.settings}
    asked |= {"task or choice of rows": wanted.task["digest"]}
    kept = {**found.settings, "task or choice of rows": found.task["digest"]}
    again = [result for result in found.variants if result.name in networks]
    asked |= {f"network {result.name}": describe(networks[result.name]) for result in again}
    kept |= {f"network {result.name}": result.network for result in again}
    differ = [f"{key} was {kept.get(key)!r}, now {asked[key]!r}" for key in asked if kept.get(key) != asked[key]]
    if differ:
        raise ValueError(
            f"{str(folder)!r} holds a study with other settings ({'; '.join(differ)}); resume with the same ones, "
            "or choose another folder."
        )
    return dataclasses.replace(
        wanted,
        variants=found.variants,
        additions=tuple(dict.fromkeys([*wanted.additions, *found.additions])),
        warnings=tuple(dict.fromkeys([*wanted.warnings, *found.warnings])),
    )
