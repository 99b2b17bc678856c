"""How each named variant is trained: as its authors publish it, and as it was measured to fit best."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import flax.linen as nn

from ntk_inr import _checks
from ntk_inr._results import Record
from ntk_inr.networks.catalogue import VARIANTS, parse

Which = Literal["default", "published", "same"]
RECIPES: tuple[Which, ...] = ("default", "published", "same")
_NOTHING = Record()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained: ``ni.optimizer(**recipe.arguments, steps=1000)`` makes its optimizer.

    Attributes:
        optimizer: optax's name of it.
        learning_rate: its largest.
        schedule: "constant", "cosine", "exponential" or "linear", over all steps.
        end: share of the largest rate that is left at the end; None is the schedule's own.
        warmup: steps in which the rate grows from zero.
        clip: largest global norm of the gradient; None does not clip.
        weight_decay: decoupled; None is the optimizer's own.
        settings: the optimizer's own, such as ``eps``.
        batch_size: rows of a step; None is what the task recommends, or all.
        network: settings of the network that belong to it, in place of the variant's own.
        source: where it is from, or what it was measured by.

    Example:
        >>> import ntk_inr as ni
        >>> recipe = ni.networks.recipe("wire", "published")
        >>> recipe.learning_rate, recipe.schedule, recipe.end
        (0.005, 'exponential', 0.1)
        >>> adam = ni.optimizer(**recipe.arguments, steps=1000)
    """

    optimizer: str = "adam"
    learning_rate: float | None = 1e-3
    schedule: str = "constant"
    end: float | None = None
    warmup: int = 0
    clip: float | None = None
    weight_decay: float | None = None
    settings: Record = _NOTHING
    batch_size: int | None = None
    network: Record = _NOTHING
    source: str = ""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of :func:`ntk_inr.optimizer` that make its optimizer, but for ``steps``."""
        own = {name: getattr(self, name) for name in ("learning_rate", "schedule", "end", "warmup", "clip")}
        return {"name": self.optimizer, **own, "weight_decay": self.weight_decay, **self.settings}

    def __str__(self) -> str:
        """Return the optimizer, the rate and the schedule in a few words: "adam, 0.001 cosine"."""
        rate = "line search" if self.learning_rate is None else f"{self.learning_rate:g}"
        end = f" to {self.end:g} of it" if self.end is not None else ""
        return f"{self.optimizer}, {rate} {self.schedule}{end}"


_SIREN = "Sitzmann et al. 2020, arXiv 2006.09661, and their code"
_TANCIK = "Tancik et al. 2020, arXiv 2006.10739, appendix, for images"
_FATHONY = "Fathony et al. 2021 (openreview OmtmcPkkhT) and their code for images"
_TENTH: dict[str, Any] = {"schedule": "exponential", "end": 0.1}
_PUBLISHED: dict[str, Recipe] = {
    "relu": Recipe(source=_TANCIK),
    "pe": Recipe(source=_TANCIK),
    "rff": Recipe(source=_TANCIK),
    "siren": Recipe(learning_rate=1e-4, source=_SIREN),
    "siren+fast": Recipe(learning_rate=5e-5, source=f"{_SIREN}: the help of its audio script, whose default is 1e-4"),
    "finer": Recipe(learning_rate=5e-4, **_TENTH, source="Liu et al. 2024, arXiv 2312.02434, and their code"),
    "gauss": Recipe(
        learning_rate=5e-3, **_TENTH, source="not its authors': the code of Liu et al. 2024, arXiv 2312.02434"
    ),
    "wire": Recipe(learning_rate=5e-3, **_TENTH, source="Saragadam et al. 2023, arXiv 2301.05187, and their code"),
    "wire2d": Recipe(learning_rate=5e-3, **_TENTH, source="Saragadam et al. 2023, arXiv 2301.05187, and their code"),
    "spder": Recipe(learning_rate=1e-4, source="the code of Shah and Sitawarin 2023, arXiv 2306.15242"),
    "hosc": Recipe(learning_rate=1e-4, source="not its authors': SIREN's rate, as its weights"),
    "fouriernet": Recipe(learning_rate=1e-2, network=Record(scale=256.0), source=_FATHONY),
    "gabornet": Recipe(learning_rate=1e-2, network=Record(scale=256.0), source=_FATHONY),
    "bacon": Recipe(learning_rate=5e-3, source="Lindell et al. 2022, arXiv 2112.04645, and their code for images"),
    "hash": Recipe(
        learning_rate=1e-2, settings=Record(b2=0.99, eps=1e-15),
        source="Müller et al. 2022, arXiv 2201.05989, and tiny-cuda-nn's config_hash.json but for its L2 of 1e-6",
    ),
    "oneblob": Recipe(
        learning_rate=1e-2, settings=Record(b2=0.99), source="tiny-cuda-nn's config_oneblob.json but for its L2 of 1e-8"
    ),
}  # fmt: skip
_PLAIN = Recipe(source="none published that we know of: Adam at 1e-3")

# Largest rate and schedule of Adam that ended highest, of benchmarks/recipes.py, "published" where that is the recipe
# of the network's authors; a test holds both together.
MEASURED: dict[str, tuple[float, str]] = {
    "siren": (1e-3, "cosine"),
    "rff": (1e-3, "constant"),
    "relu": (1e-3, "constant"),
    "pe": (1e-3, "constant"),
    "wire": (1e-3, "cosine"),
    "finer": (5e-4, "published"),
    "hash": (3e-3, "constant"),
    "fouriernet": (1e-2, "published"),
    "gauss": (1e-3, "cosine"),
    "pe+sphere+hadamard": (1e-3, "constant"),
    "relu+hadamard": (1e-2, "constant"),
    "pe+sphere": (1e-3, "constant"),
    "pe+layer": (1e-3, "constant"),
    "pe+weight": (1e-3, "constant"),
    "pe+hadamard": (3e-3, "constant"),
    "pe+gabor": (1e-2, "constant"),
    "pe+modulator": (1e-3, "constant"),
}
_MEASURED_BY = "benchmarks/recipes.py: the best of five rates, constant and cosine, on camera 64 x 64 after 300 steps"


def recipe(variant: str | nn.Module, which: Which = "default") -> Recipe:
    """Return how a network is trained.

    Args:
        variant: a name as :func:`ntk_inr.variant` takes it, settings included; or a Linen module, which has no recipe
            of its own and gets the plain one, Adam at 1e-3.
        which: "default", what ended with the highest PSNR of what was measured; "published", what its authors' paper or
            code does; "same", the plain one for every network, so that a comparison shares one rate.

    Returns:
        :class:`Recipe`; its ``source`` says where it is from, also where nothing is published or was measured.

    Raises:
        ValueError: an unknown variant or recipe.

    Example:
        >>> import ntk_inr as ni
        >>> ni.networks.recipe("siren:omega=10", "published").learning_rate
        0.0001
        >>> print(ni.networks.recipe("relu", "same"))
        adam, 0.001 constant
    """
    _checks.check_choice(which, RECIPES, "recipe")
    if isinstance(variant, nn.Module):
        return Recipe(source="a network without a recipe of its own: Adam at 1e-3")
    name, _ = parse(variant)
    _checks.check_choice(name, VARIANTS, "variant")
    published = _PUBLISHED.get(name, _PLAIN)
    if which == "same":
        return Recipe(source="the same for every network: Adam at 1e-3")
    if which == "published":
        return published
    if name in MEASURED:
        rate, schedule = MEASURED[name]
        if schedule == "published":
            return dataclasses.replace(published, source=f"{_MEASURED_BY}, and what is published: {published.source}")
        return Recipe(learning_rate=rate, schedule=schedule, source=_MEASURED_BY)
    return dataclasses.replace(published, network=Record(), source=f"not measured; {published.source}")
