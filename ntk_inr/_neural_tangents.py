"""The bridge to neural-tangents 0.6.5: import it on newer JAX, and take an empirical kernel with it.

It is a second opinion on our kernels, from other hands; nothing in the package needs it to run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal

import jax
from jax import Array
from jax.extend import core
from jax.tree_util import Partial
from jaxtyping import Float

from ntk_inr import _checks
from ntk_inr._dtypes import at_precision
from ntk_inr._typing import Apply, Params

_TENSORFLOW_ONLY = "neural_tangents.experimental"
_AXES: dict[str, dict[str, tuple[int, ...]]] = {
    "trace": {"trace_axes": (-1,), "diagonal_axes": ()},
    "diagonal": {"trace_axes": (), "diagonal_axes": (-1,)},
    "full": {"trace_axes": (), "diagonal_axes": ()},
}


def _safe_zip(*sequences: Any) -> list[tuple]:
    return list(zip(*sequences, strict=True))


def _safe_map(function: Callable, *sequences: Any) -> list:
    return [function(*items) for items in _safe_zip(*sequences)]


def _moved() -> dict[str, dict[str, Any]]:
    """Return what neural-tangents asks of JAX's modules at import and newer JAX has moved or dropped."""
    return {
        "jax.core": {name: getattr(core, name) for name in ("Jaxpr", "JaxprEqn", "Literal", "Primitive", "Var")},
        # Only the key of two tables of its structured derivatives: nothing binds it, in JAX neither.
        "jax.interpreters.ad": {"zeros_like_p": core.Primitive("zeros_like")},
        "jax.util": {"safe_map": _safe_map, "safe_zip": _safe_zip},
        _TENSORFLOW_ONLY: {},
    }


@contextlib.contextmanager
def _put_back() -> Iterator[None]:
    """Put what is missing on JAX's modules, and take it off again on leaving."""
    with contextlib.ExitStack() as undo:
        for name, members in _moved().items():
            try:
                # Importing the part that needs TensorFlow would fail without it, and take seconds with it.
                module = sys.modules[name] if name == _TENSORFLOW_ONLY else importlib.import_module(name)
            except (KeyError, ModuleNotFoundError):
                module = sys.modules[name] = ModuleType(name)
                undo.callback(sys.modules.pop, name)
                if name == _TENSORFLOW_ONLY:
                    undo.callback(_forget, module)
            for member, value in members.items():
                if not hasattr(module, member):
                    setattr(module, member, value)
                    undo.callback(delattr, module, member)
        yield


def _forget(stand_in: ModuleType) -> None:
    # So that where TensorFlow is installed, importing neural_tangents.experimental gives the real one.
    package = sys.modules.get("neural_tangents")
    if getattr(package, "experimental", None) is stand_in:
        delattr(package, "experimental")


@functools.cache
def load() -> ModuleType:
    """Import neural-tangents and return it; JAX's modules are afterwards as they were.

    Its analytic ``stax`` kernels, Jacobian contraction and NTK-vector products work on JAX 0.5.3 to 0.12
    (the last with a DeprecationWarning); its structured derivatives and AUTO work on none of these.

    Raises:
        ModuleNotFoundError: neural-tangents, or frozendict which it needs, is not installed.

    Source: Novak et al. 2020, arXiv 1912.02803.
    """
    try:
        # Its warnings at import concern its authors, and must not be errors where the user makes them so.
        with warnings.catch_warnings(), _put_back():
            warnings.simplefilter("ignore")
            return importlib.import_module("neural_tangents")
    except ModuleNotFoundError as error:
        if error.name not in ("neural_tangents", "frozendict"):
            raise
        raise ModuleNotFoundError(
            f"{error.name} is not installed, and a kernel by neural-tangents needs it. "
            "Install the extra: pip install 'ntk-inr[neural-tangents]', which brings TensorFlow, about 2 GB. "
            "Without TensorFlow, which is not needed here: "
            "pip install --no-deps neural-tangents==0.6.5 and pip install frozendict.",
            name=error.name,
        ) from error


@functools.partial(jax.jit, static_argnames="outputs")
@at_precision
def _ntk(apply: Partial, params: Params, x1: Array, x2: Array | None, outputs: str) -> Array:
    nt = load()
    method = nt.NtkImplementation.JACOBIAN_CONTRACTION
    kernel = nt.empirical_ntk_fn(apply, **_AXES[outputs], vmap_axes=0, implementation=method)
    return kernel(x1, x2, params)


def ntk(
    apply: Apply,
    params: Params,
    x1: Float[Array, "n1 d"],
    x2: Float[Array, "n2 d"] | None,
    outputs: Literal["trace", "diagonal", "full"],
) -> Float[Array, "n1 n2 ..."]:
    """Return the empirical kernel of ``apply`` by neural-tangents' contraction of whole Jacobians.

    Costs 2 n1 n2 c P flops and (n1 + n2) c P floats, for P parameters; there are no blocks.

    Args:
        apply: batched pure function ``apply(params, x): (n, d) -> (n, c)``.
        params: pytree of floating point arrays.
        x1: coordinates (n1, d).
        x2: coordinates (n2, d); None is x1.
        outputs: "trace" (n1, n2), the mean over outputs; "diagonal" (n1, n2, c); "full" (n1, n2, c, c).

    Raises:
        ModuleNotFoundError: neural-tangents is not installed.
    """
    load()  # outside jit, so that its import is never traced
    return _ntk(_checks.as_partial(apply), params, x1, x2, outputs)
