"""Where does the theory of the kernel at initialisation fail, and why?

    python -m benchmarks.where_theory_fails            # five cases, about 10 minutes on 2 cores
    python -m benchmarks.where_theory_fails --quick    # a tiny image and narrow networks, under a minute, nothing kept

Writes benchmarks/results/where_theory_fails/<device>/: results.json and cases.png, a panel a case. All on the camera
image, kernels in float64, mean ± standard error over seeds. Gradient descent is full batch at half of the largest
stable rate, beside what the kernel at initialisation predicts for it (T10.1). Five things that one would conclude:

1. a constant kernel predicts how SIREN trains;        4. Hadamard modulation lowers the variance;
2. it predicts how networks with modulation train;     5. a lower cv makes a better reconstruction.
3. a smaller variance is better conditioning;

Alignment is that of a kernel K with the image y less its mean: y'Ky / (|K| |y|²), at most 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

import ntk_inr as ni
from benchmarks.keep import ERRORS, Claim, Picture, Profile, chosen_profile, mean, publish, verdict
from ntk_inr import style
from ntk_inr.study.candidate import kernel_in_float64
from ntk_inr.training.curves import psnr

RATE = 1e-3
# A prediction holds within so many dB.
TOLERANCE = 1.0
# A figure falls if it falls by so much: less is rounding, or no use to anyone.
FALL = 0.01
SMALLER, WIDER = 0.1, 4
AS_IS, SMALL, CENTRED, WIDE = "as it is", f"readout × {SMALLER:g}", "initial output subtracted", f"{WIDER} × as wide"
PLAIN, MODULATED = "relu", "relu+hadamard"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of a profile; ``scales`` are those of random Fourier features in case 5."""

    size: int = 32
    features: int = 128
    depth: int = 3
    steps: int = 300
    seeds: int = 5
    mends: tuple[str, ...] = (AS_IS, SMALL, CENTRED, WIDE)
    scales: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


PROFILES: dict[Profile, Settings] = {
    "quick": Settings(size=8, features=16, depth=1, steps=60, seeds=2, mends=(AS_IS, CENTRED), scales=(1.0, 16.0)),
    "cpu": Settings(),
    "gpu": Settings(size=64, features=256, depth=4, steps=1000),
}


def said(values: Any, digits: str = ".3g") -> str:
    """Return mean ± standard error over seeds."""
    measure = mean(values)
    return f"{measure.value:{digits}} ± {measure.error:.2g}"


def drawn(net: nn.Module, x: Any, seeds: int) -> tuple[Any, Any]:
    """Return (apply, params) of all seeds, stacked."""
    return jax.jit(jax.vmap(lambda key: ni.init(net, key, x)))(jax.random.split(jax.random.key(0), seeds))


def one_by_one(models: tuple[Any, Any]) -> list[tuple[Any, Any]]:
    """Return the (apply, params) of each seed."""
    seeds = len(jax.tree.leaves(models[1])[0])
    return [jax.tree.map(lambda leaf, s=s: leaf[s], models) for s in range(seeds)]


def shrunk(apply: Any, params: Any) -> tuple[Any, Any]:
    """Return the model with a smaller readout, and so a smaller initial output."""
    return apply, {**params, "readout": jax.tree.map(lambda leaf: SMALLER * leaf, params["readout"])}


def centred(apply: Any, params: Any) -> tuple[Any, Any]:
    """Return the model less its initial output, which leaves its kernel as it is."""
    return Partial(_difference, apply, params), params


def _difference(apply: Any, start: Any, params: Any, x: Any) -> Any:
    return apply(params, x) - apply(start, x)


CHANGES: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {SMALL: shrunk, CENTRED: centred}


def alignment(kernel: np.ndarray, y: np.ndarray) -> float:
    """Return the alignment of a kernel with what it has to fit."""
    y = (y - y.mean())[:, 0]
    return float(y @ kernel @ y / (np.linalg.norm(kernel) * (y @ y)))


