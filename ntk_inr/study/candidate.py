"""What the kernel of one network predicts of its training on a sample of a task (T10)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr import _checks
from ntk_inr.infinite.network import infinite_kernel
from ntk_inr.kernels import memory
from ntk_inr.kernels.api import ntk, training_kernel
from ntk_inr.kernels.frozen import is_frozen
from ntk_inr.spectra.dense import moments
from ntk_inr.spectra.eigen import eigensystem, rounding_floor
from ntk_inr.spectra.symmetry import is_symmetric, leading_pace
from ntk_inr.tasks.interface import IndirectTask, Task

TIMES = np.logspace(0, 8, 65)
"""Times at which curves are taken: steps of gradient descent at half of its largest stable rate."""
_SPREAD = 256
_COPIES = 3  # the kernel, what a decomposition overwrites, and vectors


@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows of a task that a prediction is made from.

    Attributes:
        x: coordinates (n, d) that count as trained on.
        y: their values (n, c).
        heldout: coordinates (m, d) and values (m, c) that count as unknown; m may be 0.
        spread: coordinates (k, d) from everywhere, for the largest eigenvalue.
        seen: (N,) True for the rows of the task that are not held out here.
    """

    x: np.ndarray
    y: np.ndarray
    heldout: tuple[np.ndarray, np.ndarray]
    spread: np.ndarray
    seen: np.ndarray

    @property
    def rows(self) -> int:
        """How many rows N the task trains on."""
        return len(self.seen)

    @functools.cached_property
    def points(self) -> np.ndarray:
        """Coordinates (n + m, d), those trained on first."""
        return np.concatenate([self.x, self.heldout[0]])

    @functools.cached_property
    def places(self) -> np.ndarray:
        """Where the kernel is taken: ``points``, then ``spread`` unless the sample is all there is."""
        return self.points if len(self.points) == self.rows else np.concatenate([self.points, self.spread])


def draw_sample(task: Task, size: int, share: float, seed: int) -> Sample:
    """Draw rows of what a task trains on: a neighbourhood, so that they lie as densely as all do.

    What is held out by the task itself is not looked at.

    Args:
        task: the task. Where it measures something else than values at points, rows are drawn one by one.
        size: how many rows.
        share: of them are held out.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    x, y = task.x, task.y
    spread = rng.permutation(len(x))[:_SPREAD]
    if isinstance(task, IndirectTask) or size >= len(x):
        rows = rng.permutation(len(x))[:size]
    else:
        centre = x[rng.integers(len(x))]
        rows = rng.permutation(np.argpartition(np.abs(x - centre).max(axis=1), size - 1)[:size])
    kept = size - round(share * size)
    trained, other = np.sort(rows[:kept]), np.sort(rows[kept:])
    return Sample(x[trained], y[trained], (x[other], y[other]), x[spread], ~np.isin(np.arange(len(x)), other))


@dataclasses.dataclass(frozen=True)
class Curves:
    """What one kernel predicts.

    Attributes:
        train: mean squared error (times,) on the rows trained on, at TIMES.
        heldout: the same on the rows held out; None where there are none.
        cv: of the eigenvalues.
        stable_rate: largest stable learning rate of gradient descent on all rows.
        gradient: mean squared norm of an output's gradient, the kernel's mean diagonal.
        path: length (times,) of the way that the parameters go until TIMES.
        push: how far they go that way when each of them moves by 1, down the loss; infinity where there are none.
    """

    train: np.ndarray
    heldout: np.ndarray | None
    cv: float
    stable_rate: float
    gradient: float
    path: np.ndarray
    push: float = math.inf


class Kernels(NamedTuple):
    """A network's kernel, and the one that its training follows: the same array unless some derivative is frozen."""

    own: np.ndarray
    followed: np.ndarray


def predict(apply: Any, params: Any, kernels: Kernels, sample: Sample) -> Curves:
    """Return what the kernels at ``params``, on ``sample.places``, predict from there on."""
    start, total, norm = _at_start(_checks.as_partial(apply), params, sample.points, sample.y)
    predicted = curves(kernels.own, np.asarray(start, np.float64), sample, kernels.followed)
    return dataclasses.replace(predicted, push=float(total / norm)) if norm > 0 else predicted


def kernels_of(apply: Any, params: Any, sample: Sample) -> Kernels:
    """Return the kernels in float64 on ``sample.places``, compiled once for all models of one structure."""
    model = (_checks.as_partial(apply), params, sample.places)
    own = _in_float64(_kernel, *model)
    return Kernels(own, _in_float64(_training_kernel, *model) if is_frozen(*model) else own)


@jax.jit
def _at_start(apply: Any, params: Any, x: Any, y: Any) -> tuple[Array, Array, Array]:
    """Return the values, and both norms, l1 and l2, of the gradient of the squared error on the first rows."""
    start, pull = jax.vjp(lambda params: apply(params, x), params)
    cotangent = jnp.zeros_like(start).at[: len(y)].set(start[: len(y)] - y)
    gradient = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(pull(cotangent))])
    return start, jnp.abs(gradient).sum(), jnp.linalg.norm(gradient)


_kernel, _training_kernel = jax.jit(ntk), jax.jit(training_kernel)


def check_room(rows: int, name: str) -> None:
    """Raise where memory has no room for a kernel in float64 and its spectrum on so many rows, the option ``name``."""
    needed, left = _COPIES * 8 * rows**2, memory.available_on_host()
    if needed > left:
        raise ValueError(
            f"{name}={rows} asks for kernels that need {memory.describe(needed)}, and {memory.describe(left)} are "
            "left; choose less."
        )


