"""Entry point of the ``ntk-inr`` command and of ``python -m ntk_inr``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line, or say what to install for it."""
    try:
        from ntk_inr import cli
    except ImportError as error:
        print(f'ntk-inr: error: {error}; install it with: pip install "ntk-inr[report]"', file=sys.stderr)
        return 2
    return cli.run()


if __name__ == "__main__":
    sys.exit(main())
