"""Optimizers of optax by name, with schedule, warm-up, clipping and weight decay."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
import optax.contrib

from ntk_inr import _checks
from ntk_inr.training.second_order import gauss_newton

DEFAULT_RATE = 1e-3
WITHOUT_RATE = ("lbfgs", "gauss-newton")
"""Optimizers that find their steps' lengths by themselves where no rate is given."""
SCHEDULES = ("constant", "cosine", "exponential", "linear")
_SOLVES = "gauss-newton"
_END = 1e-2  # of the peak, where exponential decay ends if not told; the others end at zero
_SEARCHES = (optax.ScaleByZoomLinesearchState, optax.ScaleByBacktrackingLinesearchState)


def optimizer(
    name: str,
    *,
    learning_rate: float | None = None,
    schedule: str = "constant",
    end: float | None = None,
    steps: int | None = None,
    warmup: int = 0,
    clip: float | None = None,
    weight_decay: float | None = None,
    legs: Sequence[tuple[str, float, int]] = (),
    **settings: Any,
) -> optax.GradientTransformation:
    r"""Make an optimizer of optax from its name.

    The gradient is clipped first, to the global norm ``clip``. Weight decay is that of the optimizer where it has
    one ("adamw", "lion"), else decoupled likewise: :math:`\theta \leftarrow \theta + u_t - \eta_t\lambda\theta`
    with the optimizer's own update u.

    Args:
        name: of a function of optax or optax.contrib that takes a learning rate, such as "adam", "sgd", "lion",
            "muon"; or "lbfgs", which searches along its direction itself and trains on the full batch only; or
            "gauss-newton", :func:`gauss_newton`, which takes no rate.
        learning_rate: the peak of the schedule. None is 1e-3, for "lbfgs" its line search, and none for "gauss-newton".
        schedule: "constant"; or after the warm-up down to ``end`` at ``steps`` by "cosine", "linear" or "exponential".
        end: share of the rate that the schedule ends with; None is 0, and 0.01 for "exponential".
        steps: length of the run in steps, warm-up included; needed for every schedule but "constant".
        warmup: steps in which the rate grows linearly from zero.
        clip: largest global norm of the gradient; None does not clip.
        weight_decay: lambda above; None is the optimizer's default.
        legs: what follows after ``steps``: for each further leg its schedule, the rate it begins with, and the step
            that it ends at, counted from the start of the run.
        **settings: the optimizer's own, as optax names them, such as ``b1=0.9`` or ``memory_size=20``.

    Returns:
        An optax transformation for :func:`fit`; the same one for the same arguments, so that nothing compiles twice.

    Raises:
        ValueError: an unknown name or schedule, ``steps`` missing or no more than ``warmup``, a number out of range,
            legs that don't follow one another.
        TypeError: a setting that this optimizer does not have.

    Example:
        >>> adam = optimizer("adam", learning_rate=1e-3, schedule="cosine", steps=1000, warmup=50, clip=1.0)
        >>> optimizer("adam", b1=0.8) is optimizer("adam", b1=0.8)
        True

    Source:
        Kingma & Ba 2015 (arXiv 1412.6980) for Adam; Loshchilov & Hutter 2019 (arXiv 1711.05101) for decoupled weight
        decay; Liu & Nocedal 1989 (doi 10.1007/BF01589116) for L-BFGS.
    """
    _checks.check_choice(name, sorted(_makers()), "optimizer")
    _checks.check_choice(schedule, SCHEDULES, "schedule")
    if learning_rate is not None:
        _checks.check_positive(learning_rate, "learning_rate")
    _checks.check_positive(warmup, "warmup", integer=True, least=0)
    if clip is not None:
        _checks.check_positive(clip, "clip")
    if weight_decay is not None:
        _checks.check_positive(weight_decay, "weight_decay", least=0)
    if steps is not None:
        _checks.check_positive(steps, "steps", integer=True)
    if schedule != "constant" and (steps is None or steps <= warmup):
        raise ValueError(
            f'schedule="{schedule}" got steps={steps} and warmup={warmup}; expected steps=, the length of the run, '
            "above warmup."
        )
    if end is not None:
        _check_end(end, schedule)
    _check_legs(legs, steps)
    takes = inspect.signature(_makers()[name]).parameters
    for setting in settings:
        if setting not in takes:
            whose = "" if name == _SOLVES else "optax."
            raise TypeError(f"{whose}{name} has no setting {setting!r}; it has {', '.join(takes)}.")
    if name in WITHOUT_RATE and learning_rate is None and (schedule != "constant" or warmup or weight_decay or legs):
        instead = (
            "leave them out" if name == _SOLVES else "give learning_rate= to go without the search, or leave them out"
        )
        raise ValueError(
            f"{name} searches for its step itself, so a schedule, warm-up or weight decay has no rate to scale; "
            f"{instead}."
        )
    if name == _SOLVES and (learning_rate is not None or clip is not None):
        raise ValueError(f"{name} has no learning rate and no gradient to clip; leave learning_rate= and clip= out.")
    further, own = tuple(map(tuple, legs)), tuple(sorted(settings.items()))
    arguments = (name, learning_rate, schedule, end, steps, warmup, clip, weight_decay, further, own)
    try:
        return _build(*arguments)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _build.__wrapped__(*arguments)


