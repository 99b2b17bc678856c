"""What does a signal of real size cost: a megapixel, two million rows, ten million, a 4K photo, a 512³ volume?

    pip install torch==2.13.0                        # for the part "torch" alone, which is left out without it
    python -m benchmarks.real_sizes                  # some two hours on 2 cores
    python -m benchmarks.real_sizes command rows     # these parts alone; what is kept of the others stays
    python -m benchmarks.real_sizes --quick          # small, under a minute, nothing kept

Writes benchmarks/results/real_sizes/<device>/results.json and the figures. The pictures are made of those that
scikit-image carries, side by side at their own detail; the volume is made of smooth noise and of balls.

- command: the whole of ``ntk-inr fit`` beside its training steps alone, which the same process times, compiled.
- checkpoints: ``ni.fit`` with them and without, by turns.
- rows: a step on as many rows of many times as many, by turns.
- memory: the peak of a whole process, from the file to the reconstruction, beyond that of importing the package.
- torch: seconds of training to 30 and 35 dB, here and in PyTorch, each at both recipes.
- quality: PSNR against seconds of training, of networks and a plain grid with as many parameters.
- interrupted: runs killed at random moments and resumed, compared bit by bit with one that was not.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file, save_file

import ntk_inr as ni
from benchmarks.keep import Claim, arguments_of, collect, parts_asked_for, profile_of, publish_parts, results_folder
from ntk_inr import style
from ntk_inr.networks import CoordinateMLP, HashGrid
from ntk_inr.study.figures import save_figure
from ntk_inr.training.optimizers import rate_of

NAME = "real_sizes"
PARTS = ["command", "checkpoints", "rows", "memory", "torch", "quality", "interrupted"]
WIDTH, DEPTH, BATCH = 128, 3, 65536
TARGETS = (30.0, 35.0)


def photo(height: int, width: int) -> np.ndarray:
    """Return a picture (height, width, 3) uint8 of those that scikit-image carries, side by side."""
    from skimage import color, data

    own = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), color.gray2rgb(data.camera())]
    tiles = [image[:256, :256] for image in own] + [image[-256:, -256:] for image in own]
    rows = -(-height // 256)
    columns = -(-width // 256)
    lines = [np.hstack([tiles[(3 * r + c) % len(tiles)] for c in range(columns)]) for r in range(rows)]
    return np.vstack(lines)[:height, :width]


def retina(side: int) -> np.ndarray:
    """Return the middle (side, side, 3) uint8 of a photograph of an eye, a megapixel that scikit-image has."""
    from skimage import data

    whole = data.retina()
    top, left = ((length - side) // 2 for length in whole.shape[:2])
    return whole[top : top + side, left : left + side]


def volume(path: Path, side: int) -> Path:
    """Write a volume (side, side, side) uint8 of smooth noise and balls, slab by slab."""
    rng = np.random.default_rng(0)
    waves = rng.normal(size=(24, 3)) * 6 * np.pi
    phases, centres, radii = rng.uniform(0, 2 * np.pi, 24), rng.uniform(-1, 1, (40, 3)), rng.uniform(0.05, 0.25, 40)
    axis = ((2 * np.arange(side) + 1) / side - 1).astype(np.float32)
    written = np.lib.format.open_memmap(path, "w+", np.uint8, (side,) * 3)
    v, w = axis[:, None], axis[None, :]
    for i, u in enumerate(axis):
        field = sum(np.cos(a * u + b * v + c * w + p) for (a, b, c), p in zip(waves, phases, strict=True)) / 24
        for (a, b, c), radius in zip(centres, radii, strict=True):
            field = np.where((u - a) ** 2 + (v - b) ** 2 + (w - c) ** 2 < radius**2, field + 0.5, field)
        written[i] = np.clip(127 + 110 * field, 0, 255)
    written.flush()
    return path


def steps_alone(image: np.ndarray, steps: int, batch: int) -> float:
    """Return the seconds of bare jitted steps of a SIREN on rows of an image, compilation apart."""
    task = ni.image_task(image, size=None)
    x, y = jnp.asarray(task.x), jnp.asarray(task.y)
    net = ni.variant("siren", features=WIDTH, depth=DEPTH, out=task.channels)
    apply, params = ni.init(net, jax.random.key(0), x[:2])
    optimizer = optax.adam(1e-3)

    @jax.jit
    def train(params: Any, state: Any, x: Any, y: Any, stop: Any) -> Any:
        def step(t: Any, carry: Any) -> Any:
            params, state = carry
            rows = jax.random.randint(jax.random.fold_in(jax.random.key(1), t), (batch,), 0, len(x))
            slope = jax.grad(lambda p: optax.l2_loss(apply(p, x[rows]), y[rows]).mean())(params)
            updates, state = optimizer.update(slope, state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, stop, step, (params, state))

    jax.block_until_ready(train(params, optimizer.init(params), x, y, 0))
    start = time.perf_counter()
    jax.block_until_ready(train(params, optimizer.init(params), x, y, steps))
    return time.perf_counter() - start


# Modules are compiled once, as where a user installs them. A small process starts the command, since what it takes at
# most counts from what its parent has when it starts.
_LAUNCHER = """
import os, resource, subprocess, sys
command = [sys.executable, "-m", "ntk_inr", *sys.argv[1:]]
done = subprocess.run(command, stdout=subprocess.DEVNULL, env=dict(os.environ, PYTHONDONTWRITEBYTECODE=""))
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def ntk_inr(*words: Any) -> dict[str, float]:
    """Run the command in a process of its own; return its seconds and its peak memory in bytes."""
    start = time.perf_counter()
    command = [sys.executable, "-c", _LAUNCHER, *map(str, words)]
    status, kilobytes = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    if int(status):
        raise RuntimeError(f"ntk-inr {' '.join(map(str, words))} ended with status {status}")
    return {"seconds": time.perf_counter() - start, "peak": 1024.0 * int(kilobytes)}


