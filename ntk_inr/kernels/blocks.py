"""The kernel between the terms of a loss, such as an equation and its boundary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr._results import Record, result, static
from ntk_inr._typing import Params
from ntk_inr.kernels.api import ntk
from ntk_inr.kernels.model import check_params

Residuals = Mapping[str, tuple[Callable[[Any, Any], Any], Any]]


@result
class NTKBlocks:
    r"""The blocks :math:`\Theta_{bb'} = J_b J_{b'}^\top` of the kernel of several residuals.

    Attributes:
        blocks: block (n_b c_b, n_b' c_b') by names, ``blocks["equation", "boundary"]``.
        sizes: number of residuals n_b c_b of each term.
    """

    blocks: Any
    sizes: dict[str, int] = static()

    @property
    def traces(self) -> dict[str, Array]:
        r"""The traces :math:`\mathrm{tr}\,\Theta_{bb}`."""
        return {name: jnp.trace(self.blocks[name, name]) for name in self.sizes}

    @property
    def spectra(self) -> dict[str, Array]:
        """The eigenvalues (n_b c_b,) of each term's own block, the largest first."""
        return {name: jnp.linalg.eigvalsh(self.blocks[name, name])[::-1] for name in self.sizes}

    def whole(self, weights: Mapping[str, Any] | None = None) -> Array:
        r"""Return the kernel of all terms, (n, n), or of the loss :math:`\sum_b\frac{w_b}{2n_b}\lVert r_b\rVert^2`.

        With weights the block of b and b' is multiplied by :math:`\sqrt{w_b w_{b'} / (n_b n_{b'})}`, so that its
        eigenvalues are the paces of that loss.
        """
        scale = {name: 1.0 if weights is None else jnp.sqrt(weights[name] / n) for name, n in self.sizes.items()}
        return jnp.block([[scale[a] * scale[b] * self.blocks[a, b] for b in self.sizes] for a in self.sizes])

    def rows(self) -> dict[str, Any]:
        """Return what ``print`` shows: of each term how fast it descends under its mean loss, and the slowest mode."""
        rows = {}
        for name, values in self.spectra.items():
            n, share = self.sizes[name], np.asarray(values, float) / self.sizes[name]
            slow = f"{max(share[-1], 0):.2g} to {share[0]:.2g}"
            rows[name] = f"{n} residuals, pace tr/n^2 {share.sum() / n:.3g}, eigenvalues/n {slow}"
        return rows


def ntk_blocks(residuals: Any, params: Params, **options: Any) -> NTKBlocks:
    r"""Return the kernel between the terms of a loss, which says which of them trains slowly and why.

    .. math:: \Theta_{bb'} = J_b J_{b'}^\top,\qquad J_b = \partial r_b / \partial\theta

    The terms of :math:`\sum_b\frac{w_b}{2n_b}\lVert r_b\rVert^2` descend together under these blocks: the pace of
    term b is :math:`w_b\,\mathrm{tr}\,\Theta_{bb}/n_b^2` times its residual's alignment (T12). :func:`ntk_inr.balance`
    makes weights of them.

    Args:
        residuals: ``{name: (function, points)}``, each function ``(params, x (n_b, d_b)) -> (n_b,)`` or (n_b, c_b),
            whose examples do not mix; d_b and c_b may differ.
        params: pytree of floating point or complex arrays, of all.
        **options: of :func:`ntk`, such as ``memory_limit`` and ``precision``.

    Returns:
        :class:`NTKBlocks`.

    Raises:
        TypeError: residuals that is no such dictionary.
        ValueError: what :func:`ntk` raises, with the term's name where it is of one.

    Example:
        >>> import jax.numpy as jnp, ntk_inr as ni
        >>> inside, edge = jnp.linspace(0, 1, 5)[:, None], jnp.array([[0.0]])
        >>> def value(params, x):
        ...     return params["a"] * x
        >>> def slope(params, x):
        ...     return 0 * x + params["a"]
        >>> blocks = ni.ntk_blocks({"value": (value, inside), "slope": (slope, edge)}, {"a": jnp.array(2.0)})
        >>> {name: float(trace) for name, trace in blocks.traces.items()}
        {'value': 1.875, 'slope': 1.0}
        >>> blocks.blocks["value", "slope"].shape
        (5, 1)

    Source: Wang, Yu & Perdikaris 2022, arXiv 2007.14527.
    """
    params = check_params(params)
    functions, points = _checked(residuals)
    widths = {name: _columns(name, functions[name], params, points[name]) for name in functions}
    first = {name: x[:1] for name, x in points.items()}
    joint = Partial(_Joint(tuple(functions.values()), tuple(widths.values())), tuple(first.values()))
    d = max(x.shape[1] for x in points.values())
    z = jnp.concatenate([_marked(i, x, d) for i, x in enumerate(points.values())])
    K = jnp.asarray(ntk(joint, params, z, outputs="full", **options))
    return NTKBlocks(_cut(K, points, widths), Record({name: len(x) * widths[name] for name, x in points.items()}))


