"""What to cite: the BibTeX of the papers that docstrings name as sources."""

from __future__ import annotations

import functools
import inspect
import pkgutil
import re
from typing import Any

import flax.linen as nn

from ntk_inr import _checks
from ntk_inr.networks.catalogue import VARIANTS, parse, variant
from ntk_inr.networks.settings import parts_of
from ntk_inr.tasks.registry import TASKS

_PAPER = "2512.15169"
_NAMED = re.compile(r"(?:arXiv|doi|openreview)\s(10\.\S+?|\d{4}\.\d{4,5}|\w{10})(?=[.,;:)]*(?:\s|$))")
_FIELD = re.compile(r"(?:eprint|doi|url) = \{(?:https://openreview\.net/forum\?id=)?([^}]+)\}")
# Sections of the theory about the mechanisms that the paper studies.
_OF_THE_PAPER = re.compile(r"\bT[2-7]\b")


def cite(thing: Any) -> str:
    """Return the BibTeX entries of what a network, a part, a task or a method comes from.

    They are those of the papers that its docstring names, and for a network those of its parts, too. What sections T2
    to T7 of the theory are about comes from the paper that they extend.

    Args:
        thing: a name of :func:`variants` (settings may follow, "siren:omega=10") or a kind of task ("tomography"); a
            network, a part or a task; or a class or function of this package, such as ``ni.ntk``.

    Returns:
        The entries, in the order in which they are named, with an empty line between two.

    Raises:
        ValueError: a name that is unknown, or a thing whose source is no paper.

    Example:
        >>> import ntk_inr as ni
        >>> print(ni.cite("wire").splitlines()[1].strip())
        title = {{WIRE}: Wavelet Implicit Neural Representations},
        >>> [line for line in ni.cite(ni.ntk).splitlines() if line.startswith("@")]
        ['@inproceedings{jacot2018neural,', '@inproceedings{novak2022fast,']
    """
    keys: dict[str, None] = {}
    for part in _parts(thing):
        text = inspect.getdoc(part) or ""
        named = _NAMED.findall(text)
        keys |= dict.fromkeys([*named, _PAPER] if _OF_THE_PAPER.search(text) else named)
    entries = [_entries()[key] for key in keys]
    if not entries:
        name = thing if isinstance(thing, str) else getattr(thing, "__name__", type(thing).__name__)
        raise ValueError(f"{name} has no source in its documentation, so there is nothing to cite.")
    return "\n\n".join(entries)


@functools.cache
def _entries() -> dict[str, str]:
    """Return the entries by the identifiers that docstrings have."""
    text = (pkgutil.get_data("ntk_inr", "references.bib") or b"").decode()
    entries = text.strip().split("\n\n")
    return {identifier: entry for entry in entries for identifier in _FIELD.findall(entry)}


def _parts(thing: Any) -> list[Any]:
    """Return the classes and functions whose docstrings name the sources of a thing."""
    if isinstance(thing, str):
        name = parse(thing)[0]
        _checks.check_choice(name, [*VARIANTS, *TASKS], "variant or task")
        return [TASKS[name].build] if name in TASKS else _parts(variant(thing))
    if isinstance(thing, nn.Module):
        return [type(thing), *[type(part) for part in parts_of(thing).values()]]
    if inspect.isclass(thing) or (callable(thing) and hasattr(thing, "__name__")):
        return [thing]
    kind = TASKS.get(getattr(thing, "kind", ""))
    return [type(thing), *([kind.build] if kind else [])]
