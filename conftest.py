"""Checks the package's own shape annotations while tests and doctests run."""

import os

import jaxtyping

os.environ.setdefault("MPLBACKEND", "agg")
jaxtyping.install_import_hook("ntk_inr", "beartype.beartype")

import jax  # noqa: E402  (the hook must stand before the package is imported)

jax.config.update("jax_numpy_rank_promotion", "raise")
