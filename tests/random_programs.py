"""Random functions of every kind that the kernel engine must understand, as a strategy of hypothesis.

A program is a body of operations between an embedding of the coordinates and a readout: layers, and wrappers, which
take other operations' function. Its numbers are rounded to one dtype; :meth:`Program.exact` is the same function in
float64.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

from ntk_inr._dtypes import eps
from ntk_inr.tasks.derivatives import value_and_laplacian
from tests.random_layers import CASTS, FORMS, LAYERS, Scope, layer, named, pick

# How many coordinates a program has.
ROWS = 6
# What is compared of a program; "columns" is the kernel between two sets of coordinates.
CHECKS = {
    "ntk": ("trace", "diagonal", "full"),
    "columns": ("trace", "diagonal", "full"),
    "jit": ("trace", "full"),
    "product": ("trace", "full"),
    "diagonal": ("trace", "full"),
    "moments": ("trace",),
    "budget": ("trace",),
}
# Backward passes of one's own, which JAX does not take forwards; those of NONLINEAR are no linear maps.
BACKWARD: dict[str, Callable[[Scope, Any, int], Any]] = {}
NONLINEAR = ("clipped", "decayed")
WRAPPERS: dict[str, Callable[..., Any]] = {}
HEADS: dict[str, Callable[..., Any]] = {}
# Wrappers and heads that differentiate forwards.
FORWARD = ("jvp", "second derivative", "directional", "gradient", "laplacian", "forward laplacian")
backward, wrapper, head = (functools.partial(named, registry) for registry in (BACKWARD, WRAPPERS, HEADS))


class Operation(NamedTuple):
    """One operation of a body: its kind, which of its forms, and what it wraps."""

    kind: str
    form: int
    inner: tuple[Operation, ...] = ()


@jax.custom_jvp
def halved(u):
    return jnp.tanh(u)


halved.defjvp(lambda u, du: (halved(*u), 0.5 * du[0]))


@jax.custom_jvp
def tripled(w, h):
    return h @ w


tripled.defjvp(lambda p, t: (tripled(*p), 3 * (p[1] @ t[0]) + t[1] @ p[0]))


@layer()
def custom_jvp(p, h, m, form):
    """A rule that is not the derivative."""
    w = p("w", m, m)
    return pick(
        form,
        lambda: halved(h @ w),
        lambda: tripled(w, h),
        lambda: tripled(w, halved(h)),
        lambda: halved(tripled(w, h) + p("b", m)),
    )


def ruled(backward: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return the product of rows (..., m) with a matrix, with a backward pass of one's own."""
    product = jax.custom_vjp(lambda w, h: h @ w)
    product.defvjp(lambda w, h: (h @ w, (w, h)), lambda kept, g: backward(*kept, g))
    return product


def outer(h: Any, g: Any) -> Any:
    return jnp.einsum("...m,...o->mo", h, g)


def clip(g: Any) -> Any:
    return g / jnp.maximum(1, 4 * jnp.sqrt((g * g).sum() + 1e-3))


RULES = {
    "custom vjp": (
        ruled(lambda w, h, g: (2 * outer(h, g), g @ w.T)),
        ruled(lambda w, h, g: (outer(h, g) / 2, -g @ w.T)),
    ),
    "clipped": (
        ruled(lambda w, h, g: (clip(outer(h, g)), g @ w.T)),
        ruled(lambda w, h, g: (outer(h, g), clip(g @ w.T))),
    ),
    "decayed": (
        ruled(lambda w, h, g: (outer(h, g) + w / 8, g @ w.T)),
        ruled(lambda w, h, g: (outer(h, g), g @ w.T + h / 8)),
    ),
}


@backward(*RULES)
def custom_vjp(p, h, form, kind="custom vjp"):
    m = h.shape[-1]
    found = RULES[kind][form % 2](p("w", m, m), h)
    return jnp.tanh(found) if form > 1 else found


@wrapper()
def residual(p, h, form, inner):
    found = inner(p, h)
    h = h if h.ndim == found.ndim else h.mean(-2) if h.ndim > found.ndim else h[..., None, :]
    return pick(
        form,
        lambda: h + found,
        lambda: h + p("gain") * found,
        lambda: h - found / 2,
        lambda: (h + found) / 2,
    )


@wrapper()
def compiled(p, h, form, inner):
    function = functools.partial(inner, p)
    return (jax.jit, jax.checkpoint, lambda f: jax.checkpoint(jax.jit(f)), lambda f: jax.jit(jax.remat(f)))[form](
        function
    )(h)


@wrapper()
def mapped(p, h, form, inner):
    """Over examples, or over copies of the state."""
    if form == 0 and p.batched:
        single = lambda h, x: inner(dataclasses.replace(p, x=x, batched=False), h)  # noqa: E731
        return lax.map(lambda hx: single(*hx), (h, p.x))
    copies = jnp.stack([h, -h, h / 2])
    if form == 1:
        return lax.map(functools.partial(inner, p), copies).sum(0)
    return jax.vmap(functools.partial(inner, p), out_axes=1)(copies).mean(1)


