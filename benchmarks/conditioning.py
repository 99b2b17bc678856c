"""Do positional encoding, spherical normalization and Hadamard modulation condition the kernel, at any width and depth?

    python -m benchmarks.conditioning            # camera at 32 x 32, 11 networks of each variant, about 8 minutes
    python -m benchmarks.conditioning --quick    # 8 x 8, three small networks of each, under a minute, nothing kept

Writes benchmarks/results/conditioning/<device>/: results.json; kernels.png, kernels and spectra of five variants; and
sweeps.png, their cv, variance and condition number over width and over depth. Kernels at initialisation, in float64,
of the standard parameterization, whose kernel grows with the width: variances compare at one width, cv everywhere.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import ntk_inr as ni
from benchmarks.keep import ERRORS, Claim, Picture, Profile, chosen_profile, mean, publish, verdict
from ntk_inr.study.candidate import kernel_in_float64
from ntk_inr.style import DASHES, MARKERS, NEUTRAL, PALETTE, SEQUENTIAL, figure_style, pyplot

VARIANTS = ["relu", "pe", "pe+sphere", "pe+hadamard", "pe+sphere+hadamard"]
COMBINATION = VARIANTS[-1]
METRICS = {"cv": "cv of eigenvalues", "variance": "variance of eigenvalues", "condition": "condition number"}
SHOWN = 8  # at most so many pixels a side are in heatmaps, evenly spaced


@dataclasses.dataclass(frozen=True)
class Settings:
    """Pixels a side; widths at ``depth``; depths at ``width``; seeds of each network."""

    side: int
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    width: int
    depth: int
    seeds: int

    @property
    def base(self) -> tuple[int, int]:
        """Width and depth that both sweeps share."""
        return self.width, self.depth

    @property
    def networks(self) -> list[tuple[int, int]]:
        """Width and depth of each network."""
        swept = [(width, self.depth) for width in self.widths] + [(self.width, depth) for depth in self.depths]
        return list(dict.fromkeys([*swept, self.base]))


PROFILES: dict[Profile, Settings] = {
    "quick": Settings(8, (16, 32), (1, 2), 32, 1, 2),
    "cpu": Settings(32, (32, 64, 128, 256, 512, 1024), (1, 2, 3, 4, 6, 8), 256, 4, 5),
    "gpu": Settings(64, (64, 128, 256, 512, 1024, 2048, 4096), (1, 2, 3, 4, 6, 8, 12), 256, 4, 5),
}


def measure(settings: Settings) -> dict[str, Any]:
    """Return the metrics of every network by seed; of the base also heatmaps (one seed) and spectra (all)."""
    x = ni.image_task("camera", size=settings.side, grey=True).x
    step = -(-settings.side // SHOWN)
    rows = np.arange(settings.side**2).reshape(settings.side, settings.side)[::step, ::step].ravel()
    found: dict[str, Any] = {"cells": [], "heatmaps": {}, "spectra": {}}
    for network, name in itertools.product(settings.networks, VARIANTS):
        net = ni.variant(name, features=network[0], depth=network[1])
        cell: dict[str, Any] = {metric: [] for metric in ("mean", *METRICS, "resolved")}
        spectra = []
        for seed in range(settings.seeds):
            kernel = kernel_in_float64(*ni.init(net, jax.random.key(seed), x), x)
            values, moments = ni.eigenvalues(kernel), ni.moments(kernel)
            condition = ni.condition_number(values)
            measures = (moments.mean, moments.cv, moments.variance, condition.value, condition.resolved)
            for kept, value in zip(cell.values(), measures, strict=True):
                kept.append(value.item())
            # What rounding hides is drawn at its floor: a geometric mean needs positive values.
            spectra.append(np.maximum(values, ni.spectra.rounding_floor(values)) / moments.mean)
            if network == settings.base and seed == 0:
                found["heatmaps"][name] = (kernel[np.ix_(rows, rows)] / moments.mean).round(3).tolist()
        if network == settings.base:
            found["spectra"][name] = np.exp(np.log(spectra).mean(0)).tolist()
        found["cells"].append({"variant": name, "width": network[0], "depth": network[1], **cell})
        print(f"{place(network)}, {name}: cv {np.mean(cell['cv']):.3g}", flush=True)
    return found


def place(network: tuple[int, int]) -> str:
    """Return a network's width and depth in words."""
    return f"width {network[0]}, depth {network[1]}"


