"""What the import hook of the tests checks annotations with."""

import jaxtyping
from beartype import BeartypeConf, beartype

# As static checkers do, takes an int where a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped = jaxtyping.jaxtyped


def _outermost(**options):
    """Leave alone a function inside another: each call of the outer would build its checks anew."""

    def decorate(function):
        inner = "<locals>" in getattr(function, "__qualname__", "")
        return function if inner else _jaxtyped(function, **options)

    return decorate


# The hook writes this name before each function.
jaxtyping.jaxtyped = _outermost
