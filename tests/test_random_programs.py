"""The structured kernel of random programs, and what stands on its factors, against whole Jacobians in float64.

``python -m tests.test_random_programs 5000 LOG`` goes through many and writes those that fail to LOG; called again, it
goes through those that LOG has not.
"""

import functools
import os
import pathlib
import re
import sys
from unittest import mock

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck
from jax.tree_util import Partial

import ntk_inr as ni
from ntk_inr._dtypes import eps
from ntk_inr.kernels.groups import Group
from tests.kernel_models import reduced, reference
from tests.random_programs import programs

# Of a program's coordinates those of the rows, and those of the columns where they are others.
ROWS, COLUMNS = slice(0, 4), slice(3, 6)
# The largest entry of a kernel that may be nothing but rounding, as of second differences of a linear function.
VANISHING = 2.0**-40
# How many programs are compared, 200 by .ci/run, and how many of them make a test.
PROGRAMS, EACH = int(os.environ.get("RANDOM_PROGRAMS", "10")), 10


class Comparison:
    """A program's figures against those of whole Jacobians in float64, of the same rounded numbers.

    An entry may be off by ten roundings of the largest one, or by ten times what method="jacobian" is off by.
    """

    def __init__(self, program):
        self.program = program
        with jax.enable_x64(True):
            params, points = program.draw()
            full = reference(Partial(program.exact), jax.tree.map(jnp.asarray, params), jnp.asarray(points))
        assert np.isfinite(full).all()
        self.exact = reduced(full, program.outputs)
        self.largest = np.abs(self.exact).max()
        hypothesis.assume(np.abs(full).max() > VANISHING)
        self.params = jax.tree.map(lambda leaf: jnp.asarray(leaf, program.dtype), params)
        self.points = jnp.asarray(points, program.dtype)
        self.x = self.points[ROWS]

    def run(self):
        try:
            getattr(self, self.program.check)()
        except ValueError as error:
            # What the operator says of backward rules that are no linear maps.
            if self.program.is_linear or "is not linear in the cotangent" not in str(error):
                raise

    def ntk(self):
        kernel = ni.ntk(self.program, self.params, self.x, outputs=self.program.outputs)
        self.compare(kernel, self.exact[ROWS, ROWS])
        own = np.einsum("iicc->ic" if self.program.outputs == "full" else "ii...->i...", kernel)
        assert not (own < 0).any(), f"an entry on the diagonal is {own.min()}"
        plan = ni.explain(self.program, self.params, self.x, outputs=self.program.outputs)
        assert all(leaf.why for leaf in plan.leaves), plan

    def columns(self):
        kernel = ni.ntk(self.program, self.params, self.x, self.points[COLUMNS], outputs=self.program.outputs)
        self.compare(kernel, self.exact[ROWS, COLUMNS])

    def jit(self):
        kernel = jax.jit(functools.partial(ni.ntk, self.program, outputs=self.program.outputs))(self.params, self.x)
        self.compare(kernel, self.exact[ROWS, ROWS])

    def operator(self):
        return ni.NTKOperator(self.program, self.params, self.x, outputs=self.program.outputs, microbatch=3)

    def matrix(self):
        """Return the exact kernel that the operator is of."""
        kernel = self.exact[ROWS, ROWS]
        return kernel if kernel.ndim == 2 else kernel.swapaxes(1, 2).reshape(-1, kernel.shape[0] * kernel.shape[2])

    def product(self):
        matrix = self.matrix()
        vectors = np.random.default_rng(0).choice([-1.0, 1.0], (len(matrix), 2))
        self.compare(self.operator() @ vectors, matrix @ vectors, lambda error: len(matrix) * error)

    def diagonal(self):
        found = self.operator().diagonal()
        self.compare(found, np.diagonal(self.matrix()))
        assert not (np.asarray(found) < 0).any(), f"an entry on the diagonal is {found.min()}"

    def moments(self):
        self.compare_moments(ni.streamed_moments(self.program, self.params, self.x))

    def budget(self):
        self.compare_moments(ni.variance_budget(self.program, self.params, self.x))

    def compare_moments(self, found):
        eigenvalues = np.linalg.eigvalsh(self.matrix())
        self.compare(found.mean, eigenvalues.mean())
        self.compare(found.variance, eigenvalues.var(), self.of_variance)

    def of_variance(self, error):
        """Return how far the variance may be off where entries are: it is a mean of squares of the entries of rows."""
        return len(self.x) * error * (2 * self.largest + error)

    def compare(self, found, exact, propagated=lambda error: error):
        """Compare a figure that is off by ``propagated(error)`` where the entries of the kernel are by ``error``."""
        error = float(np.abs(np.asarray(found, np.float64) - exact).max())
        allowed = 10 * eps(self.program.coarsest) * self.largest
        # Whole Jacobians are compiled only where rounding alone does not explain the error.
        if not error <= propagated(allowed):
            rounding = self.rounding()
            if not np.isfinite(rounding):  # half precision that overflows in whole Jacobians, too
                return
            allowed = max(allowed, 10 * rounding)
        assert error <= propagated(allowed), (
            f"{self.program.check} is off by {error:.3g}; {propagated(allowed):.3g} is allowed"
        )

    def rounding(self):
        """Return what method="jacobian" is off by; in float64, what it would be off by in other numbers as fine.

        That is known from float32, as the reference rounds as the Jacobian does: by how much the function magnifies a
        rounding of its gradients, of whose products entries are.
        """
        function, params, points = self.program, self.params, self.points
        in_float64 = self.program.coarsest == "float64"
        if in_float64:
            function = self.program.exact
            params, points = jax.tree.map(lambda leaf: leaf.astype("float32"), (params, points))
        jacobian = ni.ntk(function, params, points, outputs=self.program.outputs, method="jacobian")
        off = float(np.abs(jacobian - self.exact).max())
        if not in_float64:
            return off
        of_gradients = (1 + off / self.largest) ** 0.5 - 1
        of_gradients *= eps("float64") / eps("float32")
        return self.largest * of_gradients * (2 + of_gradients)


def compare(program):
    with (
        jax.enable_x64(program.dtype == "float64"),
        jax.numpy_rank_promotion("allow"),
        mock.patch.object(Group, "flops", (lambda *_, **__: 0) if program.products else Group.flops),
    ):
        Comparison(program).run()


def drawn(seed, examine):
    """Call ``examine`` with the simplest program and with :data:`EACH` others."""

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=EACH + 1, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(programs())
    def draw(program):
        hypothesis.assume(program not in passed)
        examine(program)
        passed.add(program)

    passed = set()
    draw()
    assert len(passed) > EACH


@pytest.mark.parametrize("seed", range(PROGRAMS // EACH))
def test_random_programs(seed):
    drawn(seed, compare)


def survey(programs, log):
    """Compare many programs, ``EACH`` a seed; append failures to ``log``, and each seed once it is done."""
    done = {int(seed) for seed in re.findall(r"^done (\d+)", log.read_text(), re.MULTILINE)} if log.exists() else set()
    for seed in sorted(set(range(-(-programs // EACH))) - done):
        failures = []

        def examine(program, failures=failures):
            try:
                compare(program)
            except hypothesis.errors.UnsatisfiedAssumption:
                raise
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}\n{program}\n")

        drawn(seed, examine)
        jax.clear_caches()
        with log.open("a") as file:
            file.write("".join(failures) + f"done {seed}: {len(failures)} of {EACH + 1} failed\n")


if __name__ == "__main__":
    survey(int(sys.argv[1]), pathlib.Path(sys.argv[2]))
