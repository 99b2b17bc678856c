"""The public kernels: checks, choice of method, of tiles and of where the kernel is kept."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Float

from ntk_inr import _checks, _neural_tangents
from ntk_inr._checks import Method, Outputs, Precision
from ntk_inr._typing import Apply, Kernel, Params, Progress
from ntk_inr.kernels import assembly, frozen, jacobian, sharded, storage, structured
from ntk_inr.kernels.model import trace_of
from ntk_inr.kernels.request import Request


def ntk(
    apply: Apply,
    params: Params,
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
    progress: Progress | None = None,
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

    Inside ``jit``, ``vmap`` or ``grad`` the structured kernel is one traced program of at most 36 tiles of the upper
    half, or with ``block`` of so many whole rows at a time; values can't be checked (NaN, examples that mix), and
    ``memory_limit`` and ``progress`` have no effect. Outside, tiles of the upper half are driven from the host. Their
    sides have few sizes, to which coordinates are filled up, so that kernels of many sizes share their compiled
    programs.

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``; examples must not mix, unless
            ``coupled``. It is compiled once for each function object and set of shapes, so what it reads beside
            its arguments must not change.
        params: pytree of floating point or complex arrays; K is computed in their (parts') dtype.
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
    _checks.check_options(method=method)
    if coupled and method not in ("auto", "jacobian"):
        raise ValueError(f"coupled=True takes the whole batch as one function; method {method!r} takes each example.")
    method = "jacobian" if coupled else "structured" if method == "auto" else method
    request = Request.of(
        apply, params, x1, x2, outputs=outputs, block=block, memory_limit=memory_limit, precision=precision,
        progress=progress, coupled=coupled,
    )  # fmt: skip
    storage.check(out, request)
    if mesh is not None:
        if method != "structured" or not storage.is_device(out):
            raise ValueError("mesh= shards the structured kernel over devices; it takes no other method, and no out.")
        return sharded.ntk(request, mesh)
    return _kernel(request, out, method)


def training_kernel(
    apply: Apply,
    params: Params,
    x1: Any,
    x2: Any = None,
    *,
    outputs: Outputs = "trace",
    block: int | None = None,
    memory_limit: int | None = None,
    out: Literal["device", "host"] | np.ndarray = "device",
    precision: Precision = "highest",
    progress: Progress | None = None,
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
        params: pytree of floating point or complex arrays.
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
    request = Request.of(
        apply, params, x1, x2, outputs=outputs, block=block, memory_limit=memory_limit, precision=precision,
        progress=progress,
    )  # fmt: skip
    storage.check(out, request)
    model = request.model
    if not frozen.is_frozen(model.apply, model.params, model.x1):
        return _kernel(request, out)
    full = frozen.released(model.apply)
    mode = frozen.mode_of(full, model.params, model.x1[:1])
    if not mode:
        raise ValueError(
            "JAX can take the derivative of what apply has under stop_gradient neither in reverse, which a while_loop "
            "hinders, nor forward, which a jax.custom_vjp does. Write the loop as a scan, or give it a jax.custom_jvp."
        )
    both_halves = dataclasses.replace(request, model=dataclasses.replace(model, x2=model.columns))
    return _kernel(both_halves, out, {"reverse": "structured"}.get(mode, mode), full)


def _kernel(request: Request, out: Any, method: str = "structured", full: Partial | None = None) -> Kernel:
    """Return the kernel, where ``out`` says; with ``full``, its rows are of that function's derivative."""
    model = request.model
    if method == "neural-tangents":
        kernel = _neural_tangents.ntk(model.apply, model.params, model.x1, model.x2, request.outputs)
        return storage.kept(kernel.astype(model.dtype), out)
    if method == "structured" and model.traced:
        return assembly.traceable(request, full)
    stored = storage.reserved(request, out)
    if method == "jacobian":
        parts = jacobian.tiles(request, stored)
    elif method == "forward":
        assert full is not None
        parts = jacobian.pushed(request, full)
    elif full is None:
        parts = assembly.tiles(request, request.cut(trace_of(model, request.outputs), stored))
    else:
        trace, fixed = structured.fitting(full, model.apply, model.params, model.x1[0], model.c, request.outputs)
        parts = assembly.tiles(request, request.cut(trace, stored), full, fixed)
    return storage.assembled(request, parts, out)