@functools.cache
def _makers() -> dict[str, Callable[..., Any]]:
    """Return the functions that make an optimizer, by name: those of optax that take a learning rate, and ours."""
    functions = {**vars(optax.contrib), **vars(optax)}
    return {_SOLVES: gauss_newton} | {
        name: value
        for name, value in functions.items()
        if inspect.isfunction(value)
        and "learning_rate" in inspect.signature(value).parameters
        and not name.startswith(("scale_by", "_"))
    }


@functools.lru_cache(maxsize=128)
def _build(
    name: str, learning_rate: float | None, schedule: str, end: float | None, steps: int | None, warmup: int,
    clip: float | None, weight_decay: float | None, legs: tuple[Any, ...], settings: tuple[tuple[str, Any], ...],
) -> optax.GradientTransformation:  # fmt: skip
    own = dict(settings)
    if name == _SOLVES:
        return gauss_newton(**own)
    if name == "lbfgs" and learning_rate is None:
        base = optax.lbfgs(**own)
        return base if clip is None else optax.chain(optax.clip_by_global_norm(clip), base)
    rate = rate_of(DEFAULT_RATE if learning_rate is None else learning_rate, schedule, end, steps, warmup)
    if legs:
        rate = _joined(rate, steps, legs)
    if name == "lbfgs":
        own.setdefault("linesearch", None)
    maker = _makers()[name]
    native = "weight_decay" in inspect.signature(maker).parameters
    if native and weight_decay is not None:
        own["weight_decay"] = weight_decay
    parts = [maker(learning_rate=rate, **own)]
    if clip is not None:
        parts.insert(0, optax.clip_by_global_norm(clip))
    if weight_decay and not native:
        decay = (lambda t: -weight_decay * rate(t)) if callable(rate) else -weight_decay * rate
        parts.append(optax.add_decayed_weights(decay))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def _check_end(end: float, schedule: str) -> None:
    _checks.check_positive(end, "end", least=0)
    if schedule == "constant" or end > 1 or (schedule == "exponential" and not end):
        raise ValueError(
            f'end={end:g} got schedule="{schedule}"; expected a share up to 1 that a "cosine" or "linear" '
            'schedule falls to, or one above 0 for "exponential".'
        )


def rate_of(peak: float, schedule: str, end: float | None, steps: int | None, warmup: int) -> Any:
    """Return the learning rate as a number, or as a function of the step where it follows a schedule or a warm-up."""
    if schedule == "constant":
        return optax.linear_schedule(0.0, peak, warmup) if warmup else peak
    assert steps is not None
    left = steps - warmup
    if end is None:
        end = _END if schedule == "exponential" else 0.0
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, left, end),
        "linear": lambda: optax.linear_schedule(peak, end * peak, left),
        "exponential": lambda: optax.exponential_decay(peak, left, end),
    }[schedule]()
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def _check_legs(legs: Sequence[tuple[str, float, int]], steps: int | None) -> None:
    """Raise where further legs are no schedules, or don't follow the first one's ``steps`` and one another."""
    for schedule, rate, until in legs:
        _checks.check_choice(schedule, SCHEDULES, "schedule")
        _checks.check_positive(rate, "learning_rate")
        if steps is None or until <= steps:
            raise ValueError(f"legs has one that ends at step {until}; expected more than the {steps} before it.")
        steps = until


def _joined(first: Any, steps: int | None, legs: Sequence[tuple[str, float, int]]) -> Any:
    """Return the schedule that is ``first`` for ``steps`` steps, and then that of each further leg."""
    assert steps is not None
    ends = [steps]
    parts = [first if callable(first) else optax.constant_schedule(first)]
    for schedule, peak, until in legs:
        rate = rate_of(peak, schedule, None, until - ends[-1], 0)
        parts.append(rate if callable(rate) else optax.constant_schedule(rate))
        ends.append(until)
    return optax.join_schedules(parts, ends[:-1])


def line_search(opt_state: Any) -> Any:
    """Return the state of the line search that is the last part of an optimizer, or None.

    What comes after a line search changes its step, so that the value and gradient that it found are of another place.
    """
    while type(opt_state) is tuple and opt_state:  # of optax.chain
        opt_state = opt_state[-1]
    return opt_state if isinstance(opt_state, _SEARCHES) and opt_state.grad is not None else None


def evaluates_again(opt_state: Any) -> bool:
    """Return whether an optimizer evaluates the loss by itself, which must then be the same function at every step."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, (*_SEARCHES, optax.ScaleByLBFGSState)))
    return any(isinstance(leaf, (*_SEARCHES, optax.ScaleByLBFGSState)) for leaf in leaves)
