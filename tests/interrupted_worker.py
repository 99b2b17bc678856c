"""A run to be killed in a process of its own: ``python interrupted_worker.py FOLDER STEPS EVERY``."""

import functools
import sys

import jax
import jax.numpy as jnp
import optax

import ntk_inr as ni


@functools.cache
def optimizer(steps):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-3, steps)))


def layer(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def run(folder, steps, every):
    """Train with all that a state can hold: momenta, a schedule's count, the last losses of all rows."""
    x = jax.random.uniform(jax.random.key(3), (40, 2), minval=-1.0)
    y = jnp.sin(3 * x[:, :1])
    first, second = jax.random.split(jax.random.key(0))
    params = {"in": jax.random.normal(first, (2, 16)), "out": jax.random.normal(second, (16, 1))}
    return ni.fit(
        layer, params, x, y, optimizer=optimizer(steps), steps=steps, batch_size=8, key=jax.random.key(1),
        sampling="loss", checkpoint=folder, checkpoint_every=every, checkpoint_keep=2,
    )  # fmt: skip


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
