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

# %%

# %% [markdown]
# # Training by the kernel: an image, an equation and a scan
#
# At the end you will know how to train a network in a few steps that solve with its kernel, how to predict such a
# training before it begins, how to use it in a loop of your own, and how to see which term of a loss is slow.
#
# Gradient descent shrinks each mode of the kernel at its own pace. A Gauss–Newton step, $\delta = J^\top(K +
# \lambda I)^{-1}r$, shrinks them all at nearly the same one: the factor is $\lambda / (\lambda_k + \lambda)$, which is
# small for every mode far above the damping $\lambda$.

# %%
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import pyplot as plt

import ntk_inr as ni
from ntk_inr.style import FAST, MEASURED, PREDICTED, figure_style

# %% [markdown]
# ## An image
#
# All pixels of a picture, by Adam and by the kernel. The network has NeRF's encoding and ReLUs, whose kernel is so
# badly conditioned that Adam takes thousands of steps for what it carries in slow modes. Only the optimizer differs.

# %%
task = ni.load_task("image", "camera", size=48)
apply, params = ni.init(ni.variant("pe", features=128, depth=3), jax.random.key(0), task.x)
solved = ni.fit(apply, params, task.x, task.y, optimizer=ni.gauss_newton(), steps=9, report_every=1)
adam = ni.optimizer("adam", learning_rate=1e-3, schedule="cosine", steps=400)
descended = ni.fit(apply, params, task.x, task.y, optimizer=adam, steps=400)
print(solved)

# %% [markdown]
# How far does the linearised model know this in advance? With the kernel at the start and the damping of each step,
# (12.2) gives the course that the network would take if its kernel stayed what it was.

# %%
K = ni.ntk(apply, params, task.x)
residual = apply(params, jnp.asarray(task.x)) - task.y
predicted = ni.predict_training(K, residual, damping="adaptive", steps=solved.steps)

with figure_style():
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.8))
    for run, color, name in ((descended, MEASURED, "Adam"), (solved, FAST, "by the kernel")):
        axes[0].plot(run.history["seconds"], run.history["psnr"], ".-", color=color, label=name)
    axes[0].set(xlabel="seconds on this machine", ylabel="PSNR [dB]", title="A few steps that solve")
    axes[1].plot(solved.history["step"], solved.history["psnr"], ".-", color=FAST, label="measured")
    axes[1].plot(predicted.psnr, "s--", color=PREDICTED, label="the linearised model")
    axes[1].set(
        xlabel="Gauss–Newton steps", ylabel="PSNR [dB]", title="Against its prediction at the start", ylim=(0, 200)
    )
    for axis in axes:
        axis.legend()
    plt.show()

# %% [markdown]
# The linearised model is an upper bound here, and a loose one: it does not know that the network bends, which costs
# most in the first steps, nor that float32 ends near 140 dB. How far a step fell short is its gain ratio, and the next
# damping follows it; the kernel is made anew where the step ended.

# %% [markdown]
# ## An equation, in a loop of your own
#
# $u'' = -\pi^2\sin\pi x$ on $[-1, 1]$ with $u(\pm1) = 0$. Two residuals compete: the equation inside, and the boundary.
# `ni.ntk_blocks` has the kernel between them; the pace of a term is the trace of its block over the square of its
# number of points.


# %%
inside = jnp.linspace(-0.98, 0.98, 60)[:, None]
edge = jnp.array([[-1.0], [1.0]])
keys = jax.random.split(jax.random.key(1), 3)
start = {
    "w": 2 * jax.random.normal(keys[0], (1, 24)),
    "b": jax.random.normal(keys[1], (24,)),
    "v": jax.random.normal(keys[2], (24, 1)) / 5,
}


def u(params, x):
    """Return a network of one hidden layer, without any library."""
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]


def equation(params, x):
    """Return what is left of the equation, (n, 1)."""
    second = jax.vmap(jax.hessian(lambda point: u(params, point[None])[0, 0]))(x)
    return second[:, 0] + jnp.pi**2 * jnp.sin(jnp.pi * x)


terms = {"equation": (equation, inside), "boundary": (u, edge)}
print(ni.ntk_blocks(terms, start))
weights = ni.balance(terms, start)
print({name: f"{float(weight):.2g}" for name, weight in weights.items()})


