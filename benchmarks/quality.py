"""How well does each architecture fit, trained as its authors publish, and at the best that was measured?

    python -m benchmarks.quality                  # hours on 2 cores; goes on where it was stopped
    python -m benchmarks.quality image64 shape    # these parts alone
    python -m benchmarks.quality --jobs 8         # eight rows at once, on a GPU or on many cores
    python -m benchmarks.quality --into nvidia_h200    # completes what was begun there; each row states its device
    python -m benchmarks.quality --quick          # small, two minutes, nothing kept

Writes benchmarks/results/quality/<device>/: a JSON a part, which grows row by row, table.md and a picture a task.
Parts: image64, every variant on the camera image at 64 x 64 after 500 and 2000 steps, three seeds; image128, the eight
best known at 128 x 128; image256, the same at 256 x 256, on accelerators; shape, IoU of the torus; audio, SNR of the
bundled chord; tomography, PSNR of the Shepp-Logan phantom. Width 256 and depth 4 for all but WIRE. Each variant is
trained by its recipes (ni.networks.recipe), "published" and "default", whose schedules are over the longest run; full
batch unless the task asks for less, float32 in full precision. All parts are measured from one seed before the next
seed begins. A row states its rates: those that were kept before recipes had optimizers' settings have optax's.
How long a step takes is what benchmarks.training_speed measures.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntk_inr as ni
from benchmarks.keep import (
    ERRORS,
    Claim,
    Measure,
    arguments_of,
    counted,
    decibels_of,
    each,
    judged,
    profile_of,
    results_folder,
    this_device,
    up_to_exact,
)
from ntk_inr.networks.recipes import Which
from ntk_inr.study.environment import environment
from ntk_inr.study.figures import save_figure
from ntk_inr.study.measurement import trained
from ntk_inr.study.record import write_json, write_text
from ntk_inr.tasks.metrics import BASELINES, EXACT, EXACT_DB
from ntk_inr.training.optimizers import rate_of

WIDTH, DEPTH, STEPS, SEEDS = 256, 4, [500, 2000], 3


RECIPES: tuple[Which, ...] = ("published", "default")
# WIRE's code has a layer fewer than the others.
OWN = {"wire": {"depth": 3}}
KNOWN = ["siren", "finer", "wire", "gauss", "rff", "pe", "fouriernet", "hash"]
# Better, worse, and who reports it for images.
REPORTED = [
    ("siren", "pe", "Sitzmann et al. 2020"),
    ("rff", "relu", "Tancik et al. 2020"),
    ("fouriernet", "siren", "Fathony et al. 2021"),
    ("wire", "siren", "Saragadam et al. 2023"),
    ("wire", "gauss", "Saragadam et al. 2023"),
    ("finer", "siren", "Liu et al. 2024"),
    ("finer", "wire", "Liu et al. 2024"),
]
# Standard deviation over seeds in dB, where there is one seed to tell it.
USUAL_SPREAD = 3.0
RESULTS_FILE = "image128.json"
PICTURES = {
    "image128": "The best reconstruction at 128 x 128.",
    "image256": "The best reconstruction at 256 x 256.",
    "shape": "The best reconstruction of the torus.",
    "audio": "The best reconstruction of the chord.",
    "tomography": "The best reconstruction of the phantom.",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """One table: a task, the variants on it, and how long."""

    kind: str
    source: str
    variants: list[str]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    steps: tuple[int, ...] = tuple(STEPS)
    seeds: int = SEEDS

    def task(self) -> Any:
        """Return the task."""
        return ni.load_task(self.kind, self.source, **self.settings)


_ORDER = [*KNOWN, *[name for name in ni.variants() if name not in KNOWN and name != "siren+fast"]]
PARTS = {
    "image64": Part("image", "camera", _ORDER, {"size": 64}),
    "shape": Part("shape", "torus", ["relu", "pe", "siren", "finer", "hash"], {}, (500,), 1),
    "audio": Part("audio", "chord", ["relu", "siren", "siren+fast", "fouriernet"], {}, (500,), 1),
    "tomography": Part("tomography", "shepp-logan", ["relu", "pe", "siren", "finer"], {}, (500,), 1),
    "image128": Part("image", "camera", KNOWN, {"size": 128}),
    "image256": Part("image", "camera", KNOWN, {"size": 256}),
}
ON_ACCELERATORS = {"image256"}
QUICK = {
    "image64": Part("image", "camera", ["relu", "siren"], {"size": 16}, (5, 10), 2),
    "shape": Part("shape", "torus", ["siren"], {"points": 400, "resolution": 16}, (10,), 1),
}


def measure(part: Part, name: str, seed: int, which: Which = "published") -> tuple[dict[str, Any], Any]:
    """Train a variant from one seed; return what belongs into its row of the table, and the reconstruction."""
    task, recipe, last = part.task(), ni.networks.recipe(name, which), part.steps[-1]
    settings = {"features": WIDTH, "depth": DEPTH, **recipe.network, **OWN.get(name, {})}
    key = jax.random.key(seed)
    apply, params = ni.init(ni.variant(name, out=task.channels, **settings), key, jnp.asarray(task.x))
    with jax.default_matmul_precision("highest"):
        run = ni.fit(
            task.observe(apply), params, task.x, task.y, optimizer=ni.optimizer(**recipe.arguments, steps=last),
            steps=last, loss=task.loss, batch_size=task.sampling, key=key, data_range=task.data_range,
        )  # fmt: skip
        reconstruction = task.reconstruct(functools.partial(trained(apply, run), run.params))
    scores = {f"psnr@{steps}": float(run.psnr_per_step[min(steps, run.steps)]) for steps in part.steps[:-1]}
    scores |= {f"{score}@{last}": value for score, value in task.scores(reconstruction).items()}
    row = {
        "variant": name,
        "recipe": which,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "learning_rate": ends(recipe, last),
        "schedule": recipe.schedule,
        **settings,
        "scores": {score: [value] for score, value in scores.items()},
        "seeds": [seed],
        "devices": [this_device()],
        "status": [run.status],
    }
    return row, reconstruction


def ends(recipe: ni.networks.Recipe, steps: int) -> list[float]:
    """Return the first and the last rate of a recipe, or the last one's limit."""
    rate = rate_of(1.0, recipe.schedule, recipe.end, steps, 0)
    peak = float(recipe.learning_rate or 0.0)
    return [peak, peak * float(f"{rate(steps) if callable(rate) else rate:.3g}")]