@dataclasses.dataclass(frozen=True)
class _Joint:
    """All residuals as one function, of coordinates whose first number says which residual is meant.

    The others see a point of their own, so that none of them meets one that it is not defined at.
    """

    functions: tuple[Callable[[Any, Any], Any], ...]
    widths: tuple[int, ...]

    def __call__(self, first: tuple[Array, ...], params: Params, z: Array) -> Array:
        c = max(self.widths)
        total = jnp.zeros((len(z), c), z.dtype)
        for i, (function, own) in enumerate(zip(self.functions, first, strict=True)):
            meant = z[:, :1] == i
            x = jnp.where(meant, z[:, 1 : 1 + own.shape[1]], own)
            values = _as_columns(function(params, x))
            values = jnp.where(meant, values, 0)
            total = total + jnp.pad(values, ((0, 0), (0, c - values.shape[1]))).astype(total.dtype)
        return total


def _checked(residuals: Any) -> tuple[dict[str, Any], dict[str, Array]]:
    if not isinstance(residuals, Mapping) or not residuals:
        raise TypeError(f"residuals is {residuals!r}; expected a dictionary {{name: (function, points)}}.")
    functions, points = {}, {}
    for name, term in residuals.items():
        if not (isinstance(term, tuple | list) and len(term) == 2 and callable(term[0])):
            raise TypeError(f"residuals[{name!r}] is {term!r}; expected (function, points).")
        functions[name] = term[0]
        points[name] = _checks.as_coordinates(term[1], f"the points of {name!r}")
    return functions, points


def _columns(name: str, function: Callable[[Any, Any], Any], params: Params, x: Array) -> int:
    """Return the outputs of a residual, which must be (n,) or (n, c)."""
    out = jax.eval_shape(function, params, x)
    if getattr(out, "ndim", 0) not in (1, 2) or out.shape[0] != len(x):
        got = getattr(out, "shape", type(out).__name__)
        raise ValueError(f"the residual {name!r} gave {got} at {len(x)} points; expected ({len(x)},) or ({len(x)}, c).")
    return 1 if out.ndim == 1 else out.shape[1]


def _as_columns(values: Array) -> Array:
    return values[:, None] if values.ndim == 1 else values


def _marked(i: int, x: Array, d: int) -> Array:
    """Return coordinates (n, 1 + d) of term ``i``, filled up with zeros."""
    return jnp.concatenate([jnp.full((len(x), 1), i, x.dtype), jnp.pad(x, ((0, 0), (0, d - x.shape[1])))], axis=1)


def _cut(K: Array, points: Mapping[str, Array], widths: Mapping[str, int]) -> dict[tuple[str, str], Array]:
    ends = np.cumsum([0, *(len(x) for x in points.values())])
    where = {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(points)}
    blocks = {}
    for a in points:
        for b in points:
            part = K[where[a], where[b], : widths[a], : widths[b]]
            blocks[a, b] = part.transpose(0, 2, 1, 3).reshape(len(points[a]) * widths[a], -1)
    return blocks
