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
# # Your own model: from Linen, NNX, Equinox or a plain function to its kernel
#
# At the end you will know how to hand a model of your own to `ntk_inr`, whichever framework it is written in, what is
# done with each of its parameters, which of its layers makes its eigenvalues spread and what narrows them, and how to
# ask the same at a million coordinates and on many devices.
#
# The first lines below make four devices of one processor, to try what runs on four GPUs. Leave them out elsewhere.

# %%
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib import pyplot as plt

import ntk_inr as ni
from ntk_inr.style import FAST, MARKERS, MEASURED, NEUTRAL, PALETTE, PREDICTED, SEQUENTIAL, figure_style

WIDTH, OMEGA = 128, 2.0
task = ni.image_task("camera", size=32)
x, y = jnp.asarray(task.x), jnp.asarray(task.y)
print(f"{jax.device_count()} devices, {len(x)} coordinates")

# %% [markdown]
# ## One network, written four times
#
# A network that the package has no name for: trained frequencies, then two residual blocks, each with a frequency ω of
# its own that is trained as well. A plain function needs nothing: any batched `apply(params, x)` from (n, d) to (n, c)
# will do.


# %%
def plain(params, x):
    """Return (n, 1) values at coordinates (n, 2)."""
    h = jnp.sin(x @ params["frequencies"]["kernel"])
    for i in (0, 1):
        block = params[f"block_{i}"]
        h = h + jnp.sin(params[f"omega_{i}"] * (h @ block["kernel"] + block["bias"]))
    return h @ params["readout"]["kernel"] + params["readout"]["bias"]


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = jnp.sin(nn.Dense(WIDTH, use_bias=False, kernel_init=nn.initializers.normal(8.0), name="frequencies")(x))
        for i in (0, 1):
            omega = self.param(f"omega_{i}", nn.initializers.constant(OMEGA), ())
            h = h + jnp.sin(omega * nn.Dense(WIDTH, name=f"block_{i}")(h))
        return nn.Dense(1, name="readout")(h)


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.frequencies = nnx.Linear(2, WIDTH, use_bias=False, rngs=rngs)
        self.block_0 = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.block_1 = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.omega_0, self.omega_1 = nnx.Param(jnp.asarray(OMEGA)), nnx.Param(jnp.asarray(OMEGA))
        self.readout = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, x):
        h = jnp.sin(self.frequencies(x))
        for block, omega in ((self.block_0, self.omega_0), (self.block_1, self.omega_1)):
            h = h + jnp.sin(omega * block(h))
        return self.readout(h)


class Equinox(eqx.Module):
    frequencies: eqx.nn.Linear
    blocks: list[eqx.nn.Linear]
    omegas: list[jax.Array]
    readout: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.frequencies = eqx.nn.Linear(2, WIDTH, use_bias=False, key=keys[0])
        self.blocks = [eqx.nn.Linear(WIDTH, WIDTH, key=k) for k in keys[1:3]]
        self.omegas = [jnp.asarray(OMEGA), jnp.asarray(OMEGA)]
        self.readout = eqx.nn.Linear(WIDTH, 1, key=keys[3])

    def __call__(self, x):  # one example: ni.split batches it
        h = jnp.sin(self.frequencies(x))
        for block, omega in zip(self.blocks, self.omegas):
            h = h + jnp.sin(omega * block(h))
        return self.readout(h)


# %% [markdown]
# `ni.init` draws the parameters of a Linen module and splits it, in one step. `ni.split` takes a module of NNX or of
# Equinox as it is, or a pair of a Linen module and its variables. To compare like with like, all four get the same
# parameters.

# %%
linen, params = ni.init(Linen(), jax.random.key(0), x)

module = NNX(nnx.Rngs(0))
nnx.update(module, params)

names = ["frequencies", "block_0", "block_1", "readout"]
model = Equinox(jax.random.key(0))
model = eqx.tree_at(
    lambda m: (
        [layer.weight for layer in (m.frequencies, *m.blocks, m.readout)]
        + [layer.bias for layer in (*m.blocks, m.readout)]
    ),
    model,
    [params[name]["kernel"].T for name in names] + [params[name]["bias"] for name in names[1:]],
)

