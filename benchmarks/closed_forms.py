"""Do the closed forms of two-layer networks tell the variance of real kernels, and do the paper's claims hold?

    python -m benchmarks.closed_forms            # all of it, about 25 minutes on 2 cores
    python -m benchmarks.closed_forms --quick    # 64 points, one width, under a minute, nothing kept

Writes benchmarks/results/closed_forms/<device>/: results.json, table.md (component x closed form, proxy, Monte Carlo,
ratio), claims.md (each claim of arXiv 2512.15169 with its numbers), agreement.png and majorisation.png.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntk_inr as ni
from benchmarks.keep import Claim, Verdict, chosen_profile, print_claims, results_folder
from ntk_inr.study.environment import environment
from ntk_inr.study.figures import save_figure
from ntk_inr.study.record import write_json, write_text
from ntk_inr.style import FAST, MARKERS, MEASURED, NEUTRAL, PALETTE, PREDICTED, figure_style, pyplot

WIDTHS, SEEDS, SIDE = (64, 256, 1024), 32, 32
OMEGA, BANDS, SIGMA, FREQUENCIES, SHARE = 4.0, 3, 0.5, 64, 8
# A closed form passes within this many standard errors, or within this relative distance.
ERRORS, RELATIVE = 2.0, 0.02

PICTURES = {
    "agreement": "The closed forms agree with drawn networks; the usual proxy does for wide plain networks only.",
    "majorisation": "A fixed modulator only lowers the partial sums of the spectrum (6.4).",
}

HADAMARD = ni.FourierModulation(omega=OMEGA)
NERF, FOURIER = ni.NeRFEncoding(bands=BANDS), ni.GaussianFourier(features=FREQUENCIES, scale=SIGMA)


def components(width: int) -> dict[str, dict[str, Any]]:
    """Return the settings of each component at this width."""
    k = width // SHARE
    return {
        "baseline": {},
        "both layers trained": {"trained": ("weights", "readout"), "readout": "normal"},
        "with biases, all trained": {
            "trained": ("weights", "bias", "readout"),
            "readout": "normal",
            "bias_std": 0.5,
            "output_bias": 0.3,
        },
        "NeRF encoding": {"encoding": NERF},
        "Fourier features, averaged": {"encoding": FOURIER},
        "sphere, input": {"normalization": ni.Sphere(placement="input")},
        "sphere, hidden_post, signs": {"normalization": ni.Sphere()},
        "sphere, hidden_post, constant": {"normalization": ni.Sphere(), "readout": "constant"},
        "sphere, hidden_pre, signs": {"normalization": ni.Sphere(placement="hidden_pre")},
        "sphere, hidden_pre, constant": {"normalization": ni.Sphere(placement="hidden_pre"), "readout": "constant"},
        "Hadamard": {"modulation": HADAMARD},
        "Hadamard, three": {"modulation": (HADAMARD,) * 3},
        "Hadamard, trained": {"modulation": HADAMARD.clone(trained=True)},
        "sphere + Hadamard": {"normalization": ni.Sphere(), "modulation": HADAMARD},
        "TopK": {"sparsity": ni.TopK(k)},
        "TopK-SP, signs": {"sparsity": ni.TopK(k, mode="sphere")},
        "TopK-SP, constant": {"sparsity": ni.TopK(k, mode="sphere"), "readout": "constant"},
        "soft TopK, shrinkage": {"sparsity": ni.TopK(k, mode="soft", temperature=0.1)},
        "soft TopK, gated": {"sparsity": ni.TopK(k, mode="soft", temperature=0.1, soft="gated")},
    }


def lifted(x: np.ndarray) -> np.ndarray:
    """Append a constant 1, which stands for a bias and keeps the origin's direction."""
    return np.concatenate([x, np.ones_like(x[:, :1])], axis=1)


def inputs(side: int) -> dict[str, np.ndarray]:
    """Return side² coordinates of each kind."""
    draw = np.random.default_rng(0)
    n = side * side
    camera = ni.image_task("camera", size=None).x
    directions = draw.standard_normal((n, 3))
    return {
        "grid": np.asarray(ni.image_task(np.zeros((side, side)), size=None).x, np.float64),
        "camera": np.asarray(draw.permutation(camera)[:n], np.float64),
        "sphere": directions / np.linalg.norm(directions, axis=1, keepdims=True),
    }


