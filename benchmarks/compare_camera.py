"""Six variants on the camera image: does a lower cv of the kernel mean faster convergence?

    python -m benchmarks.compare_camera            # both sizes below, about 20 minutes on 2 cores
    python -m benchmarks.compare_camera --quick    # a small image, under a minute, results not kept

Writes benchmarks/results/compare_camera/<size>/: results.json, summary.json, results.csv, figures.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ntk_inr as ni

VARIANTS = ["relu", "pe", "pe+sphere", "pe+hadamard", "pe+sphere+hadamard", "siren"]
IMAGE, PIXELS = "camera", 64
SIZES: dict[str, dict[str, Any]] = {
    "width128_depth3": {"features": 128, "depth": 3, "steps": 300, "seeds": 3},
    "width256_depth4": {"features": 256, "depth": 4, "steps": 500, "seeds": 3},
}
QUICK = {"features": 32, "depth": 2, "steps": 50, "seeds": 2}
RESULTS = Path(__file__).parent / "results" / "compare_camera"
KEPT = ["results.json", "summary.json", "results.csv", "figures/convergence.png", "figures/convergence.svg"]


def main() -> None:
    """Run, print the conclusion, and keep what a reader wants to see."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    for name, settings in {"quick": QUICK}.items() if quick else SIZES.items():
        task = ni.image_task(IMAGE, size=16 if quick else PIXELS)
        with tempfile.TemporaryDirectory() as scratch:
            study = ni.compare(task, VARIANTS, **settings, recipe="same", out=scratch)  # the theory's figures
            ni.write_report(study, scratch)
            if not quick:
                (RESULTS / name / "figures").mkdir(parents=True, exist_ok=True)
                for file in KEPT:
                    shutil.copyfile(Path(scratch) / file, RESULTS / name / file)
        print(name, *ni.summarize(study).conclusion, sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
