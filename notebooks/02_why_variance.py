# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Why the variance is what it is
#
# At the end you will know what makes the eigenvalues of a coordinate network's kernel spread, which components of
# implicit neural representations narrow them and on what condition, and how to ask the same of a deep network of
# your own: which layer, and which factor of it, makes the variance.
#
# The claims are those of *Understanding NTK Variance in Implicit Neural Representations* (Ou and Zhuang,
# arXiv 2512.15169). Each figure puts the theory beside the kernels of real networks.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

import ntk_inr as ni
from ntk_inr.style import FAST, MARKERS, MEASURED, NEUTRAL, PALETTE, PREDICTED, figure_style

SIDE, WIDTH, SEEDS = 16, 256, 16
task = ni.image_task("camera", size=SIDE)
plane = jnp.asarray(task.x)
x = jnp.concatenate([plane, jnp.ones((len(plane), 1))], axis=1)
print(f"{SIDE} × {SIDE} pixels, with a constant appended: x {x.shape}")


# %%
def measured(width=WIDTH, seeds=SEEDS, x=x, **settings):
    """Mean and standard error, over seeds, of the variance and of the mean of a kernel's eigenvalues."""
    net = ni.networks.two_layer_network(width, **settings)

    def one(key):
        found = ni.moments(ni.ntk(*ni.init(net, key, x), x))
        return jnp.stack([found.variance, found.mean])

    drawn = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(1), seeds)))
    return drawn.mean(0), drawn.std(0, ddof=1) / np.sqrt(seeds)


# %% [markdown]
# ## A plain network: two similarities make the variance
#
# The kernel of a two-layer ReLU network is the inner product of two inputs times the share of hidden units that both
# switch on. So each pair of pixels contributes a scale times τₓ, the squared cosine between them, times τₛ, the
# squared overlap of their active units. `ni.two_layer_moments` adds it up in closed form: exactly at any width, and
# the paper's proxy beside it, which assumes equal norms and infinite width.

# %%
widths = [16, 64, 256, 1024]
closed = [ni.two_layer_moments(x, width=m) for m in widths]
real = [measured(width=m) for m in widths]
with figure_style():
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), width_ratios=[1.3, 1, 1])
    axes[0].errorbar(
        widths, [m[0] for m, _ in real], [2 * e[0] for _, e in real], fmt="o", color=MEASURED, capsize=3,
        label=f"kernels of {SEEDS} networks, 2 standard errors",
    )  # fmt: skip
    axes[0].plot(widths, [c.variance for c in closed], color=FAST, label="closed form at this width")
    axes[0].axhline(float(closed[0].proxy), color=PREDICTED, ls="--", label="proxy")
    axes[0].set(
        xscale="log",
        xlabel="width m",
        ylabel="variance of the eigenvalues",
        title="The closed form is exact at any width",
    )
    axes[0].legend()
    factors = closed[-1].factors
    for axis, tau, name in zip(axes[1:], (factors.tau_x, factors.tau_s), ("τₓ, inputs", "τₛ, active units")):
        middle = (SIDE * SIDE + SIDE) // 2
        picture = axis.imshow(np.asarray(tau[middle]).reshape(SIDE, SIDE), cmap="cividis", vmin=0, vmax=1)
        axis.set(title=f"{name}: similar far away", xticks=[], yticks=[], xlabel="similarity to the centre pixel")
        axis.grid(False)
    figure.colorbar(picture, ax=axes[2])
    plt.show()

# %% [markdown]
# ## Positional encoding reshapes the similarity of inputs
#
# An encoding takes the place of the coordinates, exactly: the inner product of encodings for that of coordinates. The
# mean similarity falls, though not that of every pair: NeRF's octaves bring some far pixels close again.

# %%
encodings = {
    "coordinates": (x, None),
    "NeRF, 4 octaves": (plane, ni.NeRFEncoding(bands=4)),
    "Fourier features, σ = 1": (plane, ni.GaussianFourier(features=128, scale=1.0)),
}
forms = {name: ni.two_layer_moments(points, encoding=encoding) for name, (points, encoding) in encodings.items()}
with figure_style():
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    for axis, (name, form) in zip(axes, forms.items()):
        picture = axis.imshow(
            np.asarray(form.factors.tau_x[middle]).reshape(SIDE, SIDE), cmap="cividis", vmin=0, vmax=1
        )
        axis.set(title=f"{name}: cv {float(form.cv):.1f}", xticks=[], yticks=[])
        axis.set_xlabel(f"τₓ to the centre pixel, mean {float(form.factors.mean_tau_x):.2f}")
        axis.grid(False)
    figure.colorbar(picture, ax=axes)
    plt.show()

