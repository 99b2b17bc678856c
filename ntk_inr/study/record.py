"""What a study measured, and how it lies on disk.

``results.json`` holds every setting and scalar; ``arrays/<variant>.npz`` the curves, spectra and images.
Both are written whole under another name and then renamed, so that a reader never sees half a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from ntk_inr._claims import CLAIM, claimed
from ntk_inr._results import Record, Scalar, result, static
from ntk_inr.study.description import Addition
from ntk_inr.tasks.metrics import BASELINES
from ntk_inr.training.curves import first_reaching

SCHEMA = "ntk_inr.study"
VERSION = 3
RESULTS = "results.json"
_OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "lbfgs": "L-BFGS"}
# Variants, or scalars of one, that ``print`` shows.
_MOST_ROWS = 16


@result
class VariantResult:
    """What was measured of one variant.

    Attributes:
        name: the variant.
        network: its settings, as a line to read.
        parameters: number of trained parameters.
        seeds: one dict of scalars a seed: of the kernel "ntk_mean", "ntk_variance", "cv", "effective_rank",
            "condition_number" and "condition_resolved"; of the training by its recipe, which is Adam's as a rule,
            "adam_status", "adam_steps", "adam_seconds"; "score_psnr" and the task's other scores; where gradient
            descent ran "gd_status", "gd_steps", "gd_learning_rate", and of its kernel at the end "gd_cv_after" and
            "gd_kernel_drift".
        arrays: "kernel" (first seed, subsampled, over its mean diagonal), "eigenvalues" (seeds, n), "adam_psnr" and
            "adam_seconds" (seeds, steps + 1), "adam_loss" (seeds, steps); where gradient descent ran
            "predicted_psnr" and "gd_psnr" (seeds, steps + 1); and of the first seed "reconstruction" (h, w, c) of an
            image, "picture" (h, w, 3) of other tasks. Curves are NaN after a run's end.
        numbers: width ("features"), depth and every other number of the network's modules, by name.
        training: how it was trained: "recipe", "optimizer", "learning_rate", "schedule", "batch_size", "source" of the
            recipe, and whatever else is not as ever.
    """

    name: str = static()
    network: str = static()
    parameters: Scalar
    seeds: Sequence[Record]
    arrays: dict[str, Any]
    numbers: Record = static(default=Record())
    training: Record = static(default=Record())

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows: the mean over seeds of each scalar that is a number."""
        scalars = {key: self.over_seeds(key) for key, value in self.seeds[0].items() if not isinstance(value, str)}
        means = {key: float(values.mean()) for key, values in scalars.items()}
        size = {"network": self.network, "parameters": self.parameters, "seeds": len(self.seeds)}
        return {"name": self.name, **size, **dict(itertools.islice(means.items(), _MOST_ROWS))}

    def over_seeds(self, key: str) -> np.ndarray:
        """Return the scalar ``key`` of each seed (seeds,), NaN where it is missing."""
        values = [seed.get(key) for seed in self.seeds]
        return np.array([np.nan if value is None else value for value in values], float)

    def steps_to(self, target_psnr: float, curve: str = "adam_psnr") -> np.ndarray:
        """Return the steps each seed took to ``target_psnr`` (seeds,), infinity where never."""
        steps = [first_reaching(values, target_psnr) for values in self.arrays[curve]]
        return np.array([math.inf if step is None else step for step in steps])

    def seconds_to(self, target_psnr: float) -> np.ndarray:
        """Return the seconds that each seed trained by its recipe until ``target_psnr``, infinity where never."""
        steps = self.steps_to(target_psnr)
        return np.array(
            [
                math.inf if math.isinf(step) else seconds[int(step)]
                for step, seconds in zip(steps, self.arrays["adam_seconds"], strict=True)
            ]
        )

    @property
    def optimizer(self) -> str:
        """The name to read of what trained it."""
        name = self.training.get("optimizer", "adam")
        return _OPTIMIZERS.get(name, name)

    @property
    def rate(self) -> str:
        """Its largest learning rate and schedule, to read: "0.001 cosine"."""
        rate, schedule = self.training.get("learning_rate"), self.training.get("schedule", "constant")
        end = f" to {self.training['end']:g} of it" if self.training.get("end") is not None else ""
        return "line search" if rate is None else f"{rate:g} {schedule}{end}"

    @property
    def diverged_seeds(self) -> int:
        """How many seeds diverged in training by the recipe."""
        return self.seeds_that("diverged")

    def seeds_that(self, status: str) -> int:
        """Return how many seeds ended with this status."""
        return sum(seed["adam_status"] == status for seed in self.seeds)

    @property
    def diverged(self) -> bool:
        """Whether every seed diverged."""
        return self.diverged_seeds == len(self.seeds)


