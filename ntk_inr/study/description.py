"""What a file of results says of networks, tasks and their baselines."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from ntk_inr._results import Record
from ntk_inr._text import printable
from ntk_inr.networks.settings import parts_of, settings_of
from ntk_inr.tasks.image import ImageTask
from ntk_inr.tasks.interface import IndirectTask, Task
from ntk_inr.tasks.metrics import BASELINES

_COMPONENTS = ("encoding", "normalization", "modulation", "sparsity")


def describe(value: Any) -> str:
    """Return a module, or any field of one, as one line that shows every setting.

    Example:
        >>> import ntk_inr as ni
        >>> describe(ni.NeRFEncoding(bands=4))
        'NeRFEncoding(bands=4, include_input=False)'
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        # Without the address, which is another in each process.
        return getattr(value, "__name__", None) or re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return f"{type(value).__name__}({', '.join(f'{name}={describe(entry)}' for name, entry in _fields(value).items())})"


def numbers_of(net: nn.Module) -> dict[str, Any]:
    """Return the numbers that describe a network: width and depth, None where it has none, and all its settings.

    Example:
        >>> import ntk_inr as ni
        >>> numbers_of(ni.variant("siren", features=64, depth=3))
        {'features': 64, 'depth': 3, 'activation.omega': 30.0, 'activation.phase': 0.0, 'activation.first_omega': None}
    """
    return {"features": None, "depth": None, **settings_of(net)}


@dataclasses.dataclass(frozen=True)
class Addition:
    """Two networks that differ in one component, which one of them lacks.

    Attributes:
        base: the name of the network without it.
        name: the name of the network with it.
        component: "encoding", "normalization", "modulation" or "sparsity".
        module: what it is.
    """

    base: str
    name: str
    component: str
    module: str


def additions(networks: Mapping[str, nn.Module]) -> list[Addition]:
    """Return which networks are others with a component more, by their modules: names say nothing.

    Example:
        >>> import ntk_inr as ni
        >>> nets = {name: ni.variant(name) for name in ("relu", "pe", "pe+sphere", "siren")}
        >>> [(addition.base, addition.component, addition.name) for addition in additions(nets)]
        [('relu', 'encoding', 'pe'), ('pe', 'normalization', 'pe+sphere')]
    """
    pairs = []
    for base, without in networks.items():
        for name, net in networks.items():
            if type(net) is not type(without):
                continue
            own, other = _fields(net) | parts_of(net), _fields(without) | parts_of(without)
            differing = [field for field in own if not _same(own[field], other.get(field))]
            if len(differing) == 1 and differing[0] in _COMPONENTS and other.get(differing[0]) is None:
                pairs.append(Addition(base, name, differing[0], describe(own[differing[0]])))
    return pairs


def readable(task: Task) -> Task:
    """Return the task under a name that every file can hold, since some have their file's name."""
    name = printable(task.name)
    return dataclasses.replace(task, name=name) if name != task.name and dataclasses.is_dataclass(task) else task


def describe_task(task: Task) -> dict[str, Any]:
    """Return what a file of results says of its task."""
    image, heldout = image_of(task), task.heldout
    return {
        "kind": task.kind,
        "name": task.name,
        "digest": task.digest,
        "shape": None if image is None else list(image.shape),
        "rows": task.n,
        "heldout": 0 if heldout is None else len(heldout[0]),
        "metric": task.metric,
        "data_range": float(task.data_range),
        "loss": task.loss if isinstance(task.loss, str) else describe(task.loss),
        "descends": descends(task),
        **eight_bits(task),
    }


def eight_bits(task: Task) -> dict[str, bool]:
    """Return whether the reconstruction, and whether what is trained on, is compared with integers of 8 bits."""
    known = bool(getattr(task, "eight_bit", False))
    direct = not isinstance(task, IndirectTask) and task.kind != "denoising"  # noise is added in floating point
    return {"eight_bit": known, "eight_bit_curves": known and direct}


def image_of(task: Task) -> np.ndarray | None:
    """Return the image of a task that fits one."""
    return task.image if isinstance(task, ImageTask) else None


def descends(task: Task) -> bool:
    """Return whether gradient descent on all data has a prediction to be held beside."""
    return task.loss == "mse" and task.sampling is None


def own_scores(task: Task, reconstruction: Any) -> dict[str, float]:
    """Return the scores of a reconstruction without those of baselines."""
    return {name: value for name, value in task.scores(reconstruction).items() if name not in BASELINES}


def baselines_of(task: Task) -> tuple[Record, ...]:
    """Return what simpler methods reach on a task, as a file of results keeps it."""
    others = getattr(task, "baselines", {})
    entries = ({"name": name, "kind": "baseline", "scores": own_scores(task, other)} for name, other in others.items())
    return tuple(map(Record, entries))


def _fields(value: Any) -> dict[str, Any]:
    hidden = ("parent", "name") if isinstance(value, nn.Module) else ()
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in hidden}


def _same(one: Any, other: Any) -> bool:
    """Return whether two fields are surely the same: functions where they are one."""
    if type(one) is not type(other):
        return False
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        others = _fields(other)
        return all(_same(entry, others[name]) for name, entry in _fields(one).items())
    return one is other if callable(one) else bool(np.array_equal(one, other))