# %% [markdown]
# ## Spherical normalization: mostly a change of scale
#
# Normalising hidden activations divides the kernel by each layer's gain. The variance follows that scale, up or down,
# and cv, which is free of scale, stays about where it was. There is one case in which it narrows the spectrum itself:
# a readout of equal weights, whose common part the projection removes.

# %%
spheres = {
    "none": {},
    "input": {"normalization": ni.Sphere(placement="input")},
    "hidden": {"normalization": ni.Sphere()},
    "hidden,\nequal readout": {"normalization": ni.Sphere(), "readout": "constant"},
}
found = {name: measured(**settings) for name, settings in spheres.items()}
theory = {name: ni.two_layer_moments(x, width=WIDTH, **settings) for name, settings in spheres.items()}
with figure_style():
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.2))
    places = np.arange(len(spheres))
    axes[0].bar(places - 0.2, [m[0] for m, _ in found.values()], 0.38, color=NEUTRAL, label="measured")
    axes[0].bar(places + 0.2, [t.variance for t in theory.values()], 0.38, color=FAST, label="closed form")
    axes[1].bar(places - 0.2, [m[0] ** 0.5 / m[1] for m, _ in found.values()], 0.38, color=NEUTRAL)
    axes[1].bar(places + 0.2, [t.cv for t in theory.values()], 0.38, color=FAST)
    axes[0].set(title="The variance follows the scale …", ylabel="variance")
    axes[1].set(title="… cv falls only with an equal readout", ylabel="cv")
    for axis in axes:
        axis.set_xticks(places, spheres, rotation=0)
    axes[0].legend()
    plt.show()

# %% [markdown]
# ## Hadamard modulation multiplies by factors below one
#
# A fixed modulator multiplies the kernel, entry by entry, with a correlation matrix. That can't spread eigenvalues:
# the whole spectrum is majorised by what it was (T6.4), so the partial sums of eigenvalues all fall. A *trained*
# modulator adds a term of its own, which grows with the frequency squared.

# %%
omegas = [1.0, 2.0, 4.0, 8.0]
fixed = [measured(modulation=ni.FourierModulation(omega=w)) for w in omegas]
trained = [measured(modulation=ni.FourierModulation(omega=w, trained=True)) for w in omegas]
curve = np.geomspace(1, 8, 25)
with figure_style():
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
    base = measured()[0][0]
    for points, is_trained, color, name in ((fixed, False, FAST, "fixed"), (trained, True, PREDICTED, "trained")):
        line = [
            ni.two_layer_moments(
                x, width=WIDTH, modulation=ni.FourierModulation(omega=float(w), trained=is_trained)
            ).variance
            for w in curve
        ]
        axes[0].plot(curve, line, color=color, label=f"{name}, closed form")
        axes[0].plot(omegas, [m[0] for m, _ in points], "o", color=color, label=f"{name}, measured")
    axes[0].axhline(base, color=MEASURED, lw=1, ls=":", label="no modulator")
    axes[0].set(
        xscale="log",
        yscale="log",
        xlabel="frequency ω",
        ylabel="variance",
        title="Fixed modulators lower it, trained ones don't",
    )
    axes[0].set_xticks(omegas, [f"{w:g}" for w in omegas])
    axes[0].minorticks_off()
    axes[0].legend()
    for color, marker, (name, settings) in zip(
        PALETTE,
        MARKERS,
        {
            "none": {},
            "ω = 2": {"modulation": ni.FourierModulation(omega=2.0)},
            "ω = 8": {"modulation": ni.FourierModulation(omega=8.0)},
        }.items(),
    ):
        values = np.asarray(ni.eigenvalues(ni.two_layer_moments(x, **settings).kernel))
        axes[1].semilogx(
            np.arange(1, len(values) + 1),
            np.cumsum(values) / values.sum(),
            color=color,
            marker=marker,
            markevery=0.1,
            ms=4,
            label=name,
        )
    axes[1].set(
        xlabel="largest k eigenvalues",
        ylabel="share of their sum",
        title="Every partial sum falls: the spectrum flattens",
    )
    axes[1].legend()
    plt.show()

# %% [markdown]
# ## TopK: how fast does sparsity suppress the variance?
#
# Keeping the k largest units lowers the variance at least as k² (T7.4). With the survivors normalised (TopK-SP) the
# exponent is lower on a pixel grid, where neighbours keep the same units: the quadratic law needs inputs that are
# nearly orthogonal.

