"""What memory the default device has left, and how a kernel is cut to fit in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import jax
import numpy as np

from ntk_inr.kernels.structured import Trace

# The side of a tile: small enough for a CPU's cache, and larger where many rows make up for another compilation; large
# enough for an accelerator's cores.
_SIDE, _SIDE_OF_MANY, _MANY_ROWS = 256, 512, 2048
_SIDE_ELSEWHERE = 4096
# Tiles that are computed ahead while one is written; none where the factors of a tile's rows are as large as this.
AHEAD, LARGE_BYTES = 4, 16 * 2**20
# What a kernel takes of the host's memory beside itself where no limit is given, if tiles can be that small.
_BESIDE_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a kernel is cut: tiles of ``block`` by ``block``, the factors of ``panel`` blocks of rows kept.

    ``ahead`` tiles are computed while one is written; ``bytes`` is what all takes, the kernel included.
    """

    block: int
    panel: int
    bytes: int
    ahead: int = AHEAD


def available() -> int:
    """Return the bytes that the default device has left (for the CPU, what the host has)."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return available_on_host()


def available_on_host(root: Path = Path("/")) -> int:
    """Return the bytes that this process can still take: what the system has, and its control groups allow.

    ``root`` is where the file systems of Linux, /proc and /sys, are found.
    """
    import psutil  # which accelerators seldom need

    left = [_left_in(group) for group in _control_groups(root)]
    return int(min([psutil.virtual_memory().available, *(each for each in left if each is not None)]))


def _control_groups(root: Path) -> Iterator[Path]:
    """Yield the folders of the memory control groups that limit this process: its own, and those around them."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:  # not Linux
        return
    own = {controllers: path for _, controllers, path in (line.split(":", 2) for line in groups)}
    own = {name: path for controllers, path in own.items() for name in controllers.split(",")}
    for mount in mounts:
        shown, point = mount.split()[3:5]
        kind, _, options = mount.partition(" - ")[2].split(" ", 2)
        # Version 2 has one tree, without a name; version 1 one for each resource.
        name = {"cgroup2": "", "cgroup": "memory"}.get(kind)
        if name not in own or (name and name not in options.split(",")):
            continue
        path = PurePosixPath(own[name])
        inner = path.relative_to(shown if path.is_relative_to(shown) else "/")
        top = root / point.lstrip("/")
        yield top
        if ".." not in inner.parts:  # else the group is outside of what this container sees
            yield from (top / part for part in [inner, *inner.parents][:-1])


def _left_in(group: Path) -> int | None:
    """Return the bytes that a control group leaves, None where it has no limit or isn't there."""
    for limit, usage, reclaimable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, used = ((group / name).read_text().strip() for name in (limit, usage))
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if most == "max":
            return None
        # The kernel gives up cached files before it refuses memory.
        return max(0, int(most) - int(used) + int(stat.get(reclaimable, 0)))
    return None


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


def side(longest: int) -> int:
    """Return the largest side of a tile, by the device and the kernel's longer side."""
    if jax.default_backend() != "cpu":
        return _SIDE_ELSEWHERE
    return _SIDE_OF_MANY if longest > _MANY_ROWS else _SIDE


def _rounded(rows: int) -> int:
    """Return the next of a few sizes, four an octave: kernels of many sizes then share their compiled programs."""
    step = 1 << max(0, (rows - 1).bit_length() - 3)
    return math.ceil(rows / step) * step


def cut(trace: Trace, n1: int, n2: int, outputs: str, *, stored: int, limit: int | None, block: int | None) -> Cut:
    """Choose tiles and panels that fit in ``limit`` bytes beside ``stored`` bytes, or say what the least is."""
    itemsize = np.dtype(trace.dtype).itemsize
    row_bytes = trace.floats * itemsize
    tile_bytes = ((AHEAD + 3) * entries(trace.c, outputs) + AHEAD * trace.scratch) * itemsize
    most = available() if limit is None else limit
    if limit is None:
        limit = min(most, stored + _BESIDE_BYTES) if jax.default_backend() == "cpu" else most

    def fixed(rows: int) -> int:
        # The factors of a tile's rows and of its columns, a copy that XLA makes of these, and what is alive while
        # some of them are computed.
        alive = min(rows, trace.at_once) * trace.alive * itemsize
        return stored + 3 * rows * row_bytes + alive + rows * rows * tile_bytes

    longest = max(n1, n2)
    rows = block or side(longest)
    rows = _rounded(math.ceil(longest / math.ceil(longest / rows))) if block is None else min(longest, rows)
    while fixed(rows) > limit and rows > 1 and block is None:
        rows = math.ceil(rows / 2)
    if fixed(rows) > most:
        raise ValueError(
            f"the kernel needs at least {describe(fixed(rows))} with blocks of {rows} rows, of which "
            f"{describe(stored)} for the kernel itself; memory_limit leaves {describe(most)}. Raise memory_limit, "
            "pass out=np.memmap(...) to keep the kernel on disk, or use ni.streamed_moments, ni.sampled_moments or "
            "ni.NTKOperator, which never store it."
        )
    panel = 1 + max(0, limit - fixed(rows)) // (rows * row_bytes)
    panel = min(panel, math.ceil(n1 / rows))
    ahead = AHEAD if rows * row_bytes < LARGE_BYTES else 0
    return Cut(rows, panel, fixed(rows) + (panel - 1) * rows * row_bytes, ahead)
