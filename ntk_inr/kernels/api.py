"""The public kernels: checks, choice of method, of tiles and of where the kernel is kept."""

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
from ntk_inr.kernels import assembly, frozen, jacobian, memory, sharded, structured
from ntk_inr.kernels.memory import describe
from ntk_inr.kernels.model import Model, check_model, trace_of

_JACOBIAN_BYTES = 512 * 2**20
_PANEL_BYTES = 64 * 2**20
# Rows at a time where columns are pushed forward, which compute all of the function again for each.
_PUSHED = 1024


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

    Derivatives are JAX's, which leave out what is under ``stop_gradient``; where that matters, training follows
    another kernel, :func:`training_kernel`.

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
    shape = _checked_shape(model, outputs, out)
    on_device = isinstance(out, str) and out == "device"
    if mesh is not None and (method != "structured" or not on_device or traced or memory_limit or progress):
        raise ValueError(
            "mesh= shards the structured kernel over devices in one program; it takes no other method, no out, "
            "memory_limit or progress, and no transformation around it."
        )

    panel = _panel(shape, dtype, block)
    if mesh is not None:
        return sharded.ntk(apply, params, x1, x2, c=c, outputs=outputs, precision=precision, mesh=mesh, block=panel)
    if traced and method == "structured":
        return assembly.traceable(apply, params, x1, x2, c, outputs, precision, panel)
    if method == "neural-tangents":
        return _kept(_neural_tangents.ntk(apply, params, x1, x2, outputs).astype(dtype), out)
    stored = _stored(shape, dtype, out, memory_limit)
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
    return _assembled(parts, shape, dtype, out, symmetric=x2 is None, traced=traced)


def training_kernel(
    apply: Any,
    params: Any,
    x1: Any,
    x2: Any = None,
    *,
    outputs: Outputs = "trace",
    block: int | None = None,
    memory_limit: int | None = None,
    out: Literal["device", "host"] | np.ndarray = "device",
    precision: Precision = "highest",
    progress: Callable[[int, int], None] | None = None,
) -> Float[Array | np.ndarray, "..."]:
    r"""Return the kernel that gradient descent follows, which is :func:`ntk` but under ``stop_gradient``.

    .. math:: \tilde\Theta_{(i,o),(j,o')} = \sum_p \bar\partial_p f_o(x_i)\, \partial_p f_{o'}(x'_j)

    Parameters move by JAX's derivative :math:`\partial_p`, which holds fixed what is under ``stop_gradient``. The
    function's value follows them by its full derivative :math:`\bar\partial_p`, in which ``stop_gradient`` is the
    identity. So a step of gradient descent changes f by :math:`-\frac{\eta}{nc}\tilde\Theta (f - y)` to first order
    (10.4). Where the two are the same, this is :func:`ntk`. Where they are not, as in :class:`Finer` and soft
    :class:`TopK`, it is not symmetric; :func:`explain` says so as ``plan.frozen``, and :func:`predict_training` and
    :func:`max_learning_rate` take it as it is.

    Each term is made of one factor of either derivative, as those of :func:`ntk` are; both halves of the kernel are
    computed. A function with a frozen ``while_loop``, whose full derivative JAX takes in forward mode only, costs
    n2 c forward passes over x1.

    The full derivative is what JAX has for it. A rule of a function's own (``jax.custom_jvp``, ``jax.custom_vjp``) that
    is not its derivative can't be told, and a ``stop_gradient`` inside such a function is not looked at. What is frozen
    and has another derivative in JAX than its value has, such as a bisection, needs a rule. Inside ``jit``, ``vmap`` or
    ``grad`` derivatives can't be compared, so any ``stop_gradient`` counts.

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``; examples must not mix.
        params: pytree of floating point arrays.
        x1: coordinates (n1, d) at which the function is watched.
        x2: coordinates (n2, d) on which it is trained; None is x1.
        outputs: as in :func:`ntk`.
        block: as in :func:`ntk`.
        memory_limit: as in :func:`ntk`.
        out: as in :func:`ntk`.
        precision: as in :func:`ntk`.
        progress: as in :func:`ntk`.

    Returns:
        The kernel, where ``out`` says, in the shape of that of :func:`ntk`.

    Raises:
        TypeError: integer coordinates or parameters; ``apply`` not callable.
        ValueError: as :func:`ntk`; a full derivative that JAX can take in neither mode.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> x = jnp.linspace(-1, 1, 16)[:, None]
        >>> apply, params = ni.init(ni.variant("finer", features=32, depth=2), jax.random.key(0), x)
        >>> K = ni.kernels.training_kernel(apply, params, x)
        >>> bool(jnp.allclose(K, K.T, rtol=1e-3)), bool(jnp.allclose(K, ni.ntk(apply, params, x), rtol=1e-3))
        (False, False)
        >>> apply, params = ni.init(ni.variant("siren", features=32, depth=2), jax.random.key(0), x)
        >>> bool((ni.kernels.training_kernel(apply, params, x) == ni.ntk(apply, params, x)).all())
        True

    Source: T10 of the theory.
    """
    _checks.check_options(outputs=outputs, precision=precision, block=block, memory_limit=memory_limit)
    model = check_model(apply, params, x1, x2)
    if not frozen.is_frozen(model.apply, model.params, model.x1):
        return ntk(
            apply, params, x1, x2, outputs=outputs, block=block, memory_limit=memory_limit, out=out,
            precision=precision, progress=progress,
        )  # fmt: skip
    shape, dtype = _checked_shape(model, outputs, out), model.dtype
    full, own, params = frozen.released(model.apply), model.apply, model.params
    x1, x2 = model.x1, model.x1 if model.x2 is None else model.x2
    stored = 0 if model.traced else _stored(shape, dtype, out, memory_limit)
    mode = frozen.mode_of(full, params, x1[:1])
    if not mode:
        raise ValueError(
            "JAX can take the derivative of what apply has under stop_gradient neither in reverse, which a while_loop "
            "hinders, nor forward, which a jax.custom_vjp does. Write the loop as a scan, or give it a jax.custom_jvp."
        )
    if mode == "forward":
        rows = min(shape[0], block or _PUSHED)
        parts = jacobian.pushed(
            full, own, params, x1, x2, outputs=outputs, precision=precision, block=rows, progress=progress
        )
    elif model.traced:
        return assembly.traceable(own, params, x1, x2, model.c, outputs, precision, _panel(shape, dtype, block), full)
    else:
        trace, fixed = structured.fitting(full, own, params, x1[0], model.c, outputs)
        cut = memory.cut(trace, shape[0], shape[1], outputs, stored=stored, limit=memory_limit, block=block)
        parts = assembly.tiles(
            own, params, x1, x2, c=model.c, outputs=outputs, precision=precision, cut=cut, progress=progress,
            full=full, fixed=fixed,
        )  # fmt: skip
    return _assembled(parts, shape, dtype, out, symmetric=False, traced=model.traced)