def spectrum(kernels: list[np.ndarray]) -> dict[str, Any]:
    """Return what kernels at initialisation tell, by seed, and eigenvalues of the first one."""
    values, moments = [ni.eigenvalues(kernel) for kernel in kernels], [ni.moments(kernel) for kernel in kernels]
    at = np.unique(np.geomspace(1, len(values[0]), 80).round()).astype(int)
    return {
        "variance": [float(m.variance) for m in moments], "cv": [float(m.cv) for m in moments],
        "condition number": [float(ni.condition_number(each).value) for each in values],
        "index": at.tolist(), "eigenvalues": values[0][at - 1].tolist(),
    }  # fmt: skip


def spectrum_of(net: nn.Module, x: Any, settings: Settings) -> dict[str, Any]:
    """Return the spectrum of a network's kernels at initialisation."""
    return spectrum([kernel_in_float64(*model, x) for model in one_by_one(drawn(net, x, settings.seeds))])


def descend(net: nn.Module, task: Any, settings: Settings, change: str = AS_IS) -> dict[str, Any]:
    """Return gradient descent as predicted and as measured, by seed, and how the kernel moved."""
    x = jnp.asarray(task.x)
    models = drawn(net, x, settings.seeds)
    models = CHANGES[change](*models) if change in CHANGES else models
    each = one_by_one(models)
    before = [kernel_in_float64(*model, x) for model in each]
    systems = [ni.spectra.eigensystem(kernel) for kernel in before]
    starts = [np.asarray(apply(params, x), np.float64) for apply, params in each]
    # All seeds train in one program, so at one rate: half of the least.
    rate = float(min(map(ni.max_learning_rate, systems))) / 2
    curves = [
        ni.predict_training(system, start - task.y, learning_rate=rate, steps=settings.steps).psnr
        for system, start in zip(systems, starts, strict=True)
    ]
    runs = ni.fit_seeds(*models, x, task.y, optimizer=optax.sgd(rate), steps=settings.steps)
    after = [kernel_in_float64(apply, run.params, x) for (apply, _), run in zip(each, runs, strict=True)]
    at = np.unique(np.append(0, np.geomspace(1, settings.steps, 60).round())).astype(int)
    pairs = list(zip(before, after, strict=True))
    return {
        "rate": rate, "step": at.tolist(), "status": [run.status for run in runs],
        "predicted": [np.round(curve[at], 3).tolist() for curve in curves],
        "measured": [np.round(np.interp(at, np.arange(run.steps + 1), run.psnr), 3).tolist() for run in runs],
        "initial output": [float(np.sqrt((start**2).mean())) for start in starts],
        "gap": [float(run.psnr[-1] - curve[-1]) for run, curve in zip(runs, curves, strict=True)],
        "drift": [float(np.linalg.norm(b - a) / np.linalg.norm(a)) for a, b in pairs],
        "cv": [[float(ni.moments(kernel).cv) for kernel in pair] for pair in pairs], "spectrum": spectrum(before),
        "alignment": [[alignment(kernel, task.y) for kernel in pair] for pair in pairs],
    }  # fmt: skip


def sweep(settings: Settings) -> dict[str, Any]:
    """Return cv and PSNR by scale of the encoding and seed, with half of the pixels held out, after Adam."""
    task = ni.image_task("camera", size=settings.size, holdout=0.5)
    x, heldout = jnp.asarray(task.x), task.heldout
    assert heldout is not None
    net = ni.variant("rff", features=settings.features, depth=settings.depth)
    found: dict[str, Any] = {"scales": list(settings.scales), "cv": [], "trained on": [], "held out": []}
    optimizer = optax.adam(RATE)
    for scale in settings.scales:
        rows = []
        for seed in range(settings.seeds):
            # With the scale as an argument, all share one compilation.
            apply, params = ni.init(net, jax.random.key(seed), x, settings={"encoding.scale": scale})
            run = ni.fit(apply, params, x, task.y, optimizer=optimizer, steps=settings.steps)
            error = np.asarray(apply(run.params, jnp.asarray(heldout[0])), np.float64) - heldout[1]
            cv = float(ni.moments(kernel_in_float64(apply, params, x)).cv)
            rows.append((cv, float(run.psnr[-1]), float(psnr((error**2).mean()))))
        for key, column in zip(("cv", "trained on", "held out"), zip(*rows, strict=True), strict=True):
            found[key].append(list(column))
    return found


