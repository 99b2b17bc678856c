"""The variance budget: which layer makes the variance of the kernel's eigenvalues, and by which factor (T8)."""

from __future__ import annotations

import functools
import itertools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr import _checks
from ntk_inr._checks import Precision
from ntk_inr._dtypes import accumulation_dtype
from ntk_inr._results import result, static
from ntk_inr._typing import Apply, Params, Progress
from ntk_inr.kernels.request import Request
from ntk_inr.spectra.submatrices import draw, estimate, standard_errors, sums_of, unseen
from ntk_inr.variance import budget_report, sums
from ntk_inr.variance.budget_change import BudgetChange, attributed
from ntk_inr.variance.sums import Figures, Sums

_SIZE = 2048
_SUBMATRICES = 8
# Terms that ``print`` shows.
_ROWS = 18


@result
class GramMatrices:
    """The matrices (L, n, n) of each term, NaN where a term is not one product ``F * B``.

    Attributes:
        F: inner products of the inputs of each layer.
        B: inner products of the sensitivities of the output to it, averaged over outputs.
        tau_F: ``F_ij**2 / (F_ii F_jj)``.
        tau_B: likewise.
    """

    F: Any
    B: Any
    tau_F: Any
    tau_B: Any


@result
class VarianceBudget:
    r"""The population variance of a kernel's eigenvalues, split over the L terms of the kernel (8.3).

    .. math::
        \mathcal V_{ll'} = \tfrac1n \sum_{i \ne j} (H_l)_{ij} (H_{l'})_{ij}
        + \operatorname{Cov}_i((H_l)_{ii}, (H_{l'})_{ii}), \qquad \textstyle\sum_{ll'} \mathcal V_{ll'} = v

    A term is a matrix that enters as ``u = W h`` together with the biases added to u, where the kernel is
    ``H = F * B`` entry by entry, or another leaf of the parameters. A number that multiplies u inside the
    network is in F or in B, as the network writes it; their product does not depend on that.
    ``print`` shows the table, of the largest shares where terms are many.

    Attributes:
        off_diagonal: (L, L), the part of ``matrix`` from pairs of different coordinates.
        diagonal: (L, L), the part from the kernel's diagonal.
        means: (L,), mean eigenvalue of each term.
        factored: (L,), whether ``H = F * B``. Elsewhere (leaves with their own Jacobian, such as the weights of a
            one-dimensional input, and weights used more than once) figures of F and B are NaN.
        forward_scale: (L,), mean of F_ii, R_F^2.
        backward_scale: (L,), mean of B_ii, R_B^2.
        forward_tau: (L,), mean of ``F_ij**2 / (F_ii F_jj)`` over pairs; pairs with a zero count as zero.
        backward_tau: (L,), likewise of B.
        tau: (L,), likewise of H.
        overlap: (L,), Omega of (8.4), the mean of ``tau`` weighted by H_ii H_jj.
        mean_stderr: standard error of ``mean``; all standard errors are 0 where the budget is exact.
        variance_stderr: of ``variance``.
        cv_stderr: of ``cv``.
        matrix_stderr: (L, L), of ``matrix``.
        shares_stderr: (L,), of ``shares``.
        matrices: :class:`GramMatrices` where they were asked for.
        names: the terms, by the paths of their parameters, in the order of the forward pass.
        n: number of coordinates.
        submatrices: how many submatrices were drawn; 1 where the whole kernel was taken.
        size: rows of each submatrix.
    """

    off_diagonal: Any
    diagonal: Any
    means: Any
    factored: Any
    forward_scale: Any
    backward_scale: Any
    forward_tau: Any
    backward_tau: Any
    tau: Any
    overlap: Any
    mean_stderr: Any
    variance_stderr: Any
    cv_stderr: Any
    matrix_stderr: Any
    shares_stderr: Any
    matrices: GramMatrices | None
    names: tuple[str, ...] = static()
    n: int = static()
    submatrices: int = static()
    size: int = static()

    @property
    def matrix(self) -> Any:
        """The budget (L, L), positive semi-definite; its sum is ``variance``."""
        return self.off_diagonal + self.diagonal

    @property
    def mean(self) -> Any:
        """The mean eigenvalue."""
        return self.means.sum()

    @property
    def variance(self) -> Any:
        """The population variance of the eigenvalues."""
        return self.matrix.sum()

    @property
    def cv(self) -> Any:
        """``sqrt(variance) / mean``, free of scale."""
        return _ratio(self.variance**0.5, self.mean)

    @property
    def shares(self) -> Any:
        """Each term's part of the variance (L,), with half of what it shares with each other; their sum is 1."""
        return _ratio(self.matrix.sum(1), self.variance)

    @property
    def correlations(self) -> Any:
        """``V_ll' / sqrt(V_ll V_l'l')`` (L, L)."""
        own = self.matrix.diagonal() ** 0.5
        return _ratio(self.matrix, own[:, None] * own[None, :])

    def table(self) -> str:
        """Return the budget as text, a row a term."""
        return budget_report.table(self)

    def __str__(self) -> str:
        return budget_report.table(self, most=_ROWS)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Return a figure of what each term has and shares, and of the correlations between terms.

        Args:
            path: a file to save it to.

        Returns:
            A ``matplotlib.figure.Figure``.

        Raises:
            ImportError: matplotlib missing (``pip install "ntk-inr[report]"``).
        """
        return budget_report.plot(self, path)

    def compare(self, other: VarianceBudget) -> BudgetChange:
        """Return which factor of which term changed the variance, the mean and cv from this budget to ``other``.

        Args:
            other: the budget of the same network later, or of another network. Terms are matched by name; where
                the names differ and the numbers of terms do not, by position. A term that only one network has is
                a change of its own.

        Returns:
            A :class:`BudgetChange`, whose contributions add up.

        Raises:
            ValueError: the terms can't be matched; a variance is zero.

        Example:
            >>> import jax, jax.numpy as jnp, ntk_inr as ni
            >>> x = jax.random.uniform(jax.random.key(1), (32, 2), minval=-1.0)
            >>> relu, pe = (
            ...     ni.variance_budget(*ni.init(ni.variant(name, features=32, depth=2), jax.random.key(0), x), x)
            ...     for name in ("relu", "pe")
            ... )
            >>> change = relu.compare(pe)
            >>> bool(abs(change.cv.sum() - 2 * jnp.log(pe.cv / relu.cv)) < 1e-5)
            True
        """
        return attributed(self, other)


def variance_budget(
    apply: Apply,
    params: Params,
    x: Any,
    *,
    matrices: bool = False,
    key: Array | None = None,
    size: int | None = None,
    submatrices: int | None = None,
    block: int | None = None,
    memory_limit: int | None = None,
    precision: Precision = "highest",
    progress: Progress | None = None,
) -> VarianceBudget:
    r"""Return which layer makes the variance of the kernel's eigenvalues, alone and with each other layer (T8).

    .. math:: v = \sum_{ll'} \mathcal V_{ll'}, \qquad
        \mathcal V_{ll}^{\rm off} = \frac{\Omega_l}n \sum_{i \ne j} F_{ii} F_{jj} B_{ii} B_{jj}

    The kernel is :func:`ntk_inr.ntk`'s, averaged over outputs, so ``variance`` is that of
    ``moments(ntk(apply, params, x))``. It is streamed in tiles, never stored, in about the time of that function;
    sums are taken in float64 on the host.

    With ``key`` the budget is estimated from disjoint principal submatrices of ``size`` coordinates (9.4), without
    bias, and with the jackknife's standard errors over submatrices.

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``; examples must not mix.
        params: pytree of floating point or complex arrays.
        x: coordinates (n, d), at least 2.
        matrices: keep F, B, tau_F and tau_B of each term, 4 L n^2 figures.
        key: a JAX random key, to draw submatrices; None takes the whole kernel.
        size: coordinates in each submatrix; None is 2048, or what fits, and the whole kernel up to n = 2048.
        submatrices: how many are drawn, at least 2; None is 8, or what fits.
        block: rows and columns of a tile; None picks by memory.
        memory_limit: bytes to stay within, ``matrices`` apart; None is what the device has left.
        precision: of matrix products, as in :func:`ntk_inr.ntk`.
        progress: called as ``progress(done, total)`` after each tile, or each submatrix.

    Returns:
        :class:`VarianceBudget`.

    Raises:
        TypeError: integer coordinates or parameters; ``apply`` not callable.
        ValueError: as :func:`ntk_inr.ntk`; one coordinate only; ``size`` or ``submatrices`` without ``key``, or
            more of them than coordinates; ``matrices`` with ``key``.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> x = jax.random.uniform(jax.random.key(1), (32, 2), minval=-1.0)
        >>> apply, params = ni.init(ni.CoordinateMLP(features=32, depth=2), jax.random.key(0), x)
        >>> budget = ni.variance_budget(apply, params, x)
        >>> budget.names
        ('hidden_0/kernel (+bias)', 'hidden_1/kernel (+bias)', 'readout/kernel (+bias)')
        >>> exact = ni.moments(ni.ntk(apply, params, x))
        >>> bool(jnp.allclose(budget.variance, exact.variance)), budget.matrix.shape
        (True, (3, 3))

    Source: T8 of the theory, after Ou and Zhuang 2025, arXiv 2512.15169.
    """
    request = Request.of(apply, params, x, block=block, memory_limit=memory_limit, precision=precision)
    model = request.on_host("variance_budget").model
    n = model.n1
    if n < 2:
        raise ValueError("x has 1 coordinate, whose kernel has one eigenvalue and no variance; expected at least 2.")
    count, size = _plan(n, key, size, submatrices, matrices)

    trace, terms = sums.plan(model)
    cut = sums.cut_for(trace, terms, size, limit=memory_limit, block=block)
    points = np.asarray(model.x1)
    reduced = functools.partial(sums.reduced, model, terms=terms, cut=cut, precision=precision)
    if key is None or count == 1:
        dtype = accumulation_dtype(trace.dtype)
        grams = np.empty((2, len(terms.names), n, n), dtype) if matrices else None
        whole = reduced(points, progress=progress, grams=grams)
        return _budget(terms.names, n, [whole], None if grams is None else _matrices(grams, whole))
    parts = []
    subsets = draw(key, n, size, count, otherwise="leave out key for the exact budget")
    for done, subset in enumerate(subsets, 1):
        parts.append(reduced(points[subset], progress=None))
        if progress:
            progress(done, count)
    return _budget(terms.names, n, parts, None)


def _plan(n: int, key: Any, size: int | None, submatrices: int | None, matrices: bool) -> tuple[int, int]:
    """Return how many submatrices of which size are taken, (1, n) for the whole kernel."""
    for name, value in (("size", size), ("submatrices", submatrices)):
        if value is not None:
            _checks.check_positive(value, name, integer=True, least=2)
            if key is None:
                raise ValueError(f"{name}={value} is of submatrices that are drawn; pass key=jax.random.key(0) too.")
    if key is None:
        return 1, n
    if matrices:
        raise ValueError("matrices=True keeps the whole kernel's factors, which submatrices don't have; leave out key.")
    if submatrices is None and (n == size or (size is None and n <= _SIZE)):
        return 1, n
    if size is None:
        size = max(2, min(_SIZE, n // (submatrices or _SUBMATRICES)))
    return submatrices or max(2, min(_SUBMATRICES, n // size)), size


def _summary(figures: Figures) -> dict[str, Any]:
    """Return the figures that have standard errors, by the names of these."""
    matrix, mean = figures.off_diagonal + figures.diagonal, figures.means.sum()
    variance = matrix.sum()
    return {
        "mean_stderr": mean,
        "variance_stderr": variance,
        "cv_stderr": _ratio(np.sqrt(variance), mean),
        "matrix_stderr": matrix,
        "shares_stderr": _ratio(matrix.sum(1), variance),
    }


def _estimate(n: int, parts: list[Sums]) -> Figures:
    """Return unbiased estimates for n coordinates (9.4) from submatrices, exact where one has all coordinates."""
    size = len(parts[0].diagonals)
    pairs = len(parts) * size * (size - 1)
    products = np.sum([part.pairs for part in parts], axis=0)
    spread = estimate(n, sums_of([part.pairs for part in parts], [part.diagonals[:, 2] for part in parts]))
    forward_tau, backward_tau, tau = np.sum([part.similarities for part in parts], axis=0) / pairs
    weights = np.sum([(d * (d.sum(0) - d)).sum(0) for d in (part.diagonals[:, 2] for part in parts)], axis=0)
    forward_scale, backward_scale, _ = np.mean([part.diagonals.mean(0) for part in parts], axis=0)
    return Figures(
        off_diagonal=spread.off_diagonal,
        diagonal=spread.diagonal,
        means=spread.means,
        forward_scale=forward_scale,
        backward_scale=backward_scale,
        forward_tau=forward_tau,
        backward_tau=backward_tau,
        tau=tau,
        overlap=_ratio(np.diagonal(products), weights),
    )


def _budget(names: tuple[str, ...], n: int, parts: list[Sums], matrices: GramMatrices | None) -> VarianceBudget:
    figures = _estimate(n, parts)
    count, size = len(parts), len(parts[0].diagonals)
    errors = standard_errors(lambda kept: _summary(_estimate(n, list(itertools.compress(parts, kept)))), count)
    errors["mean_stderr"] = errors["mean_stderr"] * unseen(n, count * size)
    return VarianceBudget(
        names=names,
        factored=~np.isnan(figures.forward_scale),
        n=n,
        **figures._asdict(),
        **errors,
        submatrices=count,
        size=size,
        matrices=matrices,
    )


def _matrices(grams: np.ndarray, whole: Sums) -> GramMatrices:
    """Return the Gram matrices (2, L, n, n) with their similarities."""
    diagonals = np.moveaxis(whole.diagonals[:, :2], 0, -1)
    # As in the means over pairs, what is zero is similar to nothing.
    inverse = np.divide(1, np.sqrt(diagonals), out=np.zeros_like(diagonals), where=diagonals > 0).astype(grams.dtype)
    similarities = (grams * inverse[..., :, None] * inverse[..., None, :]) ** 2
    return GramMatrices(grams[0], grams[1], similarities[0], similarities[1])


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Return the quotient, NaN where the denominator is zero."""
    xp = jnp if isinstance(denominator, jax.Array) else np
    zero = denominator == 0
    return xp.where(zero, xp.nan, numerator / xp.where(zero, 1, denominator))[()]