models = {
    "plain function": (plain, params),
    "Linen": (linen, params),
    "NNX": ni.split(module),
    "Equinox": ni.split(model),
}

# %%
kernels = {name: ni.ntk(*pair, x) for name, pair in models.items()}
K = kernels["plain function"]
for name, kernel in kernels.items():
    apart = float(jnp.linalg.norm(kernel - K) / jnp.linalg.norm(K))
    print(f"{name:15s} K {kernel.shape}, cv {ni.moments(kernel).cv:.3f}, {apart:.0e} from the plain function's")

# %% [markdown]
# ## What is done with each parameter
#
# A parameter that enters as an operand of a matrix product needs no Jacobian: its part of the kernel is one small Gram
# matrix times another, entry by entry. `ni.explain` says where that holds, and why not elsewhere.

# %%
plan = ni.explain(plain, params, x)
print(plan)

# %%
leaves = sorted((leaf for leaf in plan.leaves if leaf.handling != "bias"), key=lambda leaf: (leaf.flops, leaf.shape))
whole = [2 * int(np.prod(leaf.shape)) for leaf in leaves]
cost = {each.method: each.flops for each in plan.costs}
with figure_style():
    figure, axis = plt.subplots(figsize=(8, 3))
    places = np.arange(len(leaves))
    axis.hlines(places, [leaf.flops for leaf in leaves], whole, color=NEUTRAL, linewidth=1)
    axis.plot(whole, places, "s", color=PREDICTED, ms=8, label="by its Jacobian")
    axis.plot([leaf.flops for leaf in leaves], places, "o", color=FAST, ms=5, label="as the plan has it")
    axis.set_yticks(places, [leaf.name.replace("']['", "/").strip("[]'") for leaf in leaves])
    axis.set(xscale="log", xlabel="floating point operations an entry of K")
    axis.set_title(f"{cost['jacobian'] / cost['structured']:.0f} times less work: the large matrices need no Jacobian")
    axis.legend(loc="lower right")
    plt.show()

# %% [markdown]
# The two ω multiply, so they keep their own Jacobians, which are exact and cost next to nothing for single numbers.
# Biases ride along with their matrices.

# %% [markdown]
# ## Which layer makes the variance
#
# `ni.variance_budget` splits the variance of the eigenvalues exactly: what each layer makes alone, and what it shares
# with the others. It takes your function as it is.

# %%
budget = ni.variance_budget(plain, params, x)
with figure_style():
    budget.plot()
    plt.show()

# %% [markdown]
# The readout and the blocks make it, the trained frequencies next to nothing. Would a higher ω in the blocks narrow the
# spectrum? The parameters are a pytree, so take the budget at others; `budget.compare` would say which factor changed.

# %%
omegas = [0.5, 1.0, 2.0, 4.0, 8.0]
budgets = [ni.variance_budget(plain, params | dict.fromkeys(["omega_0", "omega_1"], w), x) for w in omegas]
with figure_style():
    figure, axis = plt.subplots(figsize=(7, 3.6))
    axis.plot(omegas, [b.cv**2 for b in budgets], marker="x", linestyle="--", color=MEASURED, label="cv², their sum")
    for color, marker, term in zip(PALETTE, MARKERS, ("block_0", "block_1", "readout", "frequencies")):
        row = next(i for i, name in enumerate(budget.names) if name.startswith(term))
        axis.plot(omegas, [b.shares[row] * b.cv**2 for b in budgets], marker=marker, color=color, label=term)
    axis.set(xscale="log", yscale="log", xlabel="ω of both blocks", ylabel="contribution to cv²")
    axis.set(title="A higher ω narrows the spectrum, until block_0 alone is left")
    axis.set_xticks(omegas, [f"{w:g}" for w in omegas])
    axis.minorticks_off()
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()

# %% [markdown]
# A sine of high frequency makes neighbours unlike, for every layer that comes after it. What the first block sees is
# before it: to narrow that part, raise the frequencies of the first layer.

