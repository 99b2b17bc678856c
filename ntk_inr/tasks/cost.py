"""What a reconstruction takes of memory and disk, held against what there is before any work is done."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from ntk_inr._optional import require
from ntk_inr.kernels.memory import available_on_host, describe


@dataclasses.dataclass(frozen=True)
class Cost:
    """What is needed from the end of a training to the last file.

    Attributes:
        memory: bytes of the host's memory at most, beside what is held already.
        disk: bytes of the file that is written.
        modules: packages that are imported, with the extra of ``ntk-inr`` that installs each.
    """

    memory: int = 0
    disk: int = 0
    modules: tuple[tuple[str, str], ...] = ()


def check_cost(cost: Cost, out: str | Path | None, *, what: str, smaller: str) -> None:
    """Raise where a cost is above what the machine has, or a package is missing; the error names what is smaller."""
    for module, extra in cost.modules:
        require(module, extra)
    memory = available_on_host()
    if cost.memory > memory:
        raise ValueError(
            f"{what} takes up to {describe(cost.memory)} of memory and there are {describe(memory)}; take {smaller}."
        )
    if out is None or not cost.disk:
        return
    folder = Path(out).absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if cost.disk > free:
        raise ValueError(
            f"{what} takes up to {describe(cost.disk)} of disk and {str(folder)!r} has {describe(free)} left; free "
            f"some, write elsewhere, or take {smaller}."
        )
