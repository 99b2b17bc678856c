"""What the import hook of the tests checks annotations with."""

from beartype import BeartypeConf, beartype

# As static checkers do, takes an int where a float is asked for.
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function):
    """Check calls, unless of a function inside another: each call of the outer would build those checks anew."""
    return function if "<locals>" in function.__qualname__ else _beartype(function)
