"""REPORT.md: each claim with its verdict, the number and the command, from the results that are kept."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

from benchmarks.keep import RESULTS, Claim, markdown
from ntk_inr.study.record import write_text

REPORT = Path(__file__).parent / "REPORT.md"
BENCHMARKS = {
    "conditioning": "Conditioning of the kernel",
    "closed_forms": "Variance, predicted and measured: two layers",
    "infinite_width": "Variance, predicted and measured: from finite width to infinite",
    "convergence": "Does a lower variance mean faster convergence?",
    "stability": "Stability",
    "sparsity": "Sparsity",
    "during_training": "The kernel during training",
    "where_theory_fails": "Where the theory fails",
    "tune_validation": "Choosing settings before training",
    "quality": "Quality of reconstruction",
    "kernel_speed": "Speed and memory of the kernel engine",
    "training_speed": "Speed of training",
    "real_sizes": "Signals at their real size",
    "import_time": "Time of the import",
}


def write() -> Path:
    """Write REPORT.md; return its path."""
    found = {name: results for name in BENCHMARKS if (results := _kept(name))}
    said = [
        "# What was measured",
        "",
        "Each claim of *Understanding NTK Variance in Implicit Neural Representations* (arXiv 2512.15169), of the "
        "theory behind this package, and of the package itself, with what its benchmark found. Written by `python -m "
        "benchmarks.run --report` from the results beside it; verdicts are computed from the numbers.",
        "",
        "A claim *holds* where it is true in every case that was measured, *holds when* it is true in some: its "
        "section says in which. It *does not hold* where it is true in none, and is *undecided* where the differences "
        'are within their errors. ± is the standard error of a mean; in "Quality of reconstruction" it is the standard '
        "deviation over seeds.",
        "",
        *markdown(
            ["claim", "verdict", "number", "command"],
            [
                [_cell(claim.statement), f"**{claim.verdict}**", _cell(claim.number), f"`python -m benchmarks.{name}`"]
                for name, results in found.items()
                for claim in _claims(name, results)
            ],
        ),
    ]
    missing = [name for name in BENCHMARKS if name not in found]
    if missing:
        said += ["", f"Not measured yet: {', '.join(missing)}."]
    for name, results in found.items():
        said += _section(name, results)
    write_text(REPORT, "\n".join(said) + "\n")
    return REPORT


def _kept(name: str) -> dict[str, Any]:
    """Return the results of a benchmark by device, ``{device: content}``."""
    file = getattr(_module(name), "RESULTS_FILE", "results.json")
    paths = sorted((RESULTS / name).glob(f"*/{file}"))
    return {path.parent.name: json.loads(path.read_text()) | {"path": path} for path in paths}


def _module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{name}")


def _claims(name: str, results: dict[str, Any]) -> list[Claim]:
    """Return the claims of a benchmark, kept or by its own ``claims``; of several devices each says which."""
    said = []
    for device, content in results.items():
        own = [Claim(**claim) for claim in content["claims"]] if "claims" in content else _module(name).claims(content)
        where = f" ({device})" if len(results) > 1 else ""
        said += [dataclasses.replace(claim, statement=claim.statement + where) for claim in own]
    return said


def _section(name: str, results: dict[str, Any]) -> list[str]:
    module = _module(name)
    question = (module.__doc__ or "").splitlines()[0]
    said = ["", f"## {BENCHMARKS[name]}", "", f"*{question}* `python -m benchmarks.{name}`"]
    for device, content in results.items():
        versions, path = content["environment"], content["path"].relative_to(REPORT.parent)
        said += [
            "",
            f"On {device} ({versions['cores']} cores{_profile(content)}), JAX {versions['jax']}, "
            f"{versions['created'][:10]}; numbers in "
            f"[{path.name}]({path}).",
        ]
        if hasattr(module, "measured_on"):
            said += ["", module.measured_on(content)]
        for file, finding in (content.get("pictures") or getattr(module, "PICTURES", {})).items():
            if (picture := content["path"].with_name(f"{file}.png")).exists():
                said += ["", f"![{finding}]({picture.relative_to(REPORT.parent)})", "", finding]
    for claim in _claims(name, results):
        said += ["", f"- **{claim.statement}: {claim.verdict}.** {_sentence(claim.number)} {claim.why}"]
    return said


def _profile(content: dict[str, Any]) -> str:
    return f", sizes of the {content['profile']} profile" if "profile" in content else ""


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
