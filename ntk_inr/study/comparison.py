"""Compare variants on a task: kernel, predicted curve, gradient descent, and training by their recipes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn

from ntk_inr import _checks
from ntk_inr._results import Record
from ntk_inr.study import record
from ntk_inr.study.candidate import check_room
from ntk_inr.study.derivatives import check_derivatives
from ntk_inr.study.description import (
    additions,
    baselines_of,
    describe,
    describe_task,
    image_of,
    readable,
)
from ntk_inr.study.environment import environment
from ntk_inr.study.fitted import Fitted
from ntk_inr.study.kept import keep, network_in
from ntk_inr.study.measurement import Progress, measure
from ntk_inr.study.plan import Plan, given, options_from, plans_of
from ntk_inr.study.programs import free_programs_if_full
from ntk_inr.study.record import Study
from ntk_inr.tasks.interface import Task


def compare(
    task: Task,
    variants: str | nn.Module | Sequence[str] | Mapping[str, nn.Module],
    *,
    features: int = 256,
    depth: int = 4,
    steps: int = 500,
    seeds: int = 3,
    seed: int = 0,
    kernel_points: int = 4096,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    **training: Any,
) -> Study:
    """Measure conditioning and convergence of variants on one task.

    For each variant and seed: the kernel at initialisation in float64 on the training coordinates,
    its moments, eigenvalues and condition number; the curve that it predicts for gradient descent at
    half the largest stable step (T10); full-batch gradient descent at that step, to hold beside it;
    and training by the variant's recipe, for quality: at the rate and schedule that it was measured to fit best at,
    with ``recipe="published"`` at its authors', with ``recipe="same"`` all at one rate. Like is compared with like:
    predictions are for gradient descent alone, and for the mean square error alone: with any other loss, or on more
    data than a batch, both curves are left out. Of a network that holds some of its derivative under
    ``stop_gradient`` they follow :func:`training_kernel`.

    Kernels are of what the task measures, ``task.observe(apply)``: for an image the values themselves, for a
    tomograph integrals of them.

    Args:
        task: what to fit, such as ``ni.image_task("camera")`` or any other :class:`ntk_inr.tasks.interface.Task`.
        variants: names as :func:`ntk_inr.variant` takes them ("siren:omega=10"), one or several; or a Linen module
            (n, d) -> (n, c), or a mapping from names of your own to such modules. ``features`` and ``depth`` do not
            apply to modules.
        features: width of the hidden layers.
        depth: number of hidden layers.
        steps: training steps, by the recipe and of gradient descent each.
        seeds: independent initialisations a variant; trained together where memory allows.
        seed: the first random seed.
        kernel_points: kernels are taken on at most this many training coordinates, drawn at random.
        out: folder to keep results and trained networks in, variant by variant; None keeps the results in memory.
        overwrite: replace results that ``out`` holds.
        resume: go on from results that ``out`` holds, without repeating finished variants.
        progress: called with (what, done, total).
        **training: how networks are trained, ``recipe="same"`` or ``learning_rate=1e-3`` say, as
            :class:`ntk_inr.study.TrainingOptions` lists it; what is not given is as each network's recipe says.

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
    for name, value in {"steps": steps, "seeds": seeds, "kernel_points": kernel_points}.items():
        _checks.check_positive(value, name, integer=True)
    check_room(min(kernel_points, task.n), "kernel_points")
    _checks.check_positive(seed, "seed", integer=True, least=0)
    options = options_from(training)
    plans = plans_of(task, variants, options, features=features, depth=depth, steps=steps)
    networks = {name: net for name, (net, _) in plans.items()}
    named = not isinstance(variants, Mapping | nn.Module)
    settings = {
        "features": features if named else None, "depth": depth if named else None, "steps": steps, "seeds": seeds,
        **given(options), "seed": seed, "kernel_points": kernel_points,
    }  # fmt: skip
    study = Study(
        Record(describe_task(task)), Record(settings), Record(environment()), image_of(task), [],
        baselines=baselines_of(task), additions=tuple(additions(networks)),
        warnings=tuple(check_derivatives(task, networks)),
    )  # fmt: skip
    with record.results_folder(out, overwrite=overwrite, resume=resume) as folder:
        if folder is not None and resume and (folder / record.RESULTS).exists():
            study = _taken_up(folder, study, plans, task)
        return _measured(study, plans, task, folder, progress or (lambda what, done, total: None))


def _measured(
    study: Study, plans: Mapping[str, tuple[nn.Module, Plan]], task: Task, folder: Path | None, report: Progress
) -> Study:
    """Return the study with the variants that were missing, each written to ``folder`` as it comes."""
    finished = {result.name for result in study.variants}
    for position, (name, (net, plan)) in enumerate(plans.items()):
        report("variants", position, len(plans))
        if name in finished:
            continue
        kept = None if folder is None else functools.partial(_keep, folder, name)
        result = measure(name, net, task, plan, study.settings, report, kept)
        study = dataclasses.replace(study, variants=[*study.variants, result])
        if folder is not None:
            record.save_arrays(folder, result)
            record.save_index(folder, study)
        free_programs_if_full()
    order = list(plans)
    variants = sorted(
        study.variants, key=lambda result: order.index(result.name) if result.name in order else len(order)
    )
    study = dataclasses.replace(study, variants=variants, complete=True)
    if folder is not None:
        record.save_index(folder, study)
    report("variants", len(plans), len(plans))
    return study


def _keep(folder: Path, name: str, seed: int, found: Fitted) -> None:
    """Keep the network of one seed, for :func:`load_fit`."""
    keep(network_in(folder, name, seed), found)


def _taken_up(folder: Path, wanted: Study, plans: Mapping[str, tuple[nn.Module, Plan]], task: Task) -> Study:
    """Return the study with the variants that are done already, or say why the folder holds another one."""
    earlier = record.load_study(folder)
    # Results of version 2 lack some settings; the size that modules have is a part of their descriptions.
    asked = {key: value for key, value in wanted.settings.items() if value is not None and key in earlier.settings}
    asked |= {"task or choice of rows": wanted.task["digest"]}
    kept = {**earlier.settings, "task or choice of rows": earlier.task["digest"]}
    again = [result for result in earlier.variants if result.name in plans]
    for result in again:
        net, plan = plans[result.name]
        asked |= {f"network {result.name}": describe(net), **_of(result.name, plan.described(task))}
        kept |= {f"network {result.name}": result.network, **_of(result.name, result.training)}
    differ = [f"{key} was {kept.get(key)!r}, now {asked[key]!r}" for key in asked if kept.get(key) != asked[key]]
    if differ:
        raise ValueError(
            f"{str(folder)!r} holds a study with other settings ({'; '.join(differ)}); resume with the same ones, "
            "or choose another folder."
        )
    return dataclasses.replace(
        wanted,
        variants=earlier.variants,
        additions=tuple(dict.fromkeys([*wanted.additions, *earlier.additions])),
        warnings=tuple(dict.fromkeys([*wanted.warnings, *earlier.warnings])),
    )


def _of(name: str, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a network is trained as settings of a study, but for where its recipe is from."""
    return {f"{key} of {name}": value for key, value in training.items() if key not in ("source", "recipe")}