def places(networks: Sequence[tuple[int, int]], settings: Settings) -> str:
    """Return those of several, sweep by sweep."""
    widths = ", ".join(str(width) for width, depth in sorted(networks) if depth == settings.depth)
    depths = ", ".join(str(depth) for _, depth in sorted(networks) if depth != settings.depth)
    swept = [f"width {widths} (depth {settings.depth})"] * bool(widths)
    return " and ".join([*swept, *[f"depth {depths} (width {settings.width})"] * bool(depths)])


def cell_of(found: dict[str, Any], variant: str, network: tuple[int, int]) -> dict[str, Any]:
    """Return what was measured of one variant in one network."""
    return next(c for c in found["cells"] if c["variant"] == variant and (c["width"], c["depth"]) == network)


@dataclasses.dataclass(frozen=True)
class Change:
    """What a metric is multiplied by between variants, log mean of paired seeds; which of both are lower bounds."""

    network: tuple[int, int]
    log: float
    error: float
    bounds: tuple[bool, bool]

    @property
    def lower(self) -> bool:
        """Whether the metric falls; a lower bound after doesn't show it, one before does."""
        return not self.bounds[1] and self.log + ERRORS * self.error < 0

    @property
    def higher(self) -> bool:
        """Whether it rises."""
        return not self.bounds[0] and self.log - ERRORS * self.error > 0

    def __str__(self) -> str:
        ratio = float(np.exp(self.log))
        words = {(True, False): "at most ", (False, True): "at least ", (True, True): "unresolved, "}
        return f"{words.get(self.bounds, '')}{ratio:.3g} ± {ratio * self.error:.1g}"


def changes(found: dict[str, Any], settings: Settings, before: str, after: str, metric: str) -> list[Change]:
    """Return the change from one variant to another in each network."""
    made = []
    for network in settings.networks:
        pair = [cell_of(found, name, network) for name in (before, after)]
        log = np.log(pair[1][metric]) - np.log(pair[0][metric])
        bounds = [metric == "condition" and not all(cell["resolved"]) for cell in pair]
        made.append(Change(network, *mean(log), (bounds[0], bounds[1])))
    return made


def falls(
    found: dict[str, Any], settings: Settings, before: str, after: str, metric: str, statement: str, why: str
) -> Claim:
    """Judge whether a metric falls from one variant to another."""
    made = sorted(changes(found, settings, before, after, metric), key=lambda change: change.log)
    apart = [change.network for change in made if not change.lower]
    return Claim(
        statement,
        verdict([change.lower for change in made]),
        f"{METRICS[metric]} of {after} over that of {before}: {made[0]} ({place(made[0].network)}) to {made[-1]} "
        f"({place(made[-1].network)}); falls in {len(made) - len(apart)} and rises in "
        f"{sum(change.higher for change in made)} of {len(made)} networks",
        why + (f" Not at {places(apart, settings)}." if 0 < len(apart) < len(made) else ""),
    )


def best(found: dict[str, Any], settings: Settings, metric: str) -> Claim:
    """Judge whether the combination is below each other variant."""
    against = {name: changes(found, settings, name, COMBINATION, metric) for name in VARIANTS[:-1]}
    holds = [all(made[i].lower for made in against.values()) for i in range(len(settings.networks))]
    lowest = [order(found, network, metric)[0] for network in settings.networks]
    rival, closest = max(((n, change) for n, made in against.items() for change in made), key=lambda pair: pair[1].log)
    return Claim(
        f"The combination of all three has the lowest {METRICS[metric]} (paper)",
        verdict(holds),
        f"below every other variant in {sum(holds)} of {len(holds)} networks; lowest in the mean: "
        + ", ".join(f"{name} in {lowest.count(name)}" for name in dict.fromkeys(lowest))
        + f"; strongest rival {rival}, times {closest} at {place(closest.network)}",
        f"Counted where all four others are higher by {ERRORS:g} standard errors of paired seeds.",
    )


