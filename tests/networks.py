"""Every network by name, small: what the laws of networks are tested on. A new variant is in it by itself."""

import jax.nn

import ntk_inr as ni

SIZE = {"features": 24, "depth": 2}
TWO_OUTPUTS = ("wire", "wire2d", "gabornet", "bacon", "hash", "pe+weight", "siren+film", "pe+modulator")

# Each with the number of its coordinates.
NETWORKS = {
    **{name: (ni.variant(name, out=2 if name in TWO_OUTPUTS else 1, **SIZE), 2) for name in ni.variants()},
    "siren, 3 outputs, ntk": (ni.variant("siren", out=3, parameterization="ntk", **SIZE), 2),
    "pe+hadamard trained, 2 outputs": (
        ni.variant("pe", out=2, modulation=ni.FourierModulation(omega=3.0, trained=True), **SIZE), 2,
    ),
    "pe+sphere input": (ni.variant("pe", normalization=ni.Sphere("input"), **SIZE), 2),
    "pe+sphere hidden_pre": (ni.variant("pe", normalization=ni.Sphere("hidden_pre"), out=2, **SIZE), 2),
    "erf, a law of biases": (ni.CoordinateMLP(activation="erf", bias_law=ni.networks.Law(0.5), **SIZE), 2),
    "residual, balanced, with a head": (
        ni.CoordinateMLP(activation=jax.nn.gelu, residual=True, initializer=ni.networks.vi3nr(jax.nn.gelu, sigma=1.0),
                         head="sigmoid", **SIZE), 1,
    ),
    "siren of faster coordinates": (ni.variant("siren", encoding=ni.networks.Identity(scale=3.0), **SIZE), 2),
    "pe+layer with gains": (ni.variant("pe", normalization=ni.networks.LayerNorm(trained=True), **SIZE), 2),
    "distance in space": (ni.CoordinateMLP(initializer="geometric", **SIZE), 3),
    "bacon at two scales": (ni.networks.BACON(scales=(1, 2), **SIZE), 2),
    "two layers": (
        ni.networks.two_layer_network(24, encoding=ni.NeRFEncoding(3), sparsity=ni.TopK(k=6),
                                      trained=("weights", "readout")), 2,
    ),
}  # fmt: skip
