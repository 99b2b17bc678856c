"""What the check of assumptions says: findings in words, and the report as text."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np

KERNEL = "kernel"
"""What findings about the sum of layers are said of."""

# Entries u with E exp(u^2 / K^2) <= 2 have E u^4 <= 2 K^4; Gaussian ones have K^2 = 8/3 E u^2.
KURTOSIS = 2 * (8 / 3) ** 2
"""Largest kurtosis, 128/9, of units with no heavier tails than Gaussian ones (in the sub-Gaussian norm psi_2)."""


class Finding(NamedTuple):
    """One assumption, checked on one layer or on the whole kernel.

    Attributes:
        assumption: its name.
        layer: the parameter that carries the layer, or "kernel" for the sum of layers.
        measured: the figure that the assumption bounds, named in ``sentence``.
        threshold: the largest value of that figure with which the assumption holds.
        holds: whether it does.
        error_percent: by how much the assumption alone moves the predicted variance (of that layer, or of the
            kernel) from what it is without it; negative where it predicts too little.
        sentence: all this in words.
        share: the layer's part of the sum of the layers' own variances, which weighs its error; 1 for the kernel.
    """

    assumption: str
    layer: str
    measured: float
    threshold: float
    holds: bool
    error_percent: float
    sentence: str
    share: float = 1.0


class Correction(NamedTuple):
    """A step from the proxy to the measured variance.

    Attributes:
        name: the assumption that is given up.
        log_ratio: log of the factor that this changes the variance by; all steps add up.
        variance: what is predicted from here on.
    """

    name: str
    log_ratio: float
    variance: float


@dataclasses.dataclass(frozen=True)
class AssumptionsReport:
    """What :func:`check_assumptions` found; ``print`` shows it as tables.

    Attributes:
        findings: every :class:`.Finding`, the whole kernel's first.
        corrections: the :class:`.Correction` steps from ``proxy`` to ``variance``.
        proxy: variance that the proxy predicts, the sum of (n - 1) R_F^4 R_B^4 mean(tau_F) mean(tau_B) over layers.
        independent: the proxy with each mean tau at the level of independent units.
        variance: variance of the kernel's eigenvalues; exact where ``size`` equals ``n``, else unbiased, (9.4).
        variance_stderr: its standard error; 0 where ``size`` equals ``n``.
        off_diagonal: share of ``variance`` that entries off the diagonal make.
        n: coordinates given.
        size: coordinates measured on.
        tolerance: relative error in the variance that thresholds stand for.
    """

    findings: tuple[Finding, ...]
    corrections: tuple[Correction, ...]
    proxy: float
    independent: float
    variance: float
    variance_stderr: float
    off_diagonal: float
    n: int
    size: int
    tolerance: float

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings whose assumption does not hold."""
        return tuple(finding for finding in self.findings if not finding.holds)

    def table(self) -> str:
        """Return the findings, in words those that matter, and the way from proxy to measured variance, as text."""
        header = ("assumption", "layer", "of v", "measured", "threshold", "holds", "error")
        rows = [
            (
                finding.assumption,
                finding.layer,
                f"{finding.share:.0%}",
                f"{finding.measured:.3g}",
                f"{finding.threshold:.3g}",
                "yes" if finding.holds else "NO",
                f"{finding.error_percent:+.1f}%",
            )
            for finding in self.findings
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        pattern = "  ".join(f"{{:{'<' if i < 2 else '>'}{width}}}" for i, width in enumerate(widths))
        aligned = [pattern.format(*row) for row in (header, ["-" * width for width in widths], *rows)]
        drawn = "all there are" if self.size == self.n else f"a uniform subset of {self.n}"
        matter = [finding for finding in self.failed if abs(finding.error_percent) > 100 * self.tolerance]
        lines = [f"measured on {self.size} coordinates, {drawn}", "", *aligned, ""]
        lines += [f"{finding.layer}: {finding.sentence}." for finding in matter] + [""] * bool(matter)

        def figure(name: str, value: float, more: str = "") -> str:
            return f"{name:<32}{value:>12.4g}  {more}".rstrip()

        lines.append(figure("proxy at independent level", self.independent, "tau as if units varied independently"))
        lines.append(figure("proxy", self.proxy))
        for step in self.corrections:
            lines.append(figure(f"  without {step.name}", step.variance, f"x {math.exp(step.log_ratio):.3f}"))
        error = f" ± {self.variance_stderr:.2g}" if self.size < self.n else ""
        lines.append(
            figure("measured", self.variance, f"{error}  {self.off_diagonal:.1%} of it off the diagonal".lstrip())
        )
        return "\n".join(lines)

    __str__ = table


def percent(predicted: float, actual: float) -> float:
    """Return by how much a prediction is off, in percent."""
    return 100 * (predicted / actual - 1) if actual else 0.0


def constant(of: str, layer: str, diagonal: np.ndarray, error: float, tolerance: float) -> Finding:
    """Return what is found about the diagonal of F, B, H or K."""
    spread = float(diagonal.std() / diagonal.mean())
    return Finding(
        f"constant diagonal of {of}",
        layer,
        spread,
        tolerance,
        spread <= tolerance,
        error,
        f"the diagonal of {of} spreads by {spread:.1%}, from {diagonal.min():.3g} to {diagonal.max():.3g}; its mean in "
        f"place of it moves the variance by {error:+.1f}%",
    )


def weak(of: str, layer: str, level: float, expected: float, tolerance: float) -> Finding:
    """Return what is found about mean tau, beside its level for independent units."""
    what = {"F": "inputs of this layer", "B": "sensitivities to this layer", "H": "gradients of this parameter"}[of]
    return Finding(
        f"weak correlation of {of}",
        layer,
        level,
        expected * (1 + tolerance),
        level <= expected * (1 + tolerance),
        percent(expected, level),
        f"tau_{of} = {level:.3g}, {level / expected:.3g} times the {expected:.3g} of units that vary independently: "
        f"the {what} stay alike from one coordinate to another",
    )


def tails(of: str, layer: str, units: np.ndarray, excess: float) -> Finding:
    """Return what is found about units (n, c, m); ``excess`` is what they add beyond Gaussian ones to the variance."""
    flat = units.reshape(len(units), -1)
    square = (flat**2).mean(1)
    flat, square = flat[square > 0], square[square > 0]
    kurtosis = float(((flat**4).mean(1) / square**2).mean())
    largest = float((np.abs(flat).max(1) / np.sqrt(square)).max())
    return Finding(
        f"sub-Gaussian units of {of}",
        layer,
        kurtosis,
        KURTOSIS,
        kurtosis <= KURTOSIS,
        -100 * excess,
        f"units of {of} have kurtosis {kurtosis:.3g} and reach up to {largest:.3g} times their root mean square, where "
        f"{flat.shape[1]} Gaussian ones have 3 and {math.sqrt(2 * math.log(2 * flat.shape[1])):.2g}",
    )


def concentrated(of: str, layer: str, relative: float, share: float, tolerance: float) -> Finding:
    """Return what is found about a Gram matrix with a relative standard error, and the share of variance from it."""
    return Finding(
        f"concentrated Gram {of}",
        layer,
        relative,
        math.sqrt(tolerance),
        relative <= math.sqrt(tolerance),
        -100 * share,
        f"{of} fluctuates by {relative:.1%} at this width, which adds {share:.1%} to the variance",
    )


def factors(layer: str, levels: list[float], ratio: float, omega: float, tolerance: float) -> Finding:
    """Return what is found about mean tau_F tau_B over the product of their means."""
    alike = "like" if ratio > 1 else "unlike"
    return Finding(
        "independent factors",
        layer,
        ratio,
        1 + tolerance,
        abs(math.log(ratio)) <= math.log(1 + tolerance),
        percent(1, ratio),
        f"the mean of tau_F tau_B is {ratio:.3g} times the product {math.prod(levels):.3g} of their means (Omega = "
        f"{omega:.3g}): coordinates with like inputs have {alike} sensitivities",
    )


def layers(ratio: float, tolerance: float) -> Finding:
    """Return what is found about the variance over the sum of the layers' own."""
    return Finding(
        "independent layers",
        KERNEL,
        ratio,
        1 + tolerance,
        abs(math.log(ratio)) <= math.log(1 + tolerance),
        percent(1, ratio),
        f"the variance is {ratio:.3g} times what the layers make apart: their kernels are large at the same pairs",
    )