def recipe_of(row: dict[str, Any]) -> str:
    """Return the recipe of a row; those without a word of it were trained as published."""
    return row.get("recipe", "published")


class Table:
    """The rows of a part, and its file where they are kept."""

    def __init__(self, name: str, part: Part, folder: Path | None) -> None:
        self.task, self._path, self._rows = part.task(), None if folder is None else folder / f"{name}.json", {}
        self._settings, self._environment = {"steps": list(part.steps), **part.settings}, environment()
        if self._path is not None and self._path.exists():
            content = json.loads(self._path.read_text())
            self._rows = {(row["variant"], recipe_of(row)): row for row in content["rows"]}
            if content["environment"]["device"] != self._environment["device"]:
                self._environment = content["environment"]

    def has(self, variant: str, seed: int, which: str = "published") -> bool:
        """Return whether a variant was measured from a seed by a recipe."""
        key = (variant, which)
        return key in self._rows and seed in self._rows[key]["seeds"]

    def add(self, new: dict[str, Any], reconstruction: Any) -> None:
        """Take in what was measured from one seed; keep it, and the best reconstruction from the first."""
        best = max((_goal(row, self.task)[0] for row in self._rows.values() if row["seeds"][0] == 0), default=-np.inf)
        row = self._rows.setdefault((new["variant"], recipe_of(new)), new)
        if row is not new:
            for key in ("seeds", "devices", "status"):
                row[key] += new[key]
            row["scores"] = {score: values + new["scores"][score] for score, values in row["scores"].items()}
        if self._path is None:
            return
        content = {"schema": "ntk_inr.quality v4", "task": self.task.digest, "rows": list(self._rows.values())}
        write_json(self._path, content | {"environment": self._environment, "settings": self._settings})
        if new["seeds"] == [0] and _goal(new, self.task)[0] > best:
            save_figure(self.task.figure(reconstruction), self._path.with_suffix(""), "png")


def _goal(row: dict[str, Any], task: Any) -> list[float]:
    """Return the scores that a part is about, of the longest training."""
    return [values for key, values in row["scores"].items() if key.startswith(f"{task.metric}@")][-1]


def _line(row: dict[str, Any]) -> str:
    return ", ".join(f"{key} {values[0]:.3g}" for key, values in row["scores"].items())


def table(contents: dict[str, dict[str, Any]]) -> str:
    """Return Markdown: a table a part, best first by its last column of the task's own metric, then baselines."""
    said = ["# Quality of reconstruction", "", "Mean ± standard deviation over seeds; see the module for settings."]
    said += [f"{EXACT} is PSNR whose error is below that of rounding to 8 bits; it counts as {EXACT_DB:g}.", ""]
    for name, content in contents.items():
        rows = [row for row in content["rows"] if row["scores"]]
        if not rows:
            continue
        keys = [key for key in rows[0]["scores"] if key.partition("@")[0] not in BASELINES]
        first = {"shape": "iou", "audio": "snr"}.get(name, "psnr")
        goal = [key for key in keys if key.startswith(f"{first}@")][-1]
        said += [f"## {name}", "", f"| variant | recipe | depth | learning rate | {' | '.join(keys)} |"]
        said.append(f"|{'---|' * (len(keys) + 4)}")
        for row in sorted(rows, key=lambda row: -_mean(row["scores"][goal], name)):
            cells = [_cell(row["scores"][key], key, name) for key in keys]
            rates = " to ".join(f"{rate:g}" for rate in dict.fromkeys(row["learning_rate"]))
            named = f"{row['variant']} | {recipe_of(row)} | {row['depth']}"
            said.append(f"| {named} | {rates} | {' | '.join(cells)} |")
        for key, baseline in BASELINES.items():
            for score in [score for score in rows[0]["scores"] if score.startswith(f"{key}@")]:
                reached = {score.replace(key, "psnr"): _cell(rows[0]["scores"][score], score, name)}
                said.append(f"| {baseline} (baseline) | | | | {' | '.join(reached.get(key, '') for key in keys)} |")
        said += ["", measured_on(content), ""]
    return "\n".join(said)