def measure(settings: Settings) -> dict[str, Any]:
    """Return what all cases need, each network measured once."""
    task = ni.image_task("camera", size=settings.size)
    x, sizes = jnp.asarray(task.x), {"features": settings.features, "depth": settings.depth}
    wide = sizes | {"features": WIDER * settings.features}
    found: dict[str, Any] = {
        "plain": {name: descend(ni.variant(name, **sizes), task, settings) for name in (PLAIN, "siren")}
    }
    print("plain descent done", flush=True)
    found["modulated"] = {
        mend: descend(ni.variant(MODULATED, **(wide if mend == WIDE else sizes)), task, settings, mend)
        for mend in settings.mends
    }
    print("modulated descent done", flush=True)
    # Without biases every part of the gradient grows with the radius alike.
    found["radius"] = {
        name: spectrum_of(
            ni.variant("pe+sphere", **sizes, bias_law=None, normalization=ni.Sphere(radius=radius)), x, settings
        )
        for name, radius in (("√m", None), ("1", 1.0))
    }
    trained = ni.variant(PLAIN, **sizes, modulation=ni.FourierModulation(trained=True))
    found["modulation"] = {
        "none": found["plain"][PLAIN]["spectrum"],
        "fixed": found["modulated"][AS_IS]["spectrum"],
        "trained": spectrum_of(trained, x, settings),
    }
    print("spectra done", flush=True)
    found["scales"] = sweep(settings)
    return found


def ratios(of: dict[str, Any], base: dict[str, Any], figure: str) -> np.ndarray:
    """Return a figure over that of another network, by seed."""
    return np.array(of[figure]) / np.array(base[figure])


def falls(ratio: np.ndarray) -> bool:
    """Return whether ratios are below 1 - FALL, by ERRORS standard errors of their logarithm."""
    value, error = mean(np.log(ratio))
    return value + ERRORS * error < np.log1p(-FALL)


def predicts(run: dict[str, Any]) -> bool:
    """Return whether gradient descent ends within TOLERANCE of its prediction."""
    return abs(float(np.mean(run["gap"]))) <= TOLERANCE


def moved(run: dict[str, Any]) -> str:
    """Return how the kernel changed while training."""
    (a, b), (c, d) = np.mean(run["alignment"], axis=0), np.mean(run["cv"], axis=0)
    drift = f"{100 * np.mean(run['drift']):.0f} %"
    return f"it moves by {drift}, its alignment goes {a:.2f} to {b:.2f}, its cv {c:.3g} to {d:.3g}"


def best_and_lowest(scales: dict[str, Any]) -> tuple[int, int]:
    """Return which scale does best on held-out pixels, and which has the lowest cv."""
    return int(np.mean(scales["held out"], axis=1).argmax()), int(np.mean(scales["cv"], axis=1).argmin())


def lost(scales: dict[str, Any]) -> np.ndarray:
    """Return what the scale of lowest cv loses against the best one on held-out pixels [dB], by seed."""
    best, lowest = best_and_lowest(scales)
    return np.array(scales["held out"][best]) - np.array(scales["held out"][lowest])


