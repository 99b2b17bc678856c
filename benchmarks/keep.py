"""What the benchmarks share: profiles, claims, where results are kept, how figures and tables are written."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np
from matplotlib.ticker import LogFormatter

from ntk_inr import style
from ntk_inr.study.environment import environment
from ntk_inr.study.figures import save_figure
from ntk_inr.study.programs import free_programs_if_full
from ntk_inr.study.record import write_json
from ntk_inr.tasks.metrics import EXACT, EXACT_DB, counted_psnr

RESULTS = Path(__file__).parent / "results"
# What an interrupted run has computed; to be deleted after a change of what it computes.
INTERRUPTED = "interrupted.pickle"
# Most of the time of small sizes is compilation, of which these leave a third, as for the tests.
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
Profile = Literal["quick", "cpu", "gpu"]
Verdict = Literal["holds", "holds when", "does not hold", "undecided"]
T = TypeVar("T")


# A difference counts from this many standard errors on.
ERRORS = 2.0


class Measure(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ± {self.error:.1g}"


def mean(values: Any) -> Measure:
    """Return the mean over seeds."""
    return Measure(float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values))))


def up_to_exact(values: Any) -> np.ndarray:
    """Return PSNR of an image of 8 bits as it counts."""
    return counted_psnr(values, eight_bit=True)


def decibels_of(values: Sequence[float], *, error: bool = False, unit: str = "") -> str:
    """Return PSNR of an image of 8 bits over seeds: the mean and the standard deviation, or the standard error."""
    if min(values) > EXACT_DB:
        return EXACT
    own = up_to_exact(values)
    if np.isnan(own).any():
        return "–"
    if len(own) < 2:
        return f"{own.mean():.1f}{unit}"
    return f"{own.mean():.1f} ± {mean(own).error if error else np.std(own, ddof=1):.2g}{unit}"


def verdict(cases: Sequence[bool]) -> Verdict:
    """Return what follows for a claim that is true in some of these cases."""
    return "holds" if all(cases) else "holds when" if any(cases) else "does not hold"


def judged(better: Sequence[bool], worse: Sequence[bool]) -> Verdict:
    """Return what follows for a claim that is significantly true, or significantly false, in each of these cases."""
    return verdict(better) if any(better) or any(worse) else "undecided"


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something that the paper or the theory says, and what was measured.

    Attributes:
        statement: what is claimed, in a sentence, and by whom.
        verdict: what the measurement says to that.
        number: the figures that decide it, with their errors.
        why: the condition, or the explanation, in a sentence.
    """

    statement: str
    verdict: Verdict
    number: str
    why: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure and the finding that it shows, a sentence."""

    figure: Any
    finding: str


class Plain(LogFormatter):
    """Ticks as 0.6, not 6e-01."""

    def __call__(self, value: float, pos: int | None = None) -> str:
        """Return the label of a tick, empty where there would be too many."""
        return f"{value:g}" if super().__call__(value, pos) else ""


def arguments_of(doc: str | None, *, rows: bool = False, parts: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return a parser of what every benchmark takes, or one that measures rows or parts; ``doc`` is the module's."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute, nothing is kept")
    parser.add_argument("--profile", choices=["cpu", "gpu"], help="sizes; by default those of the device there is")
    if rows:
        parser.add_argument("--jobs", type=int, default=1, help="rows measured at once, each process on its own cores")
    if parts:
        parser.add_argument("parts", nargs="*", choices=[*parts, []], help="which parts; all by default")
    return parser


def parts_asked_for(arguments: argparse.Namespace, computes: Mapping[str, T]) -> dict[str, T]:
    """Return what computes the parts that were asked for; refuse one that this device does not have."""
    if elsewhere := sorted(set(arguments.parts) - set(computes)):
        raise SystemExit(f"{', '.join(elsewhere)}: not here ({jax.default_backend()}); there are {', '.join(computes)}")
    return {part: computes[part] for part in arguments.parts or computes}


def profile_of(arguments: argparse.Namespace, *, timed: bool = False) -> Profile:
    """Return the profile that was asked for, or that of the device; ``timed`` where programs are timed."""
    if getattr(arguments, "jobs", 1) > 1:
        # JAX, which has not begun yet, would take most of a GPU's memory for one process.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if arguments.quick:
        if not timed:
            os.environ.setdefault("XLA_FLAGS", QUICK_COMPILATION)
        return "quick"
    return arguments.profile or ("cpu" if jax.default_backend() == "cpu" else "gpu")


def chosen_profile(doc: str | None) -> Profile:
    """Read the command line of a benchmark that takes nothing else."""
    return profile_of(arguments_of(doc).parse_args())


def profile_and_jobs(doc: str | None) -> tuple[Profile, int]:
    """Read the command line of a benchmark that measures rows and takes nothing else."""
    arguments = arguments_of(doc, rows=True).parse_args()
    return profile_of(arguments), arguments.jobs


def this_device() -> str:
    """Return what a row says of where it was measured."""
    return f"{jax.local_devices()[0].device_kind}, JAX {jax.__version__}"


def counted(devices: Iterable[str]) -> str:
    """Return how many rows each device measured, most first."""
    return ", ".join(f"{count} on {device}" for device, count in collections.Counter(devices).most_common())


def results_folder(name: str, device: str | None = None) -> Path:
    """Return ``results/<name>/<device>``, made where it does not exist; the device is the one in use by default."""
    device = device or jax.local_devices()[0].device_kind
    folder = RESULTS / name / "".join(ch if ch.isalnum() else "_" for ch in device.lower())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def each(computes: Mapping[str, Callable[[], Any]], jobs: int) -> Iterator[tuple[str, Any]]:
    """Compute ``jobs`` of them at once; yield each with its key when it is done, and raise what failed at the end."""
    if jobs == 1:
        yield from ((key, _computed(compute)) for key, compute in computes.items())
        return
    context, cores = multiprocessing.get_context("spawn"), sorted(os.sched_getaffinity(0))
    # NumPy's BLAS counts the cores before a process takes its share; more threads than cores wait for each other.
    os.environ["OPENBLAS_NUM_THREADS"] = str(max(1, len(cores) // jobs))
    shares = context.Queue()
    for job in range(jobs):
        shares.put(cores[job::jobs] or cores)
    failed: list[BaseException] = []
    with concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=_take_share, initargs=(shares,)) as pool:
        try:
            started = {pool.submit(_computed, compute): key for key, compute in computes.items()}
            for done in concurrent.futures.as_completed(started):
                if (error := done.exception()) is None:
                    yield started[done], done.result()
                else:
                    print(f"{started[done]}: failed, {error!r}", flush=True)
                    failed.append(error)
        finally:
            pool.shutdown(cancel_futures=True)
    if failed:
        raise failed[0]


def _computed(compute: Callable[[], Any]) -> Any:
    free_programs_if_full()
    return compute()


def _take_share(shares: Any) -> None:
    """Stay on the cores of one job: XLA makes as many threads as it may use cores."""
    os.sched_setaffinity(0, shares.get())


def collect(
    name: str,
    profile: Profile,
    settings: Any,
    computes: Mapping[str, Callable[[], Any]],
    said: Callable[[str, Any], str],
    jobs: int = 1,
) -> dict[str, Any]:
    """Compute each row but those that an interrupted run with these settings has computed; return them in order.

    Args:
        name: the benchmark's.
        profile: with "quick" nothing is kept.
        settings: what the rows depend on.
        computes: by key; to be pickled where there are several jobs.
        said: what to print of a row.
        jobs: how many to compute at once.
    """
    path, known = results_folder(name) / INTERRUPTED if profile != "quick" else None, {}
    if path is not None and path.exists():
        kept_settings, found = pickle.loads(path.read_bytes())
        known = found if kept_settings == settings else {}
    for key in known:
        print(f"{key}: kept by an interrupted run ({path})", flush=True)
    for key, row in each({key: compute for key, compute in computes.items() if key not in known}, jobs):
        known[key] = row
        print(said(key, row), flush=True)
        if path is not None:
            path.with_suffix(".part").write_bytes(pickle.dumps((settings, known)))
            path.with_suffix(".part").replace(path)
    return {key: known[key] for key in computes}


def completed(path: Path, results: dict[str, Any], found: Mapping[str, Any], order: Iterable[str]) -> dict[str, Any]:
    """Return ``results`` with the parts found now and those that the file holds of the others, in order.

    A part that stays is of the versions and the day that it was measured with, which "environments" tells.
    """
    kept = json.loads(path.read_text()) if path.exists() else {}
    parts = {part: found[part] if part in found else kept[part] for part in order if part in found or part in kept}
    former = kept.get("environments", {})
    environments = {
        part: results["environment"] if part in found else former.get(part, kept["environment"]) for part in parts
    }
    return results | parts | {"environments": environments}


def publish_parts(
    name: str, *, settings: Any, found: Mapping[str, Any], order: Iterable[str], pictures: Mapping[str, str]
) -> dict[str, Any]:
    """Keep results.json of a benchmark that measures parts; return what it holds now.

    Args:
        name: the benchmark's.
        settings: sizes and the like.
        found: the parts that were measured now.
        order: all parts.
        pictures: findings by file name, without suffix.
    """
    folder = results_folder(name)
    path = folder / "results.json"
    results = {"schema": f"ntk_inr.{name} v1", "environment": environment(), "settings": settings}
    results["pictures"] = dict(pictures)
    results = completed(path, results, found, order)
    write_json(path, results)
    (folder / INTERRUPTED).unlink(missing_ok=True)
    print("wrote", folder)
    return results


def publish(
    name: str,
    profile: Profile,
    *,
    settings: Mapping[str, Any],
    measured: Mapping[str, Any],
    claims: Sequence[Claim],
    pictures: Mapping[str, Picture],
) -> None:
    """Print the claims; keep results.json and the pictures, unless the profile is "quick".

    Args:
        name: the benchmark's.
        profile: that it ran with.
        settings: sizes and seeds.
        measured: what was measured, as JSON holds it.
        claims: what follows.
        pictures: by file name, without suffix.
    """
    print_claims(claims)
    if profile == "quick":
        for picture in pictures.values():
            picture.figure.canvas.draw()
            style.pyplot().close(picture.figure)
        return
    folder = results_folder(name)
    content = {
        "schema": f"ntk_inr.{name} v1",
        "profile": profile,
        "environment": environment(),
        "settings": dict(settings),
        "measured": dict(measured),
        "claims": [dataclasses.asdict(claim) for claim in claims],
        "pictures": {file: picture.finding for file, picture in pictures.items()},
    }
    write_json(folder / "results.json", content)
    for file, picture in pictures.items():
        save_figure(picture.figure, folder / file)
    (folder / INTERRUPTED).unlink(missing_ok=True)
    print("wrote", folder)


def print_claims(claims: Iterable[Claim]) -> None:
    """Print each claim and its verdict."""
    for claim in claims:
        print(f"{claim.statement}\n    {claim.verdict}: {claim.number}. {claim.why}", flush=True)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]
