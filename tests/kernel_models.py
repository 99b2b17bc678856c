"""Functions of every kind that the kernel engine must understand, and the reference they are checked against."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import ntk_inr as ni
from tests import published_networks
from tests.networks import NETWORKS

WIDTH = 48


def tied(params, x):
    h = jnp.tanh(x @ params["in"])
    for _ in range(3):
        h = jnp.tanh(h @ params["w"] + params["b"][None, :])
    return h @ params["out"]


def tied_with_own_biases(params, x):
    h = jnp.tanh(x @ params["in"])
    for i in range(3):
        h = jnp.tanh(h @ params["w"] + params["b"][i][None, :])
    return h @ params["out"]


def tied_transposed(params, x):
    h = jnp.tanh(jnp.tanh(x @ params["in"]) @ params["w"])
    return jnp.tanh(h @ params["w"].T) @ params["out"]


def scanned(params, x):
    def layer(h, p):
        return jnp.tanh(h @ p["w"] + p["b"][None, :]), None

    return jax.lax.scan(layer, jnp.tanh(x @ params["in"]), params["stack"])[0] @ params["out"]


def recurrent(params, x):
    def step(h, _):
        return jnp.tanh(h @ params["w"] + params["b"][None, :]), None

    return jax.lax.scan(step, jnp.tanh(x @ params["in"]), length=3)[0] @ params["out"]


def two_deep(params, x):
    """A loop in a loop, run backwards, whose matrices each layer scales by a number of its own."""

    def layer(h, p):
        def block(h, w):
            return h + jnp.tanh(p["omega"] * (h @ w) + p["b"][None, :]), None

        return jax.lax.scan(block, h, p["w"], reverse=True)[0], None

    return jax.lax.scan(layer, jnp.tanh(x @ params["in"]), params["stack"])[0] @ params["out"]


def recurrent_long(params, x):
    """So many steps that the shared matrix is cheaper as a Jacobian."""

    def step(h, t):
        h = jnp.tanh(h @ params["w"] + jnp.sin(t * x[:, :1]) * params["in"][None, :])
        return h, h.sum(1)

    h, sums = jax.lax.scan(step, jnp.zeros((len(x), 8), x.dtype), jnp.arange(10.0, dtype=x.dtype))
    return h @ params["out"] + sums.mean(0)[:, None]


def leapfrog(params, x, depth=24):
    before = after = x @ params["in"] + params["b"][None, :]
    for _ in range(depth):
        before, after = after, 2 * after - before + 0.01 * jnp.tanh(after @ params["w"])
    return after @ params["out"]


def mlp(params, x):
    return jnp.tanh(jnp.tanh(x @ params["in"]) @ params["w"] + params["b"][None, :]) @ params["out"]


def laplacian(params, x, step=1e-2):
    """By finite differences: five uses of each weight, which nearly cancel."""
    around = sum(mlp(params, x + s * step * axis[None]) for axis in jnp.eye(2) for s in (1, -1))
    return (around - 4 * mlp(params, x)) / step**2


def second_derivatives(params, x):
    """Two nested derivatives an axis, which have the value, and one of them the first derivative, twice."""

    def along(axis):
        def once(x):
            return jax.jvp(lambda x: mlp(params, x), (x,), (jnp.broadcast_to(axis, x.shape),))[1]

        return jax.jvp(once, (x,), (jnp.broadcast_to(axis, x.shape),))[1]

    return mlp(params, x) + sum(along(axis) for axis in jnp.eye(2, dtype=x.dtype))


def contrast(params, x):
    return mlp(params, x) - mlp(params, 0.999 * x)


def even_part(params, x):
    """Nearly an odd function and its mirror image."""
    return mlp(params, 0.1 * x) + mlp(params, -0.1 * x)


def centred(params, x):
    z = jnp.tanh(jnp.stack([x, x + 0.01, x - 0.01], 1) @ params["in"]) @ params["w"]
    return (jnp.tanh(100 * (z - z.mean(1, keepdims=True))) @ params["out"]).sum(1)


def referring(params, x):
    """Computes in place."""
    h = jax.new_ref(x @ params["w"])
    h[...] = jnp.tanh(h[...])
    return h[...] @ params["out"]


def long_loop(params, x):
    """Its parameters are cheapest as Jacobians."""

    def step(h, _):
        return h + jnp.sin(h * params["rate"]) / 5000, None

    return jax.lax.scan(step, x @ params["in"], length=5000)[0]


def indexed(params, x):
    h = jnp.tanh(jnp.tanh(x @ params["in"]) @ params["stack"][0] + params["b"][0][None, :])
    return (h @ params["stack"][1])[:, :2]


def odd_entries(params, x):
    """Parameters as a left operand, transposed, scaled elementwise, as a frequency, and added unshaped."""
    h = jnp.sin(params["frequency"] * (params["left"] @ x.T).T)
    h = jax.jit(jax.nn.relu)(h @ params["turned"].T) * params["scale"][None, :]
    return jax.checkpoint(lambda h: h @ params["out"])(h) + params["shift"]


def moved(params, x):
    """The matrix is reshaped, transposed, scaled by a number and by another parameter, and negated."""
    w = -params["w"].reshape(WIDTH, WIDTH).T / 3 * params["gain"]
    return jnp.tanh(jnp.tanh(x @ params["in"]) @ w) @ params["out"]


def parted(params, x):
    w = jnp.concatenate([params["a"], params["b"]], axis=1)
    return jnp.tanh(x @ w) @ params["out"]


def weight_normalised(params, x):
    v = params["v"]
    return jnp.tanh(x @ (params["g"] * v / jnp.linalg.norm(v, axis=0, keepdims=True))) @ params["out"]


def cast(params, x):
    """Parameters are cast to half precision on the way, as in mixed precision training."""
    h = jnp.tanh(x.astype(jnp.bfloat16) @ params["w"].astype(jnp.bfloat16))
    return h.astype(params["out"].dtype) @ params["out"]


def tokens(params, x):
    h = jnp.tanh(jnp.stack([x, jnp.sin(x), jnp.cos(x)], 1) @ params["w"] + params["b"][None, None])
    return (h @ params["out"]).sum(1)


def many_tokens(params, x):
    t = jnp.stack([jnp.sin(k * x) for k in range(6)], 1)
    return (jnp.tanh(t @ params["w"]) @ params["out"]).sum(1)


def heads(params, x):
    h = jnp.tanh(jnp.einsum("nd,hdm->nhm", x, params["w"]) + params["b"][None])
    return jnp.einsum("nhm,hmo->no", h, params["out"])


def branches(params, x):
    h = jax.lax.cond(params["w"][0, 0] > 0, lambda: x @ params["w"], lambda: 2 * x @ params["w"])
    return jnp.tanh(h) @ params["out"]


@jax.custom_jvp
def gated(u):
    return jnp.where(u > 0, u, 0.0)


gated.defjvp(lambda primals, tangents: (gated(primals[0]), 0.5 * tangents[0]))


def custom_rule(params, x):
    """The derivative rule is not the derivative: opening the call up would give another kernel."""
    return gated(x @ params["w"]) @ params["out"]


@jax.custom_vjp
def dense(w, x):
    return x @ w


dense.defvjp(lambda w, x: (x @ w, (w, x)), lambda saved, g: (2 * saved[1].T @ g, g @ saved[0].T))


@jax.custom_jvp
def dense_jvp(w, x):
    return x @ w


dense_jvp.defjvp(lambda p, t: (dense_jvp(*p), 3 * p[1] @ t[0] + t[1] @ p[0]))


@jax.custom_vjp
def clipped(w):
    return w


clipped.defvjp(lambda w: (w, None), lambda _, g: (g * jnp.minimum(1, 0.5 / jnp.linalg.norm(g)),))


@jax.custom_vjp
def inverted(w):
    return w


inverted.defvjp(lambda w: (w, None), lambda _, g: (1 / (g + 2),))


@jax.custom_vjp
def decayed(w):
    return w


decayed.defvjp(lambda w: (w, w), lambda w, g: (g + 0.1 * w,))


@jax.custom_vjp
def only_decayed(w):
    return w


only_decayed.defvjp(lambda w: (w, w), lambda w, g: (0.1 * w,))


def own_rules(params, x):
    """Backward rules that are not linear in the cotangent."""
    h = jnp.tanh(x @ clipped(params["clipped"]) + x @ inverted(params["inverted"]))
    return jnp.tanh(h @ decayed(params["decayed"])) @ (params["out"] + only_decayed(params["idle"]))


class ScannedLinen(nn.Module):
    """Flax's idiom for stacked layers."""

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, h, _):
                return nn.LayerNorm()(jnp.sin(nn.Dense(WIDTH)(h))), None

        stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(2)(stack()(nn.Dense(WIDTH)(x), None)[0])


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.LayerNorm()(nn.Dense(WIDTH)(x)))
        return nn.Dense(1)(x)


