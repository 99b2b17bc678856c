"""What the import hook of the tests checks annotations with."""

from beartype import BeartypeConf, beartype

# As static checkers do, takes an int where a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
