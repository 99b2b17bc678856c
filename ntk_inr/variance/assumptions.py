"""What the variance proxy of the theory assumes, measured on a network and its coordinates (T2, T8)."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr import _checks
from ntk_inr._dtypes import at_precision
from ntk_inr._typing import Apply, Params
from ntk_inr.kernels import memory
from ntk_inr.kernels.grams import Factor, tile
from ntk_inr.kernels.model import Model
from ntk_inr.kernels.request import Request
from ntk_inr.spectra.submatrices import draw, standard_errors
from ntk_inr.variance import assumptions_report as report
from ntk_inr.variance import sums
from ntk_inr.variance.assumptions_report import AssumptionsReport, Correction, Finding

# Coordinates that are drawn where nothing else is asked for, and the groups that they fall into for standard errors.
_SIZE, _GROUPS = 1024, 8
# What is held at a time of the matrices (n, n) in float64, at least.
_MATRICES = 6

_kernel_of = jax.jit(tile, static_argnums=2)


class _Part(NamedTuple):
    """One of the matrices whose product entry by entry is a layer's kernel.

    Attributes:
        name: "F", "B", or "H" for a term that is no product of two.
        matrix: (n, n) in float64, the sum of ``offset`` and of products over units.
        units: (n, c, m) in float64; None where nothing is known of them.
        offset: what a bias adds to ``matrix``.
        random: whether the units depend on the parameters.
    """

    name: str
    matrix: np.ndarray
    units: np.ndarray | None = None
    offset: float = 0.0
    random: bool = False

    @property
    def scale(self) -> float:
        """The squared mean of the diagonal."""
        return float(np.diagonal(self.matrix).mean() ** 2)


class _Sums(NamedTuple):
    """The variance of one layer, or the sum over layers, from the crudest proxy to the exact value."""

    independent: float  # the proxy at the level of independent units
    proxy: float
    paired: float  # similarities pair by pair
    off_diagonal: float  # and norms
    variance: float  # and the diagonal
    fluctuating: float  # the part of off_diagonal that comes from finitely many units


def check_assumptions(
    apply: Apply,
    params: Params,
    x: Any,
    *,
    key: Array | None = None,
    size: int | None = None,
    tolerance: float = 0.1,
) -> AssumptionsReport:
    r"""Measure which assumptions of the variance proxy fail at these coordinates, and what error each causes.

    .. math:: v \approx \sum_l (n - 1)\, R_{F,l}^4 R_{B,l}^4\, \bar\tau_{F,l} \bar\tau_{B,l}, \qquad
        \tau_{F,ij} = \frac{F_{ij}^2}{F_{ii} F_{jj}}, \qquad R_F^2 = \overline{F_{ii}}

    with F and B the two factors of each layer's kernel (T8.1). What that takes for granted, and what is measured:

    - "constant diagonal" of F, of B and of the kernel K: its relative standard deviation. Threshold ``tolerance``,
      with which the product of two norms is off by ``sqrt(2) tolerance``. Error: of the mean in its place.
    - "weak correlation": mean tau over pairs. Threshold: ``1 + tolerance`` times its level if units varied
      independently over the coordinates, each with the mean and mean square that it has; that is 1/4 for the gates
      of a two-layer ReLU network, 1/d for centred inputs. Error: of that level in place of tau, which closed forms
      take and the proxy does not.
    - "sub-Gaussian units": the kurtosis :math:`E u^4/(E u^2)^2` over units, averaged over coordinates; 3 for Gaussian
      units, 6 after a ReLU. Threshold: 128/9, the most that goes with tails no heavier than Gaussian ones. Error: of
      the fluctuation of the Gram matrix that independent Gaussian units would have.
    - "concentrated Gram": the relative standard error of F and B (root mean square over pairs) from the spread of
      their terms over units; that is half the relative difference between halves of the units, over all ways to halve
      them. Threshold ``sqrt(tolerance)``. Error: of leaving out the variance that this adds, as infinite width does;
      it vanishes as 1/m. Each layer's is that of its own units, given the others.
    - "independent factors": :math:`\overline{\tau_F \tau_B}/(\bar\tau_F \bar\tau_B)`, within ``1 + tolerance`` of 1.
    - "independent layers": v over the sum of the layers' own, which leaves out the cross terms of (8.3); likewise.

    The layers are the terms of :func:`ntk_inr.variance_budget`, under the same names. Where one is no product of two
    factors (a bias alone, weights used twice), H stands in place of F and B. Units that don't depend on the parameters
    (coordinates, encodings, the sensitivity of a readout) don't fluctuate, and have no third and fourth finding.

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``; examples must not mix.
        params: pytree of floating point arrays.
        x: coordinates (n, d), at least 2.
        key: a JAX random key, to measure on a random subset; None takes all coordinates, and memory for several (n, n)
            matrices in float64.
        size: coordinates in the subset; None is 1024, or all of fewer.
        tolerance: relative error in the variance that may pass.

    Returns:
        An :class:`AssumptionsReport`; ``print`` it to read it.

    Raises:
        TypeError: integer coordinates or parameters; ``apply`` not callable.
        ValueError: as :func:`ntk_inr.ntk`; fewer than 2 coordinates; a kernel that is zero off its diagonal; inside
            ``jit``, ``vmap`` or ``grad``; ``size`` without ``key``.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> from ntk_inr.variance.assumptions import check_assumptions
        >>> x = jax.random.normal(jax.random.key(1), (64, 2))
        >>> apply, params = ni.init(ni.CoordinateMLP(features=32, depth=2), jax.random.key(0), x)
        >>> report = check_assumptions(apply, params, x)
        >>> "constant diagonal of K" in {finding.assumption for finding in report.failed}
        True
        >>> bool(jnp.allclose(report.variance, ni.moments(ni.ntk(apply, params, x)).variance, rtol=1e-4))
        True

    Source: T2.4 and T8.1 to T8.4 of the theory.
    """
    if size is not None:
        _checks.check_positive(size, "size", integer=True, least=2)
        if key is None:
            raise ValueError(f"size={size} is of a subset that is drawn; pass key=jax.random.key(0) too.")
    _checks.check_positive(tolerance, "tolerance")
    model = Request.of(apply, params, x).on_host("check_assumptions").model
    points = np.asarray(model.x1)
    n = len(points)
    if n < 2:
        raise ValueError("x holds one coordinate, and similarities are those of pairs; pass at least 2.")
    if key is not None and n > (size or _SIZE):
        points = points[draw(key, n, size or _SIZE, 1, otherwise="leave out key")[0]]
    _check_room(len(points))

    K = np.zeros((len(points), len(points)))
    layers = []
    for name, parts in _layers(model, points):
        layers.append(_layer(name, parts, n, tolerance))
        K += _product(parts)
    total = _Sums(*np.sum([own for own, _ in layers], axis=0).tolist())
    variance, off_diagonal, findings = _kernel(K, total, n, tolerance)
    for own, of_layer in layers:
        share = own.variance / total.variance
        findings += [dataclasses.replace(finding, share=share) for finding in of_layer]
    return AssumptionsReport(
        findings=tuple(findings),
        corrections=_corrections(total, variance),
        proxy=total.proxy,
        independent=total.independent,
        variance=variance,
        variance_stderr=_standard_error(K, n),
        off_diagonal=off_diagonal / variance,
        tolerance=tolerance,
        n=n,
        size=len(points),
    )


def _check_room(rows: int) -> None:
    needed, left = _MATRICES * 8 * rows**2, memory.available_on_host()
    if needed > left:
        raise ValueError(
            f"matrices of {rows} coordinates need {memory.describe(needed)}, and {memory.describe(left)} are left; "
            "pass key=jax.random.key(0) to measure on a random subset, of size= coordinates."
        )


def _layers(model: Model, points: np.ndarray) -> list[tuple[str, list[_Part]]]:
    """Return each term of the kernel, in the order of the forward pass: its name and the matrices of its product."""
    _, terms = sums.plan(model)

    def factors(params: Params) -> list[Factor]:
        return sums.term_factors(model.apply, params, points, c=model.c, terms=terms, precision="highest")

    # Whether units depend on the parameters shows at others of the same scale.
    pairs = zip(terms.names, factors(model.params), factors(_redrawn(model.params)), strict=True)
    return [(name, _parts(factor, redrawn)) for name, factor, redrawn in pairs]


def _redrawn(params: Params) -> Any:
    """Return other parameters of the same scale."""
    rng = np.random.default_rng(20251215169)  # a seed that nobody has drawn ``params`` with

    def drawn(leaf: Any) -> np.ndarray:
        scale = np.sqrt(np.square(np.asarray(leaf, float)).mean()) or 1.0
        return np.asarray(scale * rng.normal(size=np.shape(leaf)), jnp.result_type(leaf))

    return jax.tree.map(drawn, params)


@at_precision
def _parts(factor: Factor, redrawn: Factor) -> list[_Part]:
    """Return F and B of a term, or H; its units are random where they differ from the ``redrawn`` ones."""
    if factor.places is not None or (factor.h is not None and not sums.is_factored(factor)):
        return [_Part("H", np.asarray(_kernel_of([factor], [factor], "trace"), float))]

    def part(name: str, units: Any, others: Any, offset: float) -> _Part:
        units, others = np.asarray(units), np.asarray(others)
        random = not np.array_equal(units, others)
        units = units.reshape(len(units), -1, units.shape[-1]).astype(float)
        units /= units.shape[1] ** 0.5  # outputs are averaged over
        flat = units.reshape(len(units), -1)
        return _Part(name, flat @ flat.T + offset, units, offset, random)

    if factor.h is None:
        return [part("H", factor.delta, redrawn.delta, 0.0)]
    offset = float(factor.offset)
    return [part("F", factor.h, redrawn.h, offset), part("B", factor.delta, redrawn.delta, 0.0)]


def _product(parts: list[_Part]) -> np.ndarray:
    return functools.reduce(operator.mul, (part.matrix for part in parts))


def _mean(pairs: np.ndarray) -> float:
    """Return the mean over pairs of different examples."""
    n = len(pairs)
    # The diagonal is left out, not subtracted, which would cancel.
    return float(np.where(np.eye(n, dtype=bool), 0, pairs).sum() / (n * (n - 1)))


def _spread(diagonal: np.ndarray, n: int) -> float:
    """Return the population variance over n coordinates, unbiased where they are a subset."""
    return float(diagonal.var(ddof=1)) * (n - 1) / n


def _similarity(gram: np.ndarray) -> np.ndarray:
    """Return tau (n, n), 0 where an example has no norm."""
    inverse = np.diagonal(gram)
    inverse = np.divide(1, inverse, out=np.zeros_like(inverse), where=inverse > 0)
    return gram**2 * inverse[:, None] * inverse[None]


def _layer(name: str, parts: list[_Part], n: int, tolerance: float) -> tuple[_Sums, list[Finding]]:
    """Return one layer's sums and the findings about it."""
    own = _product(parts)
    spread = _spread(np.diagonal(own), n)
    energy = _mean(own**2)
    if not energy:
        return _Sums(0, 0, 0, 0, spread, 0), []
    similarities = [_similarity(part.matrix) for part in parts]
    levels = [_mean(tau) for tau in similarities]
    expected = [_independent_level(part, level) for part, level in zip(parts, levels, strict=True)]
    fluctuating, findings = 0.0, []
    for index, part in enumerate(parts):
        other = parts[1 - index].matrix ** 2 if len(parts) > 1 else np.ones_like(own)
        error = report.percent(part.scale * _mean(similarities[index] * other), energy)
        findings.append(report.constant(part.name, name, np.diagonal(part.matrix), error, tolerance))
        if part.units is not None:
            findings.append(report.weak(part.name, name, levels[index], expected[index], tolerance))
        if part.random and part.units is not None and part.units.shape[2] > 1:
            share, about = _fluctuation(part, name, other / energy, tolerance)
            fluctuating += share
            findings += about
    scale = (n - 1) * math.prod(part.scale for part in parts)
    proxy, paired = scale * math.prod(levels), scale * _mean(functools.reduce(operator.mul, similarities))
    if len(parts) > 1:
        weights = np.diagonal(own)
        figures = {"product": math.prod(levels), "omega": energy / _mean(np.outer(weights, weights))}
        findings.append(report.independent("factors", name, paired / proxy, tolerance, **figures))
    whole = (n - 1) * energy
    return _Sums(scale * math.prod(expected), proxy, paired, whole, whole + spread, whole * fluctuating), findings


