"""Read files, or say clearly what is wrong with them; write files, and overwrite none unasked."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_inr import _checks


def bundled_name(source: Any, bundled: Iterable[str]) -> str | None:
    """Return ``source`` where it names something bundled and no file (a folder may) has that name; else None."""
    name = os.fsdecode(source) if isinstance(source, str | bytes | os.PathLike) else ""
    return name if name in bundled and (Path(name).is_dir() or not Path(name).exists()) else None


def existing_file(source: str | Path, what: str, bundled: Sequence[str] = ()) -> Path:
    """Return the path of a file; raise where it does not exist, is a folder, or is empty."""
    if not isinstance(source, str | bytes | os.PathLike):
        raise TypeError(f"the {what} is {type(source).__name__}; expected the path of a file.")
    path = Path(os.fsdecode(source))
    if not path.exists():
        known = f" and there is no bundled {what} of that name ({', '.join(bundled)})" if not path.suffix else ""
        raise FileNotFoundError(f"no file {str(path)!r}{known if bundled else ''}.")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; expected {_article(what)} file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{str(path)!r} is empty (0 bytes); expected {_article(what)} file.")
    return path


@contextlib.contextmanager
def reading(path: str | Path, what: str, hint: str = "") -> Iterator[None]:
    """Turn what a library raises over a damaged or unusual file, which may be anything, into one clear error."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{str(path)!r} can't be read as {what} ({type(error).__name__}: {error}).{hint}") from error


def load_npy(path: Path, *, memory_map: bool = False) -> np.ndarray:
    """Return the array of an ``.npy`` file, memory-mapped if asked for, or say why it can't be read."""
    with reading(path, "a NumPy array"):
        array = np.load(path, mmap_mode="r" if memory_map else None, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{str(path)!r} is an archive of arrays; save the one that you want with np.save.")
    return array


def finite_floats(array: np.ndarray, name: str) -> np.ndarray:
    """Return an array in float64; raise where it holds no real numbers, or none that are finite."""
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating) or array.dtype == bool):
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers or floating point values.")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, so it is empty.")
    _checks.check_finite(array, name)
    return array.astype(np.float64)


def check_new(path: str | Path, suffixes: Sequence[str], *, overwrite: bool) -> Path:
    """Return the path of a file to be written; refuse a suffix that is not known, and what exists unless asked for."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"can't save as {path.name!r}; expected a name that ends in {', '.join(suffixes)}.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists; pass overwrite=True to replace it, or choose another name.")
    return path


@contextlib.contextmanager
def new_file(path: str | Path, suffixes: Sequence[str], *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; the file written there is moved to ``path`` once it is whole."""
    path = check_new(path, suffixes, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as folder:
        written = Path(folder) / path.name
        yield written
        os.replace(written, path)


def _article(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"
