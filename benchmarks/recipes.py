"""At which rate and schedule does each variant fit best? The table that the default recipes are read from.

    python -m benchmarks.recipes                  # two hours on 2 cores; goes on where it was stopped
    python -m benchmarks.recipes siren rff        # these variants alone
    python -m benchmarks.recipes --quick          # small, under a minute, nothing kept

Writes benchmarks/results/recipes/<device>/: results.json, which grows row by row, and table.md. Every variant fits the
camera image at 64 x 64 by 300 full steps of Adam, width 256 and depth 4, at five rates, constant or falling as a cosine
to zero, and by the recipe that is published for it where that is another one, with the settings of the network that
belong to it ("published" in place of a schedule). What comes close to a variant's best from the first seed is measured
from two more. One program serves all rates and schedules of a variant: the rate of each step is an argument.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntk_inr as ni
from benchmarks.keep import arguments_of, markdown, profile_of, results_folder
from ntk_inr.networks.catalogue import networks_of
from ntk_inr.study.environment import environment
from ntk_inr.study.record import write_json, write_text
from ntk_inr.training.curves import psnr
from ntk_inr.training.optimizers import rate_of

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SCHEDULES = ("constant", "cosine")
SETTINGS = {"image": "camera", "size": 64, "features": 256, "depth": 4, "steps": 300}
QUICK = SETTINGS | {"size": 8, "features": 16, "depth": 1, "steps": 20}
# Configurations within so many dB of the best from the first seed get the others, too, the best few of them.
CLOSE_DB, MOST_CLOSE, SEEDS = 5.0, 2, 3
# Those that most people take come first. Statistics of batches are none of the parameters, so pe+batch is left out.
FIRST = ("siren", "rff", "relu", "pe", "wire", "finer", "hash", "fouriernet", "gauss", "pe+sphere+hadamard")
LEFT_OUT = ("pe+batch",)


def order() -> list[str]:
    """Return the variants, the most important first."""
    return [*FIRST, *[name for name in ni.variants() if name not in (*FIRST, *LEFT_OUT)]]


def rates_of(rate: float, schedule: str, steps: int) -> np.ndarray:
    """Return the rate of each step (steps,)."""
    falling = rate_of(rate, schedule, None, steps, 0)
    return np.array([falling(step) if callable(falling) else falling for step in range(steps)], np.float32)


@jax.jit
def trained_error(apply: Any, params: Any, x: Any, y: Any, rates: Any) -> Any:
    """Return the mean squared error after full-batch Adam at the rate of each step."""
    adam = optax.scale_by_adam()

    def step(state: Any, rate: Any) -> tuple[Any, None]:
        params, moments = state
        gradient = jax.grad(lambda params: optax.l2_loss(apply(params, x), y).mean())(params)
        update, moments = adam.update(gradient, moments)
        return (jax.tree.map(lambda leaf, change: leaf - rate * change, params, update), moments), None

    (params, _), _ = jax.lax.scan(step, (params, adam.init(params)), rates)
    return jnp.mean((apply(params, x) - y) ** 2)


@functools.cache
def _image(source: str, size: int) -> Any:
    return ni.load_task("image", source, size=size)


def published(name: str, seed: int, settings: dict[str, Any]) -> float:
    """Return the PSNR in dB that the published recipe of a variant ends with."""
    from ntk_inr.networks.settings import with_settings

    task, recipe = _image(settings["image"], settings["size"]), ni.networks.recipe(name, "published")
    ((_, net),) = networks_of(name, features=settings["features"], depth=settings["depth"], out=task.channels).items()
    apply, params = ni.init(with_settings(net, recipe.network), jax.random.key(seed), jnp.asarray(task.x))
    adam, steps = ni.optimizer(**recipe.arguments, steps=settings["steps"]), settings["steps"]
    return float(ni.fit(apply, params, task.x, task.y, optimizer=adam, steps=steps).history["psnr"][-1])


def own_recipe(name: str) -> tuple[str, float, str] | None:
    """Return the key of a variant's published recipe, None where it is one of the rates and schedules here."""
    recipe = ni.networks.recipe(name, "published")
    plain = not (recipe.settings or recipe.network) and recipe.schedule in SCHEDULES
    return None if plain and recipe.learning_rate in RATES else (name, recipe.learning_rate or 0.0, "published")


def measure(name: str, rate: float, schedule: str, seed: int, settings: dict[str, Any]) -> float:
    """Return the PSNR in dB that one training of a variant ends with, NaN where it diverged."""
    task = _image(settings["image"], settings["size"])
    ((_, net),) = networks_of(name, features=settings["features"], depth=settings["depth"], out=task.channels).items()
    x, y = jnp.asarray(task.x), jnp.asarray(task.y)
    apply, params = ni.init(net, jax.random.key(seed), x)
    error = trained_error(apply, params, x, y, rates_of(rate, schedule, settings["steps"]))
    return float(psnr(float(error), task.data_range)) if np.isfinite(error) else float("nan")


