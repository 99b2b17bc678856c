"""What the import hook of the tests checks annotations with."""

import beartype
import jax
import jaxtyping

# As static checkers do, takes an int where a float is asked for; a network's settings may be traced, too.
_usual = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
_traced = beartype.FrozenDict({float: float | int | jax.Array})
_of_networks = beartype.beartype(conf=beartype.BeartypeConf(hint_overrides=_traced))
_jaxtyped = jaxtyping.jaxtyped


def check(function):
    """Check calls of a function."""
    return (_of_networks if function.__module__.startswith("ntk_inr.networks") else _usual)(function)


def _outermost(**options):
    """Leave alone a function inside another: each call of the outer would build its checks anew."""

    def decorate(function):
        inner = "<locals>" in getattr(function, "__qualname__", "")
        return function if inner else _jaxtyped(function, **options)

    return decorate


# The hook writes this name before each function.
jaxtyping.jaxtyped = _outermost