@wrapper()
def repeated(p, h, form, inner):
    """A scan whose steps share all of an operation's parameters."""
    found = inner(p, h)
    if found.shape != h.shape:
        return found
    if form == 3:
        return lax.fori_loop(0, 2, lambda _, h: inner(p, h), found)
    return lax.scan(lambda h, _: (inner(p, h), None), found, length=2, reverse=form == 1)[0]


@wrapper()
def chosen(p, h, form, inner):
    function = functools.partial(inner, p)
    if form < 2:
        return lax.cond(p("gate") > 0, function, lambda h: function(-h) / 2, h)
    found = function(h)
    return jnp.where(jnp.tanh(found) > 2, 0, found) if form == 2 else lax.stop_gradient(found) + found


@wrapper()
def difference(p, h, form, inner):
    near, far = inner(p, h + p.shift), inner(p, h - p.shift)
    if form == 0:
        return (near - far) / (2 * p.shift)
    if form == 1:
        return (near + far - 2 * inner(p, h)) / p.shift**2
    return near - inner(p, h) if form == 2 else inner(p, h) + inner(p, -h)


@wrapper()
def jvp(p, h, form, inner):
    direction = jnp.ones_like(h) if form % 2 else jnp.broadcast_to(p("direction", h.shape[-1]), h.shape)
    value, tangent = jax.jvp(functools.partial(inner, p), (h,), (direction,))
    return tangent if form < 2 else value + tangent


@wrapper()
def second_derivative(p, h, form, inner):
    one = jnp.ones_like(h)
    if form < 2:
        slope = lambda h: jax.jvp(functools.partial(inner, p), (h,), (one,))[1]  # noqa: E731
        return jax.jvp(slope, (h,), (one,))[1]
    slope = jax.grad(lambda h: jnp.sin(inner(p, h)).sum())
    return slope(h) if form == 2 else jax.jvp(slope, (h,), (one,))[1]


@head()
def plain(p, x, network):
    return network(p, x)


@head()
def directional(p, x, network):
    return jax.jvp(functools.partial(network, p), (x,), (jnp.ones_like(x),))[1]


@head()
def laplacian(p, x, network):
    """Of the network, less its value, as of a differential equation."""
    single = functools.partial(network, dataclasses.replace(p, batched=False))

    def residual(x):
        return jnp.einsum("cii->c", jax.hessian(single)(x)) - single(x)

    return p.each(residual, x)


@head()
def forward_laplacian(p, x, network):
    """The same, carried forwards; exactly by nested forward derivatives, which a rule that is no derivative tells
    from others.
    """
    single = functools.partial(network, dataclasses.replace(p, batched=False))
    if p.exact:
        twice = jax.jacfwd(jax.jacfwd(single))
        return p.each(lambda x: jnp.einsum("cii->c", twice(x)) - single(x), x)
    rows = x if p.batched else x[None]
    value, bend = value_and_laplacian(lambda _, rows: jax.vmap(single)(rows))(None, rows)
    return bend - value if p.batched else (bend - value)[0]


@head()
def gradient(p, x, network):
    """Of the first output."""
    single = functools.partial(network, dataclasses.replace(p, batched=False))
    return p.each(jax.grad(lambda x: single(x)[0]), x)


@head()
def finite_laplacian(p, x, network):
    steps = p.shift * np.eye(x.shape[-1])
    around = sum(network(p, x + sign * jnp.asarray(step, x.dtype)) for step in steps for sign in (1, -1))
    return (around - 2 * x.shape[-1] * network(p, x)) / p.shift**2


@head()
def contrast(p, x, network):
    return network(p, x) - network(p, (1 - p.shift / 8) * x)


@head()
def even(p, x, network):
    return network(p, x) + network(p, -x)


def embedded(p: Scope, x: Any, m: int, form: int) -> Any:
    """Return the state that a body starts from."""
    d = x.shape[-1]
    if form == 0:
        return jnp.tanh(x @ p("w", d, m) + p("b", m))
    if form == 1:
        return jnp.concatenate([jnp.sin(x @ p("f", d, m)), jnp.cos(x @ p("f", d, m))], -1) @ p("w", 2 * m, m)
    if form == 2:
        return jnp.sin(jnp.concatenate([x, 3 * x], -1) @ p("w", m, 2 * d).T)
    return x[..., :1] * p("w", m) + jnp.einsum("...d,md->...m", x, p("v", m, d))


def read(p: Scope, h: Any, c: int, form: int) -> Any:
    """Return the outputs of a state."""
    m = h.shape[-1]
    if p.has_tokens(h):
        if form % 2:
            return jnp.einsum("...tm,tmo->...o", h, p("w", h.shape[-2], m, c))
        h = h.reshape(*h.shape[:-2], -1)
        m = h.shape[-1]
    if form == 2:
        return h @ p("w", c, m).T
    if form == 3 and m >= c:
        return h[..., :c] * p("w", c)
    return h @ p("w", m, c) + (p("b", c) if form else 0)


