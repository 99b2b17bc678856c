"""Keeps the programs that XLA compiled for one command in the user's cache folder, for the commands after it.

JAX's own cache writes an entry in place, where other processes may read half of it, and never replaces one. So each
process has a folder of its own, with links to the entries that are kept; what it compiled is checked at its end, and
moved to them whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SWITCH = "NTK_INR_COMPILATION_CACHE"
_MOST_BYTES, _MOST_ENTRIES = 256 * 2**20, 2048
# After a day, in seconds, a folder of its own is taken to be of a process that was killed.
_STALE = 86400
_OFF = ("0", "off", "false", "no")
_ENTRY = "*-cache"


@contextlib.contextmanager
def programs_kept() -> Iterator[None]:
    """Let JAX take programs that were compiled before from the user's cache, and keep there what it compiles.

    For a process that is a command, before its first compilation: JAX's configuration is changed for good. Nothing is
    done where ``NTK_INR_COMPILATION_CACHE=0`` or JAX's ``JAX_ENABLE_COMPILATION_CACHE=0`` is set, or a cache of the
    user's choice, ``JAX_COMPILATION_CACHE_DIR``; nor where the folder can't be written or belongs to someone else.
    """
    kept, own = None, None
    if os.environ.get(SWITCH, "").strip().lower() not in _OFF:
        import jax  # here, since help and mistakes are printed without it

        config: Any = jax.config
        if config.jax_enable_compilation_cache and config.jax_compilation_cache_dir is None:
            kept = cache_folder() / f"jax-{jax.__version__}-{_machine()}"
            own = _own_folder(kept)
    if kept is None or own is None:
        yield
        return
    linked = set(os.listdir(own))
    _configure(own)
    try:
        yield
    finally:
        _keep([path for path in own.glob(_ENTRY) if path.name not in linked], kept)
        shutil.rmtree(own, ignore_errors=True)


def cache_folder() -> Path:
    """Return where the user's programs are kept, by the conventions of the system."""
    home = os.path.expanduser("~")
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.join(home, "AppData", "Local")
    elif sys.platform == "darwin":
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, "Library", "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    return Path(base) / "ntk-inr" / "programs"


def _machine() -> str:
    """Return a digest of what compiled code may depend on: the processor, its instruction sets and its cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [platform.machine(), platform.processor(), str(cores)]
    with contextlib.suppress(OSError):
        if sys.platform == "darwin":
            asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
            parts.append(subprocess.run(asked, capture_output=True, text=True, check=False).stdout)
        with open("/proc/cpuinfo") as file:
            for line in file:
                if not line.strip():  # the end of the first core's
                    break
                if line.startswith(("vendor", "model", "flags", "Features", "CPU", "isa")):
                    parts.append(line)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _own_folder(kept: Path) -> Path | None:
    """Return a new folder with links to what is kept, or None where there can be none."""
    own = None
    try:
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # What is kept is run as it is, so it must be the user's own.
        if hasattr(os, "getuid") and kept.parent.stat().st_uid != os.getuid():
            return None
        (kept / "in_use").mkdir(parents=True, exist_ok=True)
        _sweep(kept.parent)
        own = Path(tempfile.mkdtemp(dir=kept / "in_use"))
        for path in kept.glob(_ENTRY):
            with contextlib.suppress(FileNotFoundError):  # which another process has just removed
                os.link(path, own / path.name)
    except OSError:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)
        return None
    return own


def _sweep(root: Path) -> None:
    """Remove what killed processes left."""
    for folder in root.glob("*/in_use/*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < time.time() - _STALE:
                shutil.rmtree(folder, ignore_errors=True)


def _configure(own: Path) -> None:
    import jax

    jax.config.update("jax_compilation_cache_dir", str(own))
    # Further caches of XLA's would make the folder's name a part of each program's key.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # As where the disk is full; the program is compiled, and the command goes on.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")


def _keep(entries: list[Path], kept: Path) -> None:
    """Move the whole ones of ``entries`` to those that are kept, and remove the least lately used beyond the limits."""
    for path in entries:
        with contextlib.suppress(OSError):
            if _is_whole(path):
                path.replace(kept / path.name)
    if entries:
        _shrink(kept.parent)


def _is_whole(path: Path) -> bool:
    """Return whether an entry can be read back, and see to it that it is on the disk; a write may have been cut off."""
    with path.open("rb+") as file:
        content = file.read()
        os.fsync(file.fileno())
    try:
        decompressor = _decompressor(content)
        decompressor.decompress(content)
    except Exception:  # of several kinds, by what JAX compressed with
        return False
    return bool(decompressor.eof)


def _decompressor(content: bytes) -> Any:
    """Return a new decompressor of what JAX wrote, which is zstd where Python or a package has it."""
    if not content.startswith(b"\x28\xb5\x2f\xfd"):
        return zlib.decompressobj()
    try:
        from compression import zstd  # type: ignore[import-not-found]  # of Python 3.14
    except ImportError:
        import zstandard  # type: ignore[import-not-found]

        return zstandard.ZstdDecompressor().decompressobj()
    return zstd.ZstdDecompressor()


def _shrink(root: Path) -> None:
    """Remove the entries of all versions and machines that were used least lately, as far as the limits ask for."""
    entries = []
    for path in root.glob(f"*/{_ENTRY}"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            # Read once a day at least where the system keeps that time; else when it was written.
            entries.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    left = sum(size for _, size, _ in entries)
    for number, (_, size, path) in enumerate(sorted(entries)):
        if left <= _MOST_BYTES and len(entries) - number <= _MOST_ENTRIES:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        left -= size
