"""How networks are trained: the options that a user gives, and what becomes of them with the recipe of each network."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:  # the command line reads the options before JAX is imported
    import flax.linen as nn
    import optax

    from ntk_inr.networks.recipes import Recipe
    from ntk_inr.tasks.interface import Task

Recipes = Literal["default", "published", "same"]
Schedules = Literal["constant", "cosine", "exponential", "linear"]
Kept = Literal["last", "best"]
Sampling = Literal["shuffle", "uniform", "loss", "ntk"]
_WORDS = {
    "recipe": get_args(Recipes), "schedule": (None, *get_args(Schedules)), "keep": get_args(Kept),
    "sampling": get_args(Sampling),
}  # fmt: skip
# What belongs to an optimizer, and is left out where a user takes another one.
_OF_THE_OPTIMIZER = ("learning_rate", "schedule", "end", "warmup", "weight_decay", "settings")
_OF_THE_RECIPE = ("learning_rate", "schedule", "end", "warmup", "clip", "weight_decay", "batch_size")


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How networks are trained; what is None is as the recipe of each network says."""

    recipe: Recipes = "default"
    """default: what was measured to fit best. published: what a network's authors do. same: Adam at 1e-3 for all."""
    optimizer: str | None = None
    """Any of optax's, by name, or gauss-newton; the recipe's rate and schedule are for its own optimizer only."""
    learning_rate: float | None = None
    """Its largest learning rate; of another optimizer than the recipe's 1e-3, and lbfgs and gauss-newton need none."""
    schedule: Schedules | None = None
    """How the learning rate falls over the steps."""
    end: float | None = None
    """Share of the largest rate that the schedule ends with."""
    warmup: int | None = None
    """Steps in which the rate grows from zero."""
    clip: float | None = None
    """Largest norm of the gradient."""
    weight_decay: float | None = None
    """Decoupled weight decay."""
    optimizer_set: Mapping[str, Any] | Sequence[Any] = ()
    """Settings of the optimizer, such as b1=0.95 or eps=1e-15."""
    batch_size: int | None = None
    """Values of a step; by default what the task recommends, or all."""
    sampling: Sampling = "shuffle"
    """Which values a step takes: the next of an epoch's order, any, or more often those of large losses or scores."""
    microbatch: int | None = None
    """Values that are computed at once, which bounds memory; by default all, or 8192 of a large batch on a CPU."""
    keep: Kept = "last"
    """Which parameters are kept: best is by the values held out, or by the loss where there are none."""
    stop_at: float | None = None
    """PSNR in dB at which training stops."""
    report_every: int | None = None
    """Steps between reports; by default about 40 of them, denser in the beginning."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one network is trained.

    Attributes:
        which: the recipe that was asked for, "default", "published" or "same".
        recipe: what became of it with the options that a user gave.
        rows: of a step; None is all.
        options: further keywords of :func:`ntk_inr.fit`.
    """

    which: str
    recipe: Recipe
    rows: int | None
    options: dict[str, Any]

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """Return the optimizer for so many steps, the same one each time."""
        from ntk_inr.training.optimizers import optimizer

        return optimizer(**self.recipe.arguments, steps=steps)

    def keywords(self, steps: int) -> dict[str, Any]:
        """Return the keywords of :func:`ntk_inr.fit` for so many steps."""
        return {"optimizer": self.optimizer(steps), "steps": steps, "batch_size": self.rows, **self.options}

    def described(self, task: Task) -> dict[str, Any]:
        """Return what a file of results says of it; what is as ever is left out."""
        own = dataclasses.asdict(self.recipe)
        always = ("optimizer", "learning_rate", "schedule", "source")
        told = {name: own[name] for name in own if name in always or own[name]}
        return {"recipe": self.which, **told, "batch_size": self.rows or task.n, **self.options}


def options_from(keywords: Mapping[str, Any]) -> TrainingOptions:
    """Return the options among keywords, or say which of them there are.

    Raises:
        TypeError: a keyword that is none, with the nearest that is.
        ValueError: an unknown recipe, schedule or kind of parameters to keep.
    """
    from ntk_inr import _checks

    known = [field.name for field in dataclasses.fields(TrainingOptions)]
    for name in keywords:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"no option of training is called {name!r}; there are {', '.join(known)}.{hint}")
    for name, words in _WORDS.items():
        if keywords.get(name, words[0]) not in words:  # the first is what is not given
            _checks.check_choice(keywords[name], [word for word in words if word], name)
    return TrainingOptions(**keywords)


def given(options: TrainingOptions) -> dict[str, Any]:
    """Return the recipe that is asked for, and the options that are not as ever."""
    plain, own = dataclasses.asdict(TrainingOptions()), dataclasses.asdict(options)
    told = {name: value for name, value in own.items() if name == "recipe" or value != plain[name]}
    settings = dict(own["optimizer_set"])
    return {**told, "optimizer_set": settings} if settings else {k: v for k, v in told.items() if k != "optimizer_set"}


