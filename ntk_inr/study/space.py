"""Settings to choose from: what a user writes, and the values that are tried."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from ntk_inr.networks.settings import names_like, setting_name, settings_of, takes_floats, with_settings

# Ranges to look in where none is given, by the end of a setting's name; times its own value for those that scale.
_USUAL: dict[str, tuple[Any, Any]] = {
    "encoding.bands": (1, 10),
    "encoding.bins": (4, 128),
    "encoding.levels": (1, 12),
    "encoding.scale": (1 / 16, 16.0),
    "activation.first_omega": (1 / 16, 16.0),
    "activation.omega": (1 / 8, 4.0),
    "activation.width": (1 / 4, 16.0),
    "activation.scale": (1 / 8, 4.0),
    "modulation.omega": (1 / 8, 8.0),
    "sparsity.k": (1 / 8, 4.0),
    "omega": (1 / 8, 4.0),
    "scale": (1 / 8, 8.0),
    "bandwidth": (1 / 4, 4.0),
    "features": (1 / 4, 2.0),
}
_ABSOLUTE = ("encoding.bands", "encoding.bins", "encoding.levels")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One setting and the values that it may have.

    Attributes:
        name: the setting, in full.
        grid: the values tried first, rising.
        continuous: whether values between them may be tried.
    """

    name: str
    grid: tuple[Any, ...]
    continuous: bool


def axes_of(net: nn.Module, space: Mapping[str, Any] | None, points: int) -> list[Axis]:
    """Return the axes of a space for one network.

    Args:
        net: the network.
        space: ``{setting: range or list}``, or None for the usual range of what the network's spectrum hangs on most.
        points: how many values of a range are tried first.

    Raises:
        ValueError: a setting that the network does not have, a range that is empty or reversed, a value that the
            network refuses.
        TypeError: numbers of the wrong kind.
    """
    if space is None:
        space = usual_space(net)
    axes: list[Axis] = []
    for setting, values in space.items():
        name = setting_name(net, setting)
        axis = _axis(setting, name, values, not takes_floats(net, name), points)
        if name in [known.name for known in axes]:
            raise ValueError(f"space[{setting!r}] is {name}, which is in it already; name each setting once.")
        for value in (axis.grid[0], axis.grid[-1]):
            with_settings(net, {name: value})
        axes.append(axis)
    return axes


def spaces_of(networks: Mapping[str, nn.Module], space: Mapping[str, Any] | None, points: int) -> dict[str, list[Axis]]:
    """Return the axes of each network, as :func:`axes_of` does; a setting has to be known to one of them."""
    if space is None:
        return {name: axes_of(net, None, points) for name, net in networks.items()}
    own: dict[str, dict[str, Any]] = {name: {} for name in networks}
    for setting, values in space.items():
        # "width" is what a Gauss has, and another word for features only where no network has it.
        for alias in (False, True):
            having = [name for name, net in networks.items() if names_like(settings_of(net), setting, alias=alias)]
            if having:
                break
        for name in having or networks:
            own[name][setting] = values
    return {name: axes_of(net, own[name], points) for name, net in networks.items()}


def usual_space(net: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return the range of the setting that a network's spectrum hangs on most.

    Example:
        >>> import ntk_inr as ni
        >>> usual_space(ni.variant("siren"))
        {'activation.omega': (3.75, 120.0)}
    """
    known = settings_of(net)
    for name, (low, high) in _USUAL.items():
        if known.get(name) is None:
            continue
        if name in _ABSOLUTE:
            return {name: (low, high)}
        if not takes_floats(net, name):
            most = net.features if name == "sparsity.k" else math.inf
            return {name: (max(1, round(low * known[name])), min(most, round(high * known[name])))}
        return {name: (low * known[name], high * known[name])}
    return {}


def parse_values(text: str) -> Any:
    """Return what "0.25:32" (a range) or "1,2,4" (a list) says.

    Raises:
        ValueError: it is neither.

    Example:
        >>> parse_values("0.25:32"), parse_values("1,2,4")
        ((0.25, 32), [1, 2, 4])
    """
    ranged = ":" in text
    try:
        numbers = [_number(part) for part in text.split(":" if ranged else ",")]
    except ValueError:
        numbers = []
    if not numbers or (ranged and len(numbers) != 2):
        raise ValueError(f"{text!r} is neither a range such as 0.25:32 nor a list such as 1,2,4.")
    return tuple(numbers) if ranged else numbers


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _axis(setting: str, name: str, values: Any, whole: bool, points: int) -> Axis:
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise TypeError(f"space[{setting!r}] is {values!r}; expected a range (low, high) or a list of values.")
    numbers = [_of_kind(setting, value, whole) for value in values]
    if not isinstance(values, tuple):
        if not numbers:
            raise ValueError(f"space[{setting!r}] is empty; give a range (low, high) or a list of values.")
        return Axis(name, tuple(sorted(set(numbers))), continuous=False)
    if len(numbers) != 2:
        raise ValueError(f"space[{setting!r}] is {values!r}; a tuple is a range (low, high), a list holds values.")
    low, high = numbers
    if not low < high:
        what = "empty" if low == high else "reversed"
        raise ValueError(f"space[{setting!r}] is {values!r}, which is {what}; expected (low, high) with low < high.")
    spaced = np.geomspace(low, high, points) if low > 0 else np.linspace(low, high, points)
    if whole:
        dense = range(int(low), int(high) + 1)
        grid = tuple(dense) if len(dense) <= points else tuple(sorted({round(value) for value in spaced}))
        return Axis(name, grid, continuous=len(grid) < len(dense))
    inner = [between(value, low, high, digits=4) for value in spaced[1:-1]]
    return Axis(name, (float(low), *sorted(set(inner) - {low, high}), float(high)), continuous=True)


def between(value: float, low: float, high: float, digits: int = 3) -> float:
    """Return a number between two others, in as few digits, from so many on, as keep it there."""
    for count in range(digits, 17):
        short = float(f"{value:.{count}g}")
        if low < short < high and abs(short - value) < (high - low) / 100:
            return short
    return float(value)


def _of_kind(setting: str, value: Any, whole: bool) -> int | float:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (whole and value != int(value)):
        kind = "whole numbers" if whole else "finite numbers"
        raise TypeError(f"space[{setting!r}] holds {value!r}; this setting takes {kind}.")
    if whole and value < 1:
        raise ValueError(f"space[{setting!r}] holds {value!r}; expected whole numbers from 1.")
    return int(value) if whole else float(value)