# %% [markdown]
# ## More coordinates than a kernel has room for
#
# At 1024 × 1024 pixels K would take 4.4 TB. Its moments don't need it: `ni.sampled_moments` takes them from random
# principal submatrices, with standard errors. `ni.NTKOperator` multiplies K with vectors and never forms it; from such
# products `ni.spectral_density` finds how the eigenvalues are distributed.

# %%
grids = {side: jnp.asarray(ni.image_task(np.zeros((side, side)), size=None).x) for side in (16, 32, 64, 256, 1024)}
exact = {side: ni.moments(ni.ntk(plain, params, grids[side])) for side in (16, 32, 64)}
sampled = {
    side: ni.sampled_moments(plain, params, grids[side], key=jax.random.key(1), size=256, submatrices=16)
    for side in (64, 256, 1024)
}
A = ni.NTKOperator(plain, params, grids[64])
density = ni.spectral_density(A, key=jax.random.key(2), probes=4, steps=24)

# %%
with figure_style():
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
    axes[0].plot(
        [s**2 for s in exact], [m.effective_rank for m in exact.values()], "s", color=MEASURED, ms=8, label="exact"
    )
    axes[0].errorbar(
        [s**2 for s in sampled], [m.effective_rank for m in sampled.values()],
        [2 * m.effective_rank * m.variance_stderr / m.variance for m in sampled.values()],
        fmt="o", color=FAST, capsize=4, ms=4, label="sampled, 2 standard errors",
    )  # fmt: skip
    axes[0].set(xscale="log", ylim=(0, 180), xlabel="coordinates n", ylabel="effective rank n / (1 + cv²)")
    axes[0].set(title="Beyond a thousand points a finer grid adds no patterns")
    axes[0].legend(loc="lower right")
    values = ni.eigenvalues(np.asarray(K, float)) / len(x)
    levels = np.geomspace(values[0], values[400], 80)
    above = A.shape[0] * (1 - density.cdf(levels * A.shape[0]))
    axes[1].loglog(values[:400], np.arange(1, 401), color=MEASURED, label="n = 1,024, eigenvalues of K")
    axes[1].plot(levels, above, "--", color=PREDICTED, label="n = 4,096, density from products")
    axes[1].set(xlabel="level λ / n", ylabel="eigenvalues above it", ylim=(0.7, 600))
    axes[1].set(title="Eigenvalues over n stay the same")
    axes[1].legend()
    plt.show()

# %% [markdown]
# The eigenvalues grow with n and their shares stay: beyond about a thousand points this network is described by the
# eigenvalues over n. So a setting can be judged on a coarse grid, which is what `ni.tune` does.

# %% [markdown]
# ## Many devices
#
# With `mesh=` each device holds whole rows of K, and no device ever holds all of it. Here four parts of one processor
# stand in for four GPUs; on a cluster the same lines run in every process. `ni.fit(..., mesh=mesh)` shares the rows of
# each training step in the same way.

# %%
mesh = jax.make_mesh((jax.device_count(),), ("rows",))
shared = ni.ntk(plain, params, x, mesh=mesh)
with figure_style():
    figure, axis = plt.subplots(figsize=(5.4, 4.2))
    picture = axis.imshow(shared / jnp.diagonal(K).mean(), cmap=SEQUENTIAL, vmin=0, vmax=0.5)
    for shard in shared.addressable_shards:
        rows = shard.index[0]
        axis.axhline(rows.stop - 0.5, color="white", linewidth=1)
        axis.text(1040, (rows.start + rows.stop) / 2, f"device {shard.device.id}", va="center")
    axis.set(xlabel="coordinate", ylabel="coordinate")
    axis.set_title(f"cv {ni.moments(shared).cv:.3f} on four devices, {ni.moments(K).cv:.3f} on one")
    axis.grid(False)
    plt.show()

# %% [markdown]
# ## What to remember
#
# - Any `apply(params, x)` has its exact kernel; `ni.split` makes one of a module, `ni.init` of a Linen network.
# - `ni.explain` says what each parameter costs, and `ni.variance_budget` which layer to change.
# - The next notebook, `04_tune_then_train`, chooses settings before training.
