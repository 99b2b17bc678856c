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
# # A first look: which network will learn this photograph, and why?
#
# At the end you will know how to compute the neural tangent kernel (NTK) of a coordinate network, what its
# eigenvalues say about training, how well they predict gradient descent, and where that prediction stops.
#
# An implicit neural representation is a network from coordinates to values: here from a pixel's position to its
# brightness. Near its initialisation it trains like a linear model whose matrix is the NTK: each eigenvector of the
# kernel is a pattern, and its eigenvalue is the speed at which that pattern is learned.

# %%
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib import pyplot as plt

import ntk_inr as ni
from ntk_inr.style import ERROR, MARKERS, MEASURED, PALETTE, PREDICTED, SEQUENTIAL, figure_style

# %% [markdown]
# ## The signal
#
# `image_task` gives coordinates in [-1, 1] and values in [0, 1]. A path to a photo of your own works as well.

# %%
task = ni.image_task("camera", size=32)
x, y = jnp.asarray(task.x), jnp.asarray(task.y)
print(f"{task.name}: {task.image.shape[0]} × {task.image.shape[1]} pixels, x {x.shape}, y {y.shape}")

# %% [markdown]
# ## Four networks
#
# `ni.variants()` lists the named architectures, some thirty. `ni.init` gives a pure function and its parameters.

# %%
names = ["relu", "pe", "pe+hadamard", "siren"]
models = {name: ni.init(ni.variant(name, features=128, depth=3), jax.random.key(0), x) for name in names}
for name in names:
    print(f"{name:12s} {ni.variants()[name]}")

# %% [markdown]
# ## Their kernels
#
# `ni.ntk` is exact: it multiplies small Gram matrices entry by entry and never forms a Jacobian. `ni.moments` needs no
# eigendecomposition. The coefficient of variation, cv, is free of scale, so it is the figure to compare by: the
# effective rank, the number of patterns that train at a similar speed, is n / (1 + cv²).

# %%
kernels = {name: ni.ntk(apply, params, x) for name, (apply, params) in models.items()}
moments = {name: ni.moments(kernel) for name, kernel in kernels.items()}
print(f"{'':14s}{'mean':>8s}{'variance':>12s}{'cv':>8s}{'effective rank':>17s}")
for name, m in moments.items():
    print(f"{name:14s}{m.mean:8.0f}{m.variance:12.3g}{m.cv:8.2f}{m.effective_rank:17.1f}")

# %%
spectra = {name: ni.eigenvalues(np.asarray(kernel, float)) for name, kernel in kernels.items()}
with figure_style():
    figure, axes = plt.subplots(1, 5, figsize=(15, 2.9), width_ratios=[1, 1, 1, 1, 1.5])
    for axis, (name, kernel) in zip(axes, kernels.items()):
        axis.imshow(kernel / jnp.diagonal(kernel).mean(), cmap=SEQUENTIAL, vmin=0, vmax=1.5)
        axis.set(title=f"{name}, cv {moments[name].cv:.1f}", xticks=[], yticks=[], xlabel="pixel", ylabel="pixel")
        axis.grid(False)
    for color, (name, values) in zip(PALETTE, spectra.items()):
        axes[-1].loglog(
            np.arange(1, len(values) + 1), np.maximum(values / values.mean(), 1e-7), color=color, label=name
        )
    axes[-1].set(title="The flatter, the better conditioned", xlabel="rank", ylabel="eigenvalue / mean")
    axes[-1].legend()
    plt.show()

# %% [markdown]
# A network on raw coordinates has few fast patterns. The encoding raises the effective rank, and a fixed
# Hadamard modulation raises it much further: it multiplies the kernel, entry by entry, by similarities below one.

# %% [markdown]
# ## What they predict
#
# `predict_training` runs gradient descent on the linearised model: nothing is trained. Then `fit` trains the
# network, with the same step size, so that like is compared with like.

# %%
steps = 300
predicted, measured = {}, {}
for name, (apply, params) in models.items():
    rate = float(ni.max_learning_rate(spectra[name])) / 2
    predicted[name] = ni.predict_training(kernels[name], apply(params, x) - y, learning_rate=rate, steps=steps)
    measured[name] = ni.fit(apply, params, x, y, optimizer=optax.sgd(rate), steps=steps)

# %%
with figure_style():
    figure, axes = plt.subplots(1, 4, figsize=(15, 3), sharey=True)
    for axis, name in zip(axes, names):
        axis.plot(np.arange(1, steps + 1), measured[name].psnr[1:], color=MEASURED, label="gradient descent")
        axis.plot(np.arange(1, steps + 1), predicted[name].psnr[1:], color=PREDICTED, linestyle="--", label="predicted")
        gap = measured[name].psnr[-1] - predicted[name].psnr[-1]
        axis.set(xscale="log", title=f"{name}: {gap:+.1f} dB from prediction", xlabel="step", ylabel="PSNR [dB]")
    axes[0].legend()
    plt.show()

# %% [markdown]
# For `relu` and `pe` the kernel at initialisation tells the whole curve. The other two leave it: their kernels move.
# How far, and in which direction, can be measured with the same function at the trained parameters.

# %%
for name, (apply, _) in models.items():
    after = ni.ntk(apply, measured[name].params, x)
    drift = float(jnp.linalg.norm(after - kernels[name]) / jnp.linalg.norm(kernels[name]))
    print(f"{name:14s} kernel moved by {drift:4.0%}, cv {moments[name].cv:5.2f} -> {ni.moments(after).cv:5.2f}")

# %% [markdown]
# The modulated network unlearns noise that it started with, and its kernel becomes more uneven; SIREN's turns towards
# the image. Conditioning at initialisation is what linear training sees, not the last word.

# %% [markdown]
# ## What people do: Adam

# %%
steps = 60
adam = {name: ni.fit(*model, x, y, optimizer=optax.adam(1e-3), steps=steps) for name, model in models.items()}
with figure_style():
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.4), width_ratios=[1.3, 1.3, 0.8, 1])
    for color, marker, (name, run) in zip(PALETTE, MARKERS, adam.items()):
        axes[0].plot(np.arange(steps + 1), run.psnr, color=color, label=name)
        axes[1].plot(float(moments[name].cv), run.psnr[-1], color=color, marker=marker, linestyle="none", label=name)
    axes[0].set(title="Adam", xlabel="step", ylabel="PSNR [dB]")
    axes[1].set(xscale="log", title="Low cv helps, and is not everything", xlabel="cv of the NTK")
    axes[1].set(ylabel=f"PSNR after {steps} steps [dB]", xticks=[2, 5, 10, 20], xticklabels=[2, 5, 10, 20])
    axes[1].xaxis.set_minor_formatter("")
    axes[0].legend()
    axes[1].legend()
    apply, _ = models["pe+hadamard"]
    image = task.reconstruct(lambda c: apply(adam["pe+hadamard"].params, c))
    axes[2].imshow(image[:, :, 0], cmap="gray", vmin=0, vmax=1)
    axes[2].set(title=f"pe+hadamard, {task.scores(image)['psnr']:.1f} dB", xticks=[], yticks=[])
    picture = axes[3].imshow(np.abs(image - task.image)[:, :, 0], cmap=ERROR)
    axes[3].set(title="what is still wrong", xticks=[], yticks=[])
    for axis in axes[2:]:
        axis.grid(False)
    figure.colorbar(picture, ax=axes[3], label="error", shrink=0.8)
    plt.show()

# %% [markdown]
# ## Next
#
# `ntk-inr compare photo.png` does all of this over seeds, with a report. In a library of your own, any
# function `apply(params, x)` will do in place of these models.
