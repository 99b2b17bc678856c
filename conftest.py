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

# Files whose tests but the slow ones must not be skipped for want of time: kernels of random programs and of every kind
# of function, what stands on their factors, data in, and commands.
CORE = (
    "test_random_programs.py",
    "test_ntk.py",
    "test_ntk_inputs.py",
    "test_operator.py",
    "test_budget.py",
    "test_image.py",
    "test_shape.py",
    "test_cli.py",
    "test_checkpoints.py",
)
_OVER = "minutes are over"
_SKIPPED = pytest.StashKey[str]()
_EVERY = 10
_finished = itertools.count(1)
_BEGAN = time.monotonic()
_XLA_FLAGS = os.environ.get("XLA_FLAGS")


def pytest_addoption(parser):
    """Let a machine that is slow say how much time it has."""
    parser.addoption("--minutes", type=float, default=float("inf"), help="skip what has not begun by then")


def pytest_collection_modifyitems(items):
    """Check what collecting has imported; mark the long examples, whose like README.md has, and the core."""
    if os.environ.get("XLA_FLAGS") != _XLA_FLAGS:
        raise pytest.UsageError("A module sets XLA_FLAGS on being imported, for all tests; do so for its own process.")
    for item in items:
        if item.path.parent.name in ("docs", "study"):
            item.add_marker("slow")
        if item.path.name in CORE and not item.get_closest_marker("slow"):
            item.add_marker("core")


def pytest_runtest_setup(item):
    """Skip what has no time left."""
    minutes = item.config.getoption("--minutes")
    if time.monotonic() - _BEGAN > 60 * minutes:
        pytest.skip(f"{minutes:g} {_OVER}")


def pytest_runtest_teardown():
    """Let go of compiled programs before they use up the process's memory maps."""
    if next(_finished) % _EVERY == 0:
        from ntk_inr.study.programs import free_programs_if_full

        free_programs_if_full()


def pytest_sessionfinish(session):
    """Fail where --minutes left no time for a test of the core."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not reporter or session.config.getoption("--minutes") == float("inf"):
        return
    skipped = [report for report in reporter.stats.get("skipped", []) if _OVER in str(report.longrepr)]
    core = sum("core" in report.keywords for report in skipped)
    session.config.stash[_SKIPPED] = f"{len(skipped)} tests were skipped for want of time, {core} of them of the core"
    if core and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config):
    """Say last how many tests there was no time for."""
    if _SKIPPED in config.stash:
        print(config.stash[_SKIPPED])
