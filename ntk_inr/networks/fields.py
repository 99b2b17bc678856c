"""How a part of a network declares which of its fields are settings to vary."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

REAL = {"setting": float}
"""Metadata of a field that is a real setting; beside ``"tuned": False``, ``settings_of`` leaves it out."""
WHOLE = {"setting": int}
"""Metadata of a field that is a whole setting."""


def real(default: Any, *, tuned: bool = True) -> Any:
    """Declare a real setting with a default; ``tuned=False`` keeps it from :func:`ntk_inr.settings_of`.

    Example:
        >>> import flax.linen as nn, jax.numpy as jnp, ntk_inr as ni
        >>> from ntk_inr.networks.fields import real
        >>> class Power(nn.Module):
        ...     exponent: float = real(2.0)
        ...     def __call__(self, x):
        ...         return jnp.abs(x) ** self.exponent
        >>> ni.settings_of(ni.CoordinateMLP(encoding=Power()))
        {'features': 256, 'depth': 4, 'encoding.exponent': 2.0}
    """
    return dataclasses.field(default=default, metadata=REAL | {"tuned": tuned})


def whole(default: Any) -> Any:
    """Declare a whole setting with a default."""
    return dataclasses.field(default=default, metadata=WHOLE)


def word(default: str | None, choices: Any) -> Any:
    """Declare a setting that is one of the words of a ``Literal``, which a variant's name may carry."""
    return dataclasses.field(default=default, metadata={"words": get_args(choices)})
