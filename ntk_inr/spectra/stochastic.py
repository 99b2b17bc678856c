"""Moments of the eigenvalues from products with random vectors alone, with standard errors (T9)."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr import _checks
from ntk_inr._dtypes import accumulation_dtype, at_precision, eps, unit_of
from ntk_inr._results import Scalar, result, static
from ntk_inr.kernels.operator import NTKOperator
from ntk_inr.spectra.dense import Moments, from_units
from ntk_inr.spectra.symmetry import FEW_ROWS, check_symmetric

Method = Literal["auto", "probes", "deflated"]

# Vectors multiplied at a time: the memory of a product grows with it.
BLOCK = 16
# Relative standard error of the variance above which "auto" deflates.
_SPIKY = 0.01
# Fewer products than this can't spare the pilot that "auto" decides by.
_LEAST_FOR_PILOT = 12
# With fewer probes the slope of the control variate is noisier than what it removes.
_LEAST_FOR_CONTROL = 8


@result
class StochasticMoments(Moments):
    """Moments of the eigenvalues estimated from matrix-vector products.

    Attributes:
        mean: unbiased estimate of trace / n; exact where the operator has ``diagonal()``.
        variance: unbiased estimate of the population variance of the eigenvalues; noise can take it below 0.
        deviation: its square root, and 0 where noise took it below 0.
        n: number of eigenvalues.
        mean_stderr: standard error of the mean; 0 where it is exact.
        variance_stderr: standard error of the variance; 0 where it is exact.
        pilot_error: relative standard error of the variance that the pilot expects of "probes"; NaN without a pilot.
        matvecs: products with single vectors spent.
        method: "probes" or "deflated".
        reason: why that method, in a few words.
    """

    mean_stderr: Scalar
    variance_stderr: Scalar
    pilot_error: Scalar
    matvecs: Scalar
    method: str = static()
    reason: str = static()


class _Forms(NamedTuple):
    """What is kept of products with unit vectors u, on the host in float64.

    Attributes:
        quotients: ``u.B u``, (k,), where B is the operator minus the diagonal matrix ``centre``.
        norms: ``norm(B u - (u.B u) u)``, (k,): taken on the device, where the difference doesn't cancel.
    """

    quotients: np.ndarray
    norms: np.ndarray

    def per(self, unit: float) -> _Forms:
        """Return the forms of the operator divided by ``unit``."""
        return _Forms(self.quotients / unit, self.norms / unit)


class _Choice(NamedTuple):
    """A method, why it was chosen, and what the pilot says that "probes" would err by."""

    method: Literal["probes", "deflated"]
    reason: str
    pilot_error: Scalar = math.nan


class _Estimate(NamedTuple):
    """The moments of the operator divided by ``unit``, and their standard errors."""

    mean: float
    variance: float
    mean_stderr: Scalar
    variance_stderr: Scalar
    unit: float

    def result(self, n: int, choice: _Choice, matvecs: int) -> StochasticMoments:
        """Return the moments of the operator itself."""
        m = from_units(n, self.mean, self.variance, self.unit)
        errors = self.mean_stderr * self.unit, self.variance_stderr * self.unit * self.unit
        return StochasticMoments(
            m.mean, m.variance, m.deviation, n, *errors, choice.pilot_error, matvecs, choice.method, choice.reason
        )


class _Problem(NamedTuple):
    """The operator, and the diagonal that is taken off it: its own where known, else zeros."""

    A: Any
    centre: Array
    diagonal_known: bool


def stochastic_moments(A: Any, *, key: Array, probes: int = 64, method: Method = "auto") -> StochasticMoments:
    r"""Return unbiased estimates of the moments of the eigenvalues from ``probes`` products, with standard errors.

    .. math::
        \hat\mu = \frac{\bar q}{n}, \qquad \hat v = \frac1{nK}\sum_k \lVert A z_k\rVert^2
        - \frac1{n^2}\frac{(\sum_k q_k)^2 - \sum_k q_k^2}{K(K-1)}, \qquad q_k = z_k^\top A z_k, \;
        \lVert z_k\rVert^2 = n

    That is "probes", (9.2). Its relative standard error of v is :math:`\sqrt{2(k_4-1)/((n+2)K)}`, (9.3), with k4
    the kurtosis of the eigenvalues: good where they are alike, up to :math:`\sqrt{2/K}` where a few dominate.

    "deflated" first takes an orthonormal basis Q of the products with 3/8 of the vectors, accounts for Q exactly with
    another 3/8, and draws the rest from the complement of Q (Hutch++, for the trace and for
    :math:`\lVert A\rVert_F^2`). Given Q that is an average over independent vectors, so it stays unbiased.

    "auto" spends 1/8 of the vectors, at least 4, on a pilot. Where they put the relative standard error of v that
    "probes" would reach above 1%, it deflates, with the pilot's products as part of the basis; else the pilot only
    chooses, since an estimate that used it again would be biased by the choice. From ``probes`` at or above n on,
    "auto" and "deflated" multiply with the n unit vectors in place of random ones, and are exact.

    An operator with ``diagonal()``, and any dense kernel, gives its mean exactly, and of v only the part off the
    diagonal is sampled. The known trace also serves as control variate: what :math:`q_k` errs by predicts what
    :math:`\lVert A z_k\rVert^2` errs by, which divides the error by 3 to 4 for kernels with few dominant
    eigenvalues. Its slope is fitted for each probe on all others, so that it introduces no bias.

    Costs ``probes`` products with single vectors (n where that is less, under "auto" and "deflated"), 16 at a time,
    one diagonal, and for "deflated" 3 n probes / 4 floats. Products run on the device, in the operator's dtype,
    and aren't compiled again for another key; sums over probes run on the host in float64, so the function
    itself isn't for use inside ``jit``. For a dense kernel :func:`ntk_inr.moments` is exact, and faster.

    Args:
        A: symmetric operator with ``shape`` (n, n), ``dtype`` and ``A @ v`` for v (n, k), registered as a pytree,
            such as :class:`NTKOperator`; or a dense kernel (n, n), sharded or not. A NumPy kernel goes to the device.
        key: a JAX random key.
        probes: number of products K, at least 2, and at least 4 for "deflated".
        method: "auto", "probes" or "deflated".

    Returns:
        :class:`StochasticMoments` of Python floats.

    Raises:
        TypeError: A can't be multiplied with, or is no pytree; ``probes`` is no integer.
        ValueError: A is not square, a dense one not symmetric, too few probes, or an unknown method.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> K = jnp.diag(jnp.linspace(1.0, 3.0, 500)).at[0, 1].set(2.0).at[1, 0].set(2.0)
        >>> m, exact = ni.stochastic_moments(K, key=jax.random.key(0)), ni.moments(K)
        >>> m.method, m.mean_stderr, bool(abs(m.variance - exact.variance) < 5 * m.variance_stderr)
        ('probes', 0.0, True)

    Source: T9; Hutch++ by Meyer, Musco, Musco and Woodruff 2021, arXiv 2010.09649; vectors spread over the whole
    complement by Epperly, Tropp and Webber 2024, arXiv 2301.07825.
    """
    A, n = as_operator(A)
    _checks.check_choice(method, ("auto", "probes", "deflated"), "method")
    _checks.check_positive(probes, "probes", integer=True, least=4 if method == "deflated" else 2)
    known = callable(getattr(A, "diagonal", None))
    dtype = working_dtype(A)
    problem = _Problem(A, _diagonal(A).astype(dtype) if known else jnp.zeros(n, dtype), known)
    pilot_key, sketch_key, probe_key = jax.random.split(key, 3)
    if method != "probes" and probes >= n:
        exact = _estimate(problem, _accounted(problem, jnp.eye(n, dtype=problem.centre.dtype)), None)
        return exact.result(n, _Choice("deflated", "exact: the products cover all dimensions"), n)
    pilot = 0
    columns: list[Array] = []
    if method != "auto":
        choice = _Choice(method, "asked for")
    elif probes < _LEAST_FOR_PILOT:
        choice = _Choice("probes", "too few probes for a pilot")
    else:
        pilot = max(4, probes // 8)
        forms, columns = _sampled(problem, pilot_key, pilot, keep=True)
        choice = _chosen(problem, forms, probes - pilot)
    if choice.method == "probes":
        forms, _ = _sampled(problem, probe_key, probes - pilot)
        return _estimate(problem, None, forms).result(n, choice, probes)
    rank = 3 * probes // 8
    columns += _sampled(problem, sketch_key, rank - pilot, keep=True)[1]
    basis = _orthonormal(jnp.concatenate(columns, axis=1))
    inside = _accounted(problem, basis)
    outside, _ = _sampled(problem, probe_key, probes - 2 * rank, basis=basis)
    return _estimate(problem, inside, outside).result(n, choice, probes)


def as_operator(A: Any, name: str = "A") -> tuple[Any, int]:
    """Return a dense kernel as a floating JAX array, an operator as it came, and the dimension n."""
    if isinstance(A, np.ndarray | Array) or not hasattr(A, "shape"):
        kernel = _checks.as_kernel(A, name)
        check_symmetric(kernel, name, rows=FEW_ROWS)
        if isinstance(kernel, np.ndarray):
            size, range_ = unit_of(kernel), jnp.finfo(working_dtype(kernel))
            if not range_.tiny <= size <= range_.max:
                raise ValueError(
                    f"{name} has entries of about {size:.0e}, which are out of the range of {range_.dtype} that JAX "
                    "computes in; divide it by that, or turn on jax_enable_x64."
                )
        return jnp.asarray(kernel), kernel.shape[0]
    if not hasattr(A, "__matmul__") or jax.tree_util.all_leaves([A]):
        raise TypeError(
            f"{name} is {type(A).__name__}; expected a dense kernel, or an operator with A @ v that is registered as "
            "a JAX pytree, such as ni.NTKOperator(apply, params, x)."
        )
    between = isinstance(A, NTKOperator) and A.model.x2 is not None
    if len(A.shape) != 2 or A.shape[0] != A.shape[1] or between:
        raise ValueError(
            f"{name} has shape {tuple(A.shape)}{', between x1 and x2' * between}; expected a square operator (n, n), "
            'as ni.NTKOperator is without x2, for outputs "trace" or "full".'
        )
    return A, A.shape[0]


def working_dtype(A: Any) -> np.dtype:
    """Return the dtype of the vectors that an operator is multiplied with: at least float32."""
    return jax.dtypes.canonicalize_dtype(accumulation_dtype(A.dtype))


def _chosen(problem: _Problem, pilot: _Forms, probes: int) -> _Choice:
    """Return the method that the pilot suggests for ``probes`` further vectors."""
    estimate = _estimate(problem, None, pilot)
    if estimate.variance <= (eps(problem.centre.dtype) * estimate.mean) ** 2:
        return _Choice("probes", "eigenvalues equal to rounding in the pilot", 0.0)
    error = estimate.variance_stderr / estimate.variance * math.sqrt(len(pilot.norms) / probes)
    if error > _SPIKY:
        return _Choice("deflated", f"the pilot's error is above {_SPIKY:.0%}", error)
    return _Choice("probes", f"the pilot's error is within {_SPIKY:.0%}", error)


def _estimate(problem: _Problem, inside: _Forms | None, outside: _Forms | None) -> _Estimate:
    """Put together the directions accounted for exactly and the sampled ones, for B = A - centre."""
    centre = np.asarray(problem.centre, np.float64)
    n = len(centre)
    none = _Forms(np.zeros(0), np.zeros(0))
    unit = unit_of(np.concatenate([centre, *(inside or none), *(outside or none)]))
    centre, inside, outside = centre / unit, (inside or none).per(unit), (outside or none).per(unit)
    count, rest = len(outside.norms), n - len(inside.norms)
    # (9.2) is the same for A and A - shift, and doesn't cancel near the right shift.
    shift = 0.0 if problem.diagonal_known else float(np.mean(np.concatenate([inside.quotients, outside.quotients])))
    trace_in = float((inside.quotients - shift).sum())
    square_in = float((inside.norms**2 + (inside.quotients - shift) ** 2).sum())
    trace_out = rest * (outside.quotients - shift)
    square_out = rest * (outside.norms**2 + (outside.quotients - shift) ** 2)
    mean, mean_stderr = float(centre.mean()) + shift, 0.0
    if not count:
        off = 0.0 if problem.diagonal_known else trace_in / n
        variance = float(centre.var()) + square_in / n - off**2
        return _Estimate(mean + off, variance, 0.0, 0.0, unit)
    if problem.diagonal_known:
        # tr B = 0, so the complement's trace is -trace_in.
        square_out = _controlled(square_out, trace_out + trace_in)
        variance = float(centre.var()) + (square_in + square_out.mean()) / n
        terms = square_out
    else:
        trace = trace_in + trace_out
        mean += trace.mean() / n
        mean_stderr = trace.std(ddof=1) / (n * math.sqrt(count))
        pairs = (trace.sum() ** 2 - (trace**2).sum()) / (count * (count - 1))
        variance = (square_in + square_out.mean()) / n - pairs / n**2
        # The jackknife's terms to first order: those of v about the estimated mean.
        terms = square_out - 2 * trace.mean() / n * trace
    variance_stderr = terms.std(ddof=1) / (n * math.sqrt(count))
    return _Estimate(float(mean), float(variance), float(mean_stderr), float(variance_stderr), float(unit))


def _controlled(values: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Return ``values`` less what ``control``, of mean zero, explains; each with the slope of all the others."""
    count = len(values)
    if count < _LEAST_FOR_CONTROL:
        return values
    others = count - 1
    value_mean, control_mean = (values.sum() - values) / others, (control.sum() - control) / others
    square = (control**2).sum() - control**2 - others * control_mean**2
    product = (control * values).sum() - control * values - others * control_mean * value_mean
    return values - np.divide(product, square, out=np.zeros(count), where=square > 0) * control


