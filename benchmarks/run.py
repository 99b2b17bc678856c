"""Runs the benchmarks, one after the other, and writes what they found to REPORT.md.

    python -m benchmarks.run --all --profile cpu     # everything, hours; what is kept already is measured again
    python -m benchmarks.run --all --jobs 8          # the same on a GPU or many cores, eight rows at once where it can
    python -m benchmarks.run --all --quick           # small sizes of everything, under 15 minutes, nothing kept
    python -m benchmarks.run conditioning sparsity   # these alone
    python -m benchmarks.run --report                # REPORT.md from the results that are kept

Each runs in a process of its own, so that none inherits another's memory or compilations.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks import report
from benchmarks.keep import arguments_of

# Those that measure row by row, and take --jobs.
BY_ROWS = {"convergence", "during_training", "quality", "stability", "tune_validation"}


def main() -> int:
    """Run what was asked for; return 1 where something failed."""
    parser = arguments_of(__doc__, rows=True)
    parser.add_argument("names", nargs="*", choices=[*report.BENCHMARKS, []], help="which; see --all")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--report", action="store_true", help="write REPORT.md and run nothing")
    arguments = parser.parse_args()
    names = list(report.BENCHMARKS) if arguments.all else arguments.names
    if not names and not arguments.report:
        parser.error("name the benchmarks, or pass --all or --report")
    options = ["--quick"] * arguments.quick + (["--profile", arguments.profile] if arguments.profile else [])
    failed, began = [], time.perf_counter()
    for name in names:
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        jobs = [f"--jobs={arguments.jobs}"] * (name in BY_ROWS)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options, *jobs], check=False)
        print(
            f"== {name}: {'failed' if done.returncode else 'done'} in {time.perf_counter() - start:.0f} s", flush=True
        )
        if done.returncode:
            failed.append(name)
    if names:
        print(f"{len(names) - len(failed)} of {len(names)} in {time.perf_counter() - began:.0f} s")
    if not arguments.quick:
        print("wrote", report.write())
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
