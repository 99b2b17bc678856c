"""Compiled programs take memory maps, of which a process has only so many."""

from __future__ import annotations

from pathlib import Path

import jax


def free_programs_if_full(share: float = 0.85) -> None:
    """Let go of all compiled programs once a process holds this share of the memory maps that Linux grants.

    XLA takes several maps for each program, and crashes where there are none left, after hundreds of networks. To
    count them takes milliseconds; what is needed again is compiled again.
    """
    try:
        granted = int(Path("/proc/sys/vm/max_map_count").read_text())
        with open("/proc/self/maps") as maps:
            held = sum(1 for _ in maps)
    except OSError:  # not Linux
        return
    if held > share * granted:
        jax.clear_caches()
