"""Choose settings before training, by what kernels at initialisation predict (T10)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from ntk_inr import _checks
from ntk_inr._results import Record
from ntk_inr.study import record
from ntk_inr.study.candidate import check_room, draw_sample
from ntk_inr.study.derivatives import check_derivatives
from ntk_inr.study.description import describe, describe_task, numbers_of, readable
from ntk_inr.study.environment import environment
from ntk_inr.study.exploration import ADAM_FACTOR, ADAM_JITTER, ADAM_REACH, Search
from ntk_inr.study.plan import Plan, given, options_from, plans_of
from ntk_inr.study.space import Axis, spaces_of
from ntk_inr.study.tuning import OBJECTIVES, Candidate, Objective, Tuning, load_tuning, write
from ntk_inr.tasks.interface import Task

_SAMPLE = 512
_HELD_OUT = 0.2
DESCENTS = ("adam", "adamw", "sgd")


def tune(
    task: Task,
    variants: str | nn.Module | Sequence[str] | Mapping[str, nn.Module],
    space: Mapping[str, Any] | None = None,
    *,
    objective: Objective = "heldout",
    steps: int = 500,
    target_psnr: float | None = None,
    features: int = 256,
    depth: int = 4,
    points: int = 8,
    refine: int = 4,
    sample: int | None = None,
    repeats: int = 3,
    pilot: int = 0,
    infinite: bool = False,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    **training: Any,
) -> Tuning:
    r"""Rank settings of a network by what its kernel predicts, without training it.

    For each candidate and repeat: a network is drawn, its kernel is taken on a sample of the rows that the task trains
    on, and its spectrum gives the curves of gradient descent on the linearised network, on rows that count as trained
    on and on rows that are held out of the sample (T10). Repeats draw both anew, the same for all candidates, so that
    candidates are compared pair by pair. The best of the grid is then refined by golden section.

    S steps of Adam are counted as :math:`0.4\,S^2` of gradient descent at half of its stable rate, because Adam evens
    out the eigenvalues, but as no more than parameters can go that take steps of half of the learning rate alpha:
    a way of :math:`\alpha S\,\lVert g\rVert_1/2\lVert g\rVert_2` along the gradient g. Beyond 1000 steps, when Adam has
    forgotten the first gradients, its steps leave a noise floor of mean square
    :math:`(0.1\,\alpha)^2\,\overline{K_{ii}}` (for "l1", whose gradient does not shrink with the error, 0.5 and from
    the start). Under a schedule S is the sum of the rates over their largest, and alpha in the floor is the rate of the
    step. These factors were fitted to trainings such as those of ``benchmarks.tune_validation``, at constant rates.

    The prediction is that of a kernel that stays as it is. A ``pilot`` run of so many steps measures how far it moves,
    and the ranking is then by the kernels that it ends with. It does not see what its sample holds out.

    Args:
        task: what to fit. What it holds out itself is not looked at.
        variants: a name as :func:`ntk_inr.variant` takes it or a Linen module; several names, or modules by name,
            compare them.
        space: ``{setting: range or values}``: a tuple ``(low, high)`` is a range, spaced geometrically and refined; a
            list is tried as it is. Settings go by their full names, as :func:`settings_of` has them, or by their last
            part ("scale" for "encoding.scale"). With several variants each takes the settings it has. None is a
            wide range of the setting that a network's spectrum hangs on most.
        objective: "heldout", the best PSNR on rows held out within ``steps``; "fit", PSNR on rows trained on after
            ``steps``; "speed", steps to ``target_psnr`` on rows trained on.
        steps: training steps that are planned.
        target_psnr: in dB, for "speed".
        features: width of the hidden layers.
        depth: number of hidden layers.
        points: values of a range that are tried first.
        refine: further candidates around the best.
        sample: rows of a sample; None is 512, or all.
        repeats: samples and initialisations a candidate.
        pilot: steps of a short training on the whole task; 0 for none.
        infinite: take the kernel of infinite width, where it is known.
        seed: of samples and initialisations.
        out: folder to keep results in, candidate by candidate; None keeps them in memory.
        overwrite: replace what ``out`` holds.
        resume: go on from what ``out`` holds, without repeating candidates.
        progress: called with (what, done, total).
        **training: how the networks will be trained, as :class:`ntk_inr.study.TrainingOptions` lists it, each by its
            recipe but for what is given: by "adam" or "adamw"; or by ``optimizer="sgd"``, at half of the largest stable
            rate. What is recommended is trained so.

    Returns:
        :class:`Tuning`, with ``.best``, ``.recommendation`` in words, ``.command()``, ``.snippet()`` and ``.plot()``.

    Raises:
        ValueError: a setting that no variant has, a range that is empty or reversed, too few rows to hold any out, a
            sample larger than the signal, a constant signal, an objective without its target, a resumed search with
            other settings, no candidate that works.
        TypeError: numbers of the wrong kind.
        FileExistsError: ``out`` is not empty and neither ``overwrite`` nor ``resume`` was given, or someone else is
            writing to it.

    Example:
        >>> import ntk_inr as ni
        >>> task = ni.load_task("signal", "chirp", samples=64)
        >>> tuned = ni.tune(task, "rff", {"scale": (0.5, 16)}, features=32, depth=2, points=3, refine=0, repeats=2)
        >>> tuned.best.variant, len(tuned.candidates), list(tuned.best.settings)
        ('rff', 3, ['encoding.scale'])

    Source: T10 of the theory; Jacot et al. 2018, arXiv 1806.07572.
    """
    task = readable(task)
    _check_words_and_counts(objective, steps, points, refine, repeats, pilot, seed)
    _check_target(objective, target_psnr)
    _check_pilot(pilot, steps, infinite)
    share = _HELD_OUT if objective == "heldout" else 0.0
    size = _checked_sample(task, sample, share)
    options = options_from(training)
    plans = plans_of(task, variants, options, features=features, depth=depth, steps=steps)
    _check_descents(plans)
    networks = {name: net for name, (net, _) in plans.items()}
    spaces = spaces_of(networks, space, points)
    settings = {
        "objective": objective, "steps": steps, "target_psnr": target_psnr, "features": features, "depth": depth,
        **given(options), "sample": size, "repeats": repeats, "pilot": pilot,
        "infinite": infinite, "seed": seed, "adam_factor": ADAM_FACTOR, "adam_reach": ADAM_REACH,
        "networks": {name: describe(net) for name, net in networks.items()},
    }  # fmt: skip
    tuning = _without_candidates(task, plans, settings)
    with record.results_folder(out, overwrite=overwrite, resume=resume) as folder:
        if folder is not None and resume and (folder / record.RESULTS).exists():
            tuning = dataclasses.replace(tuning, candidates=_resumed(folder, tuning, spaces))
        samples = [draw_sample(task, size, share, seed + repeat) for repeat in range(repeats)]
        search = Search(task, plans, samples, tuning, folder)
        search.run(spaces, refine, progress or (lambda what, done, total: None))
        tuning = dataclasses.replace(tuning, complete=True)
        if folder is not None:
            write(folder, tuning)
    return tuning


def _without_candidates(task: Task, plans: Mapping[str, tuple[nn.Module, Plan]], settings: dict[str, Any]) -> Tuning:
    """Return a search before its first candidate."""
    networks = {name: net for name, (net, _) in plans.items()}
    training = {name: plan.described(task) for name, (_, plan) in plans.items()}
    return Tuning(
        Record(describe_task(task)), Record(settings), Record(environment()), [],
        warnings=tuple(check_derivatives(task, networks)), training=Record(training),
        numbers=Record({name: numbers_of(net) for name, net in networks.items()}),
    )  # fmt: skip


def _check_words_and_counts(
    objective: str, steps: int, points: int, refine: int, repeats: int, pilot: int, seed: int
) -> None:
    _checks.check_choice(objective, OBJECTIVES, "objective")
    for name, value in {"steps": steps, "repeats": repeats}.items():
        _checks.check_positive(value, name, integer=True)
    _checks.check_positive(points, "points", integer=True, least=2)
    for name, value in {"refine": refine, "pilot": pilot, "seed": seed}.items():
        _checks.check_positive(value, name, integer=True, least=0)


def _check_descents(plans: Mapping[str, tuple[nn.Module, Plan]]) -> None:
    """Raise where a network is trained by what nothing is predicted for."""
    for name, (_, plan) in plans.items():
        if plan.recipe.optimizer not in DESCENTS:
            raise ValueError(
                f"{name} is trained by {plan.recipe.optimizer}, and predictions are for {', '.join(DESCENTS)}; give "
                "one of them, such as optimizer='adam'."
            )


def _check_target(objective: str, target_psnr: float | None) -> None:
    if objective != "speed":
        return
    if target_psnr is None:
        raise ValueError('objective="speed" counts steps to a target; give target_psnr=, in dB.')
    if not math.isfinite(target_psnr):
        raise ValueError(f"target_psnr is {target_psnr}; expected dB.")


def _check_pilot(pilot: int, steps: int, infinite: bool) -> None:
    if infinite and pilot:
        raise ValueError(f"infinite=True and pilot={pilot} exclude each other: a pilot run trains a finite network.")
    if pilot >= steps:
        raise ValueError(f"pilot is {pilot} and steps is {steps}; a pilot run is shorter than training.")


def _checked_sample(task: Task, sample: int | None, share: float) -> int:
    """Return the rows of a sample, or say what of the task can't be sampled."""
    rows, y = task.n, np.asarray(task.y)
    if sample is not None:
        _checks.check_positive(sample, "sample", integer=True, least=2)
        check_room(sample, "sample")
        if sample > rows:
            raise ValueError(
                f"sample is {sample}, but {task.name} has only {rows} rows to train on; choose up to that."
            )
    size = min(_SAMPLE, rows) if sample is None else sample
    if share and not 1 <= round(share * size) < size:
        raise ValueError(
            f"{size} rows are too few to hold any out; take objective='fit', or a larger sample or signal."
        )
    if task.loss not in list(ADAM_JITTER):  # a loss of a user may have no hash
        raise ValueError(
            f"{task.name} is trained by the loss {getattr(task.loss, '__name__', task.loss)!r}; predictions are for "
            f"losses on values: {', '.join(ADAM_JITTER)}."
        )
    if np.ptp(y, axis=0).max() == 0:
        raise ValueError(f"{task.name} is constant, {y.flat[0]:g} everywhere, so nothing is to be learned and no PSNR.")
    return size


def _resumed(folder: Path, asked: Tuning, spaces: dict[str, list[Axis]]) -> list[Candidate]:
    """Return the candidates of an earlier search, which was for the same."""
    earlier = load_tuning(folder)
    for what, old, new in (
        ("task", earlier.task, asked.task),
        ("settings", earlier.settings, asked.settings),
    ):
        differing = [name for name in new if name in old and old[name] != new[name]]
        if differing:
            name = differing[0]
            raise ValueError(
                f"the search in {str(folder)!r} has {what} {name}={old.get(name)!r}, this one {new[name]!r}; "
                "resume with what it was begun with, or choose another folder."
            )
    for candidate in earlier.candidates:
        if set(candidate.settings) != {axis.name for axis in spaces[candidate.variant]}:
            raise ValueError(
                f"the search in {str(folder)!r} varied {', '.join(candidate.settings) or 'nothing'} of "
                f"{candidate.variant}; resume with the settings that it was begun with, or choose another folder."
            )
    return earlier.candidates
