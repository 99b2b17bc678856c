"""What a search for settings found: ranked, in words, as a command, as Python, as a picture, and on disk."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ntk_inr import style
from ntk_inr._results import Record, Scalar, result, static
from ntk_inr.networks.catalogue import written
from ntk_inr.study import record
from ntk_inr.study.pace import Pace
from ntk_inr.study.plan import TrainingOptions

Objective = Literal["heldout", "fit", "speed"]
OBJECTIVES = get_args(Objective)
SCHEMA = "ntk_inr.tune v2"
# Above this relative change of the kernel a constant one is no description of training any more.
_LAZY = 0.5
# What a user may have given of a training, and is not in every plan of one.
_PLANNED = ("recipe", "optimizer", "learning_rate", "schedule")
_ALSO_GIVEN = tuple(field.name for field in dataclasses.fields(TrainingOptions) if field.name not in _PLANNED)
# Candidates that ``print`` shows.
_MOST_ROWS = 12


@result
class Candidate:
    """A network with settings, and what its kernels predict; lists have an entry a repeat.

    Attributes:
        variant: the network's name.
        settings: ``{setting: value}``.
        score: what candidates are ranked by, larger is better: dB, or -log10 of the steps to the target.
        train_psnr: in dB at the step budget, on rows trained on.
        heldout_psnr: in dB, the best on the way there on rows held out; NaN without.
        steps_to_target: training steps; infinity for never.
        cv: of the eigenvalues of the kernel that predicts, at initialisation or after the pilot run.
        stable_rate: largest stable learning rate of gradient descent.
        drift: relative change of the kernel in the pilot run; empty without one.
        curve_steps: training steps (repeats, times) that curves are taken at.
        train_curve: PSNR (repeats, times) on rows trained on.
        heldout_curve: the same on rows held out; empty without.
        seconds: that it took.
        failure: why there is no prediction; empty where there is one.
    """

    variant: str = static()
    settings: Record = static()
    score: list[Any] = dataclasses.field(default_factory=list)
    train_psnr: list[Any] = dataclasses.field(default_factory=list)
    heldout_psnr: list[Any] = dataclasses.field(default_factory=list)
    steps_to_target: list[Any] = dataclasses.field(default_factory=list)
    cv: list[Any] = dataclasses.field(default_factory=list)
    stable_rate: list[Any] = dataclasses.field(default_factory=list)
    drift: list[Any] = dataclasses.field(default_factory=list)
    curve_steps: list[list[Any]] = dataclasses.field(default_factory=list)
    train_curve: list[list[Any]] = dataclasses.field(default_factory=list)
    heldout_curve: list[list[Any]] = dataclasses.field(default_factory=list)
    seconds: Scalar = 0.0
    failure: str = static(default="")

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows: the means over repeats of what is predicted."""
        names = ("train_psnr", "heldout_psnr", "steps_to_target", "cv", "stable_rate", "drift")
        means = {name: float(np.mean(getattr(self, name))) for name in names if getattr(self, name)}
        return {"candidate": self.label, "failure": self.failure or "none", "repeats": len(self.score), **means}

    @property
    def mean(self) -> float:
        """Mean score; minus infinity for a failure."""
        return -math.inf if self.failure else float(np.mean(self.score))

    @property
    def stderr(self) -> float:
        """Standard error of the mean score, over samples and initialisations; NaN for one repeat."""
        return stderr(self.score)

    @property
    def label(self) -> str:
        """The variant and its settings in short, as :func:`ntk_inr.variant` takes them."""
        return written(self.variant, {name.rpartition(".")[2]: _short(v) for name, v in self.settings.items()})


def stderr(values: Sequence[Any]) -> float:
    """Return the standard error of the mean, NaN for fewer than two values, or where one is infinite."""
    known = len(values) > 1 and np.isfinite(values).all()
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if known else math.nan


