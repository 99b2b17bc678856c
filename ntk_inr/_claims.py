"""One writer at a time in a folder of results."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

CLAIM = ".ntk_inr.lock"
"""Name of the file that says in a folder who writes to it."""
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep all others, threads of this process too, from writing to an existing folder.

    The claim is a lock of the operating system on a file in the folder. It ends with its process, however that ends,
    so none is left behind by ``kill -9``; and file systems that hosts share keep it for all of them.

    Raises:
        FileExistsError: someone else is writing there.
    """
    lock = _lock(folder)
    try:
        yield
    finally:
        if lock is not None:
            (folder / CLAIM).unlink(missing_ok=True)  # while it is held, so that it can't be another's
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Return the open file that holds the claim, None where the system has no such locks."""
    if sys.platform == "win32":
        return None
    path = folder / CLAIM
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, lock):
                os.truncate(lock, 0)
                os.write(lock, f"process {os.getpid()} on {platform.node()}".encode())
                return lock
            os.close(lock)  # the last holder has deleted it in between
        except BlockingIOError as error:
            holder = os.read(lock, 200).decode(errors="replace") or "another process"
            os.close(lock)
            raise FileExistsError(
                f"{str(folder)!r} is being written to by {holder}; wait until that has ended, or choose another folder."
            ) from error
        except OSError as error:
            os.close(lock)
            if error.errno not in _UNSUPPORTED:
                raise
            path.unlink(missing_ok=True)
            warnings.warn(
                f"the file system of {str(folder)!r} has no locks ({error.strerror}), so another command that writes "
                "there at the same time would not be noticed.",
                stacklevel=4,
            )
            return None


def _is_at(path: Path, opened: int) -> bool:
    """Return whether an open file is the one at ``path``."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(opened))
    return False
