"""Packages that only some functions need, imported when those run."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str = "report") -> Any:
    """Return the imported module, or say which extra of ``ntk-inr`` installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{module} is missing; install it with: pip install "ntk-inr[{extra}]"') from error
