"""The density of the eigenvalues, by stochastic Lanczos quadrature (T9)."""

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

_STEPS = 32


@result
class Moment:
    """An average of a power of the eigenvalues, and its standard error over probes."""

    value: Scalar
    stderr: Scalar


@result
class SpectralDensity:
    r"""The distribution of the eigenvalues as weighted nodes, one quadrature for each probe, (9.5).

    .. math:: \rho(\lambda) \approx \frac1K \sum_k \sum_j w_{kj}\, \delta(\lambda - \vartheta_{kj})

    Attributes:
        nodes: Ritz values (probes, steps); each row lies between the smallest and the largest eigenvalue.
        weights: (probes, steps); each row is non-negative and adds up to 1.
    """

    nodes: Any
    weights: Any

    def cdf(self, t: Any) -> Array:
        """Return the share of eigenvalues at or below ``t``, in the shape of ``t``."""
        t = jnp.asarray(t, self.nodes.dtype)
        nodes, shares = self._atoms(t.ndim)
        return jnp.where(nodes <= t[..., None], shares, 0).sum(axis=-1)

    def histogram(self, edges: Any) -> Array:
        """Return the share of eigenvalues between adjacent ``edges`` (b + 1,), as (b,).

        Each bin holds its lower edge, and the last one its upper edge too, as in ``numpy.histogram``.
        """
        nodes, shares = self._atoms(0)
        return jnp.histogram(nodes, bins=jnp.asarray(edges, nodes.dtype), weights=shares)[0]

    def density(self, t: Any, width: float) -> Array:
        """Return the density at ``t``, smoothed by a Gaussian of standard deviation ``width``, in the shape of ``t``.

        Both are in the units of the eigenvalues, and the density in their inverse.
        """
        _checks.check_positive(width, "width")
        t = jnp.asarray(t, self.nodes.dtype)
        nodes, shares = self._atoms(t.ndim)
        z = (nodes - t[..., None]) / width
        return (shares * jnp.exp(-(z**2) / 2)).sum(axis=-1) / (width * math.sqrt(2 * math.pi))

    def moment(self, j: int) -> Moment:
        """Return the mean of ``eigenvalue**j``, unbiased for j below twice the steps, and its standard error."""
        each = (self.weights * self.nodes**j).sum(axis=1)
        unit = unit_of(each)
        return Moment(each.mean(), (each / unit).std(ddof=1) * unit / math.sqrt(len(each)))

    def _atoms(self, ndim: int) -> tuple[Array, Array]:
        """Return all nodes and their shares in one axis, after ``ndim`` axes of length 1."""
        shape = (1,) * ndim + (-1,)
        return self.nodes.reshape(shape), self.weights.reshape(shape) / len(self.weights)


def spectral_density(A: Any, *, key: Array, probes: int = 16, steps: int | None = None) -> SpectralDensity:
    r"""Return the distribution of the eigenvalues by stochastic Lanczos quadrature, (9.5).

    From each of ``probes`` random unit vectors, Lanczos takes ``steps`` steps to a tridiagonal matrix
    :math:`T = S \operatorname{diag}(\vartheta) S^\top`; the nodes are its eigenvalues, the weights
    :math:`S_{1j}^2`. They give :math:`z^\top A^j z` exactly for j below twice the steps. Details finer than
    about the spectrum's width over the steps are smoothed out, save at its ends, and shares of eigenvalues are
    uncertain by about :math:`1/\sqrt{n \cdot \text{probes}}`. Below :func:`rounding_floor` there is only noise.

    Every vector is made orthogonal to all before it, twice, so no eigenvalue appears again as a ghost. Where the
    Krylov space is exhausted (low rank, few distinct eigenvalues), the steps left have weight 0.

    Costs probes x steps products with single vectors, 16 at a time, and 16 n steps floats. Works under jit.

    Args:
        A: symmetric operator (n, n) or dense kernel, as in :func:`stochastic_moments`.
        key: a JAX random key.
        probes: number of random vectors, at least 2.
        steps: Lanczos steps from each, at most n; None is 32, or n where that is less.

    Returns:
        :class:`SpectralDensity`, in A's dtype, float32 for half precision.

    Raises:
        TypeError: A can't be multiplied with, or is no pytree; probes or steps is no integer.
        ValueError: A is not square, a dense one not symmetric, fewer than 2 probes, or steps not between 1 and n.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> rho = ni.spectral_density(jnp.diag(jnp.linspace(0.0, 1.0, 400)), key=jax.random.key(0))
        >>> [round(float(share), 1) for share in rho.cdf([-0.1, 0.5, 1.1])]
        [0.0, 0.5, 1.0]

    Source: Ubaru, Chen and Saad 2017, doi 10.1137/16M1104974; Lin, Saad and Yang 2016, arXiv 1308.5467.
    """
    A, n = as_operator(A)
    _checks.check_positive(probes, "probes", integer=True, least=2)
    steps = min(_STEPS, n) if steps is None else steps
    _checks.check_positive(steps, "steps", integer=True)
    if steps > n:
        raise ValueError(f"steps is {steps}; a Krylov space of the operator has at most {n} dimensions.")
    parts = [
        _quadrature(A, unit_vectors(jax.random.fold_in(key, i), n, min(BLOCK, probes - i), working_dtype(A)), steps)
        for i in range(0, probes, BLOCK)
    ]
    return SpectralDensity(*(jnp.concatenate(part) for part in zip(*parts, strict=True)))


@jax.jit(static_argnames="steps")
@at_precision
def _quadrature(A: Any, vectors: Array, steps: int) -> tuple[Array, Array]:
    """Return nodes and weights (probes, steps) of Lanczos from each of the unit columns ``vectors`` (n, probes)."""
    probes = vectors.shape[1]

    def step(j: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        basis, diagonal, off_diagonal, vector, unit = state
        basis = basis.at[j].set(vector)
        image = (A @ vector).astype(vector.dtype)
        unit = jnp.where(j == 0, unit_of(image), unit)
        image = image / unit
        quotient = (vector * image).sum(axis=0)
        rest = image
        for _ in range(2):  # Twice is enough for orthogonality to rounding.
            rest = rest - jnp.einsum("snp,sp->np", basis, jnp.einsum("snp,np->sp", basis, rest))
        norm = jnp.linalg.norm(rest, axis=0)
        scale = jnp.maximum(jnp.abs(diagonal), off_diagonal).max(axis=0)
        # What rounding left of an exhausted Krylov space is no direction: T is cut off there.
        going = norm > 10 * eps(norm.dtype) * jnp.maximum(scale, jnp.linalg.norm(image, axis=0))
        alive = (vector != 0).any(axis=0)
        diagonal = diagonal.at[j].set(jnp.where(alive, quotient, diagonal[0]))
        off_diagonal = off_diagonal.at[j].set(jnp.where(going, norm, 0))
        following = jnp.where(going[None, :], rest / jnp.where(going, norm, 1)[None, :], 0)
        return basis, diagonal, off_diagonal, following, unit

    zeros = jnp.zeros((steps, probes), vectors.dtype)
    state = (jnp.zeros((steps, *vectors.shape), vectors.dtype), zeros, zeros, vectors, jnp.ones((), zeros.dtype))
    _, diagonal, off_diagonal, _, unit = lax.fori_loop(0, steps, step, state)
    small = jax.vmap(lambda main, side: jnp.diag(main) + jnp.diag(side, 1) + jnp.diag(side, -1))(
        diagonal.T, off_diagonal[:-1].T
    )
    nodes, mix = jnp.linalg.eigh(small)
    return nodes * unit, mix[:, 0] ** 2