def order(found: dict[str, Any], network: tuple[int, int], metric: str) -> list[str]:
    """Return the variants by a metric in one network, lowest first."""
    return sorted(VARIANTS, key=lambda name: float(np.mean(np.log(cell_of(found, name, network)[metric]))))


def persists(found: dict[str, Any], settings: Settings, metric: str) -> Claim:
    """Judge whether no two variants stand the other way round than at the base."""
    ranked = order(found, settings.base, metric)
    turned: dict[tuple[int, int], list[str]] = {n: [] for n in settings.networks if n != settings.base}
    for low, high in itertools.combinations(ranked, 2):
        made = {change.network: change for change in changes(found, settings, high, low, metric)}
        for network, pairs in turned.items():
            if made[settings.base].lower and made[network].higher:
                pairs.append(f"{low} and {high}")
    kept = [not pairs for pairs in turned.values()]
    pairs = list(itertools.chain(*turned.values()))
    return Claim(
        f"The order of the variants by {METRICS[metric]} persists over width and depth (paper)",
        verdict(kept),
        f"{' < '.join(ranked)} at {place(settings.base)}; no pair is reversed in {sum(kept)} of {len(kept)} others",
        f"A pair counts as reversed where both orders are clear by {ERRORS:g} standard errors."
        + " Reversed: " * bool(pairs)
        + ", ".join(f"{pair} ({pairs.count(pair)} times)" for pair in dict.fromkeys(pairs))
        + (f"; at {places([n for n, p in turned.items() if p], settings)}." if pairs else ""),
    )


def claims(found: dict[str, Any], settings: Settings) -> list[Claim]:
    """Return what the numbers say of each claim."""
    scale = "The sphere's radius, here sqrt(m), sets the kernel's scale and so the variance, (5.10), but not cv."
    modulated = "For unit-energy factors of a wide last layer, (6.4); at finite width a floor of order 1/m remains."
    sphere, hadamard = "Spherical normalization reduces the", "Fixed Hadamard modulation reduces the"
    judged = [
        ("relu", "pe", "condition", "Positional encoding improves the condition number (paper)",
         "It replaces <x, x'> by <γ, γ'>, (4.1), which tells neighbouring pixels apart."),
        ("relu", "pe", "cv", "Positional encoding reduces the cv of the eigenvalues",
         "It lowers the mean similarity of pixels, (4.1), not that of each pair."),
        ("pe", "pe+sphere", "variance", f"{sphere} variance of the eigenvalues (paper)", scale),
        ("pe", "pe+sphere", "cv", f"{sphere} cv of the eigenvalues",
         "In the limit a layer without biases, of inputs of equal norms, keeps its cv, (5.10); biases change it."),
        ("pe", "pe+hadamard", "variance", f"{hadamard} variance of the eigenvalues (paper)", modulated),
        ("pe", "pe+hadamard", "cv", f"{hadamard} cv of the eigenvalues", modulated),
    ]  # fmt: skip
    return [
        *(falls(found, settings, *each) for each in judged),
        *(best(found, settings, metric) for metric in METRICS),
        *(persists(found, settings, metric) for metric in METRICS),
    ]


