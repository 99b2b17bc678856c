"""Checks the package's own shape annotations while tests and doctests run."""

import os

import jaxtyping

import tests.typechecker  # noqa: F401  (so that the hook finds it under its name)

os.environ.setdefault("MPLBACKEND", "agg")
jaxtyping.install_import_hook("ntk_inr", "tests.typechecker.check")

import jax  # noqa: E402  (the hook must stand before the package is imported)

jax.config.update("jax_numpy_rank_promotion", "raise")