def _sampled(
    problem: _Problem, key: Array, count: int, basis: Array | None = None, keep: bool = False
) -> tuple[_Forms, list[Array]]:
    """Return the forms of ``count`` random unit vectors outside ``basis``, and on demand their products with A."""
    blocks, columns = [], []
    n = len(problem.centre)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        vectors = unit_vectors(jax.random.fold_in(key, start), n, size, problem.centre.dtype, basis)
        product, *forms = _rayleigh(problem.A, problem.centre, vectors)
        blocks.append(forms)
        if keep:
            columns.append(product)
    return _host(blocks), columns


def _accounted(problem: _Problem, vectors: Array) -> _Forms:
    """Return the forms of the unit columns of ``vectors``."""
    parts = [vectors[:, i : i + BLOCK] for i in range(0, vectors.shape[1], BLOCK)]
    return _host([_rayleigh(problem.A, problem.centre, part)[1:] for part in parts])


def _host(forms: list[Any]) -> _Forms:
    """Gather what the device was asked for: only here does the host wait for it."""
    each = [np.concatenate([np.zeros(0), *(np.asarray(form[i], np.float64) for form in forms)]) for i in (0, 1)]
    return _Forms(*each)


@jax.jit
def _diagonal(A: Any) -> Array:
    return A.diagonal()