def _fluctuation(part: _Part, name: str, weights: np.ndarray, tolerance: float) -> tuple[float, list[Finding]]:
    """Return the share of a layer's variance that a part's fluctuation makes, and the findings about its units.

    ``weights`` (n, n) are those of the part's squares in the mean square of the layer's kernel.
    """
    assert part.units is not None
    noise, of_gaussian = _variances(part)
    share = _mean(noise * weights)
    relative = math.sqrt(_mean(noise) / _mean(part.matrix**2))
    return share, [
        report.tails(part.name, name, part.units, share - _mean(of_gaussian * weights)),
        report.concentrated(part.name, name, relative, share, tolerance),
    ]


def _independent_level(part: _Part, level: float) -> float:
    """Return mean tau if units varied independently over examples; as measured where there are none."""
    if part.units is None:
        return level
    mean, square = part.units.mean(0), (part.units**2).mean(0)
    common = (mean**2).sum() + part.offset
    return float((common**2 + (square**2 - mean**4).sum()) / part.scale)


def _variances(part: _Part) -> tuple[np.ndarray, np.ndarray]:
    """Return the variances (n, n) of a part's matrix from the spread of its terms over units, and of Gaussian units."""
    assert part.units is not None
    _, c, m = part.units.shape
    gram = part.matrix - part.offset
    squares = np.zeros_like(gram)
    for o in range(c):
        products = (part.units[:, o : o + 1] * part.units).reshape(len(gram), -1)
        squares += products @ products.T
    norms = np.diagonal(gram)
    # A variance; rounding can take it below 0.
    spread = np.maximum(squares - gram**2 / m, 0) * m / (m - 1)
    return spread, (np.outer(norms, norms) + gram**2) / (c * m)


