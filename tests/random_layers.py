"""Layers of random programs: functions of parameters, a state and a number that picks one of a layer's forms.

The state has the shape (..., width) or (..., tokens, width).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

FORMS = 4
# What the forms of a cast cast to.
CASTS = ("bfloat16", "float16", "float32", "bfloat16")
# The shift of a finite difference, by the coarsest dtype of a program: small, but large enough to leave digits, and
# exact in half precision.
SHIFTS = {"float64": 2.0**-7, "float32": 2.0**-6, "float16": 2.0**-2, "bfloat16": 2.0**-1}

LAYERS: dict[str, Callable[[Scope, Any, int], Any]] = {}


@dataclasses.dataclass(frozen=True)
class Scope:
    """The parameters as an operation sees them, by names of its own, and the coordinates.

    ``coarsest`` is the dtype of the coarsest numbers that the program computes in; ``batched`` says whether the first
    axis of the state is that of examples; ``exact`` that nothing is cast.
    """

    get: Callable[[str, tuple[int, ...]], Any]
    x: Any
    coarsest: str
    batched: bool
    exact: bool
    path: str = ""

    def __call__(self, name: str, *shape: int) -> Any:
        return self.get(f"{self.path}{name}", shape)

    def shared(self, *shape: int) -> Any:
        """Return the parameter of this shape that all operations share."""
        return self.get(f"shared{'x'.join(map(str, shape))}", shape)

    def at(self, name: Any) -> Scope:
        return dataclasses.replace(self, path=f"{self.path}{name}.")

    def cast(self, array: Any, dtype: str) -> Any:
        return array if self.exact else array.astype(dtype)

    def has_tokens(self, h: Any) -> bool:
        return h.ndim - self.batched == 2

    def each(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """Apply a function of one example."""
        return jax.vmap(function)(*arrays) if self.batched else function(*arrays)

    @property
    def shift(self) -> float:
        return SHIFTS[self.coarsest]


def named(registry: dict[str, Any], *names: str) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        for name in names or (function.__name__.strip("_").replace("_", " "),):
            registry[name] = function
        return function

    return add


def layer(*names: str) -> Callable[[Any], Any]:
    """Register a layer, which is also given the width m of its state."""

    def add(function: Any) -> Any:
        return named(LAYERS, *names)(functools.wraps(function)(lambda p, h, form: function(p, h, h.shape[-1], form)))

    return add


def pick(form: int, *forms: Callable[[], Any]) -> Any:
    return forms[form]()


def act(form: int, h: Any) -> Any:
    return (jnp.tanh, jnp.sin, jax.nn.gelu, lambda h: h)[form](h)


@layer()
def dense(p, h, m, form):
    return act(form, h @ p("w", m, m) + p("b", m))


@layer()
def turned(p, h, m, form):
    w = p("w", m, m)
    return pick(
        form,
        lambda: h @ w.T,
        lambda: jnp.einsum("om,...m->...o", w, h),
        lambda: (w @ h[..., None])[..., 0],
        lambda: jnp.tanh(h @ (-w.T / 3 * p("gain"))),
    )


@layer()
def tied(p, h, m, form):
    w = p.shared(m, m)
    return pick(
        form,
        lambda: jnp.tanh(h @ w),
        lambda: h @ w.T,
        lambda: jnp.tanh(h @ w / 2 + p.shared(m)),
        lambda: h - h @ (w + w.T),
    )


@layer()
def heads(p, h, m, form):
    k = 3
    inner = act(form, jnp.einsum("...m,hmk->...hk", h, p("w", 2, m, k)) + p("b", *((2, k) if form else (1, k))))
    if form == 2:
        return jnp.einsum("...hk,mk->...m", inner, p("v", m, k))
    return jnp.einsum("...hk,hkm->...m", inner, p("v", 2, k, m))


@layer()
def low_rank(p, h, m, form):
    a, b = p("a", m, 2), lambda: p("b", 2, m)
    return pick(
        form,
        lambda: h @ a @ b(),
        lambda: h @ (a @ b()),
        lambda: jnp.tanh(h @ a) @ a.T,
        lambda: h + h @ (a * jnp.exp(p("s", 2))) @ b(),
    )


@layer()
def bilinear(p, h, m, form):
    if form < 2:
        return jnp.einsum("...i,kij,...j->...k", h, p("w", m, m, m), h) / (m if form else 1)
    return (h @ p("a", m, m)) * (jnp.tanh(h) @ p("c", m, m) if form == 2 else h @ p("a", m, m))


@layer()
def convolution(p, h, m, form):
    """Over features, or over tokens with features as channels."""
    channels = m if p.has_tokens(h) else 1
    w = p("w", *((2, 1, channels) if form == 1 else (3, channels, channels)))
    rows = h.reshape(-1, *((h.shape[-2], m) if p.has_tokens(h) else (m, 1)))
    dilation, groups = 2 if form == 2 else 1, channels if form == 1 else 1
    found = lax.conv_general_dilated(
        rows, w, (1,), "SAME", rhs_dilation=(dilation,), feature_group_count=groups,
        dimension_numbers=("NWC", "WIO", "NWC"),
    )  # fmt: skip
    return jnp.tanh(found.reshape(h.shape) + (p("b", m) if form == 3 else 0))


@layer()
def table(p, h, m, form):
    """Rows of a table by the cell that x is in, alone or interpolated, or a matrix for each cell."""
    size = 4
    place = size * p.x[..., 0]
    cell = jnp.clip(lax.stop_gradient(jnp.floor(place)).astype(int) + size, 0, 2 * size)
    if form == 3:
        each = p("e", 2 * size + 1, m, m)
        return p.each(lambda h, cell: jnp.tanh(h @ each[cell]), h, cell)
    rows, weight = p("t", 12 * size, m), (place - jnp.floor(place))[..., None]
    found = rows[5 * cell] if form == 1 else (1 - weight) * rows[cell] + weight * rows[3 * cell + 1]
    found = found[..., None, :] if p.has_tokens(h) else found
    return h * found if form == 2 else h + found


@layer()
def stacked(p, h, m, form):
    """A scan over layers' weights, from the front or the back, that may scale them, or keep what each layer gives."""

    def step(h, wbg):
        w, b, gain = wbg
        h = jnp.tanh(h @ (w if gain is None else gain * w) + b)
        return h, h if form == 2 else None

    layers = p("w", 3, m, m), p("b", 3, m), p("gain", 3) if form in (1, 3) else None
    h, each = lax.scan(step, h, layers, reverse=form == 1, unroll=3 if form == 3 else 1)
    return h + each.sum(0) if form == 2 else h


