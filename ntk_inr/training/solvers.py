"""The linear systems of a Gauss–Newton step, in the space that fits its size (T12)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial

from ntk_inr._checks import Outputs
from ntk_inr._dtypes import accumulation_dtype, eps
from ntk_inr._results import result, static
from ntk_inr.kernels.api import ntk
from ntk_inr.kernels.memory import available
from ntk_inr.training.curvature import Quadratic
from ntk_inr.training.passes import pulled, pushed

SOLVERS = ("auto", "function", "shared", "parameters", "cg")
_MATRICES = {"function": 3, "shared": 3, "parameters": 2}
"""How many matrices as large as its own a solver holds at most."""
_WHERE = {
    "function": "values at the coordinates",
    "shared": "values at the coordinates, with one factorisation for all outputs",
    "parameters": "parameters",
    "cg": "values at the coordinates, by conjugate gradients",
}
_COLUMN_BYTES = 2**30  # of the preconditioner
_COLUMNS, _ITERATIONS, _TOLERANCE = 1024, 100, 1e-3


@result
class SolverPlan:
    """What the system of a Gauss–Newton step is solved in, and what that takes.

    Attributes:
        solver: "function", "shared", "parameters" or "cg", as :func:`ntk_inr.gauss_newton` explains them.
        n: number of coordinates.
        c: number of outputs.
        parameters: number of real parameters.
        unknowns: of the dense system, or columns of the preconditioner.
        bytes: of the largest arrays, which are held at once.
    """

    solver: str = static()
    n: int = static()
    c: int = static()
    parameters: int = static()
    unknowns: int = static()
    bytes: int = static()

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows."""
        words = "columns in the preconditioner" if self.solver == "cg" else "unknowns"
        return {
            "solves for": _WHERE[self.solver],
            "unknowns": f"{self.unknowns:,} {words}",
            "memory": f"{math.ceil(self.bytes / 2**20)} MiB",
        }


