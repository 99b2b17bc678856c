"""Findings about the proxy's assumptions, and the report of them as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ntk_inr._results import result, static, text_table
from ntk_inr.variance.budget_report import clipped, largest

KERNEL = "kernel"
"""The layer of findings about the sum of layers."""

# Entries u with E exp(u^2 / K^2) <= 2 have E u^4 <= 2 K^4; Gaussian ones have K^2 = 8/3 E u^2.
KURTOSIS = 2 * (8 / 3) ** 2
"""Largest kurtosis, 128/9, of units with no heavier tails than Gaussian ones (in the sub-Gaussian norm psi_2)."""


_SENTENCES = {
    "constant diagonal": (
        "the diagonal of {of} spreads by {measured:.1%}, from {least:.3g} to {largest:.3g}; its mean in place of it "
        "moves the variance by {error_percent:+.1f}%"
    ),
    "weak correlation": (
        "tau_{of} = {measured:.3g}, {ratio:.3g} times the {expected:.3g} of units that vary independently: the {what} "
        "stay alike from one coordinate to another"
    ),
    "sub-Gaussian units": (
        "units of {of} have kurtosis {measured:.3g} and reach up to {largest:.3g} times their root mean square, where "
        "{units:.0f} Gaussian ones have 3 and {gaussian:.2g}"
    ),
    "concentrated Gram": ("{of} fluctuates by {measured:.1%} at this width, which adds {added:.1%} to the variance"),
    "independent factors": (
        "the mean of tau_F tau_B is {measured:.3g} times the product {product:.3g} of their means "
        "(Omega = {omega:.3g}): coordinates with like inputs have {alike} sensitivities"
    ),
    "independent layers": (
        "the variance is {measured:.3g} times what the layers make apart: their kernels are large at the same pairs"
    ),
}
"""The sentence of each assumption, to be filled with a finding's fields and figures."""
_UNITS = {"F": "inputs of this layer", "B": "sensitivities to this layer", "H": "gradients of this parameter"}
# Findings that ``print`` shows.
_ROWS = 8


