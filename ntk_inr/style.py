"""The one figure style of reports, benchmarks and notebooks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

# Okabe and Ito's palette keeps apart under colour blindness; black carries the measured curve.
MEASURED, PREDICTED, FAST, NEUTRAL = "#000000", "#D55E00", "#0072B2", "#777777"
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
# For curves without markers, so that those which coincide or are printed in grey stay apart.
DASHES: list[Any] = ["-", "--", (0, (1, 1.5)), "-.", (0, (6, 1.5, 1, 1.5, 1, 1.5))]
SEQUENTIAL, ERROR = "cividis", "magma"


def pyplot() -> Any:
    """Return ``matplotlib.pyplot``, or say how to install it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('matplotlib is missing; install it with: pip install "ntk-inr[report]"') from error
    return plt


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Apply the style to figures made inside, and leave matplotlib's settings as they were."""
    settings = {
        "figure.constrained_layout.use": True,
        "figure.dpi": 110,
        "savefig.dpi": 150,
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.6,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "svg.hashsalt": "ntk_inr",
    }
    with pyplot().rc_context(settings):
        yield