# %%
shares = [32, 16, 8, 4, 2]
with figure_style():
    figure, axis = plt.subplots(figsize=(6.2, 3.6))
    for color, marker, mode, name in ((FAST, "o", "hard", "TopK"), (PREDICTED, "s", "sphere", "TopK-SP")):
        ks = [WIDTH // share for share in shares]
        forms = [ni.two_layer_moments(x, width=WIDTH, limit=True, sparsity=ni.TopK(k, mode=mode)) for k in ks]
        real = [measured(sparsity=ni.TopK(k, mode=mode)) for k in ks]
        slope = np.polyfit(np.log(ks), np.log([float(f.variance) for f in forms]), 1)[0]
        axis.loglog(ks, [f.variance for f in forms], color=color, label=f"{name}, limit, slope {slope:.1f}")
        axis.loglog(ks, [m[0] for m, _ in real], marker, color=color, label=f"{name}, measured")
    axis.set(xlabel=f"units that pass, k of {WIDTH}", ylabel="variance", title="TopK is quadratic in k, TopK-SP is not")
    axis.set_xticks(ks, [str(k) for k in ks])
    axis.minorticks_off()
    axis.legend()
    plt.show()

# %% [markdown]
# ## Deep networks: the variance budget
#
# For a deep network there is no closed form at finite width, but there is an exact split: each layer's kernel is a
# forward Gram matrix times a backward one, and the variance is the sum of all pairs of layers. `ni.variance_budget`
# says which layer makes it, and `compare` which factor changed from one network to another.

# %%
budgets = {
    name: ni.variance_budget(*ni.init(ni.variant(name, features=128, depth=3), jax.random.key(0), plane), plane)
    for name in ("relu", "pe+sphere+hadamard")
}
for budget in budgets.values():
    with figure_style():
        budget.plot()
        plt.show()

# %%
print(budgets["relu"].compare(budgets["pe+sphere+hadamard"]))

# %% [markdown]
# ## Infinite width: the kernel without drawing a network
#
# `ni.infinite_kernel` reads the same description and returns the kernel that wide networks tend to. Their distance
# falls as one over the square root of the width.

# %%
points = plane[:: len(plane) // 48]
keys = jax.random.split(jax.random.key(0), 48)
with figure_style():
    figure, axis = plt.subplots(figsize=(6.2, 3.6))
    sizes = np.array([32, 64, 128, 256, 512])
    for color, marker, name in zip(PALETTE, MARKERS, ("relu", "pe+hadamard", "siren")):
        distances = []
        for m in sizes:
            net = ni.variant(name, features=int(m), depth=2)
            limit = ni.infinite_kernel(net)(points).ntk
            kernels = jax.lax.map(lambda key, net=net: ni.ntk(*ni.init(net, key, points), points), keys)
            apart = jnp.linalg.norm(kernels - limit, axis=(1, 2)) / jnp.linalg.norm(limit)
            distances.append(jnp.sqrt((apart**2).mean()))
        slope = np.polyfit(np.log(sizes), np.log(distances), 1)[0]
        axis.loglog(sizes, distances, marker=marker, color=color, label=f"{name}, slope {slope:.2f}")
    axis.loglog(sizes, distances[0] * (sizes / sizes[0]) ** -0.5, ls=":", color=MEASURED, label="slope −1/2")
    axis.set(xlabel="width", ylabel="relative distance", title="Wide networks approach their limit as theory says")
    axis.set_xticks(sizes, [str(m) for m in sizes])
    axis.set_yticks([0.1, 0.2, 0.4], ["0.1", "0.2", "0.4"])
    axis.minorticks_off()
    axis.legend()
    plt.show()

# %% [markdown]
# ## What the proxies assume, and what fails on a pixel grid
#
# A layer-by-layer proxy multiplies mean scales and mean similarities. `ni.check_assumptions` measures what that takes
# for granted; print the report for the whole table.

# %%
apply, params = ni.init(ni.variant("relu", features=128, depth=3), jax.random.key(0), plane)
report = ni.check_assumptions(apply, params, plane)
print(f"proxy {report.proxy:.3g}, measured variance {report.variance:.3g}. What fails most:\n")
for finding in sorted(report.failed, key=lambda found: -abs(found.error_percent * found.share))[:4]:
    print(f"- {finding.layer}: {finding.sentence}")

# %% [markdown]
# ## What to remember
#
# - Two similarities, of inputs and of active units, and a scale make the variance. Compare networks by cv, which
#   has no scale.
# - Encodings and fixed modulators lower the similarities, so they flatten the spectrum. Normalization mostly
#   rescales it.
# - For your own network, `ni.variance_budget(apply, params, x)` says which layer and which factor it is.