def plans_of(
    task: Task,
    variants: str | nn.Module | Sequence[str] | Mapping[str, nn.Module],
    options: TrainingOptions,
    *,
    features: int = 256,
    depth: int = 4,
    steps: int = 1,
) -> dict[str, tuple[nn.Module, Plan]]:
    """Return each network with how it is trained, by name, having checked what can be before any training.

    Args:
        task: what is fitted.
        variants: as :func:`ntk_inr.networks.catalogue.networks_of` takes them.
        options: what a user gave.
        features: width of the hidden layers.
        depth: number of hidden layers.
        steps: training steps.
    """
    import flax.linen as nn

    from ntk_inr.networks.catalogue import networks_of

    networks = networks_of(variants, features=features, depth=depth, out=task.channels)
    named = not isinstance(variants, Mapping | nn.Module)
    plans = {}
    for name, net in networks.items():
        plan = _planned(task, name if named else net, options)
        plan.optimizer(steps)
        if named and plan.recipe.network:
            net = _with_recipe(name, plan.recipe, features, depth, task.channels)
        plans[name] = (net, plan)
    return plans


def _planned(task: Task, variant: str | nn.Module, options: TrainingOptions) -> Plan:
    """Return how a network is trained: by its recipe, field by field but for what the options say."""
    from ntk_inr._results import Record
    from ntk_inr.networks.recipes import Recipe, recipe
    from ntk_inr.training.optimizers import DEFAULT_RATE, WITHOUT_RATE

    own = recipe(variant, options.recipe)
    if options.optimizer not in (None, own.optimizer):
        rate = None if options.optimizer in WITHOUT_RATE else DEFAULT_RATE
        others = {name: getattr(Recipe(), name) for name in _OF_THE_OPTIMIZER}
        chosen = {"optimizer": options.optimizer, "learning_rate": rate, "source": "none: chosen by the user"}
        own = dataclasses.replace(own, **{**others, **chosen})
    if options.schedule not in (None, own.schedule):
        own = dataclasses.replace(own, end=None)
    given = {name: getattr(options, name) for name in _OF_THE_RECIPE if getattr(options, name) is not None}
    if options.optimizer_set:
        given["settings"] = own.settings | dict(options.optimizer_set)
    own = dataclasses.replace(own, **given)
    further = {name: getattr(options, name) for name in ("microbatch", "stop_at", "report_every")}
    further = {name: value for name, value in further.items() if value is not None}
    chosen = {name: getattr(options, name) for name in ("keep", "sampling")}
    further |= {name: value for name, value in chosen.items() if value != getattr(TrainingOptions, name)}
    rows = _rows_of(task, own, options)
    _check_sampling(task, options, rows)
    return Plan(options.recipe, own, rows, Record(further))


def _rows_of(task: Task, own: Recipe, options: TrainingOptions) -> int | None:
    """Return the rows of a step, None for all."""
    from ntk_inr import _checks

    n = task.n
    if options.batch_size is not None:
        _checks.check_positive(options.batch_size, "batch_size", integer=True)
        if options.batch_size > n:
            raise ValueError(f"batch_size={options.batch_size} is more than the {n} values of {task.name}; take fewer.")
    rows = own.batch_size or task.sampling
    rows = None if rows is None or rows >= n else rows
    if rows is not None and own.optimizer == "lbfgs":
        raise ValueError(
            f"{task.name} has {n} rows and is trained in batches of {rows}, but optimizer='lbfgs' "
            "compares losses of one and the same batch; take another, such as optimizer='adam', or a smaller task."
        )
    return rows


def _check_sampling(task: Task, options: TrainingOptions, rows: int | None) -> None:
    """Raise where a way to choose rows has no batches to choose, or too many rows to choose from."""
    from ntk_inr.tasks.interface import IN_MEMORY, bytes_of_rows

    if options.sampling == "shuffle":
        return
    if rows is None:
        raise ValueError(f"sampling={options.sampling!r} draws batches; give batch_size=, below the {task.n} values.")
    if bytes_of_rows(task) > IN_MEMORY:
        raise ValueError(
            f"sampling={options.sampling!r} needs all {task.n} rows of {task.name} in memory, and they are read by the "
            "step; leave it out, or take a smaller task."
        )


def _with_recipe(name: str, recipe: Recipe, features: int, depth: int, out: int) -> nn.Module:
    """Return a variant with the settings that belong to its recipe, but for those that its name carries."""
    from ntk_inr.networks.catalogue import parse, variant
    from ntk_inr.networks.settings import with_settings

    base, numbers = parse(name)
    net = variant(base, features=features, depth=depth, out=out)
    return with_settings(with_settings(net, recipe.network), numbers)