def entering(points: np.ndarray, kind: str, settings: dict[str, Any]) -> jax.Array:
    """Return what a component sees of these points: encodings take the plane itself, the rest is lifted."""
    return jnp.asarray(points if kind == "sphere" or "encoding" in settings else lifted(points), jnp.float32)


@functools.partial(jax.jit, static_argnames="net")
def _drawn(net: Any, x: jax.Array, keys: jax.Array) -> dict[str, jax.Array]:
    def one(key: jax.Array) -> dict[str, jax.Array]:
        kernel = ni.ntk(*ni.init(net, key, x), x)
        spectrum = ni.moments(kernel)
        without = jnp.fill_diagonal(kernel, 0.0, inplace=False)
        return {"mean": spectrum.mean, "variance": spectrum.variance, "off_diagonal": ni.moments(without).variance}

    return jax.lax.map(one, keys)


def measured(x: jax.Array, width: int, settings: dict[str, Any], seeds: int) -> dict[str, list[float]]:
    """Return Monte Carlo [mean, standard error] of the mean and the variance of the eigenvalues, and of v_off."""
    keys = jax.random.split(jax.random.key(width), seeds)
    drawn = _drawn(ni.networks.two_layer_network(width, **settings), x, keys)
    return {
        name: [float(np.mean(values, dtype=float)), float(np.std(values, ddof=1, dtype=float) / math.sqrt(seeds))]
        for name, values in drawn.items()
    }


def predicted(x: jax.Array, width: int, settings: dict[str, Any], **options: Any) -> ni.closed_forms.TwoLayerMoments:
    """Return the closed form, in float64."""
    with jax.enable_x64(True):
        return ni.two_layer_moments(jnp.asarray(np.asarray(x), jnp.float64), width=width, **settings, **options)


