"""The page, the table and the figures of a study, written beside its results."""

from __future__ import annotations

import base64
import csv
import dataclasses
import functools
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ntk_inr.study import figures
from ntk_inr.study.record import Study, write_json, write_text
from ntk_inr.study.summary import Summary, summarize
from ntk_inr.study.table import Cell


def write_report(
    study: Study,
    folder: str | Path,
    *,
    target_psnr: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Write ``report.html``, ``results.csv``, ``summary.json`` and ``figures/`` (PNG and SVG) for a study.

    Args:
        study: from ``compare`` or ``load_study``.
        folder: an existing folder, usually the one that holds its ``results.json``.
        target_psnr: as in :func:`summarize`.
        progress: called with (what, done, total).

    Returns:
        The path of ``report.html``, one file that needs no network.

    Raises:
        ImportError: matplotlib or jinja2 missing (``pip install "ntk-inr[report]"``).
        ValueError: the study has no finished variant.

    Example:
        >>> import tempfile, ntk_inr as ni
        >>> study = ni.compare(ni.image_task("camera", size=8), ["relu"], features=16, depth=1, steps=5, seeds=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ni.write_report(study, folder).name
        'report.html'
    """
    folder = Path(folder)
    template = _template()
    summary = summarize(study, target_psnr)
    write_csv(summary, folder / "results.csv")
    write_json(folder / "summary.json", dataclasses.asdict(summary))
    (folder / "figures").mkdir(exist_ok=True)
    pictures = {}
    makers: dict[str, Callable[[], Any]] = {
        "convergence": functools.partial(figures.convergence_figure, study, summary)
    }
    for name in summary.rows:
        makers[name] = functools.partial(figures.variant_figure, study, study[name], summary)
    for position, (name, make) in enumerate(makers.items()):
        if progress is not None:
            progress("figures", position, len(makers))
        pictures[name] = _save_figure(make(), folder / "figures" / name.replace("/", "_"))
    if progress is not None:
        progress("figures", len(makers), len(makers))
    page = template.render(study=study, summary=summary, pictures=pictures)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def write_csv(summary: Summary, path: Path) -> None:
    """Write the table as measured: a row a variant, best first, then baselines; means and spreads of each figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = [column.key for column in summary.columns]
    writer.writerow(["variant", "kind", *[name for key in keys for name in (key, f"{key}_spread")]])
    unknown = Cell(math.nan, math.nan, "")
    for kind, rows in (("network", summary.rows), ("baseline", summary.baselines)):
        for name, row in rows.items():
            cells = [row.get(key, unknown) for key in keys]
            writer.writerow([name, kind, *[number for each in cells for number in (each.mean, each.spread)]])
    write_text(path, text.getvalue())


def _template() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise ImportError('jinja2 is missing; install it with: pip install "ntk-inr[report]"') from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ntk_inr.study", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.j2")


def _save_figure(figure: Any, stem: Path) -> str:
    """Save as PNG and SVG; return the PNG as a data URI."""
    figures.save_figure(figure, stem)
    return "data:image/png;base64," + base64.b64encode(stem.with_name(f"{stem.name}.png").read_bytes()).decode()
