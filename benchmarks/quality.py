"""How well does each architecture fit, with the settings that its authors published?

    python -m benchmarks.quality                  # hours on 2 cores; goes on where it was stopped
    python -m benchmarks.quality image64 shape    # these parts alone
    python -m benchmarks.quality --quick          # small, two minutes, nothing kept

Writes benchmarks/results/quality/<device>/: a JSON a part, which grows row by row, table.md and a picture a task.
Parts: image64, every variant on the camera image at 64 x 64 after 500 and 2000 steps, three seeds; image128, the eight
best known at 128 x 128; shape, IoU of the torus; audio, SNR of the bundled chord; tomography, PSNR of the Shepp-Logan
phantom. Adam at a constant learning rate, full batch unless the task asks for less, float32.
How long a step takes is what benchmarks.training_speed measures.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntk_inr as ni
from ntk_inr.study.compare import trained
from ntk_inr.study.environment import environment
from ntk_inr.study.record import write_atomically, write_json
from ntk_inr.style import pyplot

RESULTS = Path(__file__).parent / "results" / "quality"

WIDTH, DEPTH, STEPS, SEEDS = 256, 4, [500, 2000], 3
# Learning rates as published, in the paper or its code; 1e-3 for all others.
RATES = {
    "siren": 1e-4,  # Sitzmann et al. 2020
    "siren+fast": 5e-5,  # its audio experiment
    "finer": 5e-4,  # FINER's code, as these for WIRE and Gauss
    "wire": 5e-3,
    "gauss": 5e-3,
    "fouriernet": 1e-2,  # Fathony et al. 2021
    "gabornet": 1e-2,
    "bacon": 5e-4,  # BACON's code
    "hash": 1e-2,  # Müller et al. 2022
}
KNOWN = ["siren", "finer", "wire", "gauss", "rff", "pe", "fouriernet", "hash"]


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
    "image128": Part("image", "camera", KNOWN, {"size": 128}),
    "shape": Part("shape", "torus", ["relu", "pe", "siren", "finer", "hash"], {}, (500,), 1),
    "audio": Part("audio", "chord", ["relu", "siren", "siren+fast", "fouriernet"], {}, (500,), 1),
    "tomography": Part("tomography", "shepp-logan", ["relu", "pe", "siren", "finer"], {}, (500,), 1),
}
QUICK = {
    "image64": Part("image", "camera", ["relu", "siren"], {"size": 16}, (5, 10), 2),
    "shape": Part("shape", "torus", ["siren"], {"points": 400, "resolution": 16}, (10,), 1),
}


def measure(part: Part, name: str, task: Any) -> tuple[dict[str, Any], Any]:
    """Train a variant from each seed; return its row of the table, and the first reconstruction."""
    net = ni.variant(name, features=WIDTH, depth=DEPTH, out=task.channels)
    rate, last = RATES.get(name, 1e-3), part.steps[-1]
    optimizer = optax.adam(rate)
    scores: dict[str, list[float]] = {}
    statuses, reconstructions = [], []
    for seed in range(part.seeds):
        key = jax.random.key(seed)
        apply, params = ni.init(net, key, jnp.asarray(task.x))
        run = ni.fit(
            task.observe(apply), params, task.x, task.y, optimizer=optimizer, steps=last, loss=task.loss,
            batch_size=task.sampling, key=key, data_range=task.data_range,
        )  # fmt: skip
        for steps in part.steps[:-1]:
            scores.setdefault(f"psnr@{steps}", []).append(float(run.psnr[min(steps, run.steps)]))
        reconstructions.append(task.reconstruct(functools.partial(trained(apply, run), run.params)))
        for score, value in task.scores(reconstructions[-1]).items():
            scores.setdefault(f"{score}@{last}", []).append(value)
        statuses.append(run.status)
    row = {
        "variant": name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "learning_rate": rate,
        "scores": scores,
        "status": statuses,
    }
    return row, reconstructions[0]


def run_part(name: str, part: Part, folder: Path | None) -> dict[str, Any]:
    """Measure the variants that a part does not have yet; keep each when it is done."""
    path = None if folder is None else folder / f"{name}.json"
    task = part.task()
    content: dict[str, Any] = {"schema": "ntk_inr.quality v1", "task": task.digest, "rows": []}
    if path is not None and path.exists():
        content = json.loads(path.read_text())
    settings = {"width": WIDTH, "depth": DEPTH, "steps": list(part.steps), "seeds": part.seeds, **part.settings}
    content |= {"environment": environment(), "settings": settings}
    done = {row["variant"] for row in content["rows"]}
    best = max((np.mean(_goal(row, task)) for row in content["rows"]), default=-np.inf)
    for variant in part.variants:
        if variant in done:
            continue
        row, reconstruction = measure(part, variant, task)
        content["rows"].append(row)
        print(f"{name}, {variant}: {_line(row)}", flush=True)
        if path is None or folder is None:
            continue
        write_json(path, content)
        if np.mean(_goal(row, task)) > best:
            best = np.mean(_goal(row, task))
            figure = task.figure(reconstruction)
            write_atomically(folder / f"{name}.png", functools.partial(figure.savefig, format="png"))
            pyplot().close(figure)
    return content


def _goal(row: dict[str, Any], task: Any) -> list[float]:
    """Return the scores that a part is about, of the longest training."""
    return [values for key, values in row["scores"].items() if key.startswith(f"{task.metric}@")][-1]


def _line(row: dict[str, Any]) -> str:
    means = [f"{key} {np.mean(values):.3g}" for key, values in row["scores"].items()]
    return ", ".join(means)


def table(contents: dict[str, dict[str, Any]]) -> str:
    """Return Markdown: a table a part, best first by its last column of the task's own metric."""
    said = ["# Quality of reconstruction", "", "Mean ± standard deviation over seeds; see the module for settings.", ""]
    for name, content in contents.items():
        rows = [row for row in content["rows"] if row["scores"]]
        if not rows:
            continue
        keys = list(rows[0]["scores"])
        first = {"shape": "iou", "audio": "snr"}.get(name, "psnr")
        goal = [key for key in keys if key.startswith(f"{first}@")][-1]
        said += [f"## {name}", "", f"| variant | learning rate | {' | '.join(keys)} |"]
        said.append(f"|{'---|' * (len(keys) + 2)}")
        for row in sorted(rows, key=lambda row: -float(np.mean(row["scores"][goal]))):
            cells = [_cell(row["scores"][key]) for key in keys]
            said.append(f"| {row['variant']} | {row['learning_rate']:g} | {' | '.join(cells)} |")
        said.append("")
    return "\n".join(said)


def _cell(values: list[float]) -> str:
    mean = f"{np.mean(values):.3g}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.2g}"


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts; all by default")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    folder = None
    if not arguments.quick:
        device = jax.local_devices()[0].device_kind
        folder = RESULTS / "".join(ch if ch.isalnum() else "_" for ch in device.lower())
        folder.mkdir(parents=True, exist_ok=True)
    for name, part in (QUICK if arguments.quick else PARTS).items():
        if not arguments.parts or name in arguments.parts:
            run_part(name, part, folder)
            if folder is not None:
                files = {known: folder / f"{known}.json" for known in PARTS}
                found = {known: json.loads(path.read_text()) for known, path in files.items() if path.exists()}
                write_atomically(folder / "table.md", lambda file, found=found: file.write(table(found).encode()))


if __name__ == "__main__":
    main()