# Remembered, so that what is left of the memory while steps are taken does not change how they are solved.
@functools.lru_cache(maxsize=256)
def plan(solver: str, n: int, c: int, size: int, dtype: Any, memory_limit: int | None = None) -> SolverPlan:
    """Return the plan for n coordinates, c outputs and ``size`` parameters; raise where it does not fit in memory.

    The cheapest of "function", "shared" and "parameters" that fits is the choice of "auto", else "cg".
    """
    limit = available() if memory_limit is None else memory_limit
    itemsize = accumulation_dtype(dtype).itemsize
    columns = max(1, min(_COLUMNS, n * c, _COLUMN_BYTES // (n * c * itemsize)))
    unknowns = {"function": n * c, "shared": n, "parameters": size, "cg": columns}
    needed = {name: count * unknowns[name] ** 2 * itemsize for name, count in _MATRICES.items()}
    needed["cg"] = 2 * n * c * columns * itemsize
    if solver == "auto":
        exact = [name for name in ("function", "parameters") if needed[name] <= limit]
        found = min(exact, key=lambda name: unknowns[name], default="cg")
        # With many outputs one factorisation for all is c^3 times cheaper than that of their whole kernel.
        if c > 1 and needed["shared"] <= limit and (found == "cg" or unknowns[found] > 2 * n):
            found = "shared"
    else:
        found = solver
    if needed[found] > limit:
        fits = [name for name in needed if needed[name] <= limit]
        raise ValueError(
            f'solver="{found}" for {n} coordinates, {c} outputs and {size} parameters takes '
            f"{needed[found] / 2**30:.1f} GiB of the {limit / 2**30:.1f} GiB that are left; expected less: "
            + (f'solver="{fits[-1]}" fits, or a smaller batch_size.' if fits else "a smaller batch_size.")
        )
    return SolverPlan(found, n, c, size, unknowns[found], needed[found])


class Problem(NamedTuple):
    """A model with real parameters at coordinates x, its loss there, and the step that momentum would take."""

    apply: Partial
    params: Any
    x: Array
    loss: Quadratic
    before: Any

    def pulled(self, cotangent: Array) -> Any:
        """Return J^T of a cotangent (n, c)."""
        return pulled(self.apply, self.params, self.x, cotangent)

    def pushed(self, direction: Any) -> Array:
        """Return J of a direction in the parameters, (n, c)."""
        return pushed(self.apply, self.params, self.x, direction)


class Step(NamedTuple):
    """A step in the parameters, and the decrease of the loss that the linearised model promises."""

    step: Any
    decrease: Array


@dataclasses.dataclass(frozen=True)
class System:
    """A system at one place, to be solved for any damping.

    Attributes:
        scale: mean eigenvalue of its matrix, the unit of damping.
        solve: the step of a damping in units of ``scale``.
    """

    scale: Array
    solve: Callable[[Any], Step]


def system(problem: Problem, solver: str, precision: Any = "highest") -> System:
    """Return the system of a problem by one of :data:`SOLVERS` but "auto"."""
    if solver == "parameters":
        return _of_parameters(problem)
    if solver == "cg":
        return _by_products(problem, precision)
    return _of_values(problem, solver == "shared", precision)


def _in_values(
    problem: Problem, scale: Array, pull: Array | None, solved: Callable[[Any, Array], Array], exact: bool
) -> System:
    r"""Return the system :math:`(\lambda I + SKS)v = h` of values at the coordinates.

    ``pull`` is S K of what has no curvature, ``solved`` gives v of the weight and h, and ``exact`` says that it is v.
    """
    loss = problem.loss
    known = loss.scaled
    if problem.before is not None:
        known = known + loss.times_root(problem.pushed(problem.before))

    def solve(damping: Any) -> Step:
        weight = damping * scale
        v = solved(weight, known if pull is None else known - pull / weight)
        return _step_of(problem, v, weight, exact)

    return System(scale, solve)


def _of_values(problem: Problem, shared: bool, precision: Any) -> System:
    """Solve for values by a factorisation, one for all outputs where they share it."""
    loss = problem.loss
    c = loss.gradient.shape[1]
    outputs: Outputs = "trace" if shared or c == 1 else "full"
    K = ntk(problem.apply, problem.params, problem.x, outputs=outputs, precision=precision)
    matrix, scale = _scaled(K, loss.root, shared)
    # What has no curvature is pulled by K itself.
    pull = None if loss.rest is None else loss.times_root(_times(K, loss.rest))
    del K
    width = c if shared else 1

    def solved(weight: Any, right: Array) -> Array:
        return _solved(matrix, weight, right.reshape(-1, width)).reshape(right.shape)

    return _in_values(problem, scale, pull, solved, exact=not shared and pull is None)


def _step_of(problem: Problem, v: Array, weight: Array, exact: bool) -> Step:
    """Return the step of values v, whose decrease follows from v itself where they solve the exact system."""
    loss = problem.loss
    cotangent = loss.times_root(v)
    if loss.rest is not None:
        cotangent = cotangent + loss.rest / weight
    step = jax.tree.map(jnp.negative, problem.pulled(cotangent))
    if problem.before is not None:
        step = jax.tree.map(jnp.add, step, problem.before)
    if exact:
        decrease = (jnp.square(loss.scaled).sum() - jnp.square(weight * v).sum()) / 2
    else:
        decrease = loss.decrease(problem.pushed(step))
    return Step(step, decrease)


@functools.partial(jax.jit, static_argnames="shared")
def _scaled(K: Array, root: Array, shared: bool) -> tuple[Array, Array]:
    """Return S K S as a matrix, and its mean eigenvalue; with one factor an example where outputs share it."""
    n, c = root.shape[:2]
    if shared or c == 1:
        each = jnp.sqrt(jnp.square(root).sum((1, 2)) / c)
        matrix = K * each[:, None] * each[None]
    else:
        matrix = jnp.einsum("ioa,ijab,jbp->iojp", root, K, root).reshape(n * c, n * c)
    scale = jnp.trace(matrix) / len(matrix)
    # A loss without any curvature is descended at the pace of K.
    plain = jnp.trace(K.mean(axis=(2, 3)) if K.ndim == 4 else K) / n
    return matrix, jnp.where(scale > 0, scale, plain)


@jax.jit
def _times(K: Array, v: Array) -> Array:
    return jnp.einsum("ijop,jp->io", K, v) if K.ndim == 4 else K @ v


def _solved(matrix: Array, weight: Any, right: Array) -> Array:
    """Return (matrix + weight I)^-1 right by Cholesky, NaN where it is singular in its precision."""
    if isinstance(matrix, jax.core.Tracer) or jax.default_backend() != "cpu":
        return _solved_on_device(matrix, weight, right)
    import scipy.linalg  # which no other optimizer needs

    # LAPACK through SciPy takes a fifteenth of the time that XLA's CPU takes.
    damped = np.array(matrix)
    np.fill_diagonal(damped, damped.diagonal() + np.asarray(weight))
    try:
        # Its transpose, equal to it, is in Fortran's order, which LAPACK works on in place.
        factor = scipy.linalg.cho_factor(damped.T, lower=True, overwrite_a=True, check_finite=False)
        found = scipy.linalg.cho_solve(factor, np.asarray(right), check_finite=False)
    except scipy.linalg.LinAlgError:
        found = np.full(right.shape, np.nan)
    return jnp.asarray(found, right.dtype)


@jax.jit
def _solved_on_device(matrix: Array, weight: Any, right: Array) -> Array:
    damped = matrix + weight * jnp.eye(len(matrix), dtype=matrix.dtype)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped, lower=True), right)


