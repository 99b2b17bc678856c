"""The numbers that a network is described by, under the names that people vary them by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from ntk_inr import _checks
from ntk_inr.networks import activations, normalization

_RESOLVED = {"activation": activations.resolve, "normalization": normalization.resolve}
_ALIASES = {
    "omega_0": "omega",
    "omega0": "omega",
    "first_omega_0": "first_omega",
    "sigma": "scale",
    "width": "features",
    "L": "bands",
}


def settings_of(net: nn.Module) -> dict[str, Any]:
    """Return the numeric settings of a network and of its parts, ``{"depth": 4, "encoding.scale": 10.0, ...}``.

    Settings that may be numbers and are not, such as a radius of None, are in it too.

    Args:
        net: a network of this package, or any Linen module. Settings are the fields that a class declares as such,
            by ``dataclasses.field(default=1.0, metadata={"setting": float})``, or ``int``; in a module that declares
            none, the fields that hold numbers.

    Returns:
        The settings by their full names, which :func:`with_settings` takes.

    Example:
        >>> import ntk_inr as ni
        >>> settings_of(ni.variant("siren", features=64))
        {'features': 64, 'depth': 4, 'activation.omega': 30.0, 'activation.phase': 0.0, 'activation.first_omega': None}
    """
    settings = dict(_numbers(net))
    for name, part in parts_of(net).items():
        settings |= {f"{name}.{field}": value for field, value in _numbers(part).items()}
    return settings


def words_of(net: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the settings of a network and of its parts that are words, with the words to choose from.

    Example:
        >>> import ntk_inr as ni
        >>> words_of(ni.variant("hash"))["encoding.interpolation"]
        ('linear', 'smoothstep')
    """
    parts = {"": net, **{f"{name}.": part for name, part in parts_of(net).items()}}
    return {
        prefix + field.name: field.metadata["words"]
        for prefix, part in parts.items()
        for field in dataclasses.fields(part)
        if "words" in field.metadata
    }


def setting_name(net: nn.Module, name: str, known: Iterable[str] | None = None) -> str:
    """Return the full name of a setting: "scale" is "encoding.scale" where nothing else is called so.

    Args:
        net: as :func:`settings_of` takes it.
        name: what a user calls the setting.
        known: full names of the settings that count; None is all of the network.

    Raises:
        ValueError: no setting of that name, or several.
    """
    known = list(settings_of(net) if known is None else known)
    for alias in (False, True):
        ends = names_like(known, name, alias=alias)
        if len(ends) > 1:
            raise ValueError(f"setting {name!r} is ambiguous; write {' or '.join(ends)}.")
        if ends:
            return ends[0]
    if not known:
        raise ValueError(f"{type(net).__name__} has no settings here, so none that {name!r} could be.")
    short = [path.rpartition(".")[2] for path in known if "." in path]
    _checks.check_choice(name, dict.fromkeys([*known, *short]), f"setting of {type(net).__name__}")
    raise AssertionError


def names_like(known: Iterable[str], name: str, *, alias: bool) -> list[str]:
    """Return which of the ``known`` full names ``name``, or what it is an ``alias`` of, may stand for."""
    wanted = _ALIASES.get(name, name) if alias else name
    return [wanted] if wanted in known else [path for path in known if path.rpartition(".")[2] == wanted]


def takes_floats(net: nn.Module, name: str) -> bool:
    """Return whether a setting, by its full name, is a real number, even where it is a whole one now."""
    part, _, field = name.rpartition(".")
    return declared_in(parts_of(net)[part] if part else net)[field].get("setting") is float


def with_settings(net: nn.Module, values: Mapping[str, Any]) -> nn.Module:
    """Return the network with settings replaced; they pass the checks of their classes.

    Args:
        net: as :func:`settings_of` takes it; it stays as it is.
        values: by name: the full one, "encoding.scale", or its end, "scale", where that names one setting only.
            "omega_0", "sigma" and "width" are understood, too. Words are for what ``words_of`` returns.

    Returns:
        A network of the same kind.

    Raises:
        ValueError: no setting of that name, or several; a number out of range.
        TypeError: not a number where one is needed.

    Example:
        >>> import ntk_inr as ni
        >>> with_settings(ni.variant("siren"), {"omega_0": 10.0, "depth": 2}).activation.omega
        10.0
    """
    if not values:
        return net
    own: dict[str, Any] = {}
    of_parts: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        known = words_of(net) if isinstance(value, str) else None
        part, _, field = setting_name(net, name, known).rpartition(".")
        (of_parts.setdefault(part, {}) if part else own)[field] = value
    parts = parts_of(net)
    return net.clone(**own, **{name: with_fields(parts[name], changed) for name, changed in of_parts.items()})


def with_fields(part: Any, values: Mapping[str, Any]) -> Any:
    """Return a part, or a network, with fields replaced, which its class checks."""
    return part.clone(**values) if isinstance(part, nn.Module) else dataclasses.replace(part, **values)


def parts_of(net: nn.Module) -> dict[str, Any]:
    """Return the parts that have settings, names resolved."""
    parts = {}
    for field in dataclasses.fields(net):
        value = getattr(net, field.name, None)
        value = _RESOLVED[field.name](value) if field.name in _RESOLVED and value is not None else value
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and field.name != "parent":
            parts[field.name] = value
    return parts


def declared_in(part: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return the metadata of a part's settings by field, ``{"omega": {"setting": float, "tuned": True}}``."""
    fields = [field for field in dataclasses.fields(part) if field.name not in ("name", "parent")]
    declared = {field.name: field.metadata for field in fields if "setting" in field.metadata}
    if declared:
        return declared
    # A user's own module, where ``omega: float = 30`` is real though its default is whole.
    real = {field.name for field in fields if field.type in (float, "float")}
    values = {field.name: getattr(part, field.name, None) for field in fields}
    return {
        name: {"setting": float if isinstance(value, float | np.floating) or name in real else int}
        for name, value in values.items()
        if _is_number(value)
    }


def _numbers(part: Any) -> dict[str, Any]:
    values = {name: getattr(part, name) for name, how in declared_in(part).items() if how.get("tuned", True)}
    return {name: value for name, value in values.items() if value is None or _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