def _draw(shapes):
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda s: isinstance(s, tuple))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    drawn = [jax.random.normal(k, s) / 2 for k, s in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


def _draw_network(shapes):
    """Return parameters of unit size, of which those whose names begin with z are complex."""
    paths, tree = jax.tree_util.tree_flatten_with_path(shapes, is_leaf=lambda s: isinstance(s, tuple))
    rng = np.random.default_rng(3)

    def drawn(path, shape):
        is_complex = path[-1].__class__.__name__ == "DictKey" and path[-1].key.startswith("z")
        draws = rng.normal(size=(2, *shape)) / (shape[0] if len(shape) > 1 else 1) ** 0.5
        return jnp.asarray(draws[0] + 1j * draws[1] / 2 if is_complex else draws[0])

    return jax.tree.unflatten(tree, [drawn(*each) for each in paths])


def plain(function, shapes):
    return lambda key, x: (Partial(function), _draw(shapes))


def linen(module):
    return lambda key, x: ni.init(module, key, x)


def nnx_mlp(key, x):
    from flax import nnx

    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(2, WIDTH, rngs=rngs), jnp.tanh, nnx.Linear(WIDTH, 2, rngs=rngs))
    return ni.split(model)


def equinox_mlp(key, x):
    import equinox as eqx

    return ni.split(eqx.nn.MLP(2, 2, WIDTH, 2, key=key))


