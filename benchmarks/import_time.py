"""What does importing all names of ntk_inr add to JAX, Flax and optax, and how soon does the command answer?

    python -m benchmarks.import_time            # some 20 fresh processes, about a minute
    python -m benchmarks.import_time --quick    # three, nothing kept

Each process imports JAX, flax.linen and optax, then every name of ntk_inr, from cached bytecode; ntk_inr alone, before
them, and the command's help take whole processes of their own. Writes
benchmarks/results/import_time/<device>/results.json. On a machine with other work the least time is the one to trust.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.keep import Claim, Profile, chosen_profile, publish

LIMIT, HELP = 0.3, 0.7
ELSEWHERE = ["matplotlib", "neural_tangents", "flax.nnx", "orbax", "skimage"]
PROCESSES: dict[Profile, int] = {"quick": 3, "cpu": 20, "gpu": 20}

PROGRAM = f"""
import json, sys, time
import ntk_inr
alone = sorted({{"jax", "flax", "numpy"}} & set(sys.modules))
start = time.perf_counter()
import jax, flax.linen, optax
base, before = time.perf_counter(), set(sys.modules)
for name in ntk_inr.__all__:
    getattr(ntk_inr, name)
end = time.perf_counter()
added = set(sys.modules) - before
print(json.dumps({{
    "base": base - start, "added": end - base, "modules": len(added),
    "unwanted": sorted(added & set({ELSEWHERE})), "alone": alone,
}}))
"""


def measure(processes: int) -> list[dict[str, Any]]:
    """Return what each process tells, after one that writes the bytecode."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environ["PYTHONPYCACHEPREFIX"] = folder

        def run(*arguments: str) -> str:
            return subprocess.run([sys.executable, *arguments], env=environ, check=True, capture_output=True).stdout

        rows = []
        for _ in range(1 + processes):
            row = json.loads(run("-c", PROGRAM))
            start = time.perf_counter()
            run("-m", "ntk_inr", "compare", "--help")
            rows.append(row | {"help": time.perf_counter() - start})
        return rows[1:]


def judge(rows: list[dict[str, Any]]) -> list[Claim]:
    """Return whether the import is quick, and brings nothing that is not asked for."""
    added, base, help_ = ([row[key] for row in rows] for key in ("added", "base", "help"))
    alone = sorted({name for row in rows for name in row["alone"]})
    unwanted = sorted({name for row in rows for name in row["unwanted"]})
    return [
        Claim(
            f"Importing all names of ntk_inr adds under {LIMIT:g} s to JAX, flax.linen and optax",
            "holds" if statistics.median(added) < LIMIT else "holds when" if min(added) < LIMIT else "does not hold",
            f"{statistics.median(added):.2f} s in the median of {len(rows)} processes, {min(added):.2f} s at least; "
            f"the others {statistics.median(base):.2f} s, at least {min(base):.2f} s",
            "The least is that of a process which nothing disturbed.",
        ),
        Claim(
            f"ntk-inr compare --help takes under {HELP:g} s, the whole process",
            "holds" if statistics.median(help_) < HELP else "holds when" if min(help_) < HELP else "does not hold",
            f"{statistics.median(help_):.2f} s in the median of {len(rows)} processes, {min(help_):.2f} s at least",
            "The least is that of a process which nothing disturbed.",
        ),
        Claim(
            "import ntk_inr alone imports none of flax, jax, numpy",
            "does not hold" if alone else "holds",
            f"{len(alone)} of them",
            "They are imported when a name is asked for.",
        ),
        Claim(
            f"It imports none of {', '.join(ELSEWHERE)}",
            "does not hold" if unwanted else "holds",
            f"{rows[0]['modules']} modules, of these {len(unwanted)}",
            f"Imported: {', '.join(unwanted)}." if unwanted else "They are imported where they are used.",
        ),
    ]


def main() -> None:
    """Measure, judge and keep."""
    profile = chosen_profile(__doc__)
    rows = measure(PROCESSES[profile])
    settings = {"processes": PROCESSES[profile]}
    publish("import_time", profile, settings=settings, measured={"rows": rows}, claims=judge(rows), pictures={})


if __name__ == "__main__":
    main()