# %% [markdown]
# The equation's eigenvalues reach down to nothing: its slow modes are what a descent waits for. The weights give both
# terms the same pace. A step that solves takes both residuals as one vector, each times the square root of its weight
# over its number of points. Any loop will do; `update` takes the function and its rows.


# %%
def residuals(params, x):
    """Return both residuals at all points, each where it is meant, weighted."""
    at_edge = jnp.abs(x) == 1
    scale = {name: jnp.sqrt(weights[name] / len(points)) for name, (_, points) in terms.items()}
    return jnp.where(at_edge, scale["boundary"] * u(params, x), scale["equation"] * equation(params, x))


points = jnp.concatenate([inside, edge])
zeros = jnp.zeros((len(points), 1))
grid = jnp.linspace(-1, 1, 201)[:, None]
truth = jnp.sin(jnp.pi * grid)


def error(params):
    """Return the relative L2 error of the solution."""
    return float(jnp.linalg.norm(u(params, grid) - truth) / jnp.linalg.norm(truth))


optimizer = ni.gauss_newton()
params, state = start, optimizer.init(start)
errors = [error(params)]
for _ in range(40):
    updates, state = optimizer.update(None, state, params, apply=residuals, x=points, y=zeros)
    params = jax.tree.map(jnp.add, params, updates)
    errors.append(error(params))
rate = ni.optimizer("adam", learning_rate=1e-2, schedule="cosine", steps=3000)
by_adam = ni.fit(residuals, start, points, zeros, optimizer=rate, steps=3000)
print(f"relative error: {errors[-1]:.1e} after 40 steps by the kernel, {error(by_adam.params):.1e} after 3000 of Adam")

# %%
with figure_style():
    figure, axes = plt.subplots(1, 2, figsize=(12, 3.8))
    axes[0].semilogy(errors, ".-", color=FAST)
    axes[0].axhline(error(by_adam.params), color=MEASURED, ls="--")
    axes[0].text(20, 1.3 * error(by_adam.params), "Adam, 3000 steps", color=MEASURED)
    axes[0].set(xlabel="Gauss–Newton steps", ylabel="relative L2 error", title="The equation, solved")
    axes[1].plot(grid[:, 0], u(by_adam.params, grid)[:, 0] - truth[:, 0], color=MEASURED, label="Adam")
    axes[1].plot(grid[:, 0], u(params, grid)[:, 0] - truth[:, 0], color=FAST, label="by the kernel")
    axes[1].set(xlabel="x", ylabel="error of u", title="What is left")
    axes[1].legend()
    plt.show()

# %% [markdown]
# ## A scan
#
# A phantom from 60 projections. Here fitting what was measured is not the aim: the picture between the rays is. Does a
# training that fits faster overfit?

# %%
scan = ni.load_task("tomography", "shepp-logan", size=32)
apply, params = ni.init(
    ni.variant("siren:omega=10", features=64, depth=3), jax.random.key(0), scan.x[:1].reshape(-1, 2)
)
observed = scan.observe(apply)


def picture_psnr(params):
    """Return the PSNR in dB of the picture, which no ray has shown."""
    return scan.scores(scan.reconstruct(lambda x: apply(params, x)))["psnr"]


courses = {}
for name, optimizer, steps in (("by the kernel", ni.gauss_newton(), 6), ("Adam", adam, 240)):
    rows, now = [(0.0, picture_psnr(params))], params
    for share in (1, 2, 3):
        run = ni.fit(observed, params, scan.x, scan.y, optimizer=optimizer, steps=max(1, steps * share // 3))
        rows.append((run.history["seconds"][-1], picture_psnr(run.params)))
    courses[name] = np.array(rows)

# %%
with figure_style():
    figure, axis = plt.subplots(figsize=(6.2, 3.8))
    for (name, course), color in zip(courses.items(), (FAST, MEASURED)):
        axis.plot(*course.T, "o-", color=color, label=name)
    axis.set(xlabel="seconds on this machine", ylabel="PSNR of the picture [dB]", title="The picture between the rays")
    axis.legend()
    plt.show()

# %% [markdown]
# Not here: the picture comes out as the projections are fitted, by either optimizer. With noise in the projections it
# would not; then stop early, or keep the damping up.
