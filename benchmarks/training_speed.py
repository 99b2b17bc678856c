"""How long does a training step take, SIREN's beside ReLU's, fused beside alone, ours beside PyTorch's?

    pip install torch==2.13.0                      # for the last part alone, which is left out without it
    python -m benchmarks.training_speed            # about 5 minutes on 2 cores
    python -m benchmarks.training_speed --quick    # small, under a minute, nothing kept

Writes benchmarks/results/training_speed/<device>/results.json. Adam on all coordinates, float32. Every pair is timed
by turns in one process, and a step of ours is a hundredth of what 100 steps inside ``ni.fit`` took by its own clock,
compilation apart; PyTorch's is its eager step, with as many threads as it takes by default.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntk_inr as ni
from ntk_inr.study.environment import environment
from ntk_inr.study.record import write_json

RESULTS = Path(__file__).parent / "results" / "training_speed"

WIDTH, DEPTH, SIDE, STEPS, ROUNDS, RATE = 256, 4, 128, 10, 7, 1e-4
VARIANTS = ["relu", "siren", "finer", "gauss", "gabor", "wire", "pe", "fouriernet", "hash"]


def by_turns(timers: dict[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    """Call each timer ``rounds`` times by turns; return medians and extremes of the seconds that they give."""
    for timer in timers.values():
        timer()
    found: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            found[name].append(timer())
    return {
        name: {"median_s": statistics.median(times), "least_s": min(times), "most_s": max(times)}
        for name, times in found.items()
    }


def model(name: str, side: int) -> tuple[Any, Any, jax.Array, jax.Array]:
    """Return a variant, its parameters, and an image's coordinates and values."""
    task = ni.image_task("camera", size=side)
    x, y = jnp.asarray(task.x), jnp.asarray(task.y)
    return (*ni.init(ni.variant(name, features=WIDTH, depth=DEPTH), jax.random.key(0), x), x, y)


def fused(name: str, side: int, steps: int) -> Callable[[], float]:
    """Return a timer of one step inside ``ni.fit``."""
    apply, params, x, y = model(name, side)
    optimizer = optax.adam(RATE)

    def seconds() -> float:
        run = ni.fit(apply, params, x, y, optimizer=optimizer, steps=steps)
        return float(run.history["seconds"][-1]) / steps

    return seconds


def alone(name: str, side: int, steps: int) -> Callable[[], float]:
    """Return a timer of one step that Python calls and waits for, as a loop that prints each loss does."""
    apply, params, x, y = model(name, side)
    optimizer = optax.adam(RATE)

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any, jax.Array]:
        loss, slope = jax.value_and_grad(lambda p: optax.l2_loss(apply(p, x), y).mean())(params)
        updates, state = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), state, loss

    def seconds() -> float:
        at, state = params, optimizer.init(params)
        start = time.perf_counter()
        for _ in range(steps):
            at, state, loss = step(at, state)
            float(loss)
        return (time.perf_counter() - start) / steps

    return seconds


def torch_siren(side: int, steps: int) -> Callable[[], float]:
    """Return a timer of PyTorch's eager step of the same network."""
    import torch

    class Sine(torch.nn.Module):
        def forward(self, u: Any) -> Any:
            return torch.sin(30.0 * u)

    task = ni.image_task("camera", size=side)
    x, y = torch.from_numpy(np.array(task.x)), torch.from_numpy(np.array(task.y))
    sizes = [x.shape[1]] + [WIDTH] * DEPTH
    layers = [part for a, b in itertools.pairwise(sizes) for part in (torch.nn.Linear(a, b), Sine())]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(network(x), y)
            loss.backward()
            optimizer.step()
        float(loss.detach())
        return (time.perf_counter() - start) / steps

    return seconds


def main() -> None:
    """Measure, print, and keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    side, steps, rounds = (32, 5, 2) if quick else (SIDE, STEPS, ROUNDS)
    results: dict[str, Any] = {
        "schema": "ntk_inr.training_speed v1",
        "environment": environment(),
        "settings": {
            "width": WIDTH,
            "depth": DEPTH,
            "n": side**2,
            "steps": steps,
            "rounds": rounds,
            "optimizer": "adam",
        },
    }
    variants = by_turns({name: fused(name, side, steps) for name in VARIANTS}, rounds)
    relu = variants["relu"]["median_s"]
    for name, row in variants.items():
        row["to_relu"] = row["median_s"] / relu
        print(f"{name}: {1e3 * row['median_s']:.1f} ms a step, {row['to_relu']:.2f} of relu's", flush=True)
    results["variants"] = variants

    calls = {}
    for size in (16, side):
        timers = {"fused": fused("siren", size, 100), "alone": alone("siren", size, 100)}
        found = by_turns(timers, 2 if size == side else rounds)
        found["ratio"] = found["alone"]["median_s"] / found["fused"]["median_s"]
        calls[f"n={size**2}"] = found
        print(f"siren, n={size**2}: a step called alone takes {found['ratio']:.2f} of one of 100 fused", flush=True)
    results["calls"] = calls

    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed; its part is left out.")
    else:
        import torch

        found = by_turns({"ours": fused("siren", side, steps), "torch": torch_siren(side, steps)}, rounds)
        results["torch"] = {
            **found,
            "ratio": found["torch"]["median_s"] / found["ours"]["median_s"],
            "version": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        print(f"siren: {results['torch']['ratio']:.2f} times faster than PyTorch's eager step", flush=True)
    if not quick:
        device = jax.local_devices()[0].device_kind
        folder = RESULTS / "".join(ch if ch.isalnum() else "_" for ch in device.lower())
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "results.json", results)
        print("wrote", folder)


if __name__ == "__main__":
    main()