@result
class Study:
    """Variants compared on one task.

    Attributes:
        task: the task's name, kind, fingerprint, numbers of rows and what it is scored by.
        settings: everything that the comparison was asked for.
        environment: versions, device and time.
        image: the image that was fitted (h, w, c); None for other tasks.
        variants: results in the order asked for.
        complete: False while variants are missing, as after an interruption.
        baselines: what simpler methods reach, a dict each with "name", "kind" ("baseline") and "scores".
        additions: which variants are others with a component more, by their modules.
        warnings: what was found wrong with a variant on this task before it was trained, a sentence each.
    """

    task: Record = static()
    settings: Record = static()
    environment: Record = static()
    image: Any
    variants: Sequence[VariantResult]
    complete: bool = static(default=False)
    baselines: tuple[Record, ...] = static(default=())
    additions: tuple[Addition, ...] = static(default=())
    warnings: tuple[str, ...] = static(default=())

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows: what was compared, and two figures of each variant."""
        asked, score = self.settings, f"score_{self.task.get('metric')}"
        shown = {
            variant.name: f"cv {variant.over_seeds('cv').mean():.3g}, "
            f"{self.task.get('metric')} {variant.over_seeds(score).mean():.4g}"
            for variant in self.variants[:_MOST_ROWS]
        }
        more = {"...": f"{len(self.variants) - len(shown)} more"} if len(self.variants) > len(shown) else {}
        return {
            "task": f"{self.task.get('name')} ({self.task.get('kind')}, {self.task.get('rows')} rows)",
            "training": f"{asked.get('steps')} steps, {asked.get('seeds')} seeds",
            "complete": self.complete,
            **shown,
            **more,
        }

    @property
    def optimizer(self) -> str:
        """The names to read of what trained the variants."""
        return " or ".join(dict.fromkeys(result.optimizer for result in self.variants))

    def __getitem__(self, name: str) -> VariantResult:
        """Return the result of the variant called ``name``."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(f"{name!r} is not in this study; it has {', '.join(r.name for r in self.variants)}.")

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write ``results.json`` and the arrays under ``folder``; return the path of the JSON.

        Raises:
            FileExistsError: the folder holds results and ``overwrite`` is False.
        """
        folder = Path(folder)
        with results_folder(folder, overwrite=overwrite):
            for result in self.variants:
                save_arrays(folder, result)
            return save_index(folder, self)


@contextlib.contextmanager
def results_folder(
    folder: str | Path | None, *, overwrite: bool = False, resume: bool = False
) -> Iterator[Path | None]:
    """Make an output folder, check that it may be written to, and keep others from it; None for no folder.

    ``overwrite`` removes an older ``results.json``, so that a run that is interrupted can't be taken for it.

    Raises:
        FileExistsError: it is a file, someone else is writing to it, or it holds something and neither ``overwrite``
            nor ``resume`` was given.
        ValueError: both were given, or ``resume`` without a folder.
        PermissionError: it can't be written to.
    """
    if overwrite and resume:
        raise ValueError("overwrite=True and resume=True contradict each other; give one of them.")
    if folder is None:
        if resume:
            raise ValueError("resume=True needs out=, the folder of the results to go on from.")
        yield None
        return
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{str(folder)!r} is a file; choose a folder for the results.")
    if not (overwrite or resume):
        _check_empty(folder)  # before a claim writes to what is not ours
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(f"can't write to {str(folder)!r} ({error.strerror}); choose another folder.") from error
    with claimed(folder):
        if overwrite:
            (folder / RESULTS).unlink(missing_ok=True)
        elif not resume:
            _check_empty(folder)  # once more, since another may have come first
        yield folder


def _check_empty(folder: Path) -> None:
    if folder.is_dir() and any(path.name != CLAIM for path in folder.iterdir()):
        raise FileExistsError(
            f"{str(folder)!r} exists and is not empty; continue it with resume=True, replace it with overwrite=True, "
            "or choose another folder."
        )


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call ``write`` with an open file and put the result at ``path`` in one move."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def write_text(path: Path, text: str) -> None:
    """Write text in one move."""
    write_atomically(path, lambda file: file.write(text.encode(errors="replace")))


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON in one move; numbers that are not finite become null."""
    write_text(path, json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


def save_arrays(folder: Path, result: VariantResult) -> None:
    """Write one variant's arrays."""
    arrays: dict[str, Any] = dict(result.arrays)
    _arrays_path(folder, result.name).parent.mkdir(exist_ok=True)
    write_atomically(_arrays_path(folder, result.name), lambda file: np.savez_compressed(file, **arrays))


def save_index(folder: Path, study: Study) -> Path:
    """Write ``results.json``, and the image beside it."""
    if study.image is not None:
        image = study.image
        (folder / "arrays").mkdir(exist_ok=True)
        write_atomically(folder / "arrays" / "image.npy", lambda file: np.save(file, image))
    content = {
        "schema": SCHEMA,
        "version": VERSION,
        "complete": study.complete,
        "task": study.task,
        "settings": study.settings,
        "environment": study.environment,
        "warnings": study.warnings,
        "baselines": study.baselines,
        "additions": [dataclasses.asdict(addition) for addition in study.additions],
        "variants": [
            {
                "name": result.name,
                "kind": "network",
                "network": result.network,
                "numbers": result.numbers,
                "training": result.training,
                "parameters": result.parameters,
                "arrays": str(_arrays_path(folder, result.name).relative_to(folder)),
                "seeds": result.seeds,
            }
            for result in study.variants
        ],
    }
    write_json(folder / RESULTS, content)
    return folder / RESULTS


def read_results(folder: Path, schema: str, *, what: str, writer: str) -> dict[str, Any]:
    """Return what ``results.json`` holds, or say that it is not ``what`` the command ``writer`` wrote."""
    path = folder / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"no {RESULTS} in {str(folder)!r}; expected a folder that {writer} wrote.")
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON ({error}).") from error
    if not isinstance(content, dict) or content.get("schema") != schema:
        raise ValueError(f"{str(path)!r} is not {what} (schema {schema!r} is missing).")
    return content