def row(kind: str, points: np.ndarray, width: int, name: str, settings: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Return one line of the table."""
    x = entering(points, kind, settings)
    form, drawn = predicted(x, width, settings), measured(x, width, settings, seeds)
    line: dict[str, Any] = {
        "component": name,
        "inputs": kind,
        "width": width,
        "status": form.status,
        "formula": form.formula,
        "condition": form.condition,
        "proxy": None if form.proxy is None else float(form.proxy),
        "proxy_ratio": None if form.proxy_ratio is None else float(form.proxy_ratio),
    }
    for moment in ("mean", "variance"):
        closed, (value, error) = float(getattr(form, moment)), drawn[moment]
        line[moment] = {
            "closed_form": closed,
            "monte_carlo": value,
            "standard_error": error,
            "ratio": closed / value,
            "errors_apart": abs(closed - value) / error if error else 0.0,
            "agrees": abs(closed - value) <= max(ERRORS * error, RELATIVE * abs(value)),
        }
    return line


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    head = [
        "component",
        "inputs",
        "m",
        "status",
        "formula",
        "E v",
        "proxy / E v",
        "Monte Carlo v",
        "E v / MC",
        "E mean / MC",
        "",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in rows:
        v, mean = line["variance"], line["mean"]
        proxy = "" if line["proxy_ratio"] is None else f"{line['proxy_ratio']:.3f}"
        agrees = "" if v["agrees"] and mean["agrees"] else "**apart**"
        cells = [
            line["component"], line["inputs"], str(line["width"]), line["status"], line["formula"],
            f"{v['closed_form']:.4g}", proxy, f"{v['monte_carlo']:.4g} ± {v['standard_error']:.2g}",
            f"{v['ratio']:.3f}", f"{mean['ratio']:.4f}", agrees,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _of(rows: list[dict[str, Any]], component: str, kind: str, width: int) -> tuple[float, float]:
    """Return the measured variance and cv."""
    line = next(r for r in rows if (r["component"], r["inputs"], r["width"]) == (component, kind, width))
    variance, mean = line["variance"]["monte_carlo"], line["mean"]["monte_carlo"]
    return variance, math.sqrt(variance) / mean


def _against(rows: list[dict[str, Any]], component: str, base: str, width: int, kinds: list[str]) -> list[str]:
    """Return a line for each input: how variance and cv change from one component to another, measured."""
    lines = []
    for kind in kinds:
        (v0, cv0), (v1, cv1) = (_of(rows, name, kind, width) for name in (base, component))
        lines.append(f"| {base} → {component} | {kind} | {v1 / v0:.3g} | {cv0:.3g} → {cv1:.3g} |")
    return lines


_CHANGE = ["| change | inputs | variance times | cv |", "|---|---|---|---|"]


def slopes(points: dict[str, np.ndarray], width: int, seeds: int) -> list[dict[str, Any]]:
    """Return d log v_off / d log k of TopK and TopK-SP over k/m from 1/32 to 1/4, by closed form and Monte Carlo."""
    shares = (32, 16, 8, 4)
    rows = []
    for kind, xs in points.items():
        for mode in ("hard", "sphere"):
            theory, real, errors = [], [], []
            for share in shares:
                settings = {"sparsity": ni.TopK(width // share, mode=mode)}
                x = entering(xs, kind, settings)
                kernel = np.asarray(predicted(x, width, settings, limit=True).kernel)
                theory.append(math.log((kernel**2).sum() - (np.diagonal(kernel) ** 2).sum()))
                value, error = measured(x, width, settings, seeds)["off_diagonal"]
                real.append(math.log(value))
                errors.append(error / value)
            ks = np.log([1 / share for share in shares])
            weights = (ks - ks.mean()) / ((ks - ks.mean()) ** 2).sum()
            rows.append(
                {
                    "mode": {"hard": "TopK", "sphere": "TopK-SP"}[mode],
                    "inputs": kind,
                    "closed_form": float(weights @ theory),
                    "monte_carlo": float(weights @ real),
                    "standard_error": float(np.sqrt((weights**2) @ np.square(errors))),
                }
            )
    return rows


def gains(points: dict[str, np.ndarray], width: int) -> list[dict[str, Any]]:
    """Return what hidden normalization does to variance and cv at several weight scales, (5.10)."""
    rows = []
    for kind, xs in points.items():
        for std in (0.5, 1.0, 2.0):
            x = entering(xs, kind, {})
            plain = predicted(x, width, {"weight_std": std}, limit=True)
            sphere = predicted(x, width, {"weight_std": std, "normalization": ni.Sphere()}, limit=True)
            rows.append(
                {
                    "inputs": kind,
                    "weight_std": std,
                    "gain": float(std**2 * plain.factors.R_x2 / 2),
                    "variance_times": float(sphere.variance / plain.variance),
                    "cv": [float(plain.cv), float(sphere.cv)],
                }
            )
    return rows


def encodings(points: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the mean similarity tau_x with and without encodings, and for how many pairs it rises."""
    rows = []
    for kind, xs in points.items():
        plain = predicted(entering(xs, kind, {}), 1, {}, limit=True)
        for name, encoding in (("NeRF", NERF), ("Fourier features", FOURIER)):
            form = predicted(entering(xs, kind, {"encoding": encoding}), 1, {"encoding": encoding}, limit=True)
            off = ~np.eye(len(xs), dtype=bool)
            rises = np.asarray(form.factors.tau_x)[off] > np.asarray(plain.factors.tau_x)[off]
            rows.append(
                {
                    "inputs": kind,
                    "encoding": name,
                    "mean_tau_x": [float(plain.factors.mean_tau_x), float(form.factors.mean_tau_x)],
                    "pairs_that_rise": float(rises.mean()),
                    "cv": [float(plain.cv), float(form.cv)],
                }
            )
    return rows


def claims(results: dict[str, Any]) -> list[Claim]:
    """Return what the numbers say of each claim of the paper, and of the closed forms themselves."""
    agree, rows = sum(map(_agrees, results["table"])), results["table"]
    limits = sum(not _agrees(row) and row["status"] == "limit" for row in rows)
    forms = Claim(
        "Closed forms give the mean and the variance of the eigenvalues of two-layer networks (theory T2 to T7)",
        "holds" if agree == len(rows) else "holds when",
        f"{agree} of {len(rows)} rows agree within {ERRORS:g} standard errors or {100 * RELATIVE:g} %",
        f"{limits} of the others are limits of infinite width, compared at widths that are too small for them.",
    )
    return [forms, *[claim for claim, _ in _judged(results)]]


def claims_page(results: dict[str, Any]) -> str:
    """Return each claim of the paper with its numbers, as Markdown."""
    rows = results["table"]
    lines = [
        "# The paper's claims, measured",
        "",
        f"Two-layer networks, {results['settings']['n']} points, {results['settings']['seeds']} seeds, "
        f"width {max(r['width'] for r in rows)} unless said; variance and cv are Monte Carlo means over seeds.",
        "",
    ]
    for claim, body in _judged(results):
        lines += [f"## {claim.statement}: *{claim.verdict}*", "", claim.why, "", *body, ""]
    return "\n".join(lines)


def _agrees(row: dict[str, Any]) -> bool:
    return bool(row["variance"]["agrees"] and row["mean"]["agrees"])


Judged = tuple[Claim, tuple[str, ...]]
"""A claim, and the lines of its tables."""


def _judged(results: dict[str, Any]) -> list[Judged]:
    """Return the paper's claims, each with its tables; the sentences are checked against the numbers here."""
    return [claim(results) for claim in (_encoding_claim, _sphere_claim, _modulation_claim, _topk_claim)]


def _verdict(title: str, holds: bool | None, number: str, sentence: str, *body: str) -> Judged:
    words: dict[bool | None, Verdict] = {True: "holds", False: "does not hold", None: "holds when"}
    return Claim(title, words[holds], number, sentence), body


def _encoding_claim(results: dict[str, Any]) -> Judged:
    """Return the claim about positional encodings."""
    falls = [e for e in results["encodings"] if e["mean_tau_x"][1] < e["mean_tau_x"][0]]
    return _verdict(
        "Positional encoding reshapes input similarity",
        len(falls) == len(results["encodings"]),
        f"mean similarity falls on {len(falls)} of {len(results['encodings'])} pairs of encoding and inputs, for "
        f"{min(1 - e['pairs_that_rise'] for e in results['encodings']):.0%} of the pairs of points or more",
        "By exact substitution of <γ, γ'> for <x, x'> (4.1). The mean similarity falls, though not that of each pair: "
        "NeRF's similarity is not monotone in the distance.",
        "| encoding | inputs | mean tau_x | pairs that rise | cv in the limit |",
        "|---|---|---|---|---|",
        *(
            f"| {e['encoding']} | {e['inputs']} | {e['mean_tau_x'][0]:.3f} → {e['mean_tau_x'][1]:.3f} "
            f"| {100 * e['pairs_that_rise']:.0f} % | {e['cv'][0]:.3g} → {e['cv'][1]:.3g} |"
            for e in results["encodings"]
        ),
    )


def _sphere_claim(results: dict[str, Any]) -> Judged:
    """Return the claim about spherical normalization."""
    rows, kinds = results["table"], list(results["settings"]["inputs"])
    widest = max(r["width"] for r in rows)
    rescales = all((g["variance_times"] < 1) == (g["gain"] > 1) for g in results["gains"] if g["inputs"] == "sphere")
    return _verdict(
        "Spherical normalization reduces the variance through layerwise scaling",
        None if rescales else False,
        "variance times "
        + ", ".join(
            f"{g['variance_times']:.3g} at gain {g['gain']:.2g}" for g in results["gains"] if g["inputs"] == "sphere"
        ),
        "With a zero-mean readout it is a change of scale: on the sphere, where norms are equal, the variance falls "
        "just when the layer's gain κ²R²/2 is above 1, and cv stays (5.10). With unequal norms cv moves too, either "
        "way. Only with a constant readout, after the activation, does it lower the overlaps themselves (5.6).",
        "| inputs | weight std κ | gain κ²R²/2 | variance times | cv |",
        "|---|---|---|---|---|",
        *(
            f"| {g['inputs']} | {g['weight_std']} | {g['gain']:.3g} | {g['variance_times']:.3g} "
            f"| {g['cv'][0]:.4g} → {g['cv'][1]:.4g} |"
            for g in results["gains"]
        ),
        "",
        *_CHANGE,
        *(
            line
            for component in ("sphere, input", "sphere, hidden_post, signs", "sphere, hidden_post, constant",
                              "sphere, hidden_pre, constant")
            for line in _against(rows, component, "baseline", widest, kinds)
        ),
    )  # fmt: skip


def _modulation_claim(results: dict[str, Any]) -> Judged:
    """Return the claim about Hadamard modulation."""
    rows, kinds = results["table"], list(results["settings"]["inputs"])
    widest, least = max(r["width"] for r in rows), min(r["width"] for r in rows)

    def change(component: str) -> str:
        """Return by what a component multiplies the variance, least and most over the inputs."""
        ratios = [_of(rows, component, kind, widest)[0] / _of(rows, "baseline", kind, widest)[0] for kind in kinds]
        return f"{min(ratios):.3g} to {max(ratios):.3g}"

    fixed = all(
        _of(rows, name, kind, widest)[0] < _of(rows, "baseline", kind, widest)[0]
        for kind in kinds
        for name in ("Hadamard", "Hadamard, three")
    )
    trained = any(
        _of(rows, "Hadamard, trained", kind, widest)[0] > _of(rows, "baseline", kind, widest)[0] for kind in kinds
    )
    return _verdict(
        "Hadamard modulation multiplies the variance by factors strictly below one",
        None if fixed and trained else fixed,
        f"variance times {change('Hadamard')} fixed, {change('Hadamard, three')} three of them, "
        f"{change('Hadamard, trained')} trained",
        "For fixed modulators of unit energy: the whole spectrum is majorised (6.4). Trained modulators add a term "
        f"that grows as ω² (6.5), and at width {least} a floor of order 1/m remains, which several modulators raise.",
        *_CHANGE,
        *(
            line
            for component in ("Hadamard", "Hadamard, three", "Hadamard, trained")
            for line in _against(rows, component, "baseline", widest, kinds)
        ),
        "",
        f"At width {least}:",
        "",
        *_CHANGE,
        *(
            line
            for component in ("Hadamard", "Hadamard, three")
            for line in _against(rows, component, "baseline", least, kinds)
        ),
    )


def _topk_claim(results: dict[str, Any]) -> Judged:
    """Return the claim about TopK-SP."""
    rows, kinds = results["table"], list(results["settings"]["inputs"])
    widest = max(r["width"] for r in rows)
    quadratic = [s for s in results["slopes"] if s["mode"] == "TopK-SP"]
    return _verdict(
        "TopK-SP suppresses the variance approximately quadratically",
        None if any(s["monte_carlo"] < 1.75 for s in quadratic) else True,
        "exponent of k "
        + ", ".join(f"{s['monte_carlo']:.2f} ± {s['standard_error']:.2f} on {s['inputs']}" for s in quadratic),
        "Its exponent is 2 or more where inputs are nearly orthogonal (7.8); on smooth inputs neighbours keep their "
        "common units, and it is lower. TopK without the sphere is at least quadratic on every data set (7.4). "
        "In wide networks TopK-SP is TopK in another scale (7.7), of the same cv.",
        "| gate | inputs | exponent of k, closed form | Monte Carlo |",
        "|---|---|---|---|",
        *(
            f"| {s['mode']} | {s['inputs']} | {s['closed_form']:.2f} "
            f"| {s['monte_carlo']:.2f} ± {s['standard_error']:.2f} |"
            for s in results["slopes"]
        ),
        "",
        *_CHANGE,
        *(
            line
            for component, base in (("TopK", "baseline"), ("TopK-SP, signs", "TopK"))
            for line in _against(rows, component, base, widest, kinds)
        ),
    )


def plot_agreement(rows: list[dict[str, Any]]) -> Any:
    """Draw closed form and proxy over Monte Carlo, a row of points a component."""
    plt = pyplot()
    names = list(dict.fromkeys(r["component"] for r in rows))
    widths = sorted({r["width"] for r in rows})
    agree = sum(map(_agrees, rows))
    with figure_style():
        figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), sharey=True)
        for axis, value in zip(axes, ("closed form", "proxy"), strict=True):
            for color, marker, width in zip(PALETTE, MARKERS, widths, strict=False):
                some = [r for r in rows if r["width"] == width and (value == "closed form" or r["proxy"])]
                ratios = [
                    (r["variance"]["closed_form"] if value == "closed form" else r["proxy"])
                    / r["variance"]["monte_carlo"]
                    for r in some
                ]
                places = [names.index(r["component"]) + 0.2 * (widths.index(width) - 1) for r in some]
                axis.plot(ratios, places, marker, color=color, ms=4, alpha=0.8, label=f"m = {width}")
            axis.axvline(1, color=MEASURED, lw=1)
            axis.set(xlabel=f"{value} / Monte Carlo variance", yticks=range(len(names)), yticklabels=names)
        axes[0].axvspan(1 - RELATIVE, 1 + RELATIVE, color=NEUTRAL, alpha=0.2, lw=0)
        axes[0].set_title(f"{agree} of {len(rows)} agree to 2 % or 2 standard errors")
        axes[1].set(xscale="log", title="The proxy: right for wide plain networks")
        axes[0].invert_yaxis()
        axes[1].legend()
    return figure


