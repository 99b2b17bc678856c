"""One walk over what JAX has traced: the equations of a jaxpr, and those of the jaxprs inside it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend.core as jex


def equations(jaxpr: Any, into_rules: bool = True) -> Iterator[Any]:
    """Yield the equations of a jaxpr, and those of the jaxprs inside it.

    Args:
        jaxpr: open or closed, or anything that holds some.
        into_rules: whether also those inside of functions with a derivative rule of their own.
    """
    for part in jax.tree.leaves(jaxpr, is_leaf=_is_jaxpr):
        if not _is_jaxpr(part):
            continue
        inner: Any = getattr(part, "jaxpr", part)
        for eqn in inner.eqns:
            yield eqn
            if into_rules or not eqn.primitive.name.startswith("custom_"):
                yield from equations(list(eqn.params.values()), into_rules)


def has_references(jaxpr: Any, inside: bool = True) -> bool:
    """Return whether a jaxpr takes or makes references, which are written to; ``inside`` looks in those inside it."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    made = (var for eqn in (equations(inner) if inside else inner.eqns) for var in eqn.outvars)
    return any(not isinstance(var.aval, jax.core.ShapedArray) for var in itertools.chain(inner.invars, made))


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, jex.ClosedJaxpr | jex.Jaxpr)
