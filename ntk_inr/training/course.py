"""How far a run has come: its state, and what is kept of the way on the host."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ntk_inr.training.steps import CALL_STEPS, State

Row = dict[str, np.ndarray]
"""A row of the history: columns by name, each with one entry a seed."""
HIDDEN = ("alive", "above", "stalled")
"""Columns that are not shown: whether a run is alive, whether above its start, and whether it finds no lower loss."""


class Best(NamedTuple):
    """The best state that reports have seen, of each seed: how good, at which step, its parameters and model."""

    score: Array
    step: Array
    params: Any
    model: Any


@dataclasses.dataclass
class Course:
    """Hold how far a run has come, all of which a checkpoint keeps.

    Attributes:
        state: of the steps, on the device.
        best: the best so far, None where it is not asked for.
        done: steps taken.
        reported: the step of the last report, -1 before the first.
        seconds: that the steps took, without compilation.
        rows: of the history.
        losses: of the steps, one array (steps,) or (seeds, steps) a fused call.
    """

    state: State
    best: Best | None
    done: int = 0
    reported: int = -1
    seconds: float = 0.0
    rows: list[Row] = dataclasses.field(default_factory=list)
    losses: list[np.ndarray] = dataclasses.field(default_factory=list)

    def stepped(self, state: State, until: int, seconds: float) -> None:
        """Take over the state after further steps, and their losses."""
        self.losses.append(np.asarray(state.losses)[..., np.arange(self.done, until) % CALL_STEPS])
        self.state, self.done, self.seconds = state, until, self.seconds + seconds

    def report(self, row: Row, step: int) -> None:
        """Take over a row of the history, and the state where it is the best so far."""
        self.rows.append(row)
        self.reported = step
        if self.best is not None:
            score = score_of(row).reshape(self.best.score.shape)
            self.best = _better(self.best, self.state, jnp.asarray(score, self.best.score.dtype))

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The history as columns (reports, seeds) by name, and the losses (seeds, steps) or (steps,)."""
        columns = {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]} if self.rows else {}
        return columns | ({"losses": np.concatenate(self.losses, axis=-1)} if self.losses else {})

    @property
    def figures(self) -> dict[str, float]:
        """What the last report said, in the mean over seeds, and the loss of the last step's rows."""
        row = {name: column for name, column in self.rows[-1].items() if name not in (*HIDDEN, "step", "seconds")}
        if self.losses and self.losses[-1].size:
            row["batch_loss"] = self.losses[-1][..., -1]
        return {name: float(np.mean(column)) for name, column in row.items()}


def begun(state: State, keep: str, seeds: int | None) -> Course:
    """Return the course of a run before its first step; ``keep`` is "best" or "last"."""
    if keep == "last":
        return Course(state, None)
    shape = (seeds,) if seeds else ()
    best = Best(jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32), state.params, state.model)
    return Course(state, jax.tree.map(jnp.copy, best))


def score_of(row: Row) -> np.ndarray:
    """Return by what the best state is chosen: PSNR or the loss, on validation rows where there are any."""
    for name in ("validation_psnr", "psnr"):
        if name in row:
            return row[name]
    return -row.get("validation_loss", row["loss"])


@jax.jit
def _better(best: Best, state: State, score: Array) -> Best:
    better = (score > best.score) & state.alive
    new = Best(score, state.steps, state.params, state.model)
    shaped = lambda leaf: better.reshape(better.shape + (1,) * (leaf.ndim - better.ndim))  # noqa: E731
    return jax.tree.map(lambda own, old: jnp.where(shaped(own), own, old), new, best)