def majorisation(side: int) -> list[dict[str, Any]]:
    """Return spectra with and without a fixed modulator on the last layer, and on all, for two depths (6.4)."""
    cases = []
    x = np.asarray(ni.image_task(np.zeros((side, side)), size=None).x, np.float64)
    with jax.enable_x64(True):
        x = jnp.asarray(x)
        modulator = jnp.exp(-(OMEGA**2) * ((x[:, None] - x[None]) ** 2).sum(-1) / 2)
        for depth in (1, 4):
            net = ni.CoordinateMLP(features=2**20, depth=depth, parameterization="ntk")
            plain = ni.infinite_kernel(net)(x).ntk
            everywhere = ni.infinite_kernel(net.clone(modulation=HADAMARD))(x).ntk
            spectra = {
                "no modulator": plain,
                "last layer": plain * modulator,
                "every layer": everywhere * (jnp.trace(plain) / jnp.trace(everywhere)),
            }
            values = {name: np.asarray(ni.eigenvalues(kernel)) for name, kernel in spectra.items()}
            sums = {name: np.cumsum(each) for name, each in values.items()}
            bound = sums["no modulator"]
            slack = {name: float(((bound - each) / bound[-1]).min()) for name, each in sums.items()}
            cases.append(
                {
                    "depth": depth,
                    "eigenvalues": {name: each.tolist() for name, each in values.items()},
                    "least_slack_of_partial_sums": slack,
                    "cv": {name: float(each.std() / each.mean()) for name, each in values.items()},
                }
            )
    return cases