@dataclasses.dataclass(frozen=True)
class Program:
    """A random function, its sizes, and what is asked of it.

    ``products`` says that parameters are handled as products wherever they can be, though so small Jacobians cost less.
    """

    dtype: str
    d: int
    c: int
    width: int
    batched: bool
    embedding: int
    body: tuple[Operation, ...]
    readout: int
    head: str
    outputs: str
    check: str
    products: bool
    seed: int

    def function(self, get: Any, x: Any, *, exact: bool) -> Any:
        p = Scope(get, x, self.coarsest, self.batched, exact)
        return HEADS[self.head](p, x, self.network)

    def network(self, p: Scope, x: Any) -> Any:
        p = dataclasses.replace(p, x=x)
        h = _run(self.body, p, embedded(p.at("in"), x, self.width, self.embedding))
        return read(p.at("out"), h, self.c, self.readout)

    def __call__(self, params: Any, x: Any, *, exact: bool = False) -> Any:
        def get(name, shape):
            return params[name]

        if self.batched:
            return self.function(get, x, exact=exact)
        return jax.vmap(lambda x: self.function(get, x, exact=exact))(x)

    def exact(self, params: Any, x: Any) -> Any:
        return self(params, x, exact=True)

    def draw(self) -> tuple[Any, Any]:
        """Return parameters and coordinates in NumPy's float64, rounded to the program's dtype."""
        shapes: dict[str, tuple[int, ...]] = {}

        def get(name, shape):
            assert shapes.setdefault(name, shape) == shape
            return jnp.zeros(shape, self.dtype)

        x = jax.ShapeDtypeStruct((ROWS, self.d) if self.batched else (self.d,), self.dtype)
        jax.eval_shape(lambda x: self.function(get, x, exact=False), x)
        rng = np.random.default_rng(self.seed)

        def drawn(name, shape):
            if name.endswith("zero"):
                return np.zeros(shape)
            return rng.normal(size=shape) / max(1, int(np.prod(shape[:-1]))) ** 0.5

        params = {name: drawn(name, shape) for name, shape in shapes.items()}
        rounded = lambda a: np.asarray(np.asarray(a, self.dtype), np.float64)  # noqa: E731
        return jax.tree.map(rounded, params), rounded(rng.uniform(-1, 1, (ROWS, self.d)))

    def kinds(self) -> set[str]:
        return {self.head, *(operation.kind for operation in _every(self.body))}

    @functools.cached_property
    def coarsest(self) -> str:
        """The dtype of the coarsest numbers that the function computes in."""
        casts = [CASTS[operation.form] for operation in _every(self.body) if operation.kind == "cast"]
        return max((self.dtype, *casts), key=eps)

    @property
    def is_linear(self) -> bool:
        """Whether all rules for the backward pass are linear in its cotangent."""
        return self.kinds().isdisjoint(NONLINEAR)


def _run(body: tuple[Operation, ...], p: Scope, h: Any) -> Any:
    for place, operation in enumerate(body):
        own = p.at(f"{place} {operation.kind}")
        if operation.kind in WRAPPERS:
            inner = functools.partial(_run, operation.inner)
            h = WRAPPERS[operation.kind](own, h, operation.form, inner)
        elif operation.kind in BACKWARD:
            h = custom_vjp(own, h, operation.form, operation.kind)
        else:
            h = LAYERS[operation.kind](own, h, operation.form)
    return h


def _every(body: tuple[Operation, ...]) -> list[Operation]:
    return [each for operation in body for each in (operation, *_every(operation.inner))]


@st.composite
def programs(draw: Any) -> Program:
    """Draw a program."""
    name = draw(st.sampled_from(sorted(HEADS)) if draw(st.integers(0, 2)) == 2 else st.just("plain"))
    dtype = draw(st.sampled_from(["float64", "float64", "float32", "float32", "float16", "bfloat16"]))

    def operations(least: int, most: int, depth: int, *, forward: bool) -> tuple[Operation, ...]:
        return tuple(operation(depth, forward=forward) for _ in range(draw(st.integers(least, most))))

    def operation(depth: int, *, forward: bool) -> Operation:
        form = draw(st.integers(0, FORMS - 1))
        if depth and draw(st.integers(0, 2)) == 2:
            kind = draw(st.sampled_from(sorted(WRAPPERS)))
            return Operation(kind, form, operations(1, depth, depth - 1, forward=forward or kind in FORWARD))
        return Operation(draw(st.sampled_from(sorted(LAYERS) if forward else sorted({**LAYERS, **BACKWARD}))), form)

    body = operations(1, 3, 2, forward=name in FORWARD)
    check = draw(st.sampled_from(list(CHECKS)))
    return Program(
        dtype=dtype,
        d=draw(st.integers(1, 3)),
        c=draw(st.integers(1, 3)),
        width=draw(st.integers(2, 8)),
        batched=draw(st.booleans()),
        embedding=draw(st.integers(0, FORMS - 1)),
        body=body,
        readout=draw(st.integers(0, FORMS - 1)),
        head=name,
        outputs=draw(st.sampled_from(CHECKS[check])),
        check=check,
        products=draw(st.integers(0, 2)) < 2,
        seed=draw(st.integers(0, 2**16)),
    )