def judge(found: dict[str, Any]) -> list[Claim]:
    """Return the five conclusions, each with its verdict by the rule that its number states."""
    relu, siren, modulated = found["plain"][PLAIN], found["plain"]["siren"], found["modulated"]
    towards = np.subtract(*np.transpose(siren["alignment"])[::-1]).mean() > 0
    mended = [name for name, run in modulated.items() if predicts(run)]
    large, small = found["radius"].values()
    variance, condition, cv = (ratios(small, large, key) for key in ("variance", "condition number", "cv"))
    none, fixed, trained = found["modulation"].values()
    by = {name: ratios(of, none, "variance") for name, of in (("fixed", fixed), ("trained", trained))}
    scales, (best, lowest) = found["scales"], best_and_lowest(found["scales"])
    loss, error = mean(lost(scales))
    return [
        Claim(
            f"A constant kernel predicts gradient descent of SIREN within {TOLERANCE:g} dB (theory T10)",
            verdict([predicts(siren)]),
            f"measured less predicted {said(siren['gap'])} dB, of the ReLU network {said(relu['gap'])} dB",
            f"SIREN's kernel does not stay put: {moved(siren)}. "
            + ("It turns towards the image, which is learning of features. " if towards else "")
            + f"The ReLU network's: {moved(relu)}.",
        ),
        Claim(
            f"It predicts gradient descent of networks with Hadamard modulation within {TOLERANCE:g} dB (theory T10)",
            verdict([predicts(run) for run in modulated.values()]),
            "measured less predicted "
            + ", ".join(f"{name} {said(run['gap'])} dB" for name, run in modulated.items()),
            f"Within {TOLERANCE:g} dB: {', '.join(mended) or 'none of these'}. The initial output has an rms of "
            f"{np.mean(modulated[AS_IS]['initial output']):.2g}, which has to be unlearned; while training, "
            + "; ".join(f"{name}: {moved(run)}" for name, run in modulated.items()) + ".",
        ),
        Claim(
            "A smaller variance of the eigenvalues is better conditioned (the paper's reading)",
            verdict([falls(condition)] if falls(variance) else [False]),
            f"spheres of radius 1 in place of √m: variance × {said(variance)}, cv × {said(cv, '.4f')}, condition "
            f"number × {said(condition, '.4f')}",
            "Without biases the radius C multiplies the whole kernel by C²: the variance falls by scale alone (5.10). "
            "Even cv only bounds the condition number from below (1.6).",
        ),
        Claim(
            "Hadamard modulation lowers the variance of the eigenvalues (the paper)",
            verdict([falls(ratio) for ratio in by.values()]),
            ", ".join(
                f"{name}: variance × {said(ratio)}, cv × {said(ratios(of, none, 'cv'))}"
                for (name, ratio), of in zip(by.items(), (fixed, trained), strict=True)
            ),
            "(6.4) is for modulators that are fixed. Trained ones add a term of their own that grows as ω² (6.5).",
        ),
        Claim(
            "The lower cv, the better the reconstruction of what was not seen",
            verdict([loss <= ERRORS * error]),
            f"random Fourier features: the lowest cv, {np.mean(scales['cv'][lowest]):.3g} at scale "
            f"{scales['scales'][lowest]:g}, ends at {said(scales['held out'][lowest])} dB held out, "
            f"{said(lost(scales), '.1f')} dB below scale {scales['scales'][best]:g} with cv "
            f"{np.mean(scales['cv'][best]):.3g}",
            "At large scales the kernel is a constant plus a multiple of the identity: it memorises and knows nothing "
            "between the points (T1). cv hardly differs, and is about trainability.",
        ),
    ]  # fmt: skip


def curves(axis: Any, runs: dict[str, Any]) -> None:
    """Draw gradient descent, predicted and measured."""
    for (name, run), color in zip(runs.items(), style.PALETTE, strict=False):
        for kind, line in (("measured", "-"), ("predicted", "--")):
            middle, error = np.transpose([mean(at) for at in np.transpose(run[kind])])
            axis.plot(run["step"], middle, line, color=color, label=f"{name}, {kind}")
            axis.fill_between(run["step"], middle - error, middle + error, color=color, alpha=0.15, lw=0)
    axis.set_xscale("symlog", linthresh=1)
    axis.set(xlabel="steps of gradient descent", ylabel="PSNR [dB]", xlim=(0, None))
    axis.legend()


def bars(axis: Any, values: dict[str, Any], **labels: str) -> None:
    """Draw means with ERRORS standard errors, a row each."""
    places = np.arange(len(values))
    middle, error = np.transpose([mean(each) for each in values.values()])
    axis.errorbar(middle, places, xerr=ERRORS * error, fmt="o", color=style.FAST, capsize=3)
    axis.set(yticks=places, yticklabels=values, ylim=(len(values) - 0.5, -0.5), **labels)