@result
class Tuning:
    """The candidates of a search, ranked by what their kernels predict.

    Attributes:
        task: the task's name, kind, fingerprint and numbers of rows.
        settings: everything that the search was asked for.
        environment: versions, device and time.
        candidates: in the order they were tried.
        complete: False where the search was interrupted.
        training: how each variant's training is planned, by its name: recipe, optimizer, schedule, learning rate (None
            where it is predicted), rows of a step, and whatever else is not as ever.
        numbers: width, depth and the other numbers of each variant's modules, before settings are varied.
        warnings: what was found wrong with a variant on this task, a sentence each.
    """

    task: Record = static()
    settings: Record = static()
    environment: Record = static()
    candidates: list[Candidate]
    complete: bool = static(default=False)
    training: Record = static(default=Record())
    numbers: Record = static(default=Record())
    warnings: tuple[str, ...] = static(default=())

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows: what was asked for, and the best candidates."""
        asked, shown = self.settings, self.ranked[:_MOST_ROWS]
        more = {"...": f"{len(self.candidates) - len(shown)} more"} if len(self.candidates) > len(shown) else {}
        return {
            "task": f"{self.task.get('name')} ({self.task.get('kind')}, {self.task.get('rows')} rows)",
            "objective": f"{asked.get('objective')}, {asked.get('steps')} steps of {self._optimizers()}",
            "complete": self.complete,
            **{candidate.label: self.describe(candidate) for candidate in shown},
            **more,
        }

    @property
    def ranked(self) -> list[Candidate]:
        """The candidates, best first; failures are last."""
        return sorted(self.candidates, key=lambda candidate: (bool(candidate.failure), -candidate.mean))

    @property
    def best(self) -> Candidate:
        """The one to train."""
        return self.ranked[0]

    @property
    def rivals(self) -> list[Candidate]:
        """Others that are not worse than the best by more than two standard errors of the difference."""
        best = self.best
        return [other for other in self.ranked[1:] if not other.failure and not self.surely_worse(other, best)]

    def surely_worse(self, candidate: Candidate, than: Candidate) -> bool:
        """Return whether the mean difference, repeat by repeat, is above two of its standard errors."""
        difference = np.subtract(than.score, candidate.score)
        if not np.isfinite(difference).all():
            return bool(than.mean > candidate.mean)
        return bool(difference.mean() > 2 * np.nan_to_num(stderr(list(difference))))

    def describe(self, candidate: Candidate) -> str:
        """Return the predicted score of a candidate with its standard error and unit."""
        if candidate.failure:
            return candidate.failure
        unsure = math.isnan(candidate.stderr)
        if self.settings["objective"] != "speed":
            return f"{candidate.mean:.1f}" + ("" if unsure else f" ± {candidate.stderr:.1f}") + " dB"
        if not math.isfinite(candidate.mean):
            return "never"
        return f"{10**-candidate.mean:.0f} steps" + ("" if unsure else f" (within a factor {10**candidate.stderr:.2f})")

    @property
    def recommendation(self) -> list[str]:
        """Sentences; the first says what to train, the others how sure that is."""
        asked, best = self.settings, self.best
        what = {
            "heldout": f"the best held-out PSNR within {asked['steps']} steps",
            "fit": f"PSNR after {asked['steps']} steps",
            "speed": f"steps to {asked['target_psnr']} dB",
        }[asked["objective"]]
        sentences = [f"Train {best.label}: {what} is predicted to be {self.describe(best)}.", *self.warnings]
        rivals = self.rivals
        tried = sum(not candidate.failure for candidate in self.candidates)
        if len(best.score) == 1:
            sentences.append("How sure that is, one repeat can't tell; ask for more of them (--repeats 3).")
        elif rivals:
            shown = ", ".join(other.label for other in rivals[:4]) + (", ..." if len(rivals) > 4 else "")
            sentences.append(
                f"{len(rivals)} of the other {tried - 1} can't be told from it (two standard errors): {shown}."
            )
        elif tried > 1:
            sentences.append(
                f"All other {tried - 1} are worse by more than two standard errors over {len(best.score)} samples and "
                "initialisations."
            )
        sentences += self._at_the_edge(best)
        if best.drift:
            drift = float(np.mean(best.drift))
            sentences.append(
                f"Its kernel changed by {drift:.0%} in {asked['pilot']} steps: "
                + (
                    "little, so that a constant kernel describes its training."
                    if drift < _LAZY
                    else "it learns features, which no constant kernel describes; the ranking is that of the kernels "
                    "after the pilot runs, and less sure."
                )
            )
        else:
            sentences.append(
                "This is the lazy regime's word; whether the kernel stays put is measured by a pilot run (--pilot 50)."
            )
        failed = [candidate for candidate in self.candidates if candidate.failure]
        if failed:
            sentences.append(f"{len(failed)} could not be tried, such as {failed[0].label}: {failed[0].failure}")
        return sentences

    def _at_the_edge(self, best: Candidate) -> list[str]:
        sentences = []
        for name, values in self._tried(best.variant).items():
            if len(values) > 2 and best.settings[name] in (values[0], values[-1]):
                where = "smallest" if best.settings[name] == values[0] else "largest"
                sentences.append(f"It is the {where} {name} tried, so a better one may lie beyond.")
        return sentences

    def _tried(self, variant: str) -> dict[str, list[Any]]:
        """Return the values tried of each setting of a variant, rising."""
        mine = [candidate.settings for candidate in self.candidates if candidate.variant == variant]
        return {name: sorted({settings[name] for settings in mine}) for name in mine[0]}

    def command(self, *arguments: str) -> str:
        """Return the ``ntk-inr fit`` command that trains the best; ``arguments`` say on what, such as "photo.png"."""
        asked, best = self.settings, self.best
        words = ["ntk-inr", "fit", *arguments, "--variant", written(best.variant, best.settings)]
        for name in ("features", "depth", "steps"):
            words += [f"--{name}", str(asked[name])]
        for name, value in self._keywords(best).items():
            pairs = [f"{key}={setting}" for key, setting in value.items()] if name == "optimizer_set" else [str(value)]
            words += [f"--{name.replace('_', '-')}", *pairs]
        return shlex.join(words)

    def _keywords(self, candidate: Candidate) -> dict[str, Any]:
        """Return the keywords that train a candidate, of ``fit_task`` and of the command."""
        planned, asked = self.training[candidate.variant], self.settings
        recipe = planned.get("recipe", "default")
        rate = self.learning_rate(candidate)
        return {
            **({} if recipe == "default" else {"recipe": recipe}),
            "optimizer": planned["optimizer"],
            "learning_rate": float(f"{rate:.3g}"),
            "schedule": planned.get("schedule", "constant"),
            **{name: asked[name] for name in _ALSO_GIVEN if name in asked},
        }

    def learning_rate(self, candidate: Candidate) -> float:
        """Return the rate to train with: that of its recipe, or half of gradient descent's largest stable one."""
        planned = self.training[candidate.variant]
        if planned["optimizer"] != "sgd":
            return float(planned["learning_rate"])
        return float(np.min(candidate.stable_rate)) / 2

    def pace(self, variant: str) -> Pace:
        """Return how far the training of a variant comes with its steps."""
        planned = self.training[variant]
        return Pace(
            planned["optimizer"], planned.get("schedule", "constant"), planned.get("end"), planned.get("warmup", 0),
            self.settings["steps"], self.settings["adam_factor"],
        )  # fmt: skip

    def _optimizers(self) -> str:
        return " or ".join(dict.fromkeys(planned["optimizer"] for planned in self.training.values()))

    def snippet(self, task: str = 'ni.image_task("photo.png")') -> str:
        """Return the Python that trains the best on ``task``, an expression."""
        asked, best = self.settings, self.best
        network = written(best.variant, best.settings)
        seed = f", seed={asked['seed']}" if asked["seed"] else ""
        keywords = ", ".join(f"{name}={_quoted(value)}" for name, value in self._keywords(best).items())
        return "\n".join(
            [
                "import ntk_inr as ni",
                f"task = {task}",
                f'fitted = ni.fit_task(task, "{network}", features={asked["features"]}, depth={asked["depth"]}, '
                f"steps={asked['steps']}, {keywords}{seed})",
                "print(fitted.scores)",
            ]
        )

    def plot(self) -> Any:
        """Return the predicted score against each setting, and the predicted curves of the best.

        Returns:
            A ``matplotlib.figure.Figure``.
        """
        best = self.best
        names = list(self._tried(best.variant))
        plt = style.pyplot()
        with style.figure_style():
            figure, axes = plt.subplots(1, len(names) + 1, figsize=(4.6 * (len(names) + 1), 3.6), squeeze=False)
            for axis, name in zip(axes[0], names, strict=False):
                self._plot_setting(axis, name)
            self._plot_curves(axes[0][-1])
        return figure

    def _plot_setting(self, axis: Any, name: str) -> None:
        best = self.best
        for place, variant in enumerate(dict.fromkeys(candidate.variant for candidate in self.candidates)):
            mine = [c for c in self.candidates if c.variant == variant and name in c.settings and not c.failure]
            mine = [c for c in mine if all(c.settings[o] == best.settings.get(o) for o in c.settings if o != name)]
            mine = sorted((c for c in mine if math.isfinite(c.mean)), key=lambda c: c.settings[name])
            if not mine:
                continue
            at, means = [c.settings[name] for c in mine], np.array([c.mean for c in mine])
            errors = np.nan_to_num([c.stderr for c in mine])
            if self.settings["objective"] == "speed":
                axis.set_yscale("log")
                means, errors = 10**-means, 10**-means * np.log(10) * errors
            color = style.PALETTE[place % len(style.PALETTE)]
            axis.errorbar(
                at, means, errors, color=color, marker=style.MARKERS[place % len(style.MARKERS)], capsize=3,
                label=variant,
            )  # fmt: skip
        values = self._tried(best.variant)[name]
        if len(values) > 1 and values[0] > 0 and values[-1] / values[0] > 4:
            axis.set_xscale("log")
            ticks = [value for value in values if value == float(f"{value:.1g}")] or values
            axis.set_xticks(ticks, [_short(tick) for tick in ticks])
            axis.minorticks_off()
        axis.axvline(best.settings[name], color=style.NEUTRAL, linestyle=":", linewidth=1)
        unit = "predicted steps" if self.settings["objective"] == "speed" else "predicted PSNR [dB]"
        axis.set(xlabel=name, ylabel=unit, title=f"{best.label} is predicted best")
        axis.legend()

    def _plot_curves(self, axis: Any) -> None:
        best, asked = self.best, self.settings
        steps = np.median(best.curve_steps, axis=0)
        for curve, color, label in (
            (best.train_curve, style.MEASURED, "trained on"),
            (best.heldout_curve, style.PREDICTED, "held out"),
        ):
            if not curve:
                continue
            mean, error = (
                np.mean(curve, axis=0),
                np.nan_to_num([stderr(list(values)) for values in np.transpose(curve)]),
            )
            axis.plot(steps, mean, color=color, label=label)
            axis.fill_between(steps, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
        axis.axvline(asked["steps"], color=style.NEUTRAL, linestyle=":", linewidth=1, label="budget")
        axis.set(
            xscale="log", xlabel="training steps", ylabel="predicted PSNR [dB]", title="Its predicted training",
            xlim=(1, 20 * asked["steps"]),
        )  # fmt: skip
        shown = [value for curve in (best.train_curve, best.heldout_curve) for row in curve for value in row]
        axis.set_ylim(min(shown) - 1, min(max(shown), 100) + 3)
        axis.legend()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write ``results.json``; return its path.

        Raises:
            FileExistsError: the folder holds something and ``overwrite`` is False.
        """
        with record.results_folder(folder, overwrite=overwrite):
            return write(Path(folder), self)


def write(folder: Path, tuning: Tuning) -> Path:
    """Write ``results.json`` in a prepared folder."""
    record.write_json(folder / record.RESULTS, {"schema": SCHEMA, **dataclasses.asdict(tuning)})
    return folder / record.RESULTS


def load_tuning(folder: str | Path) -> Tuning:
    """Read a search back.

    Args:
        folder: where :meth:`Tuning.save` or ``ntk-inr tune --out`` wrote it.

    Returns:
        The :class:`Tuning`, equal to what was written.

    Raises:
        FileNotFoundError: no results there.
        ValueError: they are not of a search.

    Example:
        >>> import tempfile, ntk_inr as ni
        >>> task = ni.signal_task("chirp", samples=64)
        >>> tuned = ni.tune(task, "rff", {"scale": [1.0, 4.0]}, features=16, depth=1, refine=0, repeats=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = tuned.save(folder)
        ...     ni.load_tuning(folder).best.score == tuned.best.score
        True
    """
    content = record.read_results(Path(folder), SCHEMA, what="of a search of settings", writer="ntk-inr tune")
    candidates = [Candidate(**_numbers(entry)) for entry in content["candidates"]]
    content["training"] = _of_each_variant(content)
    described = ("task", "settings", "environment", "training", "numbers")
    return Tuning(
        candidates=candidates,
        complete=content["complete"],
        warnings=tuple(content.get("warnings", ())),
        **{name: Record(content.get(name, {})) for name in described},
    )


def _numbers(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a candidate's entries with the infinities that JSON does not have."""
    missing: dict[str, Callable[[Any], Any]] = {
        "score": lambda value: -math.inf if value is None else value,
        "steps_to_target": lambda value: math.inf if value is None else value,
        "heldout_psnr": lambda value: math.nan if value is None else value,
    }
    lists = {name: [restored(value) for value in entry[name]] for name, restored in missing.items()}
    return entry | lists | {"settings": Record(entry["settings"])}


def _of_each_variant(content: dict[str, Any]) -> dict[str, Any]:
    """Return how each variant's training is planned; earlier results plan one for all."""
    planned = content.get("training") or {
        name: content["settings"][name] for name in ("optimizer", "learning_rate") if name in content["settings"]
    }
    if "optimizer" not in planned:
        return planned
    return dict.fromkeys(content["settings"].get("networks", content.get("numbers", {})), planned)


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
