"""Dense eigendecomposition and the figures read off it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ntk_inr import _checks
from ntk_inr._dtypes import eps, unit_of
from ntk_inr._results import result
from ntk_inr.spectra.symmetry import check_symmetric, is_symmetric, leading_pace


@result
class Eigensystem:
    """Eigenvalues and eigenvectors of a kernel, to share between analyses.

    Attributes:
        values: eigenvalues (n,), largest first.
        vectors: eigenvectors (n, n), as columns in that order.
    """

    values: Any
    vectors: Any


@result
class Condition:
    """A condition number, and whether the arithmetic resolves it.

    Attributes:
        value: largest over smallest eigenvalue; a lower bound where ``resolved`` is False.
        resolved: False where the smallest eigenvalue is below the rounding floor eps n lambda_max.
    """

    value: Any
    resolved: Any


@result
class Alignment:
    """The share of a target's energy in each eigenmode.

    Attributes:
        values: eigenvalues (n,), largest first.
        energy: share of ``sum(y**2)`` in each mode (n,), adding up to 1.
    """

    values: Any
    energy: Any


def eigenvalues(K: Any) -> Any:
    """Return the eigenvalues of a symmetric kernel, largest first.

    A JAX kernel is decomposed by JAX on its device (works under jit); a NumPy kernel by LAPACK on the host in its own
    dtype, so that ``np.asarray(K, float)`` asks for the host and float64. That spares the decomposition's rounding and
    not the kernel's own: tell :func:`rounding_floor` and :func:`condition_number` the ``dtype`` it was computed in.

    Args:
        K: symmetric kernel (n, n), of which only the lower triangle is read. Its eigenvalues (n,) are returned as they
            are, and those of its :class:`Eigensystem`.

    Returns:
        Eigenvalues (n,), in the library (JAX or NumPy) and dtype of K (float32 for half precision, a float for
        integers).

    Raises:
        ValueError: K is not square, or not symmetric, as :func:`training_kernel` may be.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> [round(float(v), 3) for v in ni.eigenvalues(jnp.array([[2.0, 1.0], [1.0, 2.0]]))]
        [3.0, 1.0]
    """
    import scipy.linalg

    if isinstance(K, Eigensystem):
        return K.values
    if getattr(K, "ndim", 2) == 1:
        return _checks.as_floating(K, "K")
    K = _symmetric(K)
    if isinstance(K, np.ndarray):
        return scipy.linalg.eigh(K, eigvals_only=True, driver="evd", check_finite=False)[::-1]
    unit = unit_of(K)  # LAPACK has its own; the solvers of accelerators may take squares as they come
    return jnp.linalg.eigvalsh(K / unit, symmetrize_input=False)[::-1] * unit


def eigensystem(K: Any) -> Eigensystem:
    """Return eigenvalues and eigenvectors of a symmetric kernel, to share between analyses.

    :func:`alignment`, :func:`condition_number`, :func:`max_learning_rate` and
    :func:`predict_training` take the result in place of K and then decompose nothing.

    Args:
        K: symmetric kernel (n, n), in JAX or NumPy, as in :func:`eigenvalues`; an :class:`Eigensystem` is returned.

    Returns:
        :class:`Eigensystem`, largest eigenvalue first.

    Raises:
        ValueError: K is not square, or not symmetric, as :func:`training_kernel` may be.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> system = ni.spectra.eigensystem(jnp.diag(jnp.array([1.0, 3.0])))
        >>> float(system.values[0]), abs(float(system.vectors[1, 0]))
        (3.0, 1.0)
    """
    import scipy.linalg

    if isinstance(K, Eigensystem):
        return K
    K = _symmetric(K)
    if isinstance(K, np.ndarray):
        values, vectors = scipy.linalg.eigh(K, driver="evd", check_finite=False)
    else:
        unit = unit_of(K)
        values, vectors = jnp.linalg.eigh(K / unit, symmetrize_input=False)
        values = values * unit
    return Eigensystem(values[::-1], vectors[:, ::-1])


def _symmetric(K: Any) -> Any:
    """Return a kernel that can be decomposed, or say why not."""
    K = _checks.as_kernel(K)
    check_symmetric(K)
    return K


def rounding_floor(K: Any, *, dtype: Any = None) -> Any:
    r"""Return the size below which eigenvalues are rounding noise, :math:`\epsilon\, n\, \lambda_{\max}`.

    Args:
        K: kernel (n, n), its eigenvalues (n,), or its :class:`Eigensystem`.
        dtype: arithmetic the kernel was computed in, which epsilon belongs to; None is the dtype of K. A float32
            kernel that was widened to float64, and its eigenvalues, need it: nothing about them tells.

    Returns:
        The floor, a scalar in the units of the kernel.

    Raises:
        ValueError: K is neither square nor one-dimensional.

    Example:
        >>> import jax.numpy as jnp, numpy as np, ntk_inr as ni
        >>> K = jnp.diag(jnp.array([1.0, 4.0], jnp.float32))
        >>> float(ni.spectra.rounding_floor(K)) == 8 * float(np.finfo(np.float32).eps)
        True
        >>> float(ni.spectra.rounding_floor(np.asarray(K, float), dtype=K.dtype)) == float(ni.spectra.rounding_floor(K))
        True
    """
    values, relative = _eigenvalues_and_floor(K, dtype)
    return relative * values.max()


def condition_number(K: Any, *, dtype: Any = None) -> Condition:
    r"""Return lambda_max / lambda_min, or the largest value that rounding lets one assert.

    Eigenvalues below :func:`rounding_floor` are rounding noise; where the smallest one is there, ``value``
    is :math:`1 / (\epsilon n)`, a lower bound, and ``resolved`` is False.

    Args:
        K: kernel (n, n), its eigenvalues (n,), or its :class:`Eigensystem`.
        dtype: arithmetic the kernel was computed in, if coarser than the dtype of K.

    Returns:
        :class:`Condition`.

    Raises:
        ValueError: K is neither square nor one-dimensional.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> condition = ni.condition_number(jnp.diag(jnp.array([1.0, 4.0])))
        >>> float(condition.value), bool(condition.resolved)
        (4.0, True)
    """
    values, floor = _eigenvalues_and_floor(K, dtype)
    xp = np if isinstance(values, np.ndarray) else jnp
    values = values / unit_of(values)  # the floor of small ones may be below their dtype's range
    largest, smallest = values.max(), values.min()
    resolved = smallest > floor * largest
    return Condition(xp.where(resolved, largest / xp.where(resolved, smallest, 1), 1 / floor), resolved)


def max_learning_rate(K: Any, *, c: int = 1) -> Any:
    r"""Return the largest stable step of gradient descent on the linearised model, (T10.2).

    .. math:: \eta_{\max} = \frac{2 n c}{\lambda_{\max}} \quad\text{for the loss}\quad
        \tfrac{1}{2nc}\lVert f - y\rVert^2

    That loss is the one of :func:`fit`. With c > 1 outputs and the "trace" kernel this takes each output
    to evolve alone, which is exact in the limit of infinite width. A kernel that is not symmetric, as
    :func:`training_kernel` may be, has complex eigenvalues, whose modes shrink at steps below
    :math:`2nc\,\mathrm{Re}\lambda/|\lambda|^2`; the least of that over its largest ones counts.

    Args:
        K: kernel (n, n), its eigenvalues (n,), or its :class:`Eigensystem`.
        c: number of outputs.

    Returns:
        The learning rate, a scalar; 0 where some mode of a kernel that is not symmetric grows at every step size.

    Raises:
        ValueError: K is neither square nor one-dimensional.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> float(ni.max_learning_rate(jnp.diag(jnp.array([1.0, 4.0]))))
        1.0
    """
    if not isinstance(K, Eigensystem) and getattr(K, "ndim", 1) == 2 and not is_symmetric(_checks.as_kernel(K)):
        return 2 * len(K) * c / leading_pace(K)
    values = eigenvalues(K)
    with np.errstate(divide="ignore"):  # a kernel of zeros leaves every step stable
        return 2 * values.shape[0] * c / values.max()


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
    system = eigensystem(K)
    y = _checks.as_values(y, system.values.shape[0])
    y = np.asarray(y) if isinstance(system.vectors, np.ndarray) else y
    is_zero = (y == 0).all()
    if not isinstance(is_zero, Tracer) and is_zero:
        raise ValueError("y is zero everywhere, so it has no energy to share; expected a target that varies.")
    energy = energy_shares(system.vectors, y)
    return Alignment(system.values, energy / energy.sum())


def energy_shares(vectors: Any, target: Any) -> Any:
    """Return the shares (k,) of the energy of ``target`` (n, c) along ``vectors`` (n, k); 0 where it has none."""
    target = _checks.as_floating(target, "y")
    target = target / unit_of(target)
    total = (target**2).sum()
    return ((vectors.T @ target) ** 2).sum(axis=1) / (total + (total == 0))


def _eigenvalues_and_floor(K: Any, dtype: Any) -> tuple[Any, float]:
    """Return the eigenvalues (n,) and eps n, with eps of ``dtype``, else of K as it was handed in."""
    values = eigenvalues(K)
    if dtype is None:
        own = getattr(K, "dtype", values.dtype)
        dtype = own if jnp.issubdtype(own, jnp.floating) else values.dtype
    return values, eps(dtype) * values.shape[0]