def kernels_picture(found: dict[str, Any], settings: Settings) -> Picture:
    """Draw kernels and spectra at the base."""
    plt = pyplot()
    cv = {name: mean(cell_of(found, name, settings.base)["cv"])[0] for name in VARIANTS}
    low, high = (pick(cv, key=lambda name: cv[name]) for pick in (min, max))
    finding = (
        f"At {place(settings.base)} the eigenvalues of {low} are the most even (cv {cv[low]:.2g}), those of {high} "
        f"the least (cv {cv[high]:.2g})"
    )
    with figure_style():
        figure = plt.figure(figsize=(12, 6.6))
        top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.15])
        top.suptitle(finding, fontweight="bold")
        maps = top.subplots(1, len(VARIANTS), sharey=True)
        for axis, (name, kernel) in zip(maps, found["heatmaps"].items(), strict=True):
            image = axis.imshow(kernel, cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest")
            axis.set(title=f"{name}\ncv {cv[name]:.2g}", xlabel="pixel (raster order)")
            axis.grid(False)
        maps[0].set_ylabel("pixel (raster order)")
        top.colorbar(image, ax=maps, label="kernel / mean eigenvalue", extend="both", shrink=0.9)
        spectrum = bottom.subplots()
        for color, dashes, (name, values) in zip(PALETTE, DASHES, found["spectra"].items(), strict=False):
            spectrum.loglog(np.arange(1, len(values) + 1), values, color=color, linestyle=dashes, label=name)
        spectrum.set(xlabel="index of eigenvalue", ylabel="eigenvalue / mean eigenvalue")
        spectrum.set_title(f"{order(found, settings.base, 'condition')[0]} has the lowest condition number")
        spectrum.legend(loc="lower left", handlelength=3)
    return Picture(figure, finding + ".")


def sweeps_picture(found: dict[str, Any], settings: Settings) -> Picture:
    """Draw cv, variance and condition number over width and over depth."""
    plt = pyplot()
    lowest = [order(found, network, "cv")[0] for network in settings.networks]
    leader = max(set(lowest), key=lowest.count)
    finding = f"{leader} has the lowest cv in {lowest.count(leader)} of {len(lowest)} networks"
    sweeps = {
        "width (units a layer)": (settings.widths, [(width, settings.depth) for width in settings.widths]),
        "depth (hidden layers)": (settings.depths, [(settings.width, depth) for depth in settings.depths]),
    }
    with figure_style():
        figure, axes = plt.subplots(3, 2, figsize=(9, 8.6), sharex="col", sharey="row")
        figure.suptitle(finding, fontweight="bold")
        for column, (label, (sizes, networks)) in enumerate(sweeps.items()):
            for axis, (metric, named) in zip(axes[:, column], METRICS.items(), strict=True):
                for name, color, marker in zip(VARIANTS, PALETTE, MARKERS, strict=False):
                    cells = [cell_of(found, name, network) for network in networks]
                    logs, errors = np.transpose([mean(np.log(cell[metric])) for cell in cells])
                    bound = [metric == "condition" and not all(cell["resolved"]) for cell in cells]
                    middle = np.exp(logs)
                    spread = middle * np.array([1 - np.exp(-errors), np.exp(errors) - 1])
                    axis.errorbar(sizes, middle, spread, color=color, capsize=2, label=name)
                    for size, value, open_ in zip(sizes, middle, bound, strict=True):
                        axis.plot(size, value, marker, color=color, mfc="white" if open_ else color, ms=5)
                axis.set(xscale="log", yscale="log", title=f"{named} over {label.split()[0]}")
                axis.set_xticks(sizes, [str(size) for size in sizes])
                axis.set_xticks([], minor=True)
                if column == 0:
                    axis.set_ylabel(named + (", kernel²" if metric == "variance" else ""))
            axes[-1, column].set_xlabel(label)
        axes[0, 0].plot([], [], "o", color=NEUTRAL, mfc="white", label="lower bound")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(VARIANTS) + 1)
    return Picture(figure, finding + "; bars are standard errors.")


def main() -> None:
    """Measure, judge, draw and keep."""
    profile = chosen_profile(__doc__)
    settings = PROFILES[profile]
    found = measure(settings)
    publish(
        "conditioning",
        profile,
        settings=dataclasses.asdict(settings) | {"image": "camera", "variants": VARIANTS, "dtype": "float64"},
        measured=found,
        claims=claims(found, settings),
        pictures={"kernels": kernels_picture(found, settings), "sweeps": sweeps_picture(found, settings)},
    )


if __name__ == "__main__":
    main()