def _kernel(K: np.ndarray, total: _Sums, n: int, tolerance: float) -> tuple[float, float, list[Finding]]:
    """Return the kernel's variance, its part off the diagonal, and the findings about the whole kernel."""
    diagonal = np.diagonal(K)
    off_diagonal, variance = _variance(K, n)
    if not total.proxy:
        raise ValueError("the kernel is zero off its diagonal here, so there are no similarities to check.")
    error = report.percent((n - 1) * diagonal.mean() ** 2 * _mean(_similarity(K)), variance)
    # Cross terms of two layers, whose units differ, hardly fluctuate.
    share = total.fluctuating / off_diagonal
    findings = [
        report.constant("K", report.KERNEL, diagonal, error, tolerance),
        report.concentrated("K", report.KERNEL, math.sqrt(share), share, tolerance),
        report.independent("layers", report.KERNEL, variance / total.variance, tolerance),
    ]
    return variance, off_diagonal, findings


def _variance(K: np.ndarray, n: int) -> tuple[float, float]:
    """Return the variance that n coordinates have by the kernel of some: its part off the diagonal, and all of it."""
    off_diagonal = (n - 1) * _mean(K**2)
    return off_diagonal, off_diagonal + _spread(np.diagonal(K), n)


def _standard_error(K: np.ndarray, n: int) -> float:
    """Return the variance's standard error, by leaving out one group of coordinates at a time; 0 where K has all n."""
    if len(K) == n:
        return 0.0
    if len(K) < 3:
        return math.nan
    groups = np.arange(len(K)) % _GROUPS

    def figures(kept: np.ndarray) -> dict[str, float]:
        rows = np.flatnonzero(kept[groups])
        return {"variance": _variance(K[np.ix_(rows, rows)], n)[1]}

    return float(standard_errors(figures, min(len(K), _GROUPS))["variance"])


def _corrections(total: _Sums, variance: float) -> tuple[Correction, ...]:
    steps = {
        "independent factors": total.paired,
        "constant norms": total.off_diagonal,
        "constant diagonal": total.variance,
        "independent layers": variance,
    }
    predicted = [total.proxy, *steps.values()]
    return tuple(
        Correction(math.log(after / before), after, name=name)
        for name, before, after in zip(steps, predicted[:-1], predicted[1:], strict=True)
    )
