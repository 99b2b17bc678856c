"""Checks the package's own shape annotations while tests and doctests run."""

import itertools
import os
import time

import jaxtyping
import pytest

import tests.typechecker  # noqa: F401  (so that the hook finds it under its name)

os.environ.setdefault("MPLBACKEND", "agg")
jaxtyping.install_import_hook("ntk_inr", "tests.typechecker.check")

import jax  # noqa: E402  (the hook must stand before the package is imported)

jax.config.update("jax_numpy_rank_promotion", "raise")
# Where in the source each operation comes from takes a twentieth of the tests' time, and no test reads it.
jax.config.update("jax_traceback_in_locations_limit", 0)

_EVERY = 10
_finished = itertools.count(1)
_BEGAN = time.monotonic()
_XLA_FLAGS = os.environ.get("XLA_FLAGS")


def pytest_addoption(parser):
    """Let a machine that is slow say how much time it has."""
    parser.addoption("--minutes", type=float, default=float("inf"), help="skip what has not begun by then")


def pytest_collection_modifyitems(items):
    """Check what collecting has imported; mark the long examples, whose like README.md has."""
    if os.environ.get("XLA_FLAGS") != _XLA_FLAGS:
        raise pytest.UsageError("A module sets XLA_FLAGS on being imported, for all tests; do so for its own process.")
    for item in items:
        if item.path.parent.name in ("docs", "study"):
            item.add_marker("slow")


def pytest_runtest_setup(item):
    """Skip what has no time left."""
    minutes = item.config.getoption("--minutes")
    if time.monotonic() - _BEGAN > 60 * minutes:
        pytest.skip(f"{minutes:g} minutes are over")


def pytest_runtest_teardown():
    """Let go of compiled programs before they use up the process's memory maps."""
    if next(_finished) % _EVERY == 0:
        from ntk_inr.study.programs import free_programs_if_full

        free_programs_if_full()


def pytest_sessionfinish(session):
    """Fail where --minutes left no time for a single test."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    limited = session.config.getoption("--minutes") < float("inf")
    if reporter and limited and session.exitstatus == 0 and not reporter.stats.get("passed"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