@layer()
def recurrent(p, h, m, form):
    """A scan whose steps share a weight, alone, nested, with its own matrices beside it, or as a loop."""
    w, u = p("w", m, m), p("u", 3, m) if form else None

    def step(h, row):
        if form == 1:
            h = lax.scan(lambda g, _: (jnp.sin(g @ w), None), h, length=2)[0]
        return jnp.tanh(h @ (w / 2) + (0 if row is None else row)), None

    if form == 2:
        return lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ w + u[i]), h)
    return lax.scan(step, h, u, length=3, reverse=form == 3)[0]


@layer()
def leapfrog(p, h, m, form):
    before, after = h, h + p("b", m)
    for i in range(3):
        w = p("w", m, m) if form < 2 else p("w", 3, m, m)[i]
        push = jnp.tanh(after @ w + p("b", m)) @ (w.T if form % 2 else jnp.eye(m, dtype=h.dtype))
        before, after = after, 2 * after - before + push / 8
    return after


@layer()
def branch(p, h, m, form):
    """On a parameter, on x, or one of several."""
    w = p("w", m, m)
    if form == 0:
        return lax.cond(p("gate") > 0, lambda: h @ w, lambda: jnp.sin(h @ w))
    v = p("v", m, m)
    if form == 1:
        return lax.cond(w[0, 0] > 0, lambda h: h @ w, lambda h: h @ v, h)
    if form == 2:
        return p.each(lambda h, x: lax.cond(x[0] > 0.125, lambda: h @ w, lambda: jnp.tanh(h @ v)), h, p.x)
    return lax.switch(
        jnp.argmax(p("gate", 3)), [lambda h: h @ w, lambda h: h @ w @ v, lambda h: jnp.tanh(h @ v) + h], h
    )


