"""Sine and cosine that are fast on XLA's CPU backend.

XLA lowers ``sin`` on CPU to a scalar libm call, some 50 times slower than a ReLU. Here one
Cody-Waite range reduction serves both functions in float32 on CPU; float64 and accelerators use
the native functions.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

# pi/2 = P1 + P2 + P3, the first two with 11 significant bits: k * P1 and k * P2 are exact in
# float32 for |k| < 2**13, that is |x| <= 1e4.
_P1, _P2, _P3 = 1.5703125, 4.837512969970703125e-4, 7.54978995489188216e-8
_QUARTER = 0.79  # and a little, as k rounds
_SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


@functools.partial(jax.jit, inline=True)  # one program where it is called by itself
def _reduced(x: Array) -> tuple[Array, Array]:
    def const(value: float) -> Array:
        return jnp.asarray(value, x.dtype)

    k = jnp.round(x * const(0.6366197723675814))
    # Beyond 1e4 the products round; within pi/4 the polynomials stay a sine and a cosine whatever x is.
    r = jnp.clip(((x - k * const(_P1)) - k * const(_P2)) - k * const(_P3), -_QUARTER, _QUARTER)
    r2 = r * r
    s = r + r * r2 * (const(_SIN[2]) + r2 * (const(_SIN[1]) + r2 * const(_SIN[0])))
    c = const(1.0) - const(0.5) * r2 + r2 * r2 * (const(_COS[2]) + r2 * (const(_COS[1]) + r2 * const(_COS[0])))
    # An int32 holds every k that float32 inputs up to 1e4 can give; beyond 2**31 it wraps.
    quadrant = k.astype(jnp.int32) & 3
    swap = (quadrant & 1) == 1
    sine = jnp.where(swap, c, s)
    cosine = jnp.where(swap, s, c)
    return (
        jnp.where(quadrant >= 2, -sine, sine),
        jnp.where((quadrant == 1) | (quadrant == 2), -cosine, cosine),
    )


def _native(x: Array) -> tuple[Array, Array]:
    return jnp.sin(x), jnp.cos(x)


@jax.custom_jvp
def sincos(x: Array) -> tuple[Array, Array]:
    """Return ``(sin(x), cos(x))`` of any shape, elementwise.

    In float32 on CPU the absolute error is at most 2e-7 for abs(x) <= 1e4 and grows with the spacing
    of floats beyond, where the values stay within [-1, 1]. Differentiable to any order, in forward and reverse mode.

    Example:
        >>> import jax.numpy as jnp
        >>> s, c = sincos(jnp.array([0.0, 1.0]))
        >>> bool(jnp.allclose(s**2 + c**2, 1.0))
        True
    """
    if x.dtype != jnp.float32:
        return _native(x)
    return lax.platform_dependent(x, cpu=_reduced, default=_native)


@sincos.defjvp
def _sincos_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    s, c = sincos(primals[0])
    return (s, c), (c * tangents[0], -s * tangents[0])


def sin(x: Array) -> Array:
    """Return ``sin(x)`` through :func:`sincos`."""
    return sincos(x)[0]


def cos(x: Array) -> Array:
    """Return ``cos(x)`` through :func:`sincos`."""
    return sincos(x)[1]
