"""From a framework's module to the pure function and pytree that the kernel engine takes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from ntk_inr import _checks
from ntk_inr._typing import Apply, Params


@dataclasses.dataclass(frozen=True, eq=False)
class _Static:
    """A model less its arrays, as a function of them; equal for equal models, so that jit compiles once.

    Models also hold lists, which have no hash: then the hash is the function's alone. They may hold
    arrays as settings, which have no plain equality: then two models count as different.
    """

    function: Callable[..., Any]
    parts: tuple[Any, ...]

    def __call__(self, constants: Any, params: Params, x: Any) -> Any:
        return self.function(*self.parts, constants, params, jnp.asarray(x))

    def __eq__(self, other: object) -> bool:
        if not (isinstance(other, _Static) and self.function is other.function):
            return False
        try:
            return self.parts == other.parts
        except (TypeError, ValueError):
            return False

    def __hash__(self) -> int:
        try:
            return hash((self.function, self.parts))
        except TypeError:
            return hash(self.function)


def _call_linen(module: Any, mutable: tuple[str, ...], constants: Any, params: Params, x: Array) -> Any:
    variables = {**constants, "params": params}
    if not mutable:
        return module.apply(variables, x)
    out, _ = module.apply(variables, x, mutable=mutable)
    return out


def _with_settings(module: Any, settings: Mapping[str, Any]) -> Any:
    from ntk_inr.networks.settings import with_settings  # where there is a module of Linen, Linen is there too

    return with_settings(module, settings)


def _call_settled(module: Any, constants: Any, params: Params, x: Array) -> Any:
    settings, constants = constants
    return _call_linen(_with_settings(module, settings), (), constants, params, x)


STATISTICS, SCHEDULE = "batch_stats", "schedule"


def training_call(apply: Apply) -> Callable[[Partial, Any, Array, Any], tuple[Any, Partial]] | None:
    """Return how a model runs in training, where that is another way than ``apply`` does.

    Linen modules with batch statistics average them over training, and run with ``train=True`` where their call
    takes it; those with a schedule count the steps in their variable "step" of the collection "schedule".

    Args:
        apply: as :func:`init` and :func:`split` return it, or any function.

    Returns:
        ``call(apply, params, x, step)``, which gives the values (n, c) and ``apply`` with the statistics and step
        of after; None where nothing but the parameters changes in training.
    """
    if not (isinstance(apply, Partial) and isinstance(apply.func, _Static) and apply.func.function is _call_linen):
        return None
    module, mutable = apply.func.parts
    trains = "train" in inspect.signature(type(module).__call__).parameters
    (constants,) = apply.args
    averages = STATISTICS in constants and (trains or STATISTICS in mutable)
    if not averages and SCHEDULE not in constants:
        return None
    keywords = {"train": True} if trains else {}

    def call(apply: Partial, params: Params, x: Array, step: Any) -> tuple[Any, Partial]:
        (constants,) = apply.args
        if SCHEDULE in constants:
            counted = jax.tree.map(lambda old: jnp.asarray(step, old.dtype), constants[SCHEDULE])
            constants = {**constants, SCHEDULE: counted}
        changing = [STATISTICS] if averages else []
        values, changed = module.apply({**constants, "params": params}, x, mutable=[*changing, *mutable], **keywords)
        return values, Partial(apply.func, {**constants, **{name: changed[name] for name in changing}})

    return call


def _call_nnx(graphdef: Any, constants: Any, params: Params, x: Array) -> Any:
    from flax import nnx

    return nnx.merge(graphdef, params, constants)(x)


def _call_equinox(static: Any, batched: bool, constants: Any, params: Params, x: Array) -> Any:
    model = sys.modules["equinox"].combine(params, constants, static)
    return model(x) if batched else jax.vmap(model)(x)


def _split_linen(module: Any, variables: Mapping[str, Any], mutable: tuple[str, ...]) -> tuple[Partial, Any]:
    if "params" not in variables:
        raise ValueError(f"variables has collections {sorted(variables)} but no 'params'; nothing would be trained.")
    constants = {name: value for name, value in variables.items() if name != "params"}
    return Partial(_Static(_call_linen, (module, mutable)), constants), variables["params"]


def _split_nnx(model: Any, filter: Any) -> tuple[Partial, Any]:
    from flax import nnx

    def arrays(state: Any) -> Any:
        # A State shares its Variables with what is merged from it: a call would write in the constants.
        return nnx.to_pure_dict(state, lambda v: v.get_raw_value() if isinstance(v, nnx.Variable) else v)

    graphdef, *states = nnx.split(model, nnx.Param if filter is None else filter, ...)
    params, constants = map(arrays, states)
    return Partial(_Static(_call_nnx, (graphdef,)), constants), params


def _split_equinox(model: Any, filter: Any, batched: bool) -> tuple[Partial, Any]:
    eqx = sys.modules["equinox"]
    arrays, static = eqx.partition(model, eqx.is_array)
    params, constants = eqx.partition(arrays, eqx.is_inexact_array if filter is None else filter)
    return Partial(_Static(_call_equinox, (static, batched)), constants), params


def _kind(model: Any) -> str:
    """Return whose module ``model`` is."""
    if isinstance(model, tuple) and len(model) == 2:
        return "Linen" if _is_module(model[0], "flax.linen") and isinstance(model[1], Mapping) else ""
    for kind, library in (("NNX", "flax.nnx"), ("Equinox", "equinox")):
        if _is_module(model, library):
            return kind
    return ""


def _is_module(model: Any, library: str) -> bool:
    # A library that nobody imported made no module.
    return library in sys.modules and isinstance(model, sys.modules[library].Module)


def _described(model: Any) -> str:
    if isinstance(model, tuple):
        return f"a tuple ({', '.join(type(part).__name__ for part in model)})"
    return f"the class {model.__name__}, not an instance" if isinstance(model, type) else type(model).__name__


def split(
    model: Any, *, mutable: str | Sequence[str] = (), filter: Any = None, batched: bool = False
) -> tuple[Partial, Any]:
    """Split a model of Linen, NNX or Equinox into ``(apply, params)``.

    ``params`` holds what is trained. The model's other arrays (fixed matrices, batch statistics, random
    states) become constants. They are leaves of ``apply``, so it may pass through ``jit`` and ``vmap`` as
    an argument. What is no array is static and compared by value, so seeds of one architecture share a
    compilation. ``apply`` is pure: what a call would write in the model is dropped.

    A module that needs further arguments in its call goes into one that gives them. A plain function
    ``apply(params, x)`` needs no split. BatchNorm in training mode mixes the rows of a batch: pass
    ``mutable="batch_stats"`` here and ``coupled=True`` to :func:`ntk_inr.ntk`, or take the kernel in inference mode.

    Args:
        model: one of

            - a pair ``(linen_module, variables)``, with the variables of its ``init``. The collection
              "params" is trained.
            - an NNX module from (n, d) to (n, c). Its ``nnx.Param`` variables are trained, as a nested
              dict that ``nnx.update(model, params)`` takes back.
            - an Equinox module from (d,) to (c,). Its floating point arrays are trained, as a module with
              None in place of everything else.
        mutable: Linen only: collections that the module may write in, such as "batch_stats" for BatchNorm
            in training mode.
        filter: NNX and Equinox only: what is trained instead, an NNX filter, or for Equinox a function of a
            leaf or a pytree of booleans as ``equinox.partition`` takes.
        batched: Equinox only: the module takes (n, d) itself, so that ``apply`` doesn't ``vmap`` it.

    Returns:
        ``apply(params, x): (n, d) -> (n, c)`` and the pytree of parameters.

    Raises:
        TypeError: no such model, or an option that its library doesn't have.
        ValueError: nothing would be trained.

    Example:
        >>> import jax, jax.numpy as jnp, flax.linen as nn, ntk_inr as ni
        >>> net, x = nn.Dense(1), jnp.zeros((3, 2))
        >>> apply, params = ni.split((net, net.init(jax.random.key(0), x)))
        >>> apply(params, x).shape
        (3, 1)

        >>> from flax import nnx
        >>> apply, params = ni.split(nnx.Linear(2, 1, rngs=nnx.Rngs(0)))
        >>> jax.tree.map(jnp.shape, params), apply(params, x).shape
        ({'bias': (1,), 'kernel': (2, 1)}, (3, 1))
    """
    kind = _kind(model)
    if not kind:
        raise TypeError(
            f"split got {_described(model)}; expected a pair (linen_module, variables) with variables from "
            "linen_module.init(key, x), an NNX module or an Equinox module. A plain function apply(params, x) "
            "needs no split."
        )
    takes = {"Linen": ("mutable",), "NNX": ("filter",), "Equinox": ("filter", "batched")}[kind]
    options = {"mutable": bool(mutable), "filter": filter is not None, "batched": batched}
    stray = [name for name, is_set in options.items() if is_set and name not in takes]
    if stray:
        raise TypeError(f"split got {stray[0]} for a model of {kind}, which takes only {' and '.join(takes)}.")
    if kind == "Linen":
        module, variables = model
        return _split_linen(module, variables, (mutable,) if isinstance(mutable, str) else tuple(mutable))
    apply, params = _split_nnx(model, filter) if kind == "NNX" else _split_equinox(model, filter, batched)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"no array of {type(model).__name__} is a parameter by filter={filter!r}; nothing would be trained."
        )
    return apply, params


def init(net: Any, key: Array, x: Any, *, settings: Mapping[str, Any] | None = None) -> tuple[Partial, Any]:
    """Initialise a Linen module and split it into ``(apply, params)``.

    Works under ``vmap`` over keys: the results are then stacked pytrees, ``apply`` too.

    Args:
        net: a Linen module from (n, d) to (n, c).
        key: a JAX random key.
        x: coordinates (n, d); only their width and dtype matter.
        settings: settings of ``net`` to replace, ``{"omega_0": 10.0}``, as :func:`ntk_inr.networks.with_settings`
            does. The floats among them become arrays that ``apply`` carries, so that whatever compiles for one value
            serves a whole sweep; where a network needs them as numbers, or changes in training by more than its
            parameters, they are set as numbers.

    Returns:
        ``apply(params, x): (n, d) -> (n, c)`` and the pytree of parameters.

    Raises:
        TypeError: ``net`` is not a Linen module, or ``x`` holds integers.
        ValueError: ``x`` is not (n, d), is empty, or holds NaN; a setting is not one of ``net``, or not a value it
            can have.

    Example:
        >>> import jax, jax.numpy as jnp, ntk_inr as ni
        >>> apply, params = ni.init(ni.variant("siren", features=32, depth=2), jax.random.key(0), jnp.zeros((1, 2)))
        >>> apply(params, jnp.zeros((7, 2))).shape
        (7, 1)
        >>> siren, x = ni.variant("siren", features=32, depth=2), jnp.linspace(-1, 1, 50)[:, None]
        >>> sweep = [ni.init(siren, jax.random.key(0), x, settings={"omega_0": omega}) for omega in (1.0, 30.0)]
        >>> [round(float(ni.moments(ni.ntk(*model, x)).effective_rank), 1) for model in sweep]  # one compilation
        [1.6, 10.7]
    """
    if not _is_module(net, "flax.linen"):
        raise TypeError(
            f"net is {type(net).__name__}; expected a Flax Linen module such as ni.variant('pe') or "
            "ni.CoordinateMLP(...)."
        )
    x = _checks.as_coordinates(x)[:1]
    if settings:
        return _settled(net, settings, key, x)
    try:
        variables = _drawn(_Static(_init_linen, (net,)), {}, key, x)
    except jax.errors.JAXTypeError:  # of a module that looks at values, which a trace does not have
        variables = net.init(key, x)
    return split((net, variables))


def _settled(net: Any, settings: Mapping[str, Any], key: Array, x: Array) -> tuple[Partial, Any]:
    """Return what :func:`init` does, with the real settings as arrays where they can be."""
    settled = _with_settings(net, settings)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    real = {name: jnp.asarray(value, dtype) for name, value in settings.items() if isinstance(value, float)}
    if real:
        shared = _with_settings(net, {name: value for name, value in settings.items() if name not in real})
        with contextlib.suppress(TypeError):  # of a setting that has to be a number, as JAX's own errors say too
            apply, params = split((settled, _drawn(_Static(_init_linen, (shared,)), real, key, x)))
            if training_call(apply) is None:
                return Partial(_Static(_call_settled, (shared,)), (real, *apply.args)), params
    return init(settled, key, x)


def _init_linen(module: Any, settings: Mapping[str, Any], key: Array, x: Array) -> Any:
    return _with_settings(module, settings).init(key, x)


@functools.partial(jax.jit, static_argnums=0)
def _drawn(model: _Static, settings: Mapping[str, Any], key: Array, x: Array) -> Any:
    """Return the variables of a module as one program; by itself it would compile each operation, forward pass too."""
    return model(settings, key, x)
