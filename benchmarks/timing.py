"""What every benchmark shares: interleaved timing with compile time apart, peak memory."""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import psutil


def compare(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Time functions by turns in this process; return the median and the first call's extra seconds of each.

    Turns, because a machine that slows down for a while then slows all of them.
    """
    first, times = {}, {name: [] for name in functions}
    for name, function in functions.items():
        first[name] = _seconds(function)
        _seconds(function)
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(_seconds(function))
    return {
        name: {
            "median_s": statistics.median(found),
            "least_s": min(found),
            "most_s": max(found),
            "compile_s": max(0.0, first[name] - statistics.median(found)),
        }
        for name, found in times.items()
    }


def _seconds(function: Callable[[], Any]) -> float:
    gc.collect()
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    seconds = time.perf_counter() - start
    del result  # giving its memory back is not part of the work
    return seconds


def peak_bytes() -> int:
    """Return the most memory that this process has held; ``ru_maxrss`` would count the parent's before exec."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    return psutil.Process().memory_info().rss


def in_own_process(module: str, *arguments: str) -> Any:
    """Run ``python -m module arguments`` and return the JSON of its last line; peak memory is per process."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])