def killed(*words: Any, after: float) -> None:
    """Run the command and kill it after so many seconds."""
    process = subprocess.Popen([sys.executable, "-m", "ntk_inr", *map(str, words)], stdout=subprocess.DEVNULL)
    time.sleep(after)
    process.kill()
    process.wait()


def network(batch: int, steps: int) -> list[Any]:
    """Return the options of the command that name the network and its training."""
    return [
        "--variant", "siren", "--features", WIDTH, "--depth", DEPTH, "--steps", steps, "--batch-size", batch,
    ]  # fmt: skip


def of_command(side: int, steps: int, batch: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of the whole command, of its bare steps, and their ratio, by turns."""
    from PIL import Image

    image = photo(side, side)
    whole, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(image).save(f"{folder}/photo.png")
        for i in range(rounds):
            bare.append(steps_alone(image, steps, batch))
            words = ["fit", f"{folder}/photo.png", "--size", side, *network(batch, steps), "--out", f"{folder}/run{i}"]
            whole.append(ntk_inr(*words)["seconds"])
    ratio = statistics.median(a / b for a, b in zip(whole, bare, strict=True))
    return {"side": side, "steps": steps, "batch": batch, "command_s": whole, "steps_s": bare, "ratio": ratio}


def rows_of(n: int, d: int = 2) -> tuple[jax.Array, jax.Array]:
    """Return coordinates (n, d) and smooth values (n, 1)."""
    x = jax.random.uniform(jax.random.key(0), (n, d), minval=-1.0)
    return x, jnp.sin(7 * x[:, :1]) / 2 + 0.5


def fitting(n: int, batch: int, steps: int, **options: Any) -> ni.training.FitResult:
    """Return a run of a SIREN on n rows."""
    x, y = rows_of(n)
    model = ni.init(ni.variant("siren", features=WIDTH, depth=DEPTH), jax.random.key(0), x[:2])
    return ni.fit(*model, x, y, batch_size=batch, steps=steps, key=jax.random.key(1), **options)


def of_checkpoints(n: int, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of whole calls with checkpoints and without, by turns; the first of each compiles."""
    times: dict[str, list[float]] = {"without": [], "with": []}
    for i in range(rounds + 1):
        for name, taken in times.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                fitting(n, batch, steps, **({"checkpoint": folder} if name == "with" else {}))
                taken += [time.perf_counter() - start] if i else []
    ratio = statistics.median(a / b for a, b in zip(times["with"], times["without"], strict=True))
    return {"n": n, "batch": batch, "steps": steps, **times, "ratio": ratio}


def of_rows(few: int, many: int, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of a step on rows of few and of many, and their ratio, by turns."""
    times: dict[int, list[float]] = {few: [], many: []}
    for i, n in itertools.product(range(rounds + 1), times):
        history = fitting(n, batch, steps, report_every=steps // 2).history
        times[n] += [float(np.diff(history["seconds"])[-1] / np.diff(history["step"])[-1])] if i else []
    ratio = statistics.median(a / b for a, b in zip(times[many], times[few], strict=True))
    return {"batch": batch, "steps": steps, **{f"n={n}": taken for n, taken in times.items()}, "ratio": ratio}


def of_memory(height: int, width: int, side: int, steps: int, batch: int) -> dict[str, Any]:
    """Return peak memory in bytes of a photo's and a volume's run, file to reconstruction, and of the import."""
    from PIL import Image

    results = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        imported = ntk_inr("fit", "chirp", "--set", "samples=64", "--steps", 1, "--out", f"{folder}/small")
        results["import"] = imported
        Image.fromarray(photo(height, width)).save(f"{folder}/photo.png")
        words = ["fit", f"{folder}/photo.png", "--size", max(height, width), *network(batch, steps)]
        run = ntk_inr(*words, "--out", f"{folder}/photo")
        results["photo"] = {"shape": [height, width, 3], **run, "beyond": run["peak"] - height * width * 3}
        volume(Path(folder) / "volume.npy", side)
        run = ntk_inr("fit", f"{folder}/volume.npy", *network(batch, steps), "--out", f"{folder}/volume")
        results["volume"] = {"shape": [side] * 3, **run, "beyond": run["peak"] - side**3}
    return {"steps": steps, "batch": batch, **results}


def reaching(history: Any, target: float) -> float:
    """Return the seconds of training until PSNR reaches a target, infinity where it does not."""
    hits = np.flatnonzero(np.asarray(history["psnr"]) >= target)
    return float(history["seconds"][hits[0]]) if hits.size else math.inf


def of_torch(side: int, steps: int, batch: int, every: int) -> dict[str, Any]:
    """Return the curves of SIREN here and in PyTorch on the same pixels, and seconds to the targets."""
    task = ni.image_task(retina(side), size=None)
    results: dict[str, Any] = {"side": side, "steps": steps, "batch": batch, "targets": TARGETS}
    for which in ("published", "default"):
        recipe = ni.networks.recipe("siren", which)
        optimizer = ni.optimizer(**recipe.arguments, steps=steps)
        apply, params = ni.init(ni.variant("siren", features=WIDTH, depth=DEPTH, out=3), jax.random.key(0), task.x[:2])
        run = ni.fit(
            apply, params, task.x, task.y, optimizer=optimizer, steps=steps, batch_size=batch, key=jax.random.key(1),
            report_every=every,
        )  # fmt: skip
        ours = {name: np.asarray(run.history[name]).tolist() for name in ("step", "seconds", "psnr")}
        rate = rate_of(recipe.learning_rate, recipe.schedule, recipe.end, steps, recipe.warmup)
        theirs = in_torch(task, lambda t, rate=rate: float(rate(t) if callable(rate) else rate), steps, batch, every)
        to = {f"{t:g} dB": [reaching(ours, t), reaching(theirs, t)] for t in TARGETS}
        results[which] = {"recipe": str(recipe), "ours": ours, "torch": theirs, "seconds_to": to}
    return results


def in_torch(task: Any, rate: Callable[[int], float], steps: int, batch: int, every: int) -> dict[str, Any]:
    """Return the curve of the same network in PyTorch, compiled where that works; compilation is not in its seconds."""
    import torch

    class Sine(torch.nn.Linear):
        def __init__(self, fan_in: int, fan_out: int, bound: float) -> None:
            super().__init__(fan_in, fan_out)
            torch.nn.init.uniform_(self.weight, -bound, bound)

        def forward(self, u: Any) -> Any:
            return torch.sin(30.0 * super().forward(u))

    torch.manual_seed(0)
    x, y = torch.from_numpy(np.array(task.x)), torch.from_numpy(np.array(task.y))
    hidden = math.sqrt(6 / WIDTH) / 30
    layers = [Sine(2, WIDTH, 1 / 2), *(Sine(WIDTH, WIDTH, hidden) for _ in range(DEPTH - 1))]
    readout = torch.nn.Linear(WIDTH, 3)
    torch.nn.init.uniform_(readout.weight, -hidden, hidden)
    net = torch.nn.Sequential(*layers, readout)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate(0))
    sample = torch.randperm(len(x))[: min(len(x), 2**16)]

    def loss_of(rows: Any) -> Any:
        return torch.nn.functional.mse_loss(net(x[rows]), y[rows]) / 2

    def backward(call: Callable[[Any], Any], rows: Any, size: int) -> None:
        for part in rows.split(size):
            (call(part) * (len(part) / len(rows))).backward()

    call, mode = loss_of, "eager"
    try:
        call = torch.compile(loss_of)
        call(torch.arange(batch)).backward()
        mode = "compiled"
    except Exception as error:  # no compiler here
        call, mode = loss_of, f"eager ({type(error).__name__})"

    def least(size: int) -> float:
        return min(timeit.repeat(lambda: backward(call, torch.arange(batch), size), number=1, repeat=5))

    size = min((batch, batch // 2), key=least)  # parts of a batch may suit a CPU's caches better, as they do here
    order, seconds = torch.randperm(len(x)), 0.0
    curve: dict[str, Any] = {"step": [], "seconds": [], "psnr": []}
    for t in range(steps + 1):
        if t % every == 0:
            with torch.no_grad():
                error = torch.nn.functional.mse_loss(net(x[sample]), y[sample]).item()
            for name, value in (("step", t), ("seconds", seconds), ("psnr", -10 * math.log10(error))):
                curve[name].append(value)
        start, place = time.perf_counter(), t % (len(x) // batch)
        if place == 0:
            order = torch.randperm(len(x))
        for group in optimizer.param_groups:
            group["lr"] = rate(t)
        optimizer.zero_grad()
        backward(call, order[place * batch : (place + 1) * batch], size)
        optimizer.step()
        seconds += time.perf_counter() - start
    found = {"mode": mode, "microbatch": size, "version": str(torch.__version__), "threads": torch.get_num_threads()}
    return {**curve, **found}


class Grid(nn.Module):
    """A plain grid: values at its corners, interpolated, without a network."""

    side: int
    out: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Return values (n, out)."""
        return 0.5 + HashGrid(levels=1, features=self.out, log2_size=None, base=self.side)(x)


def networks(d: int, out: int, size: int) -> dict[str, Any]:
    """Return networks on ``d`` coordinates, of about ``size`` parameters each, by name."""
    width = round(math.sqrt(size / DEPTH))  # of DEPTH + 1 hidden layers, with DEPTH square matrices between
    side = round((size / out) ** (1 / d)) - 1
    # The tables' rows are a power of two at the fine levels, so a few fine levels make up what is missing.
    finest = CoordinateMLP(
        features=64, depth=2, out=out,
        encoding=HashGrid(levels=8, features=2, log2_size=round(math.log2(size / 12)), base=16, finest=2 * side),
    )  # fmt: skip
    sines = {name: ni.variant(name, features=width, depth=DEPTH + 1, out=out) for name in ("siren", "finer")}
    return {**sines, "hash": finest, "grid": Grid(side, out)}


def of_quality(task: Any, size: int, seconds: float, batch: int) -> dict[str, Any]:
    """Return PSNR against seconds of training of each network, each with as many steps as take ``seconds``."""
    curves = {}
    for name, net in networks(task.rows(np.arange(1))[0].shape[1], task.channels, size).items():
        recipe = ni.networks.recipe("hash" if name == "grid" else name)
        start, order = jax.random.split(jax.random.key(0))
        apply, params = ni.init(net, start, task.rows(np.arange(2))[0])
        data = ni.training.shuffled(task.rows, task.n, batch, order, name=task.digest)
        valid = task.rows(np.random.default_rng(1).integers(0, task.n, 2**16))

        def run(steps: int, apply=apply, params=params, recipe=recipe, data=data, valid=valid) -> Any:
            return ni.fit(
                apply, params, data=data, optimizer=ni.optimizer(**recipe.arguments, steps=steps), steps=steps,
                validation=valid, report_every=max(1, steps // 25),
            ).history  # fmt: skip

        trial = run(10)
        steps = max(20, round(seconds / (trial["seconds"][-1] - trial["seconds"][1]) * 9))
        history = run(steps)
        curves[name] = {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)), "recipe": str(recipe), "steps": steps,
            "seconds": history["seconds"].tolist(), "psnr": history["validation_psnr"].tolist(),
        }  # fmt: skip
    return {"n": task.n, "batch": batch, "curves": curves}


def of_both(side: int, voxels: int, size: int, seconds: float, batch: int) -> dict[str, Any]:
    """Return the curves on a picture and on a volume."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = {
            f"picture {side} x {side}": ni.image_task(photo(side, side), size=None),
            f"volume {voxels} x {voxels} x {voxels}": ni.volume_task(volume(Path(folder) / "volume.npy", voxels)),
        }
        return {name: of_quality(task, size, seconds, batch) for name, task in tasks.items()}


def trained_in(folder: str, side: int, steps: int, batch: int) -> None:
    """Train as the command does, but with checkpoints every second, going on where a killed run stopped."""
    task = ni.image_task(photo(side, side), size=None)
    apply, params = ni.init(ni.variant("siren", features=WIDTH, depth=DEPTH, out=3), jax.random.key(0), task.x[:2])
    run = ni.fit(
        apply, params, task.x, task.y, steps=steps, batch_size=batch, key=jax.random.key(1),
        checkpoint=f"{folder}/checkpoints", checkpoint_every=1.0,
    )  # fmt: skip
    save_file({str(place): np.asarray(leaf) for place, leaf in enumerate(jax.tree.leaves(run.params))}, f"{folder}/end")


def of_interrupted(side: int, steps: int, batch: int, kills: int) -> dict[str, Any]:
    """Return whether a command and a run that are killed ``kills`` times at random moments end as one that was not."""
    from PIL import Image

    moments, process_of = random.Random(0), multiprocessing.get_context("spawn").Process
    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(photo(side, side)).save(f"{folder}/photo.png")
        words = ["fit", f"{folder}/photo.png", "--size", side, *network(batch, steps)]
        whole = ntk_inr(*words, "--out", f"{folder}/straight")["seconds"]
        for _ in range(kills):
            killed(*words, "--out", f"{folder}/killed", "--resume", after=moments.uniform(0.1, 0.9) * whole)
        ntk_inr(*words, "--out", f"{folder}/killed", "--resume")
        command = same_numbers(*(f"{folder}/{run}/network.safetensors" for run in ("straight", "killed")))

        ends = [f"{folder}/{run}/end" for run in ("at once", "in parts")]
        for end, count in zip(ends, (0, kills), strict=True):
            Path(end).parent.mkdir()
            for kill in range(count + 1):
                process, start = (
                    process_of(target=trained_in, args=(str(Path(end).parent), side, 4 * steps, batch)),
                    time.time(),
                )
                process.start()
                process.join(moments.uniform(0.1, 0.3) * whole if kill < count else None)
                process.kill()
                process.join()
            whole = time.time() - start
        equal = {"command": command, "run": same_numbers(*ends)}
    return {"side": side, "steps": steps, "batch": batch, "kills": kills, "equal": equal}


def same_numbers(one: str, other: str) -> bool:
    """Return whether two files hold the same arrays, but for the seconds that a run took."""
    a, b = ({key: value for key, value in load_file(file).items() if "seconds" not in key} for file in (one, other))
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def picture(results: dict[str, Any]) -> Any:
    """Return PSNR against seconds of training, a panel for each signal."""
    plt = style.pyplot()
    figure, axes = plt.subplots(1, len(results), figsize=(9, 3.6), layout="constrained", squeeze=False)
    for axis, (title, part) in zip(axes[0], results.items(), strict=True):
        for name, curve in part["curves"].items():
            axis.plot(curve["seconds"], curve["psnr"], label=f"{name}, {curve['parameters']:,} parameters")
        axis.set(title=title, xlabel="seconds of training", ylabel="PSNR [dB]")
        axis.legend(fontsize="small")
    return figure


def claims(results: dict[str, Any]) -> list[Claim]:
    """Return what the numbers say of what real sizes should cost."""
    said = []
    bounds = {
        "command": (1.3, "The command takes at most {} of its training steps"),
        "checkpoints": (1.15, "A run with checkpoints takes at most {} of one without"),
        "rows": (1.1, "A step on rows of ten million takes at most {} of one on rows of a hundred thousand"),
    }
    for part, (bound, text) in bounds.items():
        if part in results:
            ratio = results[part]["ratio"]
            sizes = {k: v for k, v in results[part].items() if isinstance(v, int)}
            said.append(
                Claim(
                    text.format(bound), "holds" if ratio <= bound else "does not hold", f"{ratio:.2f}",
                    ", ".join(f"{name} {value}" for name, value in sizes.items()) + ".",
                )
            )  # fmt: skip
    if "memory" in results:
        beyond = results["memory"]["photo"]["beyond"] / 2**30
        whole = results["memory"]["volume"]["peak"] / 2**30
        said += [
            Claim(
                "A 4K photo takes at most 2 GiB beyond the picture itself",
                "holds" if beyond <= 2 else "does not hold", f"{beyond:.2f} GiB",
                f"Of these {results['memory']['import']['peak'] / 2**30:.2f} GiB are those of a run on 64 numbers.",
            ),
            Claim(
                "A volume of 512 voxels a side goes end to end within 4 GiB",
                "holds" if whole <= 4 else "does not hold", f"{whole:.2f} GiB", "Its file is read in parts.",
            ),
        ]  # fmt: skip
    if "torch" in results:
        own = results["torch"]
        pairs = {f"{w}, {k}": v for w in ("published", "default") for k, v in own[w]["seconds_to"].items()}
        best = {
            k: (own["default"]["seconds_to"][k][0], own["published"]["seconds_to"][k][1])
            for k in own["default"]["seconds_to"]
        }
        pairs |= {f"ours by default, PyTorch as published, {k}": v for k, v in best.items()}
        reached = {k: v for k, v in pairs.items() if np.isfinite(v).any()}
        said.append(
            Claim(
                "SIREN reaches 30 and 35 dB sooner than in PyTorch, at its recipe and at the same",
                "holds" if all(ours < theirs for ours, theirs in reached.values()) else "holds when",
                "; ".join(f"{k}: {ours:.3g} s, PyTorch {theirs:.3g} s" for k, (ours, theirs) in reached.items()),
                f"PyTorch {own['default']['torch']['version']}, {own['default']['torch']['mode']}.",
            )
        )
    if "quality" in results:
        ends = {
            title: ", ".join(f"{name} {curve['psnr'][-1]:.1f} dB" for name, curve in part["curves"].items())
            for title, part in results["quality"].items()
        }
        leads = [
            max(part["curves"], key=lambda n: part["curves"][n]["psnr"][-1]) for part in results["quality"].values()
        ]
        said.append(
            Claim(
                "A network beats a plain grid of as many parameters, in the same seconds",
                "holds" if "grid" not in leads else "holds when" if set(leads) != {"grid"} else "does not hold",
                "; ".join(f"{title}: {text}" for title, text in ends.items()), "The figure has the curves.",
            )
        )  # fmt: skip
    if "interrupted" in results:
        part = results["interrupted"]
        said.append(
            Claim(
                "A run that is killed and resumed ends with the same bits",
                "holds" if all(part["equal"].values()) else "does not hold",
                f"{part['kills']} kills of a command, {part['kills']} of a run with checkpoints every second",
                f"{part['steps']} and {4 * part['steps']} steps.",
            )
        )  # fmt: skip
    return said


def line(part: str, found: dict[str, Any]) -> str:
    """Return what is said of a part."""
    return "\n".join(f"{claim.statement}: {claim.number}" for claim in claims({part: found}))


def main() -> None:
    """Measure, print, and keep the JSON and the figure."""
    arguments = arguments_of(__doc__, parts=PARTS).parse_args()
    profile = profile_of(arguments, timed=True)
    quick, gpu = profile == "quick", profile == "gpu"
    side, steps, batch, rounds = (64, 20, 512, 1) if quick else (1024, 2000 if gpu else 200, BATCH, 3)
    computes: dict[str, Callable[[], Any]] = {
        "command": lambda: of_command(side, steps, batch, rounds),
        "checkpoints": lambda: of_checkpoints(
            *((4000, 256) if quick else (2_000_000, 1024)), 20 if quick else 2000, rounds
        ),
        "rows": lambda: of_rows(*((1000, 10_000, 256, 20) if quick else (10**5, 10**7, 1024, 400)), rounds),
        "memory": lambda: of_memory(*((96, 128, 16, 5, 512) if quick else (2160, 3840, 512, 20, batch))),
        "quality": lambda: of_both(*((32, 12, 2000, 0.3, 256) if quick else (side, 512, 200_000, 60.0, 2**14))),
        "interrupted": lambda: of_interrupted(*((48, 20, 512, 1) if quick else (side, 100, batch, 10))),
    }
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed; its part is left out.")
    else:
        computes["torch"] = lambda: of_torch(side, steps if quick else 1000, batch // 4, 20)
    settings = {"width": WIDTH, "depth": DEPTH, "side": side, "steps": steps, "batch": batch, "rounds": rounds}
    found = collect(NAME, profile, settings, parts_asked_for(arguments, computes), line)
    if quick:
        return
    pictures = {}
    if "quality" in found:
        save_figure(picture(found["quality"]), results_folder(NAME) / "quality")
        pictures["quality"] = "PSNR against seconds of training, networks and a plain grid of as many parameters."
    publish_parts(NAME, settings=settings, found=found, order=PARTS, pictures=pictures)


if __name__ == "__main__":
    main()
