"""The tables of docs/choosing.md and docs/comparison.md, made from the results that benchmarks/results keeps."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import ntk_inr as ni
from benchmarks import recipes, tune_validation
from benchmarks.keep import decibels_of, markdown, up_to_exact
from benchmarks.quality import PARTS, measured_on, recipe_of
from ntk_inr.networks.recipes import MEASURED
from ntk_inr.tasks.metrics import BASELINES, EXACT_DB

SCORES = {
    "image128": {"psnr@500": "PSNR, 500 steps", "psnr@2000": "PSNR, 2000 steps"},
    "image256": {"psnr@500": "PSNR, 500 steps", "psnr@2000": "PSNR, 2000 steps"},
    "shape": {"chamfer@500": "Chamfer distance", "fscore@500": "F-score", "iou@500": "IoU"},
    "audio": {"snr@500": "SNR [dB]"},
    "tomography": {"ssim@500": "SSIM", "psnr@500": "PSNR [dB]"},
}


def tables(results: Path) -> dict[str, str]:
    """Return the Markdown of every table, by name, from the folder ``benchmarks/results``."""
    parts = {path.stem: _read(path) for path in sorted((results / "quality").glob("*/*.json"))}
    quality = parts["image64"]
    steps = _read(results / "training_speed" / "cpu" / "results.json")["variants"]
    camera = {path.parent.name: _read(path) for path in sorted((results / "compare_camera").glob("*/summary.json"))}
    return {
        "quality": quality_table(quality, steps),
        **{f"coverage_{part}": coverage(parts[part], part) for part in ("image64", "image128", "image256")},
        **{name: scores_table(parts[name], keys) for name, keys in SCORES.items()},
        **{f"camera_{size}": camera_table(summary) for size, summary in camera.items()},
        "prediction": prediction(camera),
        "tune": "\n".join(tune_validation.overview(_read(results / "tune_validation" / "cpu" / "results.json"))) + "\n",
        "recipes": recipes_table(recipes.read(results / "recipes" / "cpu" / "results.json")),
        "neural_tangents": speed_table(_read(results / "kernel_speed" / "cpu" / "results.json")["neural_tangents"]),
    }


def quality_table(content: dict[str, Any], steps: dict[str, Any]) -> str:
    """Return what each network reached on the image, best first after the shorter training."""
    first, last = content["settings"]["steps"]
    rows = sorted(content["rows"], key=lambda row: -_mean(row, f"psnr@{first}"))
    heads = [
        "network",
        "recipe",
        "what it is",
        "Adam's rate",
        f"PSNR, {first} steps",
        f"PSNR, {last} steps",
        "time of a step",
    ]
    cells = []
    for row in rows:
        rates = " to ".join(f"{rate:g}" for rate in dict.fromkeys(row["learning_rate"]))
        name = row["variant"]
        time = f"{steps[name]['to_relu']:.2f}" if name in steps else "–"
        scores = [decibels_of(row["scores"][f"psnr@{count}"]) for count in (first, last)]
        cells.append([f"`{name}`", recipe_of(row), ni.variants()[name], rates, *scores, time])
    return _table(heads, cells)


def recipes_table(rows: dict[tuple[str, float, str], list[float]]) -> str:
    """Return both recipes of each measured network, with PSNR at its default and at two constant rates."""
    heads = ["network", "default", "PSNR", "at 1e-3 constant", "at 1e-4 constant", "published", "source"]
    cells = []
    for name, (rate, schedule) in MEASURED.items():
        published = ni.networks.recipe(name, "published")
        scores = [rows[name, *how] for how in ((rate, schedule), (1e-3, "constant"), (1e-4, "constant"))]
        means = [f"{statistics.fmean(values):.1f}" for values in scores]
        cells.append([f"`{name}`", f"{rate:g} {schedule}", *means, str(published), published.source])
    return _table(heads, cells)


def scores_table(content: dict[str, Any], keys: dict[str, str]) -> str:
    """Return scores of a part of the benchmark of quality, best first by the last of ``keys``."""
    published = [row for row in content["rows"] if recipe_of(row) == "published"]
    rows = sorted(published, key=lambda row: -_mean(row, list(keys)[-1]))
    cells = [[f"`{row['variant']}`", *(_score(row["scores"][key], key) for key in keys)] for row in rows]
    for name, baseline in BASELINES.items():
        others = {key: rows[0]["scores"].get(key.replace("psnr", name)) for key in keys if key.startswith("psnr")}
        if any(others.values()):
            cells.append(
                [f"{baseline} (baseline)", *(_score(others[key], key) if key in others else "" for key in keys)]
            )
    return _table(["network", *keys.values()], cells)


def coverage(content: dict[str, Any], part: str) -> str:
    """Return, in words, what a table of quality on an image holds and what it lacks."""
    rows, names = [row for row in content["rows"] if recipe_of(row) == "published"], PARTS[part].variants
    first, last = content["settings"]["steps"]
    seeds = [len(row["status"]) for row in rows]
    missing = [f"`{name}`" for name in names if name not in {row["variant"] for row in rows}]
    exact = {count: sum(min(row["scores"][f"psnr@{count}"]) > EXACT_DB for row in rows) for count in (first, last)}
    said = [
        f"Measured: {len(rows)} of {len(names)} networks, {_span(seeds)} each. {measured_on(content)}",
        f"{exact[first]} of them are, from every seed, above {EXACT_DB:g} dB after {first} steps and {exact[last]} "
        f"after {last}: they reproduce the image more closely than rounding to its 8 bits does, and their order says "
        "nothing beyond that.",
    ]
    if missing:
        said.append(f"Not measured yet: {', '.join(missing)}.")
    if min(seeds) < 2:
        said.append("Rows of one seed have no spread: take differences of a few dB for noise.")
    return "\n".join(said) + "\n"


def camera_table(summary: dict[str, Any]) -> str:
    """Return conditioning beside speed, fastest with Adam first."""
    target = summary["target_psnr"]
    steps = max(int(column["key"].split("_")[1]) for column in summary["columns"] if column["key"].startswith("gd_"))
    heads = [
        "network", "cv", "condition number", f"Adam, steps to {target:g} dB",
        f"descent, {steps} steps: predicted", "measured",
    ]  # fmt: skip

    def steps_of(item: tuple[str, Any]) -> float:
        mean = item[1]["steps_to_target"]["mean"]
        return math.inf if mean is None else mean  # where a seed never got there

    keys = ["cv", "condition_number", "steps_to_target", f"predicted_{steps}", f"gd_{steps}"]
    rows = sorted(summary["rows"].items(), key=steps_of)
    return _table(heads, [[f"`{name}`", *(row[key]["text"] for key in keys)] for name, row in rows])


def prediction(summaries: dict[str, dict[str, Any]]) -> str:
    """Return what the studies, by names such as "width128_depth3", say on where the kernel predicts training."""
    said = []
    for size, summary in summaries.items():
        size = size.replace("width", "Width ").replace("_depth", ", depth ")
        said += [f"- {size}. {line}" for line in summary["conclusion"] if "predict" in line and "rank" not in line]
    return "\n".join(said) + "\n"


def speed_table(rows: list[dict[str, Any]]) -> str:
    """Return the time of the kernel beside that of neural-tangents' contraction of Jacobians."""
    cells = []
    for row in rows:
        ours, theirs = row["structured"]["median_s"], row["neural_tangents"]["median_s"]
        times = [f"{1000 * ours:.0f} ms", f"{1000 * theirs:.0f} ms", f"{row['ratio']:.0f}"]
        cells.append([row["c"], *times, f"{row['relative_difference_float32']:.0e}"])
    return _table(["outputs", "`ntk_inr`", "neural-tangents", "ratio", "distance to float64 Jacobians"], cells)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    return "\n".join(markdown(heads, rows)) + "\n"


def _mean(row: dict[str, Any], score: str) -> float:
    values = row["scores"][score]
    mean = statistics.fmean(up_to_exact(values) if score.startswith("psnr") else values)
    return -math.inf if math.isnan(mean) else mean


def _score(values: list[float], key: str) -> str:
    if key.startswith("psnr"):
        return decibels_of(values)
    return f"{statistics.fmean(values):{'.1f' if 'snr' in key else '.3f'}}"


def _span(seeds: list[int]) -> str:
    low, high = min(seeds), max(seeds)
    return f"{low} to {high} seeds" if low < high else f"{low} seed{'s' * (low > 1)}"