def measured_on(content: dict[str, Any]) -> str:
    """Return on which devices how many trainings ran, in a sentence."""
    return f"Trainings: {counted(device for row in content['rows'] for device in row['devices'])}."


def _in_8_bits(part: str) -> bool:
    return part.startswith("image")


def _mean(values: list[float], part: str) -> float:
    return float(np.mean(up_to_exact(values) if _in_8_bits(part) else values))


def _cell(values: list[float], score: str, part: str) -> str:
    if score.startswith("psnr") and _in_8_bits(part):
        return decibels_of(values)
    mean = f"{np.mean(values):.3g}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.2g}"


def claims(content: dict[str, Any]) -> list[Claim]:
    """Return what the tables at 128 x 128 and 256 x 256 say of the order that papers report."""
    sizes = {"128 x 128": content}
    if (larger := content["path"].parent / "image256.json").exists():
        sizes["256 x 256"] = json.loads(larger.read_text())
    rows = {
        size: {row["variant"]: row["scores"] for row in of["rows"] if recipe_of(row) == "published"}
        for size, of in sizes.items()
    }
    said = []
    for better, worse, source in REPORTED:
        found = {size: (of[better], of[worse]) for size, of in rows.items() if {better, worse} <= set(of)}
        if not found:
            continue
        gaps = [_gap(a[score], b[score]) for a, b in found.values() for score in ("psnr@500", "psnr@2000")]
        better_by, worse_by = ([sign * gap.value > ERRORS * gap.error for gap in gaps] for sign in (1, -1))
        early = ", ".join(_against(pair, "psnr@500", size) for size, pair in found.items())
        said.append(
            Claim(
                f"{better} reconstructs the image better than {worse} ({source})",
                judged(better_by, worse_by),
                ", ".join(_against(pair, "psnr@2000", size) for size, pair in found.items()),
                f"After 2000 steps of Adam at published rates; after 500 it is {early}. By {ERRORS:g} standard errors "
                f"it is better in {sum(better_by)} of {len(gaps)} comparisons and worse in {sum(worse_by)}; above "
                f"{EXACT_DB:g} dB all are alike.",
            )
        )
    return said


def _gap(a: list[float], b: list[float]) -> Measure:
    """Return by how many dB the mean of a lies above that of b."""
    a, b = up_to_exact(a), up_to_exact(b)
    spread = max([np.std(values, ddof=1) for values in (a, b) if len(values) > 1], default=USUAL_SPREAD)
    return Measure(float(a.mean() - b.mean()), float(spread * np.hypot(len(a) ** -0.5, len(b) ** -0.5)))


def _against(pair: tuple[dict[str, Any], dict[str, Any]], score: str, size: str) -> str:
    better, worse = (decibels_of(scores[score], unit=" dB") for scores in pair)
    return f"{better} against {worse} at {size}"


def main() -> None:
    """Measure, print, and keep."""
    parser = arguments_of(__doc__, rows=True)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts; all by default")
    parser.add_argument("--into", metavar="DEVICE", help="whose tables to complete; by default those of this device")
    arguments = parser.parse_args()
    profile = profile_of(arguments)
    folder = None if profile == "quick" else results_folder("quality", arguments.into)
    asked = arguments.parts or [name for name in PARTS if profile == "gpu" or name not in ON_ACCELERATORS]
    parts = QUICK if profile == "quick" else {name: PARTS[name] for name in asked}
    tables = {name: Table(name, part, folder) for name, part in parts.items()}
    computes = {
        f"{name}, seed {seed}, {variant}, {which}": functools.partial(measure, part, variant, seed, which)
        for seed, which, (name, part) in itertools.product(range(SEEDS), RECIPES, parts.items())
        for variant in part.variants
        if seed < part.seeds and not tables[name].has(variant, seed, which)
    }
    for key, (row, reconstruction) in each(computes, arguments.jobs):
        print(f"{key}: {_line(row)}", flush=True)
        tables[key.split(",")[0]].add(row, reconstruction)
        if folder is not None:
            found = {name: folder / f"{name}.json" for name in PARTS if (folder / f"{name}.json").exists()}
            text = table({name: json.loads(path.read_text()) for name, path in found.items()})
            write_text(folder / "table.md", text)


if __name__ == "__main__":
    main()
