"""The public function ``ntk``: checks, choice of method, of tiles and of where the kernel is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float

from ntk_inr import _checks, _neural_tangents
from ntk_inr._checks import Method, Outputs, Precision
from ntk_inr.kernels import assembly, jacobian, memory, sharded
from ntk_inr.kernels.memory import describe
from ntk_inr.kernels.model import check_model, trace_of

_JACOBIAN_BYTES = 512 * 2**20
_PANEL_BYTES = 64 * 2**20


def ntk(
    apply: Any,
    params: Any,
    x1: Any,
    x2: Any = None,
    *,
    outputs: Outputs = "trace",
    method: Method = "auto",
    coupled: bool = False,
    block: int | None = None,
    memory_limit: int | None = None,
    out: Literal["device", "host"] | np.ndarray = "device",
    mesh: Mesh | None = None,
    precision: Precision = "highest",
    progress: Callable[[int, int], None] | None = None,
) -> Float[Array | np.ndarray, "..."]:
    r"""Return the empirical neural tangent kernel of ``apply`` at ``params``.

    .. math:: \Theta_{(i,o),(j,o')} = \sum_p \partial_p f_o(x_i)\, \partial_p f_{o'}(x'_j)

    Methods:
        "structured" (the choice of "auto") traces the vector-Jacobian product of one example, takes the two
        factors of each outer product in it (T8.1), and multiplies their Gram matrices entry by entry: about
        n1 n2 (sum of widths) flops where ``x2`` is None, twice that otherwise, and n (sum of widths) floats
        beside K. Parameters that enter in another way keep their own Jacobian, so it is exact for any
        function; :func:`ntk_inr.explain` prints what is done with each.
        "jacobian" contracts whole Jacobians, 2 n1 n2 c P flops and two blocks of block c P floats: the
        reference, and what ``coupled`` uses.
        "neural-tangents" calls that package's Jacobian contraction, for comparison (an extra to install).

    Inside ``jit``, ``vmap`` or ``grad`` the structured kernel is one traced program that computes all of K, values
    can't be checked (NaN, examples that mix), and ``memory_limit`` and ``progress`` have no effect;
    outside, tiles of the upper half are driven from the host, and no new size of x recompiles them once n
    is a multiple of their side.

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``; examples must not mix, unless
            ``coupled``. It is compiled once for each function object and set of shapes, so what it reads beside
            its arguments must not change.
        params: pytree of floating point arrays; K is computed in their dtype.
        x1: coordinates (n1, d).
        x2: coordinates (n2, d); None is x1, and K is then symmetric to the bit (on a mesh: to rounding).
        outputs: "trace" averages the diagonal over outputs, giving (n1, n2); "diagonal" gives
            (n1, n2, c); "full" gives (n1, n2, c, c).
        method: see above.
        coupled: take each batch as one function, as batch normalization in training mode needs; K then has
            what one example's output owes to all others. n c backward passes over the whole batch. ``x1`` and
            ``x2`` are two batches, each on its own.
        block: rows and columns of a tile; None picks by memory. It changes memory and time, not K.
        memory_limit: bytes to stay within, K included where it is kept in memory; None is what the device
            has left.
        out: "device" for a JAX array, "host" for a NumPy array, or a NumPy array or ``np.memmap`` of K's
            shape and dtype to fill and return, for K larger than memory.
        mesh: shard the rows of K over all devices of this mesh, whose number divides n1; x is then on the host,
            or the same on every device. See docs/many_devices.md.
        precision: of the matrix products on GPU and TPU. Anything under "highest" is faster and spoils
            small eigenvalues.
        progress: called as ``progress(done, total)`` after each tile.

    Returns:
        The kernel, where ``out`` says.

    Raises:
        TypeError: integer coordinates or parameters; ``apply`` not callable.
        ValueError: wrong shapes, NaN in coordinates or parameters (names the leaf), an unknown option,
            examples that mix, a memory limit under the least that one tile needs (says it).
        ModuleNotFoundError: "neural-tangents" without that package.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> x = jnp.linspace(-1, 1, 16)[:, None]
        >>> apply, params = ni.init(ni.CoordinateMLP(features=32, depth=2), jax.random.key(0), x)
        >>> K = ni.ntk(apply, params, x)
        >>> K.shape, bool(jnp.allclose(K, ni.ntk(apply, params, x, method="jacobian"), rtol=1e-4))
        ((16, 16), True)

    Source: Jacot et al. 2018, arXiv 1806.07572; the decomposition is T8 of the theory, after Novak et
    al. 2022, arXiv 2206.08720.
    """
    _checks.check_options(outputs=outputs, method=method, precision=precision, block=block, memory_limit=memory_limit)
    if coupled and method not in ("auto", "jacobian"):
        raise ValueError(f"coupled=True takes the whole batch as one function; method {method!r} takes each example.")
    method = "jacobian" if coupled else "structured" if method == "auto" else method
    model = check_model(apply, params, x1, x2, coupled=coupled)
    apply, params, x1, x2, c, dtype, traced = model
    shape = (len(x1), len(x1 if x2 is None else x2)) + {"trace": (), "diagonal": (c,), "full": (c, c)}[outputs]
    _check_out(out, shape, dtype)
    on_device = isinstance(out, str) and out == "device"
    if traced and not on_device:
        raise ValueError("out= can't be used inside jit, vmap or grad, where K is a traced value.")
    if mesh is not None and (method != "structured" or not on_device or traced or memory_limit or progress):
        raise ValueError(
            "mesh= shards the structured kernel over devices in one program; it takes no other method, no out, "
            "memory_limit or progress, and no transformation around it."
        )

    panel = min(shape[0], block or max(1, _PANEL_BYTES // (shape[1] * memory.entries(c, outputs) * dtype.itemsize)))
    if mesh is not None:
        return sharded.ntk(apply, params, x1, x2, c=c, outputs=outputs, precision=precision, mesh=mesh, block=panel)
    if traced and method == "structured":
        return assembly.traceable(apply, params, x1, x2, c, outputs, precision, panel)
    if method == "neural-tangents":
        return _kept(_neural_tangents.ntk(apply, params, x1, x2, outputs).astype(dtype), out)
    stored = math.prod(shape) * dtype.itemsize if isinstance(out, str) else 0
    if not on_device and stored and memory_limit is None and jax.default_backend() != "cpu":
        # The kernel is the host's to hold, its tiles the device's.
        _checks.refuse_if(
            stored > (left := memory.available_on_host()),
            f"the kernel has {describe(stored)} and the host has {describe(left)} left; pass out=np.memmap(...).",
        )
        stored = 0
    if method == "structured":
        trace = trace_of(model, outputs)
        cut = memory.cut(trace, shape[0], shape[1], outputs, stored=stored, limit=memory_limit, block=block)
        parts = assembly.tiles(
            apply, params, x1, x2, c=c, outputs=outputs, precision=precision, cut=cut, progress=progress
        )
    else:
        rows = jacobian_rows(params, c, dtype.itemsize, stored, memory_limit) if block is None else block
        rows = min(rows, max(shape[:2]))
        parts = jacobian.tiles(
            apply, params, x1, x2, outputs=outputs, precision=precision, block=rows, coupled=coupled, progress=progress
        )
    if on_device:
        return assembly.on_device(shape, dtype, parts, symmetric=x2 is None, traced=traced)
    kernel = assembly.empty(shape, dtype) if isinstance(out, str) else out
    assembly.fill(kernel, parts, symmetric=x2 is None)
    return kernel


def jacobian_rows(params: Any, c: int, itemsize: int, stored: int = 0, limit: int | None = None) -> int:
    """Return how many examples' Jacobians fit twice, or say what the least is."""
    each = 2 * c * itemsize * sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
    if limit is None:
        return max(1, _JACOBIAN_BYTES // each)
    if limit < stored + each:
        raise ValueError(
            f"two rows of Jacobians and the kernel need at least {describe(stored + each)}; memory_limit leaves "
            f'{describe(limit)}. Raise it, or use method="structured", which needs less.'
        )
    return (limit - stored) // each


def _check_out(out: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if isinstance(out, str):
        _checks.check_choice(out, ("device", "host"), "out")
        return
    if not isinstance(out, np.ndarray):
        raise TypeError(f'out is {type(out).__name__}; expected "device", "host", a NumPy array or an np.memmap.')
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(
            f"out has shape {out.shape} and dtype {out.dtype}; this kernel is {shape} of {dtype}. "
            f'Make it with np.memmap(path, "{dtype}", "w+", shape={shape}).'
        )
    if not out.flags.writeable:
        raise ValueError('out is read-only; open it with mode "r+" or "w+".')


def _kept(kernel: Array, out: Any) -> Any:
    if isinstance(out, str):
        return kernel if out == "device" else np.asarray(kernel)
    out[...] = kernel
    return out
