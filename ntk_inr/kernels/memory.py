"""What memory the default device has left, and how a kernel is cut to fit in it."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np

from ntk_inr.kernels.structured import Trace

# The side of a tile: small enough for a CPU's cache, large enough for an accelerator's cores.
_SIDE = {"cpu": 512}
_SIDE_ELSEWHERE = 4096
# Tiles that are computed ahead while one is written.
AHEAD = 4


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a kernel is cut: tiles of ``block`` by ``block``, the factors of ``panel`` blocks of rows kept."""

    block: int
    panel: int
    bytes: int


def available() -> int:
    """Return the bytes that the default device has left (for the CPU, what the system calls available)."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return available_on_host()


def available_on_host() -> int:
    """Return the bytes that the system calls available."""
    import psutil  # which accelerators seldom need

    return int(psutil.virtual_memory().available)


def describe(size: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def entries(c: int, outputs: str) -> int:
    """Return the numbers that the kernel has for a pair of examples."""
    return {"trace": 1, "diagonal": c, "full": c * c}[outputs]


def cut(trace: Trace, n1: int, n2: int, outputs: str, *, stored: int, limit: int | None, block: int | None) -> Cut:
    """Choose tiles and panels that fit in ``limit`` bytes beside ``stored`` bytes, or say what the least is."""
    itemsize = np.dtype(trace.dtype).itemsize
    # A chunk's factors stand beside the intermediate values they come from.
    chunk_bytes = 2 * trace.floats * itemsize
    tile_bytes = (AHEAD + 3) * entries(trace.c, outputs) * itemsize
    limit = available() if limit is None else limit

    def fixed(rows: int) -> int:
        return stored + 2 * rows * chunk_bytes + rows * rows * tile_bytes

    longest = max(n1, n2)
    rows = block or _SIDE.get(jax.default_backend(), _SIDE_ELSEWHERE)
    rows = min(longest, math.ceil(longest / math.ceil(longest / rows))) if block is None else min(longest, rows)
    while fixed(rows) > limit and rows > 1 and block is None:
        rows = math.ceil(rows / 2)
    if fixed(rows) > limit:
        raise ValueError(
            f"the kernel needs at least {describe(fixed(rows))} with blocks of {rows} rows, of which "
            f"{describe(stored)} for the kernel itself; memory_limit leaves {describe(limit)}. Raise memory_limit, "
            "pass out=np.memmap(...) to keep the kernel on disk, or use ni.streamed_moments, ni.sampled_moments or "
            "ni.NTKOperator, which never store it."
        )
    panel = 1 + max(0, limit - fixed(rows)) // (rows * chunk_bytes)
    panel = min(panel, math.ceil(n1 / rows))
    return Cut(rows, panel, fixed(rows) + (panel - 1) * rows * chunk_bytes)
