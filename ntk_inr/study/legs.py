"""The legs of a training: how its rate goes over the steps asked for first, and over those that were added later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import optax

from ntk_inr.networks.recipes import Recipe
from ntk_inr.training.optimizers import optimizer

Leg = dict[str, Any]
"""``{"schedule": "cosine", "learning_rate": 1e-3, "until": 600}``; the rate of a line search is None."""


def legs_of(
    earlier: Mapping[str, Any] | None, *, name: str, schedule: str, learning_rate: float | None, steps: int,
    further: str | None,
) -> list[Leg]:  # fmt: skip
    """Return the legs of a training of ``steps`` steps that goes on from an earlier one.

    Args:
        earlier: the settings that the earlier one kept; None is a fresh start.
        name: of the optimizer.
        schedule: of the first leg.
        learning_rate: of the last leg; None is a line search.
        steps: at the end of all.
        further: schedule of the steps beyond the earlier ones; None where there are none, or the rate is constant.

    Raises:
        ValueError: ``further`` is missing, or of no use; fewer steps than there were; another schedule or optimizer.
    """
    rate = learning_rate
    if earlier is None:
        if further is not None:
            raise ValueError(f"further={further!r} is for steps beyond those of a run; there is none to go on from.")
        return [{"schedule": schedule, "learning_rate": rate, "until": steps}]
    legs = [dict(leg) for leg in kept_legs(earlier)]
    last, done = legs[-1], legs[-1]["until"]
    if (name, schedule) != (earlier["optimizer"], legs[0]["schedule"]):
        raise ValueError(
            f"optimizer={name!r} with schedule={schedule!r} can't go on from a run of {earlier['optimizer']} with the "
            f"schedule {legs[0]['schedule']}; give those, or choose another folder. What comes after is further=."
        )
    if steps < done:
        raise ValueError(f"steps={steps} is fewer than the {done} of the run to go on from; give more, or as many.")
    if rate != last["learning_rate"] and (further is None or steps == done):
        raise ValueError(
            f"learning_rate={rate} is not the {last['learning_rate']} of the run to go on from; give that one, or more "
            'steps with further="constant", which may have another rate.'
        )
    if steps == done:
        if further is not None and (len(legs) == 1 or further != last["schedule"]):
            raise ValueError(f"further={further!r} needs more steps than the {done} of the run to go on from.")
        return legs
    if further is None:
        if last["schedule"] != "constant":
            raise ValueError(
                f"the run to go on from follows the schedule {last['schedule']} to its end at step {done}; say how the "
                f'rate goes over the further {steps - done} steps: further="constant", "cosine", "linear" or '
                '"exponential".'
            )
        return [*legs[:-1], {**last, "until": steps}]
    return [*legs, {"schedule": further, "learning_rate": rate, "until": steps}]


def kept_legs(settings: Mapping[str, Any]) -> Sequence[Leg]:
    """Return the legs that results name; those of before 0.2 have one."""
    if "legs" in settings:
        return settings["legs"]
    return [{name: settings[name] for name in ("schedule", "learning_rate")} | {"until": settings["steps"]}]


def optimizer_of(recipe: Recipe, legs: Sequence[Leg]) -> optax.GradientTransformation:
    """Return the optimizer of a recipe whose rate follows the legs."""
    first, *others = legs
    further = [(leg["schedule"], leg["learning_rate"], leg["until"]) for leg in others]
    own = {**recipe.arguments, "learning_rate": first["learning_rate"], "schedule": first["schedule"]}
    return optimizer(**own, steps=first["until"], legs=further)
