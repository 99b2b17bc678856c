r"""What each layer does to the kernels of the layer before it, at infinite width (T5.9, T6.5, T11.3).

Compose them into an architecture of your own; :func:`ntk_inr.infinite_kernel` does so for
:class:`ntk_inr.CoordinateMLP`.

Example:
    >>> import jax.numpy as jnp
    >>> state = inputs(jnp.linspace(-1.0, 1.0, 5)[:, None])
    >>> for _ in range(3):
    ...     state = activate(dense(state, 2.0, 0.1), dual_of("relu"))
    >>> state = dense(state, 1.0)
    >>> state.k.shape, state.theta.shape
    ((5, 5), (5, 5))
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ntk_inr.infinite import pairs
from ntk_inr.infinite.duals import Dual
from ntk_inr.infinite.pairs import Side
from ntk_inr.infinite.resolve import dual_of
from ntk_inr.networks.modulation import squared_distances

__all__ = [
    "State",
    "activate",
    "add",
    "dense",
    "dual_of",
    "fourier_modulation",
    "inputs",
    "normalize",
    "product",
    "trained_affine",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The kernels of one layer's units, per unit, at n1 and n2 coordinates.

    Attributes:
        k: mean product of a unit's values, (n1, n2); before an activation, of their normal part.
        theta: neural tangent kernel of a unit, (n1, n2).
        left: mean square of a unit's values at each of the n1, (n1,).
        right: likewise at the n2, (n2,).
        left_mean: mean of a unit's values at each of the n1, (n1,).
        right_mean: likewise at the n2, (n2,).
        uniform: (n1, f) and (n2, f), coefficients of independent U(-1, 1) variables in what is added to the normal
            part of pre-activations; None where nothing is.
        same: both sides are one list of coordinates.
        normal: False where pre-activations have no normal part.
    """

    k: Float[Array, "n1 n2"]
    theta: Float[Array, "n1 n2"]
    left: Float[Array, " n1"]
    right: Float[Array, " n2"]
    left_mean: Float[Array, " n1"]
    right_mean: Float[Array, " n2"]
    uniform: tuple[Float[Array, "n1 f"], Float[Array, "n2 f"]] | None = None
    same: bool = dataclasses.field(default=False, metadata={"static": True})
    normal: bool = dataclasses.field(default=True, metadata={"static": True})


def state_of(k: Array, left: Array, right: Array, *, same: bool) -> State:
    """Return the state of units of mean 0 in which nothing is trained."""
    zeros = jnp.zeros_like(left), jnp.zeros_like(right)
    # Taken from k, so that its diagonal and its sides are equal to the bit.
    left, right = (jnp.diagonal(k),) * 2 if same else (left, right)
    return State(k, jnp.zeros_like(k), left, right, *zeros, same=same)


def inputs(h1: Float[Array, "n1 f"], h2: Float[Array, "n2 f"] | None = None) -> State:
    r"""Return the state of given features, :math:`K = \langle h, h'\rangle / f`.

    Args:
        h1: features (n1, f): coordinates, or their encoding.
        h2: features (n2, f); None is h1.
    """
    other = h1 if h2 is None else h2
    f = h1.shape[1]
    return state_of(h1 @ other.T / f, (h1 * h1).mean(1), (other * other).mean(1), same=h2 is None)


def dense(
    state: State,
    gain: Any,
    bias: Any = 0.0,
    *,
    gradient: tuple[Any, Any] | None = None,
    uniform: Any = None,
) -> State:
    r"""Return the state after an affine map of weights with mean 0, (T8.1, T11.3).

    .. math:: K \mapsto g K + b, \qquad \Theta \mapsto \alpha^2 m K + \beta^2 + g\,\Theta

    Args:
        state: of the layer before.
        gain: g, the weights' variance times their number m.
        bias: b, the biases' variance.
        gradient: (alpha**2 m, beta**2), what the weights' and biases' own gradients weigh; None is (g, b), the
            "ntk" parameterization. In the "standard" one it is (m, 1).
        uniform: half-width of biases that are uniform instead, so that pre-activations are not normal; ``bias``
            is then 0.
    """
    weights, biases = (gain, bias if uniform is None else uniform**2 / 3) if gradient is None else gradient
    half = None
    if uniform is not None:
        half = jnp.full_like(state.left, uniform)[:, None], jnp.full_like(state.right, uniform)[:, None]
    return dataclasses.replace(
        state_of(gain * state.k + bias, gain * state.left + bias, gain * state.right + bias, same=state.same),
        theta=weights * state.k + biases + gain * state.theta,
        uniform=half,
    )


def dense_uniform(
    h1: Float[Array, "n1 f"],
    h2: Float[Array, "n2 f"] | None,
    half_width: Any,
    bias: Any = 0.0,
    *,
    gradient: tuple[Any, Any] | None = None,
    uniform: Any = None,
) -> State:
    """Return the state after an affine map of few features by uniform weights, whose sum is not nearly normal.

    Args:
        h1: features (n1, f).
        h2: features (n2, f); None is h1.
        half_width: of the weights' law.
        bias: variance of normal biases.
        gradient: as of :func:`dense`; None is the "ntk" parameterization.
        uniform: half-width of uniform biases.
    """
    f = h1.shape[1]
    state = dense(inputs(h1, h2), f * half_width**2 / 3, bias, gradient=gradient, uniform=uniform)
    columns = [half_width * h for h in (h1, h1 if h2 is None else h2)]
    if state.uniform is not None:
        columns = [jnp.concatenate(parts, axis=1) for parts in zip(columns, state.uniform, strict=True)]
    constant = [jnp.full(shape, bias, h1.dtype) for shape in (state.k.shape, state.left.shape, state.right.shape)]
    normal = state_of(*constant, same=state.same)
    has_normal = not (isinstance(bias, float) and bias == 0)
    return dataclasses.replace(normal, theta=state.theta, uniform=tuple(columns), normal=has_normal)