def _of_parameters(problem: Problem) -> System:
    r"""Solve for the parameters: :math:`(J^\top\Lambda J + \lambda I)\delta = \lambda\mu\delta' - J^\top g`."""
    matrix, gradient = _normal(problem)
    before, unravel = ravel_pytree(problem.before if problem.before is not None else problem.params)
    scale = jnp.trace(matrix) / len(problem.loss.gradient) / problem.loss.gradient.shape[1]

    def solve(damping: Any) -> Step:
        weight = damping * scale
        right = -gradient if problem.before is None else weight * before - gradient
        step = _solved(matrix, weight, right[:, None])[:, 0]
        return Step(unravel(step), -(gradient @ step) - step @ (matrix @ step) / 2)

    return System(scale, solve)


@jax.jit
def _normal(problem: Problem) -> tuple[Array, Array]:
    r"""Return :math:`J^\top\Lambda J` and :math:`J^\top g`, of whole Jacobians of a few rows at a time."""
    apply, params, x, loss, _ = problem
    flat, unravel = ravel_pytree(params)
    n, c = loss.gradient.shape
    at_once = max(1, min(n, 2**24 // (c * flat.size)))

    def add(total: Array, first: Array) -> tuple[Array, None]:
        rows = first + jnp.arange(at_once)
        inside = (rows < n)[:, None, None]
        rows = jnp.minimum(rows, n - 1)
        jacobian = jax.vmap(lambda x: jax.jacrev(lambda flat: apply(unravel(flat), x[None])[0])(flat))(x[rows])
        scaled = jnp.einsum("noc,ncp->nop", jnp.where(inside, loss.root[rows], 0), jacobian).reshape(-1, flat.size)
        return total + scaled.T @ scaled, None

    zeros = jnp.zeros((flat.size, flat.size), flat.dtype)
    matrix = jax.lax.scan(add, zeros, jnp.arange(0, n, at_once))[0]
    return matrix, ravel_pytree(pulled(apply, params, x, loss.gradient))[0]


def _by_products(problem: Problem, precision: Any) -> System:
    """Solve for values by conjugate gradients, preconditioned by columns of the kernel (12.7)."""
    loss, (n, c) = problem.loss, problem.loss.gradient.shape
    some = plan("cg", n, c, 0, loss.gradient.dtype, 2**62).unknowns
    chosen = np.sort(np.random.default_rng(0).choice(n, max(1, some // c), replace=False))
    columns = ntk(problem.apply, problem.params, problem.x, problem.x[chosen], outputs="full", precision=precision)
    basis, values, scale = _nystrom(columns, loss.root, chosen)
    pull = None
    if loss.rest is not None:
        pull = loss.times_root(problem.pushed(problem.pulled(loss.rest)))
    solved = functools.partial(_conjugate_gradients, problem, basis, values)
    return _in_values(problem, scale, pull, solved, exact=False)


@jax.jit
def _nystrom(columns: Array, root: Array, chosen: Array) -> tuple[Array, Array, Array]:
    """Return the eigenvectors (nc, k) and eigenvalues (k,) of C K_SS^-1 C^T, and the mean eigenvalue of S K S."""
    n, s, c = columns.shape[:3]
    C = jnp.einsum("ioa,ijab,jbp->iojp", root, columns, root[chosen]).reshape(n * c, s * c)
    inner = C.reshape(n, c, s * c)[chosen].reshape(s * c, s * c)
    trace = jnp.trace(inner)
    jittered = inner + 10 * eps(inner.dtype) * trace * jnp.eye(s * c, dtype=inner.dtype)
    factor = jnp.linalg.cholesky((jittered + jittered.T) / 2)
    half = jax.scipy.linalg.solve_triangular(factor, C.T, lower=True)
    values, vectors = jnp.linalg.eigh(half @ half.T)
    values = jnp.maximum(values, eps(values.dtype) * values.max())
    return (vectors / jnp.sqrt(values)[None]).T @ half, values, trace / (s * c)


@jax.jit
def _conjugate_gradients(problem: Problem, basis: Array, values: Array, weight: Array, right: Array) -> Array:
    loss, shape = problem.loss, right.shape

    def product(v: Array) -> Array:
        gradient = problem.pulled(loss.times_root(v.reshape(shape)))
        return loss.times_root(problem.pushed(gradient)).ravel() + weight * v

    def preconditioned(v: Array) -> Array:
        inside = basis @ v
        return (v - basis.T @ (values / (values + weight) * inside)) / weight

    found, _ = jax.scipy.sparse.linalg.cg(product, right.ravel(), tol=_TOLERANCE, maxiter=_ITERATIONS, M=preconditioned)
    return found.reshape(shape)