# Where a weight has several uses that nearly cancel, so that what they are made of rounds many times as far.
CANCELLING = ("laplacian", "contrast", "even_part", "centred")
W = WIDTH
MODELS = {
    **{
        name: functools.partial(lambda network, key, x: (Partial(network[0]), _draw_network(network[1])), network)
        for name, network in published_networks.NETWORKS.items()
    },
    **{name: linen(net) for name, (net, d) in NETWORKS.items() if d == 2},
    "layer norm": linen(Normed()),
    "nn.scan": linen(ScannedLinen()),
    "nnx": nnx_mlp,
    "equinox": equinox_mlp,
    "tied": plain(tied, {"in": (2, W), "w": (W, W), "b": (W,), "out": (W, 2)}),
    "tied, own biases": plain(tied_with_own_biases, {"in": (2, W), "w": (W, W), "b": (3, W), "out": (W, 2)}),
    "tied, transposed": plain(tied_transposed, {"in": (2, W), "w": (W, W), "out": (W, 1)}),
    "scan": plain(scanned, {"in": (2, W), "stack": {"w": (3, W, W), "b": (3, W)}, "out": (W, 1)}),
    "recurrent": plain(recurrent, {"in": (2, W), "w": (W, W), "b": (W,), "out": (W, 1)}),
    "long loop": plain(long_loop, {"in": (2, 3), "rate": ()}),
    "two deep": plain(
        two_deep, {"in": (2, W), "stack": {"w": (2, 3, W, W), "b": (2, W), "omega": (2,)}, "out": (W, 2)}
    ),
    "many steps": plain(recurrent_long, {"in": (8,), "w": (8, 8), "out": (8, 1)}),
    "leapfrog": plain(leapfrog, {"in": (2, W), "b": (W,), "w": (W, W), "out": (W, 1)}),
    **{
        function.__name__: plain(function, {"in": (2, W), "w": (W, W), "b": (W,), "out": (W, 2)})
        for function in (laplacian, second_derivatives, contrast, even_part)
    },
    "centred": plain(centred, {"in": (2, W), "w": (W, W), "out": (W, 1)}),
    "references": plain(referring, {"w": (2, W), "out": (W, 2)}),
    "own rules": plain(
        own_rules, {"clipped": (2, W), "inverted": (2, W), "decayed": (W, W), "out": (W, 2), "idle": (W, 2)}
    ),
    "indexed": plain(indexed, {"in": (2, W), "stack": (2, W, W), "b": (2, W)}),
    "odd entries": plain(
        odd_entries, {"left": (W, 2), "frequency": (), "turned": (W, W), "scale": (W,), "out": (W, 2), "shift": ()}
    ),
    "moved": plain(moved, {"in": (2, W), "w": (W * W,), "gain": (), "out": (W, 2)}),
    "parted": plain(parted, {"a": (2, W), "b": (2, W), "out": (2 * W, 2)}),
    "weight normalised": plain(weight_normalised, {"v": (2, W), "g": (1, W), "out": (W, 2)}),
    "tokens": plain(tokens, {"w": (2, 4 * W), "b": (4 * W,), "out": (4 * W, 2)}),
    "many tokens": plain(many_tokens, {"w": (2, 8), "out": (8, 2)}),
    "heads": plain(heads, {"w": (4, 2, W), "b": (4, W), "out": (4, W, 2)}),
    "cond": plain(branches, {"w": (2, W), "out": (W, 1)}),
    "custom_jvp": plain(custom_rule, {"w": (2, W), "out": (W, 1)}),
    "custom_vjp product": plain(lambda p, x: jnp.tanh(dense(p["w"], x)) @ p["out"], {"w": (2, W), "out": (W, 2)}),
    "custom_jvp product": plain(lambda p, x: jnp.tanh(dense_jvp(p["w"], x)) @ p["out"], {"w": (2, W), "out": (W, 2)}),
    "product of two parameters": plain(
        lambda p, x: (x[:, 0] * (p["a"] @ p["b"])[0, 0])[:, None], {"a": (1, 3), "b": (3, 1)}
    ),
    "complex product": plain(
        lambda p, x: (
            (jnp.exp(1j * x) @ p["w"].astype(jnp.result_type(p["w"], 1j))).imag.sum(1, keepdims=True)
            + jnp.abs(jnp.exp(1j * (x @ p["w"]))).sum(1, keepdims=True)
        ),
        {"w": (2, W)},
    ),
    "complex activation": plain(
        lambda p, x: jnp.exp((0.3 + 1j) * (x @ p["w"])).real @ p["out"], {"w": (2, W), "out": (W, 2)}
    ),
    "unused": plain(lambda p, x: jnp.sin(x @ p["w"]) @ p["out"], {"idle": (3,), "w": (2, W), "out": (W, 1)}),
    "linear in a vector": plain(lambda p, x: (x @ p)[:, None], (2,)),
}


