"""What the kernel of one network predicts of its training on a sample of a task (T10)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import Array
from jax.tree_util import Partial

from ntk_inr.infinite.network import InfiniteKernel, infinite_kernel
from ntk_inr.kernels.adapters import init, training_call
from ntk_inr.kernels.api import ntk
from ntk_inr.networks.settings import with_settings
from ntk_inr.spectra.moments import moments
from ntk_inr.tasks.interface import IndirectTask, Task

TIMES = np.logspace(0, 8, 65)
"""Times at which curves are taken: steps of gradient descent at half of its largest stable rate."""
_SPREAD = 256


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
        """All coordinates (n + m, d), those trained on first."""
        return np.concatenate([self.x, self.heldout[0]])


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
class _Settled:
    """A network whose real settings are arrays, so that one compilation serves all their values."""

    net: nn.Module

    def __call__(self, values: Mapping[str, Any], constants: Any, params: Any, x: Any) -> Any:
        return with_settings(self.net, values).apply({**constants, "params": params}, x)


def build(net: nn.Module, values: Mapping[str, Any], key: Array, x: Any) -> tuple[Any, Any]:
    """Return ``(apply, params)`` of a network with settings, compiled once for all values of a real one."""
    settled = with_settings(net, values)
    apply, params = init(settled, key, x)
    real = {name: jnp.float32(value) for name, value in values.items() if isinstance(value, float)}
    if not real or training_call(apply) is not None:
        return apply, params
    whole = {name: value for name, value in values.items() if name not in real}
    shared = Partial(_Settled(with_settings(net, whole)), real, apply.args[0])
    try:
        jax.eval_shape(lambda apply, params: apply(params, x[:1]), shared, params)
    except TypeError:
        return apply, params  # a setting that has to be a number, as JAX's own errors say too
    return shared, params


@dataclasses.dataclass(frozen=True)
class Curves:
    """What one kernel predicts.

    Attributes:
        train: mean squared error (times,) on the rows trained on, at TIMES.
        heldout: the same on the rows held out; None where there are none.
        cv: of the eigenvalues.
        stable_rate: largest stable learning rate of gradient descent on all rows.
        gradient: mean squared norm of an output's gradient, the kernel's mean diagonal.
        kernel: of all rows of the sample, (n + m, n + m).
    """

    train: np.ndarray
    heldout: np.ndarray | None
    cv: float
    stable_rate: float
    gradient: float
    kernel: np.ndarray


def predict(apply: Any, params: Any, sample: Sample) -> Curves:
    """Return what the kernel at ``params`` predicts from there on."""
    start = np.asarray(apply(params, jnp.asarray(sample.points)), np.float64)
    return curves(functools.partial(kernel_in_float64, apply, params), start, sample)


def kernel_in_float64(apply: Any, params: Any, x: Any) -> np.ndarray:
    """Return the kernel in float64 at the model's own parameters.

    In float32 rounding hides eigenvalues below about 5e-4 of the largest at n = 4096.
    """
    host = jax.tree.map(np.asarray, (apply, params, x))
    with jax.enable_x64(True):
        apply, params, points = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), host)
        return np.asarray(ntk(apply, params, points))


def predict_infinite(net: nn.Module, sample: Sample, seed: int) -> Curves:
    """Return what the kernel of infinite width predicts from a start that is drawn of the network's own law."""
    kernels = infinite_kernel(net)  # type: ignore[arg-type]

    def of(x: np.ndarray) -> InfiniteKernel:
        with jax.enable_x64(True):
            return kernels(jnp.asarray(x, jnp.float64))

    found = of(sample.points)
    values, vectors = scipy.linalg.eigh(np.asarray(found.nngp), driver="evd", check_finite=False)
    drawn = np.random.default_rng(seed).normal(size=(len(values), sample.y.shape[1]))
    start = vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * drawn)
    return curves(lambda x: np.asarray(found.ntk if x is sample.points else of(x).ntk), start, sample)


def curves(kernel_of: Callable[[np.ndarray], np.ndarray], start: np.ndarray, sample: Sample) -> Curves:
    r"""Return the curves of gradient flow on the linearised model, (T10): :math:`r(t) = e^{-tK/\lambda_{\max}}r_0`.

    The largest eigenvalue is that of all N rows, estimated as N / k times that of k rows from everywhere. Outside of
    the training rows :math:`f_t(x) = f_0(x) - K_{xX}K^{-1}(r_0 - r(t))`. Eigenvalues below the rounding floor count
    as that.

    Args:
        kernel_of: from coordinates (k, d) to their kernel (k, k).
        start: values (n + m, c) of the network on ``sample.points`` before training.
        sample: the rows.
    """
    n, (_, unseen) = len(sample.x), sample.heldout
    kernel = kernel_of(sample.points)
    residual = start - np.concatenate([sample.y, unseen])
    values, vectors = scipy.linalg.eigh(kernel[:n, :n], driver="evd", check_finite=False)
    values = np.maximum(values, np.finfo(np.float64).eps * n * values[-1])
    largest = values[-1] * sample.rows / n
    if len(sample.points) < sample.rows:
        spread = kernel_of(sample.spread)
        top = scipy.linalg.eigh(spread, eigvals_only=True, subset_by_index=(len(spread) - 1,) * 2)[0]
        largest = max(top * sample.rows / len(spread), values[-1])
    modes = vectors.T @ residual[:n]
    left = np.exp(-np.outer(TIMES, values / largest))
    train = left**2 @ (modes**2).sum(axis=1) / residual[:n].size
    heldout = None
    if len(unseen):
        across = kernel[n:, :n] @ (vectors / values)
        gained = across @ ((1 - left)[:, :, None] * modes).transpose(1, 0, 2).reshape(n, -1)
        heldout = ((residual[n:, None] - gained.reshape(len(unseen), len(TIMES), -1)) ** 2).mean(axis=(0, 2))
    rate = 2 * sample.rows * residual.shape[1] / largest
    found = moments(kernel[:n, :n])
    return Curves(train, heldout, float(found.cv), float(rate), float(found.mean), kernel)
