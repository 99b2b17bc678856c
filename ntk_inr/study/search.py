"""Choose settings before training, by what kernels at initialisation predict (T10)."""

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

from ntk_inr import _checks
from ntk_inr._results import Record
from ntk_inr.kernels.adapters import init
from ntk_inr.networks.catalogue import networks_of
from ntk_inr.networks.settings import with_settings
from ntk_inr.study import record
from ntk_inr.study.candidate import (
    TIMES,
    Curves,
    Kernels,
    Sample,
    check_room,
    draw_sample,
    kernels_of,
    largest_eigenvalue,
    predict,
    predict_infinite,
    stable_rate,
)
from ntk_inr.study.comparison import readable
from ntk_inr.study.derivatives import check_derivatives
from ntk_inr.study.description import describe, describe_task, numbers_of, training_settings
from ntk_inr.study.environment import environment
from ntk_inr.study.programs import free_programs_if_full
from ntk_inr.study.space import Axis, between, spaces_of
from ntk_inr.study.tuning import OBJECTIVES, Candidate, Objective, Tuning, load_tuning, write
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
_SAMPLE = 512
_HELD_OUT = 0.2
# Of a mean squared error: nothing is learned more exactly, and no PSNR is infinite.
_LEAST = 1e-40
_GOLDEN = (3 - 5**0.5) / 2
_DESCENTS = ("adam", "sgd")


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
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
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
    the start). These factors were fitted to trainings such as those of ``benchmarks.tune_validation``.

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
        optimizer: "adam", or "sgd" at half of the largest stable rate.
        learning_rate: of Adam, in the pilot run and in what is recommended.
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
        >>> found = ni.tune(task, "rff", {"scale": (0.5, 16)}, features=32, depth=2, points=3, refine=0, repeats=2)
        >>> found.best.variant, len(found.candidates), list(found.best.settings)
        ('rff', 3, ['encoding.scale'])

    Source: T10 of the theory; Jacot et al. 2018, arXiv 1806.07572.
    """
    task = readable(task)
    _checks.check_choice(objective, OBJECTIVES, "objective")
    _checks.check_choice(optimizer, _DESCENTS, "optimizer")
    for name, value in {"steps": steps, "repeats": repeats}.items():
        _checks.check_positive(value, name, integer=True)
    _checks.check_positive(points, "points", integer=True, least=2)
    for name, value in {"refine": refine, "pilot": pilot, "seed": seed}.items():
        _checks.check_positive(value, name, integer=True, least=0)
    _checks.check_positive(learning_rate, "learning_rate")
    if objective == "speed":
        _checks.refuse_if(target_psnr is None, 'objective="speed" counts steps to a target; give target_psnr=, in dB.')
        _checks.refuse_if(not math.isfinite(target_psnr or 0), f"target_psnr is {target_psnr}; expected dB.")
    _checks.refuse_if(
        infinite and pilot, f"infinite=True and pilot={pilot} exclude each other: a pilot run trains a finite network."
    )
    _checks.refuse_if(pilot >= steps, f"pilot is {pilot} and steps is {steps}; a pilot run is shorter than training.")
    share = _HELD_OUT if objective == "heldout" else 0.0
    size = _checked_sample(task, sample, share)
    networks = networks_of(variants, features=features, depth=depth, out=task.channels)
    warned = check_derivatives(task, networks)
    spaces = spaces_of(networks, space, points)
    asked = {
        "objective": objective, "steps": steps, "target_psnr": target_psnr, "features": features, "depth": depth,
        "optimizer": optimizer, "learning_rate": learning_rate, "sample": size, "repeats": repeats, "pilot": pilot,
        "infinite": infinite, "seed": seed, "adam_factor": ADAM_FACTOR,
        "adam_reach": ADAM_REACH,
        "networks": {name: describe(net) for name, net in networks.items()},
    }  # fmt: skip
    found = Tuning(
        Record(describe_task(task)), Record(asked), Record(environment()), [], warnings=tuple(warned),
        training=Record(training_settings(task, optimizer, learning_rate)),
        numbers=Record({name: numbers_of(net) for name, net in networks.items()}),
    )  # fmt: skip
    with record.results_folder(out, overwrite=overwrite, resume=resume) as folder:
        if folder is not None and resume and (folder / record.RESULTS).exists():
            found = dataclasses.replace(found, candidates=_resumed(folder, found, spaces))
        samples = [draw_sample(task, size, share, seed + repeat) for repeat in range(repeats)]
        search = _Search(task, networks, samples, found, folder)
        search.run(spaces, refine, progress or (lambda what, done, total: None))
        training = {**found.training, "learning_rate": found.learning_rate(found.best)}  # that of sgd is predicted
        found = dataclasses.replace(found, training=Record(training), complete=True)
        if folder is not None:
            write(folder, found)
    return found


def _checked_sample(task: Task, sample: int | None, share: float) -> int:
    """Return the rows of a sample, or say what of the task can't be sampled."""
    rows, y = len(task.x), np.asarray(task.y)
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