def tolerance(dtype, width=WIDTH):
    """Products of three sums of ``width`` terms, each of which rounds in units of eps."""
    return 3 * width**0.5 * float(jnp.finfo(dtype).eps)


def distance(a, b):
    return float(np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64)) / np.linalg.norm(b))


@jax.jit
def _contracted(apply, params, x):
    leaves, tree = jax.tree.flatten(params)
    parts = [(leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,) for leaf in leaves]

    def outputs(parts, x_i):
        joined = [part[0] + 1j * part[1] if len(part) == 2 else part[0] for part in parts]
        out = apply(jax.tree.unflatten(tree, joined), x_i[None])[0]
        return jnp.concatenate([out.real, out.imag]) if jnp.iscomplexobj(out) else out

    jacobian = jax.vmap(lambda x_i: jax.jacrev(outputs)(parts, x_i))(x)
    leaves = [leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(jacobian)]
    return functools.reduce(jnp.add, [jnp.einsum("icp,jep->ijce", leaf, leaf) for leaf in leaves])


def reference(apply, params, x):
    """Return the full kernel (n, n, c, c) from whole Jacobians, written down apart from the package."""
    return np.asarray(_contracted(apply, params, x))


def sensitivity(apply, params, x, full):
    """Return how far the full kernel moves when each number it is given moves by one rounding of float32."""
    rng, eps = np.random.default_rng(0), float(jnp.finfo(jnp.float32).eps)
    nudged = jax.tree.map(lambda leaf: np.asarray(leaf) * (1 + eps * rng.choice([-1, 1], leaf.shape)), (params, x))
    return distance(reference(apply, *nudged), full)


def reduced(full, outputs):
    """Return what ``outputs`` keeps of a full kernel."""
    if outputs == "trace":
        return np.einsum("ijcc->ij", full) / full.shape[2]
    return np.einsum("ijcc->ijc", full) if outputs == "diagonal" else full


def drawn(shapes):
    """Return parameters of these shapes."""
    return plain(len, shapes)(None, None)[1]
