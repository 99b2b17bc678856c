"""What the commands share: the options of a task, and settings written as text."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import tyro

from ntk_inr.messages import check_device
from ntk_inr.study.record import printable
from ntk_inr.study.space import parse_values
from ntk_inr.tasks.interface import Task
from ntk_inr.tasks.registry import TASKS, kind_of, load_task


@dataclasses.dataclass
class Command:
    """What all commands share."""

    renamed: ClassVar = {"target_psnr": "--target", "objective": "--for", "space": "--over"}

    def options(self) -> dict[str, str]:
        """Return what a user of the command writes for each keyword of the library."""
        return {f.name: f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(self)} | self.renamed

    def interrupted(self) -> str:
        """Return what to tell a user who pressed Ctrl-C."""
        return ""


@dataclasses.dataclass
class OnATask(Command):
    """What the commands share that take a task."""

    prefix: ClassVar[str] = ""
    source: tyro.conf.Positional[tuple[str, ...]]
    """[TASK] FILE: a file, or something bundled. The task is told by that or by the file's suffix, else it is an image.
    `ntk-inr tasks` lists both."""
    set: tuple[str, ...] = ()
    """Settings of the task, such as size=128 holdout=0.5 or angles=90; `ntk-inr tasks` lists them."""
    size: int | None = None
    """Longer side of an image in pixels, after reduction; by default the task's own, 64 for images."""
    features: int = 128
    """Width of the hidden layers."""
    depth: int = 3
    """Number of hidden layers."""
    seed: int = 0
    """First random seed."""
    out: Path | None = None
    """Folder for the results; by default runs/NAME, or runs/TASK-NAME where NAME does not tell the task."""
    overwrite: bool = False
    """Replace results in the folder."""
    resume: bool = False
    """Go on from results in the folder."""

    @property
    def kind(self) -> str:
        """The task's kind."""
        return self.source[0] if len(self.source) == 2 else kind_of(self.source[-1])

    def options(self) -> dict[str, str]:
        """Return what a user of the command writes for each keyword of the library."""
        kind = TASKS.get(self.kind) if self.source else None
        return {name: f"--set {name}=" for name in (kind.settings if kind else ())} | super().options()

    def task(self, **settings: object) -> Task:
        """Return the task; ``settings`` are options of their own, left out where they are None."""
        check_device()
        if not 1 <= len(self.source) <= 2:
            raise ValueError(f"expected [TASK] FILE, got {' '.join(self.source) or 'nothing'}.")
        source, kind = self.source[-1], self.kind
        given = {name: value for name, value in settings.items() if value is not None}
        given |= named(self.set, "--set", "size=128")
        if kind in TASKS and "seed" in TASKS[kind].settings:
            given.setdefault("seed", self.seed)
        task, name = load_task(kind, source, **given), printable(Path(source).stem).replace("\ufffd", "_")
        self.out = self.out or Path("runs") / (self.prefix + (name if kind == kind_of(source) else f"{kind}-{name}"))
        return task


def named(texts: Sequence[str], option: str, example: str) -> dict[str, Any]:
    """Return what texts such as "name=value" say; what is no Python value is a text."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{option} {text!r} is no setting; write name=value, such as {example}.")
        try:
            found[name.replace("-", "_")] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name.replace("-", "_")] = value
    return found


def named_ranges(texts: Sequence[str]) -> Mapping[str, Any]:
    """Return what texts such as "scale=0.25:32" say."""
    found = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--over {text!r} is no range; write name=low:high or name=a,b,c, such as scale=0.25:32.")
        found[name] = parse_values(values)
    return found