def load_study(folder: str | Path) -> Study:
    """Read a study back.

    Args:
        folder: where :meth:`Study.save` or ``ntk-inr compare --out`` wrote it.

    Returns:
        The :class:`Study`, equal to what was written.

    Raises:
        FileNotFoundError: no ``results.json`` there, or an array file is missing.
        ValueError: the file is no study of ours, or of a later version.

    Example:
        >>> import tempfile, ntk_inr as ni
        >>> study = ni.compare(ni.image_task("camera", size=8), ["relu"], features=16, depth=1, steps=5, seeds=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = study.save(folder)
        ...     ni.load_study(folder)["relu"].parameters == study["relu"].parameters
        True
    """
    folder = Path(folder)
    content = read_results(folder, SCHEMA, what="a study of ntk_inr", writer="ntk-inr compare --out")
    if content["version"] == 2:
        _of_today(content)
    elif content["version"] != VERSION:
        raise ValueError(
            f"{str(folder / RESULTS)!r} has schema version {content['version']}, this ntk_inr reads 2 and {VERSION}; "
            f"use the ntk_inr that wrote it ({content['environment']['ntk_inr']})."
        )
    # Where variants don't say how they were trained, the study's settings do for all of them.
    names = ("optimizer", "learning_rate", "schedule", "batch_size")
    before = {name: content["settings"][name] for name in names if name in content["settings"]}
    variants = []
    for entry in content["variants"]:
        del entry["kind"]
        arrays_path = folder / entry.pop("arrays")
        if not arrays_path.is_file():
            raise FileNotFoundError(f"{str(arrays_path)!r} is missing; copy the whole folder, not {RESULTS} alone.")
        with np.load(arrays_path) as arrays:
            entry |= {"training": Record(entry.get("training", before)), "numbers": Record(entry["numbers"])}
            entry |= {"seeds": [Record(seed) for seed in entry["seeds"]]}
            variants.append(VariantResult(**entry, arrays=dict(arrays)))
    return Study(
        task=Record(content["task"]),
        settings=Record(content["settings"]),
        environment=Record(content["environment"]),
        image=np.load(folder / "arrays" / "image.npy") if content["task"]["kind"] == "image" else None,
        variants=variants,
        complete=content["complete"],
        baselines=tuple(map(Record, content["baselines"])),
        additions=tuple(Addition(**addition) for addition in content["additions"]),
        warnings=tuple(content["warnings"]),
    )


def _of_today(content: dict[str, Any]) -> None:
    """Turn results of version 2 into those of today: there each seed had the scores of baselines."""
    seeds = [seed for entry in content["variants"] for seed in entry["seeds"]]
    baselines = {}
    for key, name in BASELINES.items():
        for value in [seed.pop(f"score_{key}") for seed in seeds if f"score_{key}" in seed]:
            baselines[name] = {"name": name, "kind": "baseline", "scores": {"psnr": value}}
    content |= {"baselines": list(baselines.values()), "additions": [], "warnings": []}
    content["task"] |= {"eight_bit": False, "eight_bit_curves": False}  # it did not say
    for entry in content["variants"]:
        entry |= {"kind": "network", "numbers": {}}


def _arrays_path(folder: Path, name: str) -> Path:
    path = folder / "arrays" / f"{name.replace('/', '_')}.npz"
    # Windows takes a colon for something else; version 0.1 wrote it.
    return path if path.exists() else path.with_name(path.name.replace(":", "_"))


def _plain(value: Any) -> Any:
    """Return ``value`` as what JSON holds."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
