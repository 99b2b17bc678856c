"""How long does a training step take, SIREN's beside ReLU's, fused beside alone, ours beside PyTorch's?

What bounds it: the step's matrix products alone. And what does the recorder add?

    pip install torch==2.13.0                      # for the last part alone, which is left out without it
    python -m benchmarks.training_speed            # about 12 minutes on 2 cores
    python -m benchmarks.training_speed torch      # this part alone; what is kept of the others stays
    python -m benchmarks.training_speed --quick    # small, under a minute, nothing kept

Writes benchmarks/results/training_speed/<device>/results.json. Adam on all coordinates, float32. Every pair is timed
by turns in one process. A step of ours is what the later half of the steps inside ``ni.fit`` took by its own clock,
compilation apart; its reports, which are dense at the beginning, cut the earlier ones into short pieces. PyTorch's is
its eager step, with as many threads as it takes by default.
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntk_inr as ni
from benchmarks.keep import Claim, arguments_of, collect, parts_asked_for, profile_of, publish_parts

NAME = "training_speed"
WIDTH, DEPTH, SIDE, STEPS, ROUNDS, RATE = 256, 4, 128, 60, 3, 1e-4
PARTS = ["variants", "calls", "recorder", "torch"]
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
        history = ni.fit(apply, params, x, y, optimizer=optimizer, steps=steps).history
        middle = int(np.searchsorted(history["step"], steps // 2))
        ends = [history[name][-1] - history[name][middle] for name in ("seconds", "step")]
        return float(ends[0] / ends[1])

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


def products(side: int, times: int) -> Callable[[], float]:
    """Return a timer of the bare matrix products of a step: forward, by the inputs, by the weights."""
    h = jax.random.normal(jax.random.key(0), (side**2, WIDTH))
    w = jax.random.normal(jax.random.key(1), (WIDTH, WIDTH)) / WIDTH**0.5

    @jax.jit
    def steps(h: jax.Array, w: jax.Array) -> jax.Array:
        def step(_: Any, w: jax.Array) -> jax.Array:
            delta = h
            for _ in range(DEPTH - 1):
                forward, delta = h @ w, delta @ w.T
                w = w + 1e-9 * (forward.T @ delta)
            return w

        return jax.lax.fori_loop(0, times, step, w)

    def seconds() -> float:
        start = time.perf_counter()
        steps(h, w).block_until_ready()
        return (time.perf_counter() - start) / times

    return seconds


def torch_device() -> str:
    """Return the device for PyTorch that JAX runs on."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def torch_products(side: int, times: int) -> Callable[[], float]:
    """Return a timer of the same products in PyTorch."""
    import torch

    device = torch_device()
    h, w = torch.randn(side**2, WIDTH, device=device), torch.randn(WIDTH, WIDTH, device=device)
    other = torch.randn(side**2, WIDTH, device=device)  # a matrix with itself would take half of the flops

    def seconds() -> float:
        start = time.perf_counter()
        for _ in range(times * (DEPTH - 1)):
            _, _, last = h @ w, h @ w.T, h.T @ other
        float(last[0, 0])  # waits for the device
        return (time.perf_counter() - start) / times

    return seconds


def recorded(side: int, steps: int, recorder: bool) -> Callable[[], float]:
    """Return a timer of a whole call of ``ni.fit``, with or without a recorder of the kernel."""
    apply, params, x, y = model("siren", side)

    def seconds() -> float:
        start = time.perf_counter()
        options = {"recorder": ni.Recorder()} if recorder else {}
        ni.fit(apply, params, x, y, optimizer=optax.adam(RATE), steps=steps, **options)
        return time.perf_counter() - start

    return seconds


def torch_siren(side: int, steps: int) -> Callable[[], float]:
    """Return a timer of PyTorch's eager step of the same network."""
    import torch

    class Sine(torch.nn.Module):
        def forward(self, u: Any) -> Any:
            return torch.sin(30.0 * u)

    task, device = ni.image_task("camera", size=side), torch_device()
    x, y = torch.from_numpy(np.array(task.x)).to(device), torch.from_numpy(np.array(task.y)).to(device)
    sizes = [x.shape[1]] + [WIDTH] * DEPTH
    layers = [part for a, b in itertools.pairwise(sizes) for part in (torch.nn.Linear(a, b), Sine())]
    network = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 1)).to(device)
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