def _mean_square(dual: Dual, side: Side) -> Array:
    return dual.moments(pairs.diagonal_of(side)).value[:, 0]


def activate(state: State, dual: Dual) -> State:
    r"""Return :math:`E\,\phi\phi'` and :math:`\Theta\,E\,\dot\phi\dot\phi'`, the state after an activation."""
    uniform = (None, None) if state.uniform is None else state.uniform
    left, right = (
        Side(own if state.normal else None, features)
        for own, features in zip((state.left, state.right), uniform, strict=True)
    )
    moments = dual.moments(pairs.pair_of(left, right, state.k, same=state.same))
    left_mean = dual.mean(left)
    if state.same:
        square = other_square = jnp.diagonal(moments.value)
        right_mean = left_mean
    else:
        square, other_square = _mean_square(dual, left), _mean_square(dual, right)
        right_mean = dual.mean(right)
    theta = state.theta * moments.slope
    return State(moments.value, theta, square, other_square, left_mean, right_mean, same=state.same)


def normalize(state: State, energy: Any = 1.0, epsilon: Any = 0.0, *, centred: bool = False) -> State:
    r"""Return the state after each example's units are scaled to mean square ``energy``, (T5.9).

    .. math:: K \mapsto e\,K / \sqrt{(K_{ii} + \epsilon)(K_{jj} + \epsilon)}, \quad\text{and }\Theta\text{ likewise}

    Args:
        state: of the units.
        energy: e = C**2 / m for a sphere of radius C.
        epsilon: added to the mean squares.
        centred: the units' mean is taken off first, as in layer normalization.
    """
    if centred:
        k = state.k - state.left_mean[:, None] * state.right_mean[None, :]
        state = dataclasses.replace(
            state,
            k=k,
            left=state.left - state.left_mean**2,
            right=state.right - state.right_mean**2,
            left_mean=jnp.zeros_like(state.left_mean),
            right_mean=jnp.zeros_like(state.right_mean),
        )
    totals = [state.left, state.right]
    if state.uniform is not None:
        totals = [t + (u * u).sum(1) / 3 for t, u in zip(totals, state.uniform, strict=True)]
    left, right = (energy**0.5 / jnp.sqrt(total + epsilon) for total in totals)
    both = left[:, None] * right[None, :]
    k = state.k * both
    squares = (jnp.diagonal(k),) * 2 if state.same else (state.left * left**2, state.right * right**2)
    uniform = None
    if state.uniform is not None:
        uniform = state.uniform[0] * left[:, None], state.uniform[1] * right[:, None]
    means = state.left_mean * left, state.right_mean * right
    return State(k, state.theta * both, *squares, *means, uniform, state.same, state.normal)


def trained_affine(state: State) -> State:
    r"""Return the state after trained gains of 1 and biases of 0, one each for a unit, :math:`\Theta \mapsto
    \Theta + K + 1`.
    """
    k = state.k
    if state.uniform is not None:
        k = k + state.uniform[0] @ state.uniform[1].T / 3
    return dataclasses.replace(state, theta=state.theta + k + 1)


def product(state: State, other: State) -> State:
    r"""Return the state of the entrywise product of two independent branches, (T6.5).

    .. math:: K = K_1 \circ K_2, \qquad \Theta = \Theta_1 \circ K_2 + K_1 \circ \Theta_2

    Args:
        state: of one branch.
        other: of the other, such as :func:`fourier_modulation`.
    """
    return State(
        state.k * other.k,
        state.theta * other.k + state.k * other.theta,
        state.left * other.left,
        state.right * other.right,
        state.left_mean * other.left_mean,
        state.right_mean * other.right_mean,
        same=state.same,
    )


def add(state: State, other: State) -> State:
    r"""Return the state of the sum of two branches whose units are independent, as a residual connection's are.

    .. math:: K = K_1 + K_2 + \mu_1\mu_2'^\top + \mu_2\mu_1'^\top, \qquad \Theta = \Theta_1 + \Theta_2

    The means matter: those of ReLU units are not 0.

    Args:
        state: of one branch.
        other: of the other.
    """
    a, b = (state.left_mean, other.left_mean), (state.right_mean, other.right_mean)
    crossed = a[0][:, None] * b[1][None, :] + a[1][:, None] * b[0][None, :]
    return State(
        state.k + other.k + crossed,
        state.theta + other.theta,
        state.left + other.left + 2 * a[0] * a[1],
        state.right + other.right + 2 * b[0] * b[1],
        a[0] + a[1],
        b[0] + b[1],
        same=state.same,
    )


def fourier_modulation(
    x1: Float[Array, "n1 d"], x2: Float[Array, "n2 d"] | None, omega: Any, *, trained: bool
) -> State:
    r"""Return the state of :class:`ntk_inr.FourierModulation`'s factors, (T6.2), for :func:`product`.

    .. math:: K_g = e^{-\omega^2\lVert x-x'\rVert^2/2}, \qquad
        \Theta_g = (\omega^2\langle x, x'\rangle + 1)\,K_g \text{ if trained, else } 0

    Args:
        x1: coordinates (n1, d).
        x2: coordinates (n2, d); None is x1.
        omega: angular frequency.
        trained: the factors' directions and phases are trained.
    """
    other = x1 if x2 is None else x2
    k = jnp.exp(-(omega**2) / 2 * squared_distances(x1, other))
    state = state_of(k, jnp.ones_like(x1[:, 0]), jnp.ones_like(other[:, 0]), same=x2 is None)
    return dataclasses.replace(state, theta=(omega**2 * (x1 @ other.T) + 1) * k) if trained else state
