"""Networks as other packages write them, in our own words: each a function of parameters and coordinates, and shapes.

Names of parameters that begin with ``z`` are of complex ones.
"""

import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 32


def factorised(layer, h):
    """A dense layer whose columns have a trained length of their own (random weight factorisation)."""
    return h @ (layer["g"][None, :] * layer["v"]) + layer["b"][None, :]


def modified_mlp(params, x):
    """A physics-informed network: random Fourier features, and layers that are gates between two encoders."""
    angles = x @ params["frequencies"]
    features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
    u, v = (jnp.tanh(factorised(params[name], features)) for name in ("u", "v"))
    h = features
    for layer in params["layers"]:
        gate = jnp.tanh(factorised(layer, h))
        h = gate * u + (1 - gate) * v
    return factorised(params["out"], h)


def deeponet(params, x):
    """A branch that sees a function at sensors, a trunk that sees the coordinates, and the product of the two."""
    sensors = jnp.sin(3 * jnp.linspace(0, 1, 7, dtype=x.dtype))
    branch = jnp.tanh(sensors @ params["branch"]["in"] + params["branch"]["b"]) @ params["branch"]["out"]
    trunk = jnp.tanh(jnp.tanh(x @ params["trunk"]["in"]) @ params["trunk"]["w"] + params["trunk"]["b"][None, :])
    return (trunk * branch[None, :]).sum(-1, keepdims=True) + params["bias"]


def unit_columns(v):
    return v / jnp.linalg.norm(v, axis=0, keepdims=True)


def weight_normalised(params, x):
    """Three layers: as usual, by rows as Equinox and PyTorch keep matrices, and by an inverse root with a floor."""
    h = jnp.tanh(x @ (params["g0"][None, :] * unit_columns(params["v0"])))
    rows = params["v1"] / jnp.linalg.norm(params["v1"], axis=1, keepdims=True)
    h = jnp.tanh(h @ (params["g1"][:, None] * rows).T + params["b1"][None, :])
    squares = jnp.maximum((params["v2"] ** 2).sum(0, keepdims=True), 1e-12)
    return jnp.tanh(h @ (params["v2"] * jax.lax.rsqrt(squares) * params["g2"][None, :])) @ params["out"]


def adapted(params, x):
    """A fixed network whose layers each have a trained product of two thin matrices beside them (LoRA)."""
    rng = np.random.default_rng(0)
    h = jnp.sin(x @ jnp.asarray(rng.normal(size=(2, WIDTH)), x.dtype))
    for a, b in zip(params["a"], params["b"], strict=True):
        fixed = jnp.asarray(rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5, x.dtype)
        h = jnp.tanh(h @ (fixed + 0.5 * a @ b))
    return h @ params["out"]


def scaled(params, x):
    """Gains of rows, of columns and of all of a matrix, and a mask of it that is trained."""
    h = jnp.tanh(x @ (params["row"][:, None] * params["in"] / (1 + params["column"][None, :] ** 2)))
    h = jnp.tanh(h @ (jnp.exp(params["gain"]) * params["w"]))
    return jnp.tanh(h @ (params["mask"] * params["v"])) @ params["out"]


def hosc(params, x):
    """Sharpened sines, of which the last layer's sharpness is trained (HOSC, AdaHOSC)."""
    h = jnp.tanh(4.0 * jnp.sin(x @ params["in"] + params["b"][None, :]))
    return jnp.tanh(jnp.exp(params["sharpness"]) * jnp.sin(h @ params["w"])) @ params["out"]


def wavelet(layer, h):
    """The complex Gabor wavelet of a dense layer, with a trained frequency and width."""
    z = h @ layer["zw"] + layer["zb"][None, :]
    return jnp.exp(1j * layer["omega"] * z - jnp.abs(layer["scale"] * z) ** 2)


def complex_wire(params, x):
    h = x.astype(jnp.result_type(x, 1j))
    for layer in params["layers"]:
        h = wavelet(layer, h)
    return (h @ params["zout"]).real


def complex_outputs(params, x):
    """A complex function of a matrix that is turned and scaled, of its conjugate, and of a real one."""
    h = jnp.exp(1j * (x @ params["in"]))
    h = h @ (0.5j * params["zw"]).T + h.conj() @ params["zw"].conj()
    return h @ params["out"].astype(h.dtype)


def _factorised(m, o):
    return {"v": (m, o), "g": (o,), "b": (o,)}


W, R = WIDTH, 3
_WAVELETS = [{"zw": (m, W), "zb": (W,), "omega": (), "scale": ()} for m in (2, W, W)]
NETWORKS = {
    "modified MLP": (
        modified_mlp,
        {
            "frequencies": (2, W),
            **{name: _factorised(2 * W, W) for name in ("u", "v")},
            "layers": [_factorised(2 * W, W), _factorised(W, W)],
            "out": _factorised(W, 2),
        },
    ),
    "DeepONet": (
        deeponet,
        {
            "branch": {"in": (7, W), "b": (W,), "out": (W, W)},
            "trunk": {"in": (2, W), "w": (W, W), "b": (W,)},
            "bias": (),
        },
    ),
    "three weight norms": (
        weight_normalised,
        {
            "v0": (2, W), "g0": (W,), "v1": (W, W), "g1": (W,), "b1": (W,), "v2": (W, W), "g2": (W,), "out": (W, 2),
        },
    ),
    "LoRA": (adapted, {"a": [(W, R), (W, R)], "b": [(R, W), (R, W)], "out": (W, 1)}),
    "gains and masks": (
        scaled,
        {
            "row": (2,), "in": (2, W), "column": (W,), "gain": (), "w": (W, W), "mask": (W, W), "v": (W, W),
            "out": (W, 2),
        },
    ),
    "HOSC": (hosc, {"in": (2, W), "b": (W,), "w": (W, W), "sharpness": (), "out": (W, 1)}),
    "complex WIRE": (complex_wire, {"layers": _WAVELETS, "zout": (W, 2)}),
    "complex outputs": (complex_outputs, {"in": (2, W), "zw": (W, W), "out": (W, 2)}),
}  # fmt: skip
