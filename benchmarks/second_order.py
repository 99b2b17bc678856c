"""Does solving with the kernel end sooner than descending? Gauss-Newton against Adam, Muon and L-BFGS, in seconds.

    python -m benchmarks.second_order                    # hours on 2 cores; goes on where it was stopped
    python -m benchmarks.second_order image64            # this part alone
    python -m benchmarks.second_order image64 --of siren # one network of it
    python -m benchmarks.second_order --quick            # small, nothing kept

Writes benchmarks/results/second_order/<device>/: results.json, which grows row by row, and table.md. Each first-order
rival trains at four rates, constant and falling as a cosine, for a short budget of seconds; what ends best trains again
for the long one, whose schedule is as long. L-BFGS has its own line search. Seconds are those of the steps on the
training data, compilation apart ("compile_s"); every run of a network is of one process, one after another.

Parts: image64, the camera image at 64 x 64, seconds to 60 and 100 dB; image128, the same at 128 x 128; the equations
Poisson, Helmholtz, heat, wave, Burgers and Allen-Cahn by tanh 64 x 3 in float64, relative L2 error at the end of a
budget; tomography and audio, the task's own metric.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntk_inr as ni
from benchmarks.keep import arguments_of, markdown, profile_of, results_folder, this_device
from ntk_inr.study.environment import environment
from ntk_inr.study.record import write_json, write_text
from ntk_inr.training.second_order import settings_of

RATES, SCHEDULES = (3e-4, 1e-3, 3e-3, 1e-2), ("constant", "cosine")
RIVALS = ("adam", "muon", "lbfgs")
TARGETS = (60.0, 100.0)
# Networks for which linearisation does not hold, or parameters are too many, come last.
NETWORKS = ("pe", "rff", "siren", "finer", "gauss", "pe+hadamard", "wire", "relu", "hash")
PARTS: dict[str, dict[str, Any]] = {
    "image64": {
        "task": ("image", "camera", {"size": 64}), "networks": NETWORKS, "width": 256, "depth": 4,
        "search_s": 10.0, "budget_s": 40.0, "x64": False,
    },
    "image128": {
        "task": ("image", "camera", {"size": 128}), "networks": ("pe", "rff", "siren"), "width": 256, "depth": 4,
        "search_s": 60.0, "budget_s": 300.0, "x64": False,
    },
    "poisson": {
        "task": ("pde", "poisson", {"points": 32}), "networks": ("tanh",), "width": 64, "depth": 3,
        "search_s": 30.0, "budget_s": 120.0, "x64": True,
    },
    "helmholtz": {
        "task": ("pde", "helmholtz", {"points": 32}), "networks": ("tanh",), "width": 64, "depth": 3,
        "search_s": 30.0, "budget_s": 120.0, "x64": True,
    },
    **{
        name: {
            "task": ("pde", name, {"points": 48}), "networks": ("tanh",), "width": 64, "depth": 3,
            "search_s": 30.0, "budget_s": 120.0, "x64": True,
        }
        for name in ("heat", "wave", "burgers", "allen-cahn")
    },
    "tomography": {
        "task": ("tomography", "shepp-logan", {}), "networks": ("siren",), "width": 128, "depth": 3,
        "search_s": 20.0, "budget_s": 60.0, "x64": False,
    },
    "audio": {
        "task": ("audio", "chord", {"seconds": 0.25}), "networks": ("siren+fast",), "width": 128, "depth": 3,
        "search_s": 20.0, "budget_s": 60.0, "x64": False,
    },
}  # fmt: skip
QUICK = {"search_s": 0.2, "budget_s": 0.5, "width": 16, "depth": 2}


class Setting:
    """One network on one task: what is trained, from the same start each time."""

    def __init__(self, part: str, name: str, quick: bool) -> None:
        self.spec = PARTS[part] | (QUICK if quick else {})
        kind, source, options = self.spec["task"]
        task = ni.load_task(kind, source, **(options | ({"size": 12} if quick and kind == "image" else {})))
        self.task = task
        net = ni.variant(name, features=self.spec["width"], depth=self.spec["depth"], out=task.channels)
        dtype = jnp.float64 if self.spec["x64"] else jnp.float32
        x = jnp.asarray(task.x, dtype)
        self.predict, params = ni.init(net, jax.random.key(0), x[:2])
        self.params = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(leaf, dtype)), params)
        self.x, self.y, self.apply = x, jnp.asarray(task.y, dtype), task.observe(self.predict)

    def fit(self, optimizer: Any, steps: int, every: int) -> tuple[Any, float]:
        """Train; return the result and the seconds that were not the steps'."""
        start = time.perf_counter()
        loss = self.task.loss
        result = ni.fit(
            self.apply, self.params, self.x, self.y, optimizer=optimizer, steps=steps, loss=loss, report_every=every,
            data_range=self.task.data_range,
        )  # fmt: skip
        return result, time.perf_counter() - start - float(result.history["seconds"][-1])

    def pace(self, optimizer: Any) -> float:
        """Return the seconds of a step: of the third and fourth, since the first ones meet cold caches."""
        result, _ = self.fit(optimizer, 4, 2)
        return float(np.diff(result.history["seconds"])[-1]) / 2

    def run(self, optimizer: Callable[[int], Any], budget: float) -> dict[str, Any]:
        """Train for ``budget`` seconds; return the curve and the task's own score at the end."""
        steps = max(4, int(budget / max(self.pace(optimizer(4)), 1e-6)))
        solves = settings_of(optimizer(4)) is not None
        result, rest = self.fit(optimizer(steps), steps, 1 if solves else max(1, steps // 100))
        columns = {name: np.asarray(column, float).round(6).tolist() for name, column in result.history.items()}
        signal = self.task.reconstruct(lambda x: self.predict(result.params, jnp.asarray(x)))
        return {
            "steps": int(result.steps), "status": result.status, "rest_s": rest, "curve": columns,
            "scores": {name: float(value) for name, value in self.task.scores(signal).items()},
            "end": float(result.history["loss"][-1]),
        }  # fmt: skip


def candidates(name: str) -> dict[str, Callable[[int], Any]]:
    """Return the configurations of an optimizer, each as a function of the number of steps."""
    if name == "gauss-newton":
        return {
            words: functools.partial(lambda first, steps: ni.gauss_newton(adam_steps=first), first)
            for words, first in (("at once", 0), ("after 50 of Adam", 50), ("after 200 of Adam", 200))
        }
    if name == "lbfgs":
        return {"line search": lambda steps: ni.optimizer("lbfgs")}

    def made(rate: float, schedule: str, steps: int) -> Any:
        return ni.optimizer(name, learning_rate=rate, schedule=schedule, steps=steps)

    return {f"{rate:g} {schedule}": functools.partial(made, rate, schedule) for rate in RATES for schedule in SCHEDULES}


class Rows:
    """What was measured, by "part/network/optimizer/configuration/budget", and its file."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.rows = folder, {}
        if folder is not None and (folder / "results.json").exists():
            self.rows = json.loads((folder / "results.json").read_text())["rows"]

    def of(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a row, computed and kept where it is not known."""
        if key not in self.rows:
            self.rows[key] = compute() | {"device": this_device()}
            print(f"{key}: {said(self.rows[key])}", flush=True)
            if self.folder is not None:
                content = {"schema": "ntk_inr.second_order v1", "environment": environment(), "settings": PARTS}
                write_json(self.folder / "results.json", content | {"rows": self.rows})
                write_text(self.folder / "table.md", "\n".join(tables(self.rows)) + "\n")
        return self.rows[key]


def said(row: dict[str, Any]) -> str:
    """Return a row in a line."""
    curve = row["curve"]
    end = f"{curve['psnr'][-1]:.1f} dB, " if "psnr" in curve else ""
    scores = ", ".join(f"{name} {value:.4g}" for name, value in row["scores"].items())
    return f"{end}{scores} after {row['steps']} steps and {curve['seconds'][-1]:.1f} s, {row['status']}"


def measure(part: str, name: str, rows: Rows, quick: bool) -> None:
    """Measure every optimizer on one network: the search of each, then its best for longer."""
    with jax.enable_x64(PARTS[part]["x64"]):
        setting = functools.cache(lambda: Setting(part, name, quick))
        spec = PARTS[part] | (QUICK if quick else {})
        for optimizer in ("gauss-newton", *RIVALS):
            own, found = candidates(optimizer), {}
            if len(own) > 1:
                for words, made in own.items():
                    key = f"{part}/{name}/{optimizer}/{words}/{spec['search_s']:g}"
                    found[words] = rows.of(key, lambda made=made: setting().run(made, spec["search_s"]))
            finite = {words: row["end"] for words, row in found.items() if row["status"] != "diverged"}
            best = min(finite, key=finite.__getitem__) if finite else next(iter(own))
            key = f"{part}/{name}/{optimizer}/{best}/{spec['budget_s']:g}"
            rows.of(key, lambda made=own[best]: setting().run(made, spec["budget_s"]))
        jax.clear_caches()


def seconds_to(row: dict[str, Any], target: float) -> float:
    """Return the seconds at which a run's PSNR first was at a target, infinity where it never was."""
    psnr, seconds = np.array(row["curve"]["psnr"]), np.array(row["curve"]["seconds"])
    reached = np.flatnonzero(psnr >= target)
    return float(seconds[reached[0]]) if len(reached) else float("inf")


def best_rows(rows: dict[str, Any], part: str, name: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield each optimizer with all of its runs on a network."""
    for optimizer in ("gauss-newton", *RIVALS):
        own = [row for key, row in rows.items() if key.startswith(f"{part}/{name}/{optimizer}/")]
        if own:
            yield optimizer, own


def tables(rows: dict[str, Any]) -> list[str]:
    """Return Markdown: of each part and network, seconds to the targets or the final scores, of each optimizer."""
    lines = []
    for part, spec in PARTS.items():
        names = [name for name in spec["networks"] if any(key.startswith(f"{part}/{name}/") for key in rows)]
        if not names:
            continue
        body = []
        for name in names:
            for optimizer, own in best_rows(rows, part, name):
                last = min(own, key=lambda row: row["end"])
                to = [min(seconds_to(row, target) for row in own) for target in TARGETS] if "image" in part else []
                scores = "; ".join(f"{key} {value:.3g}" for key, value in last["scores"].items())
                times = [f"{value:.1f}" if np.isfinite(value) else "–" for value in to]
                ends = f"{last['curve']['psnr'][-1]:.1f}" if "psnr" in last["curve"] else ""
                body.append([name, optimizer, *times, ends, f"{last['curve']['seconds'][-1]:.0f}", scores])
        heads = [f"s to {target:g} dB" for target in TARGETS] if "image" in part else []
        lines += [f"## {part}", "", *markdown(["network", "optimizer", *heads, "dB", "s", "scores"], body), ""]
    return lines


def main() -> None:
    """Measure what was asked for."""
    parser = arguments_of(__doc__, parts=list(PARTS))
    parser.add_argument("--of", nargs="*", default=[], help="these networks alone")
    arguments: argparse.Namespace = parser.parse_args()
    quick = profile_of(arguments) == "quick"
    rows = Rows(None if quick else results_folder("second_order"))
    for part in arguments.parts or (["image64"] if quick else PARTS):
        for name in PARTS[part]["networks"]:
            if not arguments.of or name in arguments.of:
                measure(part, name, rows, quick)
                if quick:
                    break
    print("\n".join(tables(rows.rows)))


if __name__ == "__main__":
    main()