def kernel_in_float64(apply: Any, params: Any, x: Any) -> np.ndarray:
    """Return the kernel in float64 at the model's own parameters.

    In float32 rounding hides eigenvalues below about 5e-4 of the largest at n = 4096.
    """
    return _in_float64(ntk, apply, params, x)


def training_kernel_in_float64(apply: Any, params: Any, x: Any) -> np.ndarray:
    """Return likewise the kernel that training follows."""
    return _in_float64(training_kernel, apply, params, x)


def kernels_in_float64(apply: Any, params: Any, x: Any) -> Kernels:
    """Return both, one array where they are the same."""
    own = kernel_in_float64(apply, params, x)
    frozen = is_frozen(_checks.as_partial(apply), params, x)
    return Kernels(own, training_kernel_in_float64(apply, params, x) if frozen else own)


def _in_float64(of: Callable[..., Any], *arguments: Any) -> np.ndarray:
    host = jax.tree.map(np.asarray, arguments)
    with jax.enable_x64(True):
        return np.asarray(of(*jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), host)))


def predict_infinite(net: nn.Module, sample: Sample, seed: int) -> Curves:
    """Return what the kernel of infinite width predicts from a start that is drawn of the network's own law."""
    with jax.enable_x64(True):
        kernel = infinite_kernel(net)(jnp.asarray(sample.places, jnp.float64))  # type: ignore[arg-type]
    k = len(sample.points)
    system = eigensystem(np.asarray(kernel.nngp)[:k, :k])
    drawn = np.random.default_rng(seed).normal(size=(k, sample.y.shape[1]))
    start = system.vectors @ (np.sqrt(np.maximum(system.values, 0))[:, None] * drawn)
    return curves(np.asarray(kernel.ntk), start, sample)


def largest_eigenvalue(kernel: np.ndarray, sample: Sample) -> float:
    """Return that of all N rows, estimated as N / k times that of k rows from everywhere.

    Of a kernel that is not symmetric it is what limits steps as the largest eigenvalue does.
    """
    some = kernel[len(sample.points) :, len(sample.points) :] if len(kernel) > len(sample.points) else kernel
    return leading_pace(some) * sample.rows / len(some)


def stable_rate(largest: float, sample: Sample) -> float:
    """Return the largest stable learning rate of gradient descent on the mean squared error of all rows."""
    return 2 * sample.rows * sample.y.shape[1] / largest


def curves(kernel: np.ndarray, start: np.ndarray, sample: Sample, followed: np.ndarray | None = None) -> Curves:
    r"""Return the curves of gradient flow on the linearised model, (T10): :math:`r(t) = e^{-tK/\lambda_{\max}}r_0`.

    The largest eigenvalue is that of all N rows. Outside of the training rows
    :math:`f_t(x) = f_0(x) - K_{xX}K^{-1}(r_0 - r(t))`, and parameters move at the speed
    :math:`\lVert\dot\theta\rVert = \sqrt{r^\top K r}/\lambda_{\max}`. Eigenvalues below the rounding floor count
    as that; so do those of a ``followed`` kernel whose modes would grow, which training does not let grow for long.

    Args:
        kernel: on ``sample.places``.
        start: values (n + m, c) of the network on ``sample.points`` before training.
        sample: the rows.
        followed: the kernel that training follows, if not this one; it is K but for the speed.
    """
    n, (_, unseen) = len(sample.x), sample.heldout
    own, residual = kernel[:n, :n], start - np.concatenate([sample.y, unseen])
    followed = kernel if followed is None else followed
    values, vectors, inverse = _modes(followed[:n, :n])
    largest = max(largest_eigenvalue(followed, sample), float(np.abs(values).max()))
    modes = inverse @ residual[:n]
    left = np.exp(-np.outer(TIMES, values / largest))
    after = (vectors @ (left[:, :, None] * modes)).real
    train = (after**2).mean(axis=(1, 2))
    every = np.concatenate([residual[None, :n], after])
    speed = np.sqrt(np.maximum((every * (own @ every)).sum(axis=(1, 2)), 0)) / largest
    # Not SciPy's rule, whose import would take longer than that of the package.
    path = np.cumsum(np.diff(TIMES, prepend=0) * (speed[1:] + speed[:-1]) / 2)
    heldout = None
    if len(unseen):
        across = followed[n : n + len(unseen), :n] @ (vectors / values)
        gained = (across @ ((1 - left)[:, :, None] * modes).transpose(1, 0, 2).reshape(n, -1)).real
        heldout = ((residual[n:, None] - gained.reshape(len(unseen), len(TIMES), -1)) ** 2).mean(axis=(0, 2))
    spread = moments(own)
    rate = stable_rate(largest, sample)
    return Curves(train, heldout, float(spread.cv), rate, float(spread.mean), path)


def _modes(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return eigenvalues, raised to the rounding floor, eigenvectors as columns, and the inverse of those."""
    if is_symmetric(kernel):
        system = eigensystem(kernel)
        return np.maximum(system.values, rounding_floor(system)), system.vectors, system.vectors.T
    values, vectors = np.linalg.eig(kernel)
    raised = np.maximum(values.real, rounding_floor(np.abs(values)))
    return raised + 1j * values.imag, vectors, np.linalg.inv(vectors)