@layer()
def mask(p, h, m, form):
    if form == 3:
        return h @ jnp.where(jnp.tri(m, dtype=bool), p("w", m, m), 0)
    where = (p.x[..., :1] > 0.125)[..., None] if p.has_tokens(h) else p.x[..., :1] > 0.125
    y = h @ p("w", m, m)
    return jnp.where(where, *pick(form, lambda: (y, h), lambda: (y, 0), lambda: (2 * y, y + p("b", m))))


@layer()
def norm(p, h, m, form):
    if form == 1:
        return h * lax.rsqrt((h * h).mean(-1, keepdims=True) + 0.1) * p("g", m)
    if form > 1:
        v = p("v", m, m)
        length = jnp.sqrt((v * v).sum(None if form == 3 else 0, keepdims=True))
        return h @ (p("g", *((1, m) if form == 2 else (1, 1))) * v / length)
    h = h - h.mean(-1, keepdims=True)
    return h / jnp.sqrt((h * h).mean(-1, keepdims=True) + 0.1) * p("g", m) + p("b", m)


@layer()
def factorised(p, h, m, form):
    """Weights scaled by columns, by rows, beside a thin product, or entry by entry."""
    w = p("w", m, m)
    return pick(
        form,
        lambda: h @ (p("g", m) * w),
        lambda: jnp.tanh(h @ (w * jnp.exp(p("g", m, 1)) / (2 + jnp.tanh(p("s"))))),
        lambda: h @ (w + p("a", m, 2) @ p("b", 2, m) * p("g", m)),
        lambda: h @ (w * p("v", m, m)),
    )


@layer()
def scale(p, h, m, form):
    return pick(
        form,
        lambda: h * p("g", m),
        lambda: h * p("g"),
        lambda: jnp.sin(2 * p("g") * h),
        lambda: h / (2 + jnp.tanh(p("g", 1))),
    )


@layer()
def concatenation(p, h, m, form):
    if form == 0:
        return jnp.concatenate([h, jnp.sin(h)], -1) @ p("w", 2 * m, m)
    if form == 1:
        return jnp.tanh(h @ jnp.concatenate([p("a", m, m - 1), p("c", m, 1)], 1))
    if form == 2:
        return jnp.tanh(h @ jnp.concatenate([p("a", m, m), jnp.eye(m, dtype=h.dtype)], 1)) @ p("w", 2 * m, m)
    x = jnp.broadcast_to(p.x[..., None, :] if p.has_tokens(h) else p.x, (*h.shape[:-1], p.x.shape[-1]))
    return jnp.concatenate([h @ p("a", m, m), x], -1) @ p("w", m + x.shape[-1], m)


@layer()
def moved(p, h, m, form):
    """A weight that is kept flat, turned, in a stack, or as part of a larger one."""
    if form == 0:
        return h @ p("w", m * m).reshape(m, m).T
    if form == 1:
        return jnp.tanh(h @ p("w", 2, m, m)[1] + p("b", 2, m)[0])
    if form == 2:
        return h @ jnp.flip(p("w", m + 1, m + 2)[1:, : 2 * m : 1][:, :m], 0)
    return h @ lax.dynamic_slice(p("w", m + 2, m), (jnp.asarray(1), jnp.asarray(0)), (m, m))


@layer()
def reordered(p, h, m, form):
    h = h @ p("w", m, m)
    return pick(
        form,
        lambda: jnp.roll(h, 1, -1) + p("b", m)[::-1],
        lambda: jnp.cumsum(h, -1) / m,
        lambda: h[..., np.arange(m) ** 2 % m],
        lambda: jnp.pad(h[..., 1:], [(0, 0)] * (h.ndim - 1) + [(0, 1)]),
    )


