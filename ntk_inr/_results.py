"""What a public result is: a frozen dataclass that JAX takes as a pytree, and that prints as a short table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """Return a field that is part of the tree's structure: a short word or a size, whose change recompiles."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field, static))
def result(cls: type[T]) -> type[T]:
    """Make a class a result: frozen, a pytree, and readable.

    Fields are leaves or subtrees but for those of :func:`static`. ``print`` shows what the class has as ``rows``, its
    fields by default; ``repr`` is one line. Two results are equal where they are the same object, since arrays have no
    single truth.

    Example:
        >>> from ntk_inr._results import result, static
        >>> @result
        ... class Spread:
        ...     mean: float
        ...     n: int = static()
        >>> spread = Spread(0.25, n=4)
        >>> print(spread)
        mean  0.25
        n     4
        >>> spread
        Spread(mean=0.25, n=4)
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    for name, method in {"rows": _rows, "__str__": _table, "__repr__": _line}.items():
        if getattr(cls, name, None) is getattr(object, name, None):  # neither the class nor a base has its own
            setattr(cls, name, method)
    return jax.tree_util.register_dataclass(cls)


def text_table(rows: Sequence[Sequence[str]], right: Sequence[int] = (), header: int = 1) -> str:
    """Return rows of equal length as text in columns, those of the indices ``right`` aligned to the right.

    The first ``header`` rows stand above a rule.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join(cells).rstrip()

    lines = list(map(line, rows))
    if header:
        lines.insert(header, line(["-" * width for width in widths]))
    return "\n".join(lines)


def brief(value: Any) -> str:
    """Return a value in a few words: numbers to four digits, arrays as dtype and shape, containers as their sizes."""
    if isinstance(value, bool | str | None):
        return str(value)
    shape = getattr(value, "shape", None)
    if shape is None and isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    if shape == () and not isinstance(value, jax.core.Tracer):
        value = np.asarray(value).item()
    elif shape is not None and hasattr(value, "dtype"):
        return f"{value.dtype} {tuple(shape)}"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def _rows(self: Any) -> dict[str, Any]:
    """Return what ``print`` shows: names and values."""
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def _table(self: Any) -> str:
    return text_table([(name, brief(value)) for name, value in self.rows().items()], header=0)


def _line(self: Any) -> str:
    return f"{type(self).__name__}({', '.join(f'{name}={brief(value)}' for name, value in _rows(self).items())})"
