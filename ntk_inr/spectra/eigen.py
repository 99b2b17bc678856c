"""Dense eigendecomposition and the figures read off it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg

from ntk_inr import _checks


class Eigensystem(NamedTuple):
    """Eigenvalues (n,), largest first, and the eigenvectors (n, n) as columns in that order."""

    values: Any
    vectors: Any


class Condition(NamedTuple):
    """A condition number, and whether the arithmetic resolves it.

    Attributes:
        value: largest over smallest eigenvalue; a lower bound where ``resolved`` is False.
        resolved: False where the smallest eigenvalue is below the rounding floor eps n lambda_max.
    """

    value: Any
    resolved: Any


class Alignment(NamedTuple):
    """The share of a target's energy in each eigenmode.

    Attributes:
        values: eigenvalues (n,), largest first.
        energy: share of ``sum(y**2)`` in each mode (n,), adding up to 1.
    """

    values: Any
    energy: Any


def eigenvalues(K: Any) -> Any:
    """Return the eigenvalues of a symmetric kernel, largest first.

    A JAX kernel is decomposed by JAX on its device (works under jit); a NumPy kernel by LAPACK on
    the host in its own dtype, so ``eigenvalues(numpy.asarray(K, float))`` asks for float64.

    Args:
        K: symmetric kernel (n, n); only its lower triangle is read.

    Returns:
        Eigenvalues (n,), in the library (JAX or NumPy) and dtype of K.

    Raises:
        ValueError: K is not square.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> [round(float(v), 3) for v in ni.eigenvalues(jnp.array([[2.0, 1.0], [1.0, 2.0]]))]
        [3.0, 1.0]
    """
    K = _checks.as_kernel(K)
    if isinstance(K, np.ndarray):
        return scipy.linalg.eigh(K, eigvals_only=True, driver="evd", check_finite=False)[::-1]
    return jnp.linalg.eigvalsh(K, symmetrize_input=False)[::-1]


def eigensystem(K: Any) -> Eigensystem:
    """Return eigenvalues and eigenvectors of a symmetric kernel, to share between analyses.

    :func:`alignment`, :func:`condition_number`, :func:`max_learning_rate` and
    :func:`predict_training` take the result in place of K and then decompose nothing.

    Args:
        K: symmetric kernel (n, n), in JAX or NumPy, as in :func:`eigenvalues`.

    Returns:
        :class:`Eigensystem`, largest eigenvalue first.

    Raises:
        ValueError: K is not square.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> values, vectors = ni.eigensystem(jnp.diag(jnp.array([1.0, 3.0])))
        >>> float(values[0]), abs(float(vectors[1, 0]))
        (3.0, 1.0)
    """
    K = _checks.as_kernel(K)
    if isinstance(K, np.ndarray):
        values, vectors = scipy.linalg.eigh(K, driver="evd", check_finite=False)
    else:
        values, vectors = jnp.linalg.eigh(K, symmetrize_input=False)
    return Eigensystem(values[::-1], vectors[:, ::-1])


def condition_number(K: Any, *, dtype: Any = None) -> Condition:
    r"""Return lambda_max / lambda_min, or the largest value that rounding lets one assert.

    Eigenvalues below :math:`\epsilon\, n\, \lambda_{\max}` are rounding noise; where the smallest one is
    there, ``value`` is :math:`1 / (\epsilon n)`, a lower bound, and ``resolved`` is False.

    Args:
        K: kernel (n, n), its eigenvalues (n,), or its :class:`Eigensystem`.
        dtype: arithmetic the kernel was computed in, if coarser than the dtype of K.

    Returns:
        :class:`Condition`.

    Raises:
        ValueError: K is neither square nor one-dimensional.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> [float(v) for v in ni.condition_number(jnp.diag(jnp.array([1.0, 4.0])))]
        [4.0, 1.0]
    """
    values = spectrum(K)
    xp = np if isinstance(values, np.ndarray) else jnp
    floor = float(jnp.finfo(dtype or values.dtype).eps) * values.shape[0]
    largest, smallest = values.max(), values.min()
    resolved = smallest > floor * largest
    return Condition(xp.where(resolved, largest / xp.where(resolved, smallest, 1), 1 / floor), resolved)


def max_learning_rate(K: Any, outputs: int = 1) -> Any:
    r"""Return the largest stable step of gradient descent on the linearised model, (T10.2).

    .. math:: \eta_{\max} = \frac{2 n c}{\lambda_{\max}} \quad\text{for the loss}\quad
        \tfrac{1}{2nc}\lVert f - y\rVert^2

    That loss is the one of :func:`fit`. With c > 1 outputs and the "trace" kernel this takes each output
    to evolve alone, which is exact in the limit of infinite width.

    Args:
        K: kernel (n, n), its eigenvalues (n,), or its :class:`Eigensystem`.
        outputs: number of outputs c.

    Returns:
        The learning rate, a scalar.

    Raises:
        ValueError: K is neither square nor one-dimensional.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> float(ni.max_learning_rate(jnp.diag(jnp.array([1.0, 4.0]))))
        1.0
    """
    values = spectrum(K)
    return 2 * values.shape[0] * outputs / values.max()


def alignment(K: Any, y: Any) -> Alignment:
    r"""Return the share of a target's energy in each eigenmode of the kernel.

    .. math:: a_k = \lVert u_k^\top y\rVert^2 / \lVert y\rVert^2

    Modes with large eigenvalues are learned first (T10.1), so a target that lives there is easy.

    Args:
        K: kernel (n, n) or its :class:`Eigensystem`.
        y: target (n, c), or the residual y - f.

    Returns:
        :class:`Alignment`.

    Raises:
        ValueError: y has another number of rows than K, or is all zeros.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> a = ni.alignment(jnp.diag(jnp.array([1.0, 4.0])), jnp.array([[3.0], [1.0]]))
        >>> [round(float(e), 2) for e in a.energy]
        [0.1, 0.9]
    """
    system = as_eigensystem(K)
    y = _checks.as_values(y, system.values.shape[0])
    projected = np.asarray(y) if isinstance(system.vectors, np.ndarray) else y
    energy = ((system.vectors.T @ projected) ** 2).sum(axis=1)
    total = energy.sum()
    _checks.refuse_if(total == 0, "y is zero everywhere, so it has no energy to share; expected a target that varies.")
    return Alignment(system.values, energy / total)


def as_eigensystem(K: Any) -> Eigensystem:
    """Return ``K`` if it is decomposed already, else its eigensystem."""
    return K if isinstance(K, Eigensystem) else eigensystem(K)


def spectrum(K: Any) -> Any:
    """Return eigenvalues (n,) from a kernel, an eigensystem, or eigenvalues."""
    if isinstance(K, Eigensystem):
        return K.values
    return K if getattr(K, "ndim", 2) == 1 else eigenvalues(K)