@dataclasses.dataclass
class _Search:
    """Measures candidates, once each, and keeps them."""

    task: Task
    networks: dict[str, nn.Module]
    samples: list[Sample]
    found: Tuning
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
        best = self.found.best
        if best.failure:
            raise ValueError(f"no candidate works; {best.label}: {best.failure}")
        for place, values in enumerate(_refined(self.found, spaces[best.variant], refine)):
            report("candidates", len(plan) + place, total)
            self.measure(best.variant, values)
        report("candidates", total, total)

    def measure(self, name: str, values: dict[str, Any]) -> None:
        """Predict for one candidate, unless it is known."""
        settings = Record(values)
        if any(known.variant == name and known.settings == settings for known in self.found.candidates):
            return
        began = time.perf_counter()
        candidate = Candidate(name, settings)
        try:
            for repeat, sample in enumerate(self.samples):
                self._repeat(candidate, sample, jax.random.key(self.found.settings["seed"] + repeat))
        except ValueError as error:
            candidate = Candidate(name, settings, failure=str(error))
        self.found.candidates.append(dataclasses.replace(candidate, seconds=time.perf_counter() - began))
        if self.folder is not None:
            write(self.folder, self.found)
        free_programs_if_full()

    def _repeat(self, candidate: Candidate, sample: Sample, key: Any) -> None:
        """Add one prediction to a candidate."""
        asked, net = self.found.settings, self.networks[candidate.variant]
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
                params = self._piloted(observed, params, kernels, sample, key)
                kernels = kernels_of(observed, params, sample)
                candidate.drift.append(float(np.linalg.norm(kernels.own - before) / np.linalg.norm(before)))
            curves = predict(observed, params, kernels, sample)
        if not np.isfinite(curves.train).all():
            raise ValueError("its kernel at initialisation is not finite; scale its weights down.")
        self._score(candidate, curves)

    def _piloted(self, observed: Any, params: Any, kernels: Kernels, sample: Sample, key: Any) -> Any:
        """Return the parameters after the pilot run, which does not see what the sample holds out."""
        asked, task = self.found.settings, self.task
        rate = asked["learning_rate"]
        if asked["optimizer"] == "sgd":
            rate = stable_rate(largest_eigenvalue(kernels.followed, sample), sample) / 2
        batch = task.sampling if task.sampling is None else min(task.sampling, int(sample.seen.sum()))
        run = fit(
            observed, params, task.x[sample.seen], task.y[sample.seen], steps=asked["pilot"], loss=task.loss, key=key,
            batch_size=batch, data_range=task.data_range,
            optimizer=make_optimizer(asked["optimizer"], learning_rate=rate),
        )  # fmt: skip
        if run.status == "diverged":
            raise ValueError(f"diverged in the pilot run at learning rate {rate:g}.")
        return run.params

    def _score(self, candidate: Candidate, curves: Curves) -> None:
        asked, pilot = self.found.settings, self.found.settings["pilot"]
        steps = self.found.steps_of(self.found.time_of(pilot) + TIMES) - pilot
        floor = np.full(len(TIMES), _LEAST)
        if asked["optimizer"] == "adam":
            steps = np.maximum(steps, curves.path / (asked["adam_reach"] * asked["learning_rate"] * curves.push))
            loss = str(self.task.loss)  # a name, as was checked
            noisy = pilot + steps > (0 if loss == "l1" else ADAM_MEMORY)
            floor[noisy] += (ADAM_JITTER[loss] * asked["learning_rate"]) ** 2 * curves.gradient
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


def _refined(found: Tuning, axes: Sequence[Axis], budget: int) -> Iterator[dict[str, Any]]:
    """Yield settings around the best by golden section, one axis after the other, as results come in."""
    open_axes = [axis for axis in axes if axis.continuous]
    for turn, axis in enumerate(open_axes):
        share = budget // len(open_axes) + (turn < budget % len(open_axes))
        variant = found.best.variant
        others = {name: value for name, value in found.best.settings.items() if name != axis.name}
        while True:
            along = {
                c.settings[axis.name]: c.mean
                for c in found.candidates
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
