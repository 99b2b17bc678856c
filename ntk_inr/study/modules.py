"""A network as JSON: every field of every part, from which the module is built again without unpickling."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk_inr import _checks, networks

_JNP = ("abs", "arctan", "cos", "cosh", "exp", "log1p", "sign", "sin", "sinc", "sinh", "square", "tan", "tanh")
_DTYPES = ("bfloat16", "float16", "float32", "float64", "complex64", "complex128")
# Steps at which a schedule must be the one that its description builds.
_PROBES = (0, 1, 7, 100, 1000, 10**5)


class Undescribed(ValueError):
    """A part of a network that JSON can't describe, such as a class of the user's own."""


def describe_module(net: nn.Module) -> dict[str, Any]:
    """Return a network of this package as what JSON holds; :func:`build_module` is its inverse.

    Raises:
        Undescribed: a class or a function that is not public in ``ntk_inr.networks``, ``jax.nn`` or ``optax``.

    Example:
        >>> import ntk_inr as ni
        >>> describe_module(ni.NeRFEncoding(bands=4))
        {'type': 'NeRFEncoding', 'fields': {'bands': 4, 'include_input': False}}
        >>> build_module(describe_module(ni.variant("siren"))) == ni.variant("siren")
        True
    """
    return _described(net)


def build_module(description: Any) -> nn.Module:
    """Build the network that :func:`describe_module` described.

    Raises:
        ValueError: an unknown class, field or kind of value, or a value that its class refuses.
    """
    net = _built(description)
    if not isinstance(net, nn.Module):
        raise ValueError(f"the description is of a {type(net).__name__}; expected one of a Linen module.")
    return net


@functools.cache
def _classes() -> dict[str, type]:
    public = {name: getattr(networks, name) for name in dir(networks)}
    return {
        name: value for name, value in public.items() if isinstance(value, type) and dataclasses.is_dataclass(value)
    }


@functools.cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Return the functions that a description may name: elementwise ones of JAX."""
    of_nn = {f"jax.nn.{name}": value for name, value in vars(jax.nn).items() if name[0] != "_" and callable(value)}
    return of_nn | {f"jax.numpy.{name}": getattr(jnp, name) for name in _JNP}


def _schedules() -> dict[str, Callable[..., Any]]:
    names = [name for name in dir(optax) if name.endswith("_schedule")]
    return {name: getattr(optax, name) for name in names if inspect.isfunction(getattr(optax, name))}


def _described(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, jax.lax.Precision):
        return {"precision": value.name}
    if isinstance(value, np.generic | np.ndarray | jax.Array) and np.ndim(value) == 0:
        value = np.asarray(value).item()
    if isinstance(value, int | float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, list | tuple):
        return [_described(entry) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _described_part(value)
    name = _dtype_name(value)
    return {"dtype": name} if name else _described_function(value)


def _described_part(part: Any) -> dict[str, Any]:
    name = type(part).__name__
    if type(part) not in _classes().values():
        raise Undescribed(f"{name} is not a class of ntk_inr.networks")
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.init}
    if isinstance(part, nn.Module):
        del fields["parent"]
        if fields["name"] is None:
            del fields["name"]
    return {"type": name, "fields": {field: _described(value) for field, value in fields.items()}}


def _described_function(value: Any) -> dict[str, Any]:
    if isinstance(value, functools.partial) and not value.args:
        arguments = {name: _described(entry) for name, entry in value.keywords.items()}
        return {**_described_function(value.func), "keywords": arguments}
    for name, function in _functions().items():
        if value is function:
            return {"function": name}
    # Those of optax are closures over their own arguments.
    arguments = dict(inspect.getclosurevars(value).nonlocals) if inspect.isfunction(value) else {}
    for name, schedule in _schedules().items():
        takes = inspect.signature(schedule).parameters
        own = {key: entry for key, entry in arguments.items() if key in takes}
        if (
            own
            and all(isinstance(entry, int | float) for entry in own.values())
            and _same_schedule(value, schedule, own)
        ):
            return {"schedule": name, "keywords": {key: _described(entry) for key, entry in own.items()}}
    raise Undescribed(f"{getattr(value, '__qualname__', None) or type(value).__name__} is not described by a name")


def _same_schedule(value: Callable[..., Any], schedule: Callable[..., Any], keywords: dict[str, Any]) -> bool:
    """Return whether a schedule of optax with these arguments gives what ``value`` does."""
    try:
        with jax.ensure_compile_time_eval():
            built = schedule(**keywords)
            return all(float(built(step)) == float(value(step)) for step in _PROBES)
    except Exception:  # of whatever a function of other arguments raises
        return False


def _dtype_name(value: Any) -> str | None:
    name = getattr(value, "__name__", None) or getattr(value, "name", None)
    if name not in _DTYPES:
        return None
    return name if value in (getattr(jnp, name), np.dtype(name), np.dtype(name).type) else None


def _built(value: Any) -> Any:
    if value is None or isinstance(value, bool | str | int | float):
        return value
    if isinstance(value, list):
        return tuple(_built(entry) for entry in value)
    if not isinstance(value, dict):
        raise ValueError(f"the description holds {value!r}; expected what JSON holds.")
    kinds = {
        "type": _built_part, "function": _built_function, "schedule": _built_function,
        "dtype": lambda value: getattr(jnp, _choice(value["dtype"], _DTYPES, "dtype")),
        "float": lambda value: float(_choice(value["float"], ("inf", "-inf", "nan"), "number")),
        "precision": lambda value: jax.lax.Precision[
            _choice(value["precision"], [entry.name for entry in jax.lax.Precision], "precision")
        ],
    }  # fmt: skip
    kind = next((kind for kind in kinds if kind in value), None)
    if kind is None:
        raise ValueError(f"the description has an entry of {', '.join(value)}; expected one of {', '.join(kinds)}.")
    return kinds[kind](value)


def _built_part(value: dict[str, Any]) -> Any:
    name, fields = _choice(value["type"], _classes(), "class of network"), value.get("fields")
    if not isinstance(fields, dict):
        raise ValueError(f"the description of {name} has the fields {fields!r}; expected a name and a value each.")
    part = _classes()[name]
    known = {field.name: field for field in dataclasses.fields(part) if field.init and field.name != "parent"}
    for field, entry in fields.items():
        _choice(field, known, f"field of {name}")
        if isinstance(known[field].default, bool) and not isinstance(entry, bool):
            raise ValueError(f"{field} of {name} is {entry!r}; expected true or false.")
    try:
        return part(**{field: _built(entry) for field, entry in fields.items()})
    except TypeError as error:
        raise ValueError(f"the description of {name} does not build it: {error}") from error


def _built_function(value: dict[str, Any]) -> Any:
    keywords = {name: _built(entry) for name, entry in dict(value.get("keywords", {})).items()}
    try:
        if "schedule" in value:
            return _schedules()[_choice(value["schedule"], _schedules(), "schedule of optax")](**keywords)
    except TypeError as error:
        raise ValueError(f"the description of {value['schedule']} does not build it: {error}") from error
    function = _functions()[_choice(value["function"], _functions(), "function")]
    return functools.partial(function, **keywords) if "keywords" in value else function


def _choice(value: Any, choices: Any, what: str) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"{what} is {value!r}; expected a name.")
    _checks.check_choice(value, choices, what)
    return value