def _checked_shape(model: Model, outputs: str, out: Any) -> tuple[int, ...]:
    """Return the kernel's shape, or say why ``out`` can't hold it."""
    ends: dict[str, tuple[int, ...]] = {"trace": (), "diagonal": (model.c,), "full": (model.c, model.c)}
    shape = (len(model.x1), len(model.x1 if model.x2 is None else model.x2), *ends[outputs])
    _check_out(out, shape, model.dtype)
    if model.traced and not (isinstance(out, str) and out == "device"):
        raise ValueError("out= can't be used inside jit, vmap or grad, where K is a traced value.")
    return shape


def _panel(shape: tuple[int, ...], dtype: np.dtype, block: int | None) -> int:
    """Return how many rows one program computes at a time."""
    return min(shape[0], block or max(1, _PANEL_BYTES // (math.prod(shape[1:]) * dtype.itemsize)))


def _stored(shape: tuple[int, ...], dtype: np.dtype, out: Any, limit: int | None) -> int:
    """Return the bytes of the kernel that tiles must leave room for, or say that the host has none."""
    stored = math.prod(shape) * dtype.itemsize if isinstance(out, str) else 0
    if stored and out != "device" and limit is None and jax.default_backend() != "cpu":
        # The kernel is the host's to hold, its tiles the device's.
        _checks.refuse_if(
            stored > (left := memory.available_on_host()),
            f"the kernel has {describe(stored)} and the host has {describe(left)} left; pass out=np.memmap(...).",
        )
        return 0
    return stored


def _assembled(parts: Any, shape: tuple[int, ...], dtype: np.dtype, out: Any, *, symmetric: bool, traced: bool) -> Any:
    """Return the kernel made of its tiles, where ``out`` says."""
    if isinstance(out, str) and out == "device":
        return assembly.on_device(shape, dtype, parts, symmetric=symmetric, traced=traced)
    kernel = assembly.empty(shape, dtype) if isinstance(out, str) else out
    assembly.fill(kernel, parts, symmetric=symmetric)
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