@layer()
def tokens(p, h, m, form):
    """To tokens, or back from them."""
    if not p.has_tokens(h):
        made = [h, jnp.sin(h)] if form < 2 else [h, -h, h + p("e", m)]
        return jnp.stack([*made, h] if form % 2 else made, -2)
    count = h.shape[-2]
    if form == 0:
        return h.sum(-2)
    if form == 1:
        return h.reshape(*h.shape[:-2], count * m) @ p("w", count * m, m)
    if form == 2:
        return jnp.tanh(h - h.mean(-2, keepdims=True))
    return jnp.einsum("...tm,tmo->...o", h, p("w", count, m, m))


@layer()
def attention(p, h, m, form):
    h = h if p.has_tokens(h) else jnp.stack([h, jnp.sin(h), jnp.cos(h)], -2)
    q = h @ p("q", m, 2)
    k = q if form == 1 else h @ p("k", m, 2)
    weights = jax.nn.softmax(q @ k.swapaxes(-1, -2), -1)
    v = h @ (p("v", 2, m).T @ p("o", 2, m) if form == 2 else p("v", m, m))
    return h + weights @ v if form < 3 else (weights @ v).mean(-2)


@layer()
def stopped(p, h, m, form):
    w, stop = p("w", m, m), lax.stop_gradient
    return pick(
        form, lambda: stop(h) @ w, lambda: h @ stop(w) + h @ w, lambda: h + stop(h @ w), lambda: h @ w - stop(h) @ w.T
    )


@layer()
def cast(p, h, m, form):
    to = CASTS[form]
    w = p.cast(p("w", m, m), to)
    y = jnp.tanh((h if form == 3 else p.cast(h, to)) @ w + (p.cast(p("b", m), to) if form == 1 else 0))
    return y.astype(h.dtype)


@layer("complex")
def complex_(p, h, m, form):
    w = p("w", m, m)
    wide = h if h.dtype.itemsize >= 4 else h.astype("float32")
    unit = 1j * wide
    return pick(
        form,
        lambda: (jnp.exp(unit) @ w.astype(unit.dtype)).imag,
        lambda: jnp.abs(jnp.exp(unit) @ lax.complex(*(a.astype(wide.dtype) for a in (w, p("v", m, m)))) + 2),
        lambda: jnp.exp((0.3 + 1j) * (wide @ w.astype(wide.dtype))).real,
        lambda: jnp.fft.fft(wide).real @ w.astype(wide.dtype) / m,
    ).astype(h.dtype)


@layer()
def solved(p, h, m, form):
    """Weights behind linear algebra."""
    dtype = h.dtype if h.dtype.itemsize >= 4 else jnp.float32
    a = p("a", m, m).astype(dtype) / 4
    skew, eye = a - a.T, jnp.eye(m, dtype=dtype)
    w = pick(
        form,
        lambda: jnp.linalg.solve(eye + skew, eye - skew),
        lambda: jnp.linalg.inv(2 * eye + a),
        lambda: jnp.linalg.cholesky(a @ a.T + eye),
        lambda: eye + skew + skew @ skew / 2,
    )
    return h @ w.astype(h.dtype)


@layer()
def gate(p, h, m, form):
    open_ = jax.nn.sigmoid(h @ p("w", m, m))
    return pick(
        form,
        lambda: h * open_,
        lambda: open_ * (h @ p("v", m, m)),
        lambda: h + p("zero", m) * open_,
        lambda: h * (1 + p("one") * open_),
    )


@layer()
def kinked(p, h, m, form):
    h = h @ p("w", m, m)
    return pick(
        form,
        lambda: jnp.maximum(h, 0),
        lambda: jnp.abs(h),
        lambda: jnp.sort(h, -1),
        lambda: h + h.max(-1, keepdims=True),
    )


@layer()
def unused(p, h, m, form):
    idle = p("idle", 3, 2)
    return pick(
        form,
        lambda: h,
        lambda: h + 0 * idle.sum(),
        lambda: h + lax.stop_gradient(idle.sum()),
        lambda: jnp.where(True, h, idle.sum()),
    )