@jax.jit
@at_precision
def _rayleigh(A: Any, centre: Array, vectors: Array) -> tuple[Array, Array, Array]:
    """Return A u, u.B u and norm(B u - (u.B u) u) for unit columns u (n, k)."""
    product = (A @ vectors).astype(vectors.dtype)
    centred = product - centre[:, None] * vectors
    quotients = (vectors * centred).sum(axis=0)
    spread = centred - quotients[None, :] * vectors
    unit = unit_of(spread)
    return product, quotients, unit * jnp.linalg.norm(spread / unit, axis=0)


@jax.jit(static_argnames=("n", "count", "dtype"))
@at_precision
def unit_vectors(key: Array, n: int, count: int, dtype: Any, basis: Array | None = None) -> Array:
    """Return random unit vectors (n, count), uniform on the sphere, in the complement of an orthonormal ``basis``."""
    vectors = jax.random.normal(key, (n, count), dtype)
    if basis is not None:
        for _ in range(2):  # Twice is enough for orthogonality to rounding.
            vectors = vectors - basis @ (basis.T @ vectors)
    return vectors / jnp.linalg.norm(vectors, axis=0, keepdims=True)


@jax.jit
@at_precision
def _orthonormal(vectors: Array) -> Array:
    return jnp.linalg.qr(vectors / unit_of(vectors))[0]
