"""Where a task came from: what builds it again, as JSON."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ntk_inr._results import Record
from ntk_inr.tasks.files import bundled_name

_SMALL = 4096

P = ParamSpec("P")
T = TypeVar("T")


def with_origin(kind: str, bundled: Iterable[str] = ()) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator of a task's constructor, by which the task knows what ``load_task`` builds it again from.

    ``bundled`` are the names that are no paths. The origin has "kind", "source" (a bundled name, or the absolute path
    of what was read), and "settings", all of them. It is None where the source is an array, or where a setting is
    nothing that JSON holds.
    """

    def decorate(build: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(build)
        def remembered(*args: P.args, **kwargs: P.kwargs) -> T:
            task: Any = build(*args, **kwargs)
            bound = inspect.signature(build).bind(*args, **kwargs)
            bound.apply_defaults()
            source, *settings = bound.arguments.items()
            return dataclasses.replace(task, origin=_origin(kind, source, dict(settings), tuple(bundled)))

        return remembered

    return decorate


def _origin(kind: str, source: tuple[str, Any], settings: dict[str, Any], bundled: tuple[str, ...]) -> Record | None:
    """Return the origin of a task; equations (of "pde") read an image that is a setting."""
    first = _located(source[1], bundled)
    if not isinstance(first, str):
        return None
    settings = {
        name: _located(value, bundled) if name == "image" else _plain(value) for name, value in settings.items()
    }
    try:
        json.dumps(settings)
    except TypeError:
        return None
    return Record(kind=kind, source=first, settings=settings)


def _located(source: Any, bundled: tuple[str, ...]) -> Any:
    """Return the name of something bundled, or the absolute path of a file or folder."""
    if not isinstance(source, str | bytes | os.PathLike):
        return source
    text = os.fsdecode(source)
    return text if bundled_name(text, bundled) else str(Path(text).absolute())


def _plain(value: Any) -> Any:
    """Return small arrays as lists, and numbers of NumPy as Python's."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) and value.size <= _SMALL else value