def plot(found: dict[str, Any]) -> Any:
    """Draw a panel a case, and how kernels align with the image."""
    modulated, siren = found["modulated"], found["plain"]["siren"]
    runs = found["plain"] | {f"{MODULATED},\n{name}": run for name, run in modulated.items()}
    large, small = found["radius"].values()
    scales, base = found["scales"], found["modulation"]["none"]
    with style.figure_style():
        figure, axes = style.pyplot().subplots(2, 3, figsize=(14, 7.6))
        curves(axes[0, 0], found["plain"])
        axes[0, 0].set_title(f"1. SIREN ends {np.mean(siren['gap']):+.1f} dB from its prediction")
        before, after = np.transpose([np.mean(run["alignment"], axis=0) for run in runs.values()])
        for row, (a, b) in enumerate(zip(before, after, strict=True)):
            axes[0, 1].annotate("", (b, row), (a, row), arrowprops={"arrowstyle": "->", "color": style.PREDICTED})
        axes[0, 1].plot(before, range(len(runs)), "o", color=style.NEUTRAL, label="at initialisation")
        axes[0, 1].plot(after, range(len(runs)), "o", color=style.PREDICTED, label="trained")
        axes[0, 1].set(yticks=range(len(runs)), yticklabels=runs, ylim=(len(runs) - 0.5, -0.5))
        axes[0, 1].set(xlabel="alignment of kernel and image", xlim=(0, None))
        axes[0, 1].set_title(
            f"1. Alignment: SIREN {before[1]:.2f} to {after[1]:.2f}, ReLU {before[0]:.2f} to {after[0]:.2f}"
        )
        axes[0, 1].legend()
        bars(axes[0, 2], {n: run["gap"] for n, run in modulated.items()}, xlabel="measured less predicted PSNR [dB]")
        axes[0, 2].axvspan(-TOLERANCE, TOLERANCE, color=style.NEUTRAL, alpha=0.2, lw=0)
        good = sum(map(predicts, modulated.values()))
        axes[0, 2].set_title(f"2. {MODULATED}: {good} of {len(modulated)} within {TOLERANCE:g} dB")
        for (name, each), color in zip(found["radius"].items(), style.PALETTE, strict=False):
            label = f"radius {name}, cv {np.mean(each['cv']):.3g}"
            axes[1, 0].loglog(each["index"], each["eigenvalues"], color=color, label=label)
        ratio = [np.mean(ratios(small, large, key)) for key in ("variance", "condition number")]
        axes[1, 0].set_title(f"3. Variance × {ratio[0]:.2g}, condition number × {ratio[1]:.2f}")
        axes[1, 0].set(xlabel="index", ylabel="eigenvalue of the kernel")
        axes[1, 0].legend()
        times = {name: ratios(each, base, "variance") for name, each in found["modulation"].items() if name != "none"}
        bars(axes[1, 1], times, xlabel="variance over that without modulation", xscale="log")
        axes[1, 1].axvline(1, color=style.MEASURED, lw=0.8)
        words = " and ".join(f"× {np.mean(each):.2g} {name}" for name, each in times.items())
        axes[1, 1].set_title(f"4. Modulators: variance {words}")
        for key, color in (("trained on", style.NEUTRAL), ("held out", style.FAST)):
            middle, error = np.transpose([mean(each) for each in scales[key]])
            axes[1, 2].errorbar(
                scales["scales"], middle, ERRORS * error, fmt="o-", ms=4, color=color, label=f"pixels {key}"
            )
        cv = np.mean(scales["cv"], axis=1)
        axes[1, 2].set(
            xlabel="scale σ of the encoding, and cv of its kernel", ylabel="PSNR after Adam [dB]", xscale="log"
        )
        axes[1, 2].set_xticks(
            scales["scales"], [f"{scale:g}\n{each:.2g}" for scale, each in zip(scales["scales"], cv, strict=True)]
        )
        axes[1, 2].xaxis.set_minor_formatter("")
        axes[1, 2].set_title(f"5. Lowest cv: {np.mean(lost(scales)):.1f} dB below the best")
        axes[1, 2].legend()
    return figure


def main() -> None:
    """Measure, judge and keep."""
    profile = chosen_profile(__doc__)
    settings = PROFILES[profile]
    found = measure(settings)
    claims = judge(found)
    failing = [str(number) for number, claim in enumerate(claims, 1) if claim.verdict != "holds"]
    finding = (
        f"Of five conclusions from the kernel at initialisation, these fail or need a condition: {', '.join(failing)}."
    )
    publish(
        "where_theory_fails", profile, settings=dataclasses.asdict(settings), measured=found, claims=claims,
        pictures={"cases": Picture(plot(found), finding)},
    )  # fmt: skip


if __name__ == "__main__":
    main()
