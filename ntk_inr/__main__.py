"""Entry point of the ``ntk-inr`` command and of ``python -m ntk_inr``."""

from __future__ import annotations

import contextlib
import os
import sys


def main() -> int:
    """Run the command line, or say what to install for it."""
    try:
        try:
            from ntk_inr import cli
        except ImportError as error:
            print(f'ntk-inr: error: {error}; install it with: pip install "ntk-inr[report]"', file=sys.stderr)
            return 2
        status = cli.run()
    except KeyboardInterrupt:  # before a command began
        status = 130
    if status == 130:
        # A thread of XLA's may be compiling still, and would crash when the interpreter frees the devices.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError):  # None, or a reader that has left
                stream.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    sys.exit(main())
