"""The largest eigenpairs, from products with blocks of vectors alone."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ntk_inr import _checks
from ntk_inr._dtypes import at_precision, eps, unit_of
from ntk_inr._results import Scalar, result
from ntk_inr.spectra.stochastic import BLOCK, as_operator, unit_vectors, working_dtype

# Vectors iterated beside the k asked for: they speed up the last ones, and catch multiple eigenvalues.
_EXTRA = 4
# Blocks added to the basis before a restart; the basis and its products hold 2 (_DEPTH + 1) of them.
_DEPTH = 4
_ITERATIONS = 100


@result
class Eigenpairs:
    """The k largest eigenvalues, largest first, and how well each one is known.

    Attributes:
        values: Ritz values (k,); each lies within its residual of an eigenvalue.
        vectors: orthonormal columns (n, k).
        residuals: ``norm(A u - value * u)`` (k,), from products taken anew at the end.
        converged: (k,), whether the residual is within ``tolerance`` times the largest value.
        matvecs: products with single vectors spent.
    """

    values: Any
    vectors: Any
    residuals: Any
    converged: Any
    matvecs: Scalar


def top_eigenpairs(
    A: Any,
    k: int,
    *,
    key: Array,
    iterations: int | None = None,
    tolerance: float | None = None,
    throw: bool = False,
) -> Eigenpairs:
    r"""Return the k largest eigenvalues and their eigenvectors, by randomized block Krylov iteration.

    A block X of k + 4 random vectors is multiplied with A again and again, each product made orthogonal to all
    before it. The Ritz pairs of the space they span are the result, or, until

    .. math:: \lVert A u_i - \lambda_i u_i\rVert \le \text{tolerance} \cdot \lambda_1

    for all k of them, the start of another round of 4 products (thick restart). Since the block is wider than k,
    eigenvalues of any multiplicity are found, and so are those of A with rank below k. Where the basis would have
    n vectors, A is multiplied with the n unit vectors and decomposed.

    Costs k + 4 products with single vectors an iteration, 16 at a time (a dense kernel takes all at once), k to
    verify, and 10 n (k + 4) floats; n products at most where n <= 5 (k + 4). Few iterations do where eigenvalues
    decay, as those of kernels do. Each round is one compiled program, which another key doesn't compile again; the
    host looks at the residuals between rounds, so the function itself isn't for use inside ``jit``.

    Args:
        A: symmetric positive semi-definite operator (n, n) or dense kernel, as in :func:`stochastic_moments`.
        k: number of eigenpairs, at most n.
        key: a JAX random key.
        iterations: most products with a block; None is 100.
        tolerance: of the residuals, relative to the largest eigenvalue; None is ``10 eps sqrt(n)`` of A's dtype.
        throw: raise where an eigenpair hasn't converged, rather than say so in ``converged``.

    Returns:
        :class:`Eigenpairs`, in A's dtype, float32 for half precision.

    Raises:
        TypeError: A can't be multiplied with, or is no pytree; k or iterations is no integer.
        ValueError: A is not square, a dense one not symmetric, k is not between 1 and n, iterations below 1, or
            tolerance not above 0.
        RuntimeError: ``throw`` is set and an eigenpair hasn't converged.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> K = jnp.diag(0.5 ** jnp.arange(200.0))
        >>> top = ni.top_eigenpairs(K, 3, key=jax.random.key(0))
        >>> [round(float(v), 4) for v in top.values], bool(top.converged.all())
        ([1.0, 0.5, 0.25], True)

    Source: Musco and Musco 2015, arXiv 1504.05477 (randomized block Krylov); Wu and Simon 2000,
    doi 10.1137/S0895479898334605 (thick restart).
    """
    A, n = as_operator(A)
    _checks.check_positive(k, "k", integer=True)
    if k > n:
        raise ValueError(f"k is {k}; the operator has only {n} eigenpairs.")
    iterations = _ITERATIONS if iterations is None else iterations
    _checks.check_positive(iterations, "iterations", integer=True)
    dtype = working_dtype(A)
    tolerance = 10 * eps(dtype) * math.sqrt(n) if tolerance is None else tolerance
    _checks.check_positive(tolerance, "tolerance")
    if (_DEPTH + 1) * (k + _EXTRA) >= n:
        block, depth = n, 0
        vectors = jnp.eye(n, dtype=dtype)
    else:
        block, depth = k + _EXTRA, _DEPTH
        vectors = unit_vectors(jax.random.fold_in(key, 0), n, block, dtype)
    vectors, products, unit = _started(A, vectors)
    ahead, used, finished = products, 1, False
    while not finished:
        depth = min(depth, iterations - used)
        vectors, products, ahead, values, residuals = _round(
            A, unit, vectors, products, ahead, jax.random.fold_in(key, used), depth
        )
        used += depth
        finished = used >= iterations or depth == 0 or bool((residuals[:k] <= tolerance * values[0]).all())
    vectors, values = vectors[:, :k], values[:k]
    # The products in hand came through the restarts; what is reported is measured.
    residuals = _residuals(A, unit, vectors, values)
    converged = residuals <= tolerance * values[0]
    if throw and not bool(converged.all()):
        raise RuntimeError(
            f"{int(converged.sum())} of {k} eigenpairs converged in {used} iterations: the largest residual is "
            f"{float(residuals.max() * unit):.1e}, and {tolerance:.1e} times the largest eigenvalue is "
            f"{tolerance * float(values[0] * unit):.1e}. Raise iterations or tolerance, or pass throw=False."
        )
    return Eigenpairs(values * unit, vectors, residuals * unit, converged, used * block + k)


def _multiply(A: Any, vectors: Array) -> Array:
    """Return A @ vectors; an operator, whose memory grows with their number, gets a block at a time."""
    n, count = vectors.shape
    if isinstance(A, Array) or count <= BLOCK:
        return (A @ vectors).astype(vectors.dtype)
    whole = count // BLOCK * BLOCK
    blocks = vectors[:, :whole].reshape(n, -1, BLOCK).swapaxes(0, 1)
    product = lax.map(lambda block: A @ block, blocks).swapaxes(0, 1).reshape(n, whole)
    product = product if whole == count else jnp.concatenate([product, A @ vectors[:, whole:]], axis=1)
    return product.astype(vectors.dtype)


@jax.jit
@at_precision
def _started(A: Any, vectors: Array) -> tuple[Array, Array, Array]:
    """Return orthonormal vectors, A times them in units of their size, and that unit, which all else is in."""
    vectors = jnp.linalg.qr(vectors)[0]
    products = _multiply(A, vectors)
    unit = unit_of(products)
    return vectors, products / unit, unit


@jax.jit(static_argnames="depth")
@at_precision
def _round(
    A: Any, unit: Array, vectors: Array, products: Array, ahead: Array, key: Array, depth: int
) -> tuple[Array, Array, Array, Array, Array]:
    """Add ``depth`` blocks to the basis ``vectors``, first the directions ``ahead``; keep the best Ritz pairs.

    Returns their vectors (n, block), largest first, A times these, the residuals that are the directions for
    the next round, the values (block,) and the residuals' norms.
    """
    block = vectors.shape[1]
    empty = ((0, 0), (0, depth * block))

    def extend(i: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        basis, images, ahead = state
        new = _orthonormal(ahead, basis, jax.random.fold_in(key, i))
        image = _multiply(A, new) / unit
        place = (0, (i + 1) * block)
        return (
            lax.dynamic_update_slice(basis, new, place),
            lax.dynamic_update_slice(images, image, place),
            image,
        )

    basis, images, _ = lax.fori_loop(0, depth, extend, (jnp.pad(vectors, empty), jnp.pad(products, empty), ahead))
    small = basis.T @ images
    values, mix = jnp.linalg.eigh((small + small.T) / 2)
    values, mix = values[::-1][:block], mix[:, ::-1][:, :block]
    vectors, products = basis @ mix, images @ mix
    ahead = products - values[None, :] * vectors
    return vectors, products, ahead, values, jnp.linalg.norm(ahead, axis=0)


def _orthonormal(vectors: Array, basis: Array, key: Array) -> Array:
    """Return orthonormal columns outside ``basis``; random ones in place of those that lie within it."""
    norms = jnp.linalg.norm(vectors, axis=0, keepdims=True)
    vectors = vectors / jnp.where(norms > 0, norms, 1)
    spare = jax.random.normal(key, vectors.shape, vectors.dtype) / math.sqrt(len(vectors))
    for _ in range(2):  # Twice is enough for orthogonality to rounding.
        vectors, triangle = jnp.linalg.qr(vectors - basis @ (basis.T @ vectors))
        lost = jnp.abs(jnp.diagonal(triangle)) <= 100 * eps(vectors.dtype)
        vectors = jnp.where(lost[None, :], spare, vectors)
    return vectors


@jax.jit
@at_precision
def _residuals(A: Any, unit: Array, vectors: Array, values: Array) -> Array:
    return jnp.linalg.norm(_multiply(A, vectors) / unit - values[None, :] * vectors, axis=0)
