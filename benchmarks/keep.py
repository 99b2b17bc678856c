"""Where benchmarks keep what they measured, and how figures are written."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from ntk_inr import style
from ntk_inr.study.record import write_atomically

RESULTS = Path(__file__).parent / "results"


def results_folder(name: str) -> Path:
    """Return ``results/<name>/<device>``, made where it does not exist."""
    device = jax.local_devices()[0].device_kind
    folder = RESULTS / name / "".join(ch if ch.isalnum() else "_" for ch in device.lower())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_figure(figure: Any, stem: Path) -> None:
    """Write a figure as PNG and SVG, and close it."""
    for suffix in ("png", "svg"):
        write_atomically(stem.with_suffix(f".{suffix}"), functools.partial(figure.savefig, format=suffix))
    style.pyplot().close(figure)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]
