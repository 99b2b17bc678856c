"""What a public result is: a frozen dataclass that JAX takes as a pytree, and that prints as a short table."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

T = TypeVar("T")
Scalar = Any
"""A number that is a leaf: Python's, or an array of JAX's where a transformation has had the result in hand."""

# Characters that one value may take, so that a table fits on a screen.
_WIDTH = 70


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
        # Where neither the class nor a base has its own, and no field is called so.
        if getattr(cls, name, None) is getattr(object, name, None) and name not in cls.__dataclass_fields__:  # type: ignore[attr-defined]
            setattr(cls, name, method)
    return jax.tree_util.register_dataclass(cls)


class Record(dict[str, Any]):
    """A dictionary that doesn't change, for what a result says in words and numbers.

    As a field it is a subtree whose numbers are leaves, and whose text is structure, in the order they were written in;
    as a :func:`static` field it is structure as a whole. Dictionaries in it become records, and lists tuples.

    Example:
        >>> import jax
        >>> from ntk_inr._results import Record
        >>> jax.tree.map(lambda leaf: 2 * leaf, Record(status="finished", psnr=[20.0, 30.0]))
        {'status': 'finished', 'psnr': (40.0, 60.0)}
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__({name: _unchanging(value) for name, value in dict(*args, **kwargs).items()})

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> Any:
        return type(self), (dict(self),)

    def __or__(self, other: Any) -> Record:  # type: ignore[override]
        return Record({**self, **other})

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "this record is a part of a result, which doesn't change; make another one, as by record | {...}."
        )

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


def _unchanging(value: Any) -> Any:
    if isinstance(value, dict):
        return Record(value)
    return tuple(map(_unchanging, value)) if type(value) in (list, tuple) else value


def _flatten(record: Record) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    words = tuple((name, value if isinstance(value, str) else None) for name, value in record.items())
    keyed = [(jax.tree_util.DictKey(name), record[name]) for name, word in words if word is None]
    return keyed, words


def _unflatten(words: tuple[Any, ...], values: Any) -> Record:
    rest = iter(values)
    return Record({name: next(rest) if word is None else word for name, word in words})


jax.tree_util.register_pytree_with_keys(Record, _flatten, _unflatten)


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
        return textwrap.shorten(str(value), _WIDTH, placeholder=" ...")
    shape = getattr(value, "shape", None)
    if shape is None and isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    if shape == () and not isinstance(value, jax.core.Tracer):
        value = np.asarray(value).item()
    elif shape is not None and hasattr(value, "dtype"):
        return f"{value.dtype} {tuple(shape)}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    words = repr(value)
    return words if len(words) <= _WIDTH and "\n" not in words else type(value).__name__


def _rows(self: Any) -> dict[str, Any]:
    """Return what ``print`` shows: names and values."""
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def _table(self: Any) -> str:
    return text_table([(name, brief(value)) for name, value in self.rows().items()], header=0)


def _line(self: Any) -> str:
    return f"{type(self).__name__}({', '.join(f'{name}={brief(value)}' for name, value in _rows(self).items())})"