def plot_majorisation(cases: list[dict[str, Any]]) -> Any:
    """Draw spectra and their partial sums."""
    plt = pyplot()
    styles = {"no modulator": (MEASURED, "-"), "last layer": (FAST, "--"), "every layer": (PREDICTED, ":")}
    with figure_style():
        figure, axes = plt.subplots(1, 4, figsize=(15, 3.6))
        for (left, right), one in zip((axes[:2], axes[2:]), cases, strict=True):
            for name, values in one["eigenvalues"].items():
                color, line = styles[name]
                order = np.arange(1, len(values) + 1)
                floor = max(values) * len(values) * np.finfo(float).eps
                kept = np.asarray(values) > floor
                left.loglog(
                    order[kept], np.asarray(values)[kept], line, color=color, label=f"{name}, cv {one['cv'][name]:.1f}"
                )
                right.semilogx(order, np.cumsum(values) / sum(values), line, color=color, label=name)
            layers = f"{one['depth']} hidden layer" + ("s" if one["depth"] > 1 else "")
            left.set(title=f"{layers}, spectrum", xlabel="index", ylabel="eigenvalue")
            right.set(title="Its partial sums only fall", xlabel="largest k eigenvalues", ylabel="share of the trace")
            left.legend()
    return figure


def main() -> None:
    """Run, print and keep the results."""
    quick = chosen_profile(__doc__) == "quick"
    widths, seeds, side = ((64,), 8, 8) if quick else (WIDTHS, SEEDS, SIDE)
    points = inputs(side)
    rows = []
    for kind, xs in points.items():
        for width in widths:
            for name, settings in components(width).items():
                rows.append(row(kind, xs, width, name, settings, seeds))
                v = rows[-1]["variance"]
                print(
                    f"{kind:7} m={width:<5} {name:30} E v / MC {v['ratio']:.3f}",
                    "" if v["agrees"] else "apart",
                    flush=True,
                )
    results: dict[str, Any] = {
        "schema": "ntk_inr.closed_forms v1",
        "environment": environment(),
        "settings": {
            "n": side * side, "widths": widths, "seeds": seeds, "inputs": list(points), "omega": OMEGA, "bands": BANDS,
            "sigma": SIGMA, "frequencies": FREQUENCIES, "k": f"m/{SHARE}", "dtype": "float32, closed forms float64",
        },
        "table": rows,
        "encodings": encodings(points),
        "gains": gains(points, widths[-1]),
        "slopes": slopes(points, widths[-1], seeds // 4),
        "majorisation": majorisation(side),
    }  # fmt: skip
    print_claims(claims(results))
    if not quick:
        folder = results_folder("closed_forms")
        write_json(folder / "results.json", results)
        write_text(folder / "table.md", table(rows))
        write_text(folder / "claims.md", claims_page(results))
        save_figure(plot_agreement(rows), folder / "agreement")
        save_figure(plot_majorisation(results["majorisation"]), folder / "majorisation")
        print("wrote", folder)


if __name__ == "__main__":
    main()