@result
class Finding:
    """One assumption, checked on one layer or on the whole kernel.

    Attributes:
        measured: the figure that the assumption bounds, named in ``sentence``.
        threshold: the largest value of that figure with which the assumption holds.
        holds: whether it does.
        error_percent: by how much the assumption alone moves the predicted variance (of that layer, or of the
            kernel) from what it is without it; negative where it predicts too little.
        figures: other numbers of ``sentence``, by name.
        share: the layer's part of the sum of the layers' own variances, which weighs its error; 1 for the kernel.
        assumption: its name.
        layer: the parameter that carries the layer, or "kernel" for the sum of layers.
    """

    measured: Any
    threshold: Any
    holds: Any
    error_percent: Any
    figures: dict[str, Any]
    share: Any
    assumption: str = static()
    layer: str = static()

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        kind = next(kind for kind in _SENTENCES if self.assumption.startswith(kind))
        of = self.assumption.rpartition(" ")[2]
        words = {"of": of, "what": _UNITS.get(of), "alike": "like" if self.measured > 1 else "unlike"}
        numbers = {"measured": self.measured, "error_percent": self.error_percent, **self.figures}
        return _SENTENCES[kind].format(**words, **numbers)

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows."""
        names = ("assumption", "layer", "measured", "threshold", "holds", "error_percent", "share", "sentence")
        return {name: getattr(self, name) for name in names}


@result
class Correction:
    """A step from the proxy to the measured variance.

    Attributes:
        log_ratio: log of the factor that this changes the variance by; all steps add up.
        variance: what is predicted from here on.
        name: the assumption that is given up.
    """

    log_ratio: Any
    variance: Any
    name: str = static()


@result
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
        tolerance: relative error in the variance that thresholds stand for.
        n: number of coordinates.
        size: number of those that were measured on.
    """

    findings: tuple[Finding, ...]
    corrections: tuple[Correction, ...]
    proxy: Any
    independent: Any
    variance: Any
    variance_stderr: Any
    off_diagonal: Any
    tolerance: Any
    n: int = static()
    size: int = static()

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings whose assumption does not hold."""
        return tuple(finding for finding in self.findings if not finding.holds)

    def table(self) -> str:
        """Return all findings, in words those that matter, and the way from proxy to measured variance, as text."""
        matter = [f for f in self.failed if abs(f.error_percent) > 100 * self.tolerance]
        sentences = [f"{finding.layer}: {finding.sentence}." for finding in matter] + [""] * bool(matter)
        layers = [finding.layer for finding in self.findings]
        return "\n".join([self._head, "", _findings_table(self.findings, layers), "", *sentences, self._steps()])

    def __str__(self) -> str:
        weights = [abs(finding.error_percent) * finding.share for finding in self.findings]
        kept, rest = largest(weights, _ROWS)
        layers = clipped(tuple(finding.layer for finding in self.findings))
        table = _findings_table([self.findings[place] for place in kept], [layers[place] for place in kept])
        more = [f"… {rest} of less weight; .table() has all, and sentences"] * bool(rest)
        return "\n".join([self._head, "", table, *more, "", self._steps()])

    @property
    def _head(self) -> str:
        subset = "all there are" if self.size == self.n else f"a uniform subset of {self.n}"
        return f"measured on {self.size} coordinates, {subset}"

    def _steps(self) -> str:
        """Return the way from the proxy to the measured variance as text."""
        error = f"± {self.variance_stderr:.2g}, " if self.size < self.n else ""
        steps = [
            ("proxy at independent level", self.independent, "tau as if units varied independently"),
            ("proxy", self.proxy, ""),
            *(("  without " + s.name, s.variance, f"x {math.exp(s.log_ratio):.3f}") for s in self.corrections),
            ("measured", self.variance, f"{error}{self.off_diagonal:.1%} of it off the diagonal"),
        ]
        return text_table([(name, f"{value:.4g}", remark) for name, value, remark in steps], right=[1], header=0)


def _findings_table(findings: Sequence[Finding], layers: Sequence[str]) -> str:
    header = ("assumption", "layer", "of v", "measured", "threshold", "holds", "error")
    rows = [
        (
            finding.assumption,
            layer,
            f"{finding.share:.0%}",
            f"{finding.measured:.3g}",
            f"{finding.threshold:.3g}",
            "yes" if finding.holds else "NO",
            f"{finding.error_percent:+.1f}%",
        )
        for finding, layer in zip(findings, layers, strict=True)
    ]
    return text_table([header, *rows], right=range(2, len(header)))


def percent(predicted: float, actual: float) -> float:
    """Return by how much a prediction is off, in percent."""
    return 100 * (predicted / actual - 1) if actual else 0.0


def _finding(
    assumption: str,
    layer: str,
    measured: float,
    threshold: float,
    error: float,
    *,
    holds: bool | None = None,
    **figures: float,
) -> Finding:
    """Return a finding, which holds up to its threshold unless ``holds`` says otherwise."""
    return Finding(
        measured=measured,
        threshold=threshold,
        holds=measured <= threshold if holds is None else holds,
        error_percent=error,
        figures=figures,
        share=1.0,
        assumption=assumption,
        layer=layer,
    )


def constant(of: str, layer: str, diagonal: np.ndarray, error: float, tolerance: float) -> Finding:
    """Return the finding about the diagonal of F, B, H or K."""
    spread, least, most = float(diagonal.std() / diagonal.mean()), float(diagonal.min()), float(diagonal.max())
    return _finding(f"constant diagonal of {of}", layer, spread, tolerance, error, least=least, largest=most)


def weak(of: str, layer: str, level: float, expected: float, tolerance: float) -> Finding:
    """Return the finding about mean tau, beside its level for independent units."""
    most, error = expected * (1 + tolerance), percent(expected, level)
    return _finding(f"weak correlation of {of}", layer, level, most, error, expected=expected, ratio=level / expected)


def tails(of: str, layer: str, units: np.ndarray, excess: float) -> Finding:
    """Return the finding about units (n, c, m); ``excess`` is what they add beyond Gaussian ones to the variance."""
    flat = units.reshape(len(units), -1)
    square = (flat**2).mean(1)
    flat, square = flat[square > 0], square[square > 0]
    kurtosis, count = float(((flat**4).mean(1) / square**2).mean()), flat.shape[1]
    return _finding(
        f"sub-Gaussian units of {of}",
        layer,
        kurtosis,
        KURTOSIS,
        -100 * excess,
        largest=float((np.abs(flat).max(1) / np.sqrt(square)).max()),
        units=float(count),
        gaussian=math.sqrt(2 * math.log(2 * count)),
    )


def concentrated(of: str, layer: str, relative: float, share: float, tolerance: float) -> Finding:
    """Return the finding about a Gram matrix with a relative standard error, and the share of variance from it."""
    return _finding(f"concentrated Gram {of}", layer, relative, math.sqrt(tolerance), -100 * share, added=share)


def independent(
    of: Literal["factors", "layers"], layer: str, ratio: float, tolerance: float, **figures: float
) -> Finding:
    """Return the finding about the ratio of a mean of products to the product of means, or of a whole to its parts."""
    holds = abs(math.log(ratio)) <= math.log(1 + tolerance)
    return _finding(f"independent {of}", layer, ratio, 1 + tolerance, percent(1, ratio), holds=holds, **figures)