class Rows:
    """What was measured, ``{(variant, rate, schedule): [PSNR of each seed]}``, and its file where it is kept."""

    def __init__(self, settings: dict[str, Any], folder: Path | None) -> None:
        self.settings, self.folder, self.psnr = settings, folder, {}
        if folder is not None and (folder / "results.json").exists():
            self.psnr = read(folder / "results.json", settings)

    def add(self, name: str, rate: float, schedule: str) -> None:
        """Measure one configuration from the next seed, and keep it."""
        known = self.psnr.setdefault((name, rate, schedule), [])
        seed = len(known)
        own = schedule == "published"
        known.append(
            published(name, seed, self.settings) if own else measure(name, rate, schedule, seed, self.settings)
        )
        print(f"{name}, {rate:g} {schedule}, seed {len(known) - 1}: {known[-1]:.1f} dB", flush=True)
        if self.folder is None:
            return
        rows = [
            {"variant": variant, "rate": rate, "schedule": schedule, "psnr": values}
            for (variant, rate, schedule), values in self.psnr.items()
        ]
        content = {"schema": "ntk_inr.recipes v1", "environment": environment(), "settings": self.settings}
        write_json(self.folder / "results.json", content | {"rows": rows})
        write_text(self.folder / "table.md", "\n".join(table(self.psnr)) + "\n")

    def close(self, name: str) -> Iterator[tuple[str, float, str]]:
        """Yield the configurations of a variant that may be its best, by the first seed."""
        first = {key: values[0] for key, values in self.psnr.items() if key[0] == name and np.isfinite(values[0])}
        ranked = sorted(first, key=lambda key: -first[key])[:MOST_CLOSE]
        yield from (key for key in ranked if first[key] > first[ranked[0]] - CLOSE_DB)


def read(path: Path, settings: dict[str, Any] = SETTINGS) -> dict[tuple[str, float, str], list[float]]:
    """Return what a file of results with these settings holds, nothing of others; JSON's null is what diverged."""
    content = json.loads(path.read_text())
    rows = content["rows"] if content["settings"] == settings else []
    return {
        (row["variant"], row["rate"], row["schedule"]): [np.nan if value is None else value for value in row["psnr"]]
        for row in rows
    }


def best_of(rows: dict[tuple[str, float, str], list[float]], name: str) -> tuple[float, str]:
    """Return the rate and the schedule of a variant's highest mean PSNR, among those with the most seeds."""
    mine = {key[1:]: values for key, values in rows.items() if key[0] == name and np.isfinite(values).all()}
    most = max(map(len, mine.values()))
    return max((key for key in mine if len(mine[key]) == most), key=lambda key: np.mean(mine[key]))


def table(rows: dict[tuple[str, float, str], list[float]]) -> list[str]:
    """Return Markdown: PSNR of each variant at each rate and schedule, and the best."""
    heads = ["variant", *[f"{rate:g} {schedule}" for schedule in SCHEDULES for rate in RATES], "published", "best"]
    lines = []
    for name in dict.fromkeys(key[0] for key in rows):
        values = [rows.get((name, rate, schedule), []) for schedule in SCHEDULES for rate in RATES]
        values.append(next((found for key, found in rows.items() if key[0] == name and key[2] == "published"), []))
        if any(np.isfinite(value).all() and value for value in values):
            rate, schedule = best_of(rows, name)
            lines.append(
                [name, *[f"{np.mean(value):.1f}" if value else "" for value in values], f"{rate:g} {schedule}"]
            )
    return markdown(heads, lines)


def main() -> None:
    """Measure, print, and keep."""
    parser = arguments_of(__doc__)
    parser.add_argument("variants", nargs="*", help="which variants; all by default")
    arguments = parser.parse_args()
    quick = profile_of(arguments) == "quick"
    rows = Rows(QUICK if quick else SETTINGS, None if quick else results_folder("recipes"))
    for name in arguments.variants or (("siren",) if quick else order()):
        for rate in RATES:
            for schedule in SCHEDULES:
                if (name, rate, schedule) not in rows.psnr:
                    rows.add(name, rate, schedule)
        own = own_recipe(name)
        if own is not None and own not in rows.psnr:
            rows.add(*own)
        for key in rows.close(name):
            while len(rows.psnr[key]) < SEEDS:
                rows.add(*key)
    print("\n".join(table(rows.psnr)))


if __name__ == "__main__":
    main()