def claims(results: dict[str, Any]) -> list[Claim]:
    """Return what the numbers say of the speed that the design asks for."""
    said = []
    if "variants" in results:
        siren, n = results["variants"]["siren"]["to_relu"], results["settings"]["n"]
        said.append(
            Claim(
                f"A SIREN step takes at most 1.25 of a ReLU step, {n} coordinates",
                "holds" if siren <= 1.25 else "does not hold",
                f"{siren:.2f}",
                "Sine and cosine share one range reduction.",
            )
        )
    if torch := {name: row["ratio"] for name, row in results.get("torch", {}).items() if name.startswith("n=")}:
        ours, theirs = (1e3 * results["torch"]["products"][name]["median_s"] for name in ("ours", "torch"))
        said.append(
            Claim(
                "A SIREN step is twice as fast as PyTorch's eager one",
                "holds" if min(torch.values()) >= 2 else "does not hold",
                ", ".join(f"{ratio:.2f} times at {name}" for name, ratio in torch.items()),
                f"At the largest size the bare matrix products of a step take {ours:.3g} ms in XLA and {theirs:.3g} in "
                "PyTorch.",
            )
        )
    return said


def of_variants(names: list[str], side: int, steps: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of a step of each variant, and their ratio to ReLU's."""
    found = by_turns({name: fused(name, side, steps) for name in names}, rounds)
    return {name: row | {"to_relu": row["median_s"] / found["relu"]["median_s"]} for name, row in found.items()}


def of_calls(side: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of SIREN's step called alone, and fused, at few coordinates and at many."""
    calls = {}
    for size in (16, side):
        timers = {"fused": fused("siren", size, 100), "alone": alone("siren", size, 20)}
        found = by_turns(timers, 1 if size == side else rounds)
        calls[f"n={size**2}"] = found | {"ratio": found["alone"]["median_s"] / found["fused"]["median_s"]}
    return calls


def of_recorder(side: int, steps: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of a run with and without a recorder, and the share that it adds."""
    found = by_turns({name: recorded(side, steps, name == "recorded") for name in ("plain", "recorded")}, rounds)
    added = found["recorded"]["median_s"] / found["plain"]["median_s"] - 1
    return {"n": side**2, "steps": steps, **found, "added": added}


def of_torch(side: int, steps: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of SIREN's step here and in PyTorch on the same device, and of the matrix products alone."""
    import torch

    results = {"version": str(torch.__version__), "threads": torch.get_num_threads(), "device": torch_device()}
    # PyTorch's default for float32; on a GPU XLA's would be less exact, and faster.
    with jax.default_matmul_precision("highest"):
        for size in (16, 32, side):
            found = by_turns({"ours": fused("siren", size, steps), "torch": torch_siren(size, steps // 4)}, rounds)
            ratio = found["torch"]["median_s"] / found["ours"]["median_s"]
            results[f"n={size**2}"] = found | {"ratio": ratio}
        results["products"] = by_turns({"ours": products(side, 5), "torch": torch_products(side, 5)}, rounds)
    return results


def line(part: str, found: dict[str, Any]) -> str:
    """Return what is said of a part."""
    if part == "recorder":
        return f"recorder, n={found['n']}, {found['steps']} steps: {100 * found['added']:.1f} % of the time"
    rows = {name: row for name, row in found.items() if isinstance(row, dict)}
    if part == "variants":
        ratios = {name: f"{1e3 * row['median_s']:.3g} ms, {row['to_relu']:.2f} of relu's" for name, row in rows.items()}
        return f"a step: {'; '.join(f'{name} {text}' for name, text in ratios.items())}"
    ratios = {name: f"{row['ratio']:.2f} at {name}" for name, row in rows.items() if "ratio" in row}
    said = "a step called alone over one of 100 fused" if part == "calls" else "PyTorch's eager step over ours"
    bare = [f"{name} {1e3 * row['median_s']:.3g} ms" for name, row in rows.get("products", {}).items()]
    return f"siren, {said}: {', '.join(ratios.values())}" + (f"; products alone: {', '.join(bare)}" if bare else "")


def main() -> None:
    """Measure, print, and keep the JSON."""
    arguments = arguments_of(__doc__, parts=PARTS).parse_args()
    profile = profile_of(arguments, timed=True)
    quick = profile == "quick"
    side, steps, rounds = (32, 8, 2) if quick else (SIDE, STEPS, ROUNDS)
    settings = {
        "width": WIDTH, "depth": DEPTH, "n": side**2, "steps": steps, "rounds": rounds, "optimizer": "adam",
    }  # fmt: skip
    computes: dict[str, Callable[[], Any]] = {
        "variants": lambda: of_variants(VARIANTS[:4] if quick else VARIANTS, side, steps, rounds),
        "calls": lambda: of_calls(side, rounds),
        "recorder": lambda: of_recorder(*((16, 50) if quick else (32, 2000)), rounds),
    }
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed; its part is left out.")
    else:
        computes["torch"] = lambda: of_torch(side, steps, rounds)
    found = collect(NAME, profile, settings, parts_asked_for(arguments, computes), line)
    if not quick:
        publish_parts(NAME, settings=settings, found=found, order=PARTS, pictures={})


if __name__ == "__main__":
    main()
