"""The command ``ntk-inr``: what a user wrote is read at once, and JAX is imported to carry it out."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from ntk_inr._version import __version__
from ntk_inr.arguments import Command
from ntk_inr.compilation_cache import SWITCH, programs_kept
from ntk_inr.messages import output, print_error


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    It is 0, 1 where what the command printed could not be written, 2 for what a user or the machine must mend (one line
    on stderr), or 130 after Ctrl-C. A reader of the output that stops reading changes nothing.

    Without ``arguments`` the process is the command, whose compiled programs are kept for the next one.
    """
    with output() as printed:
        if arguments is None:
            status = _run(sys.argv[1:], programs_kept())
        else:
            status = _run(list(arguments), contextlib.nullcontext())
        printed.flush()
        if printed.failure is None or isinstance(printed.failure, BrokenPipeError):
            return status
        print_error(f"could not print all ({printed.failure.strerror}); results in folders are whole.")
        return status or 1


def parse(arguments: Sequence[str]) -> Any:
    """Return the command that a user wrote, one of those of :mod:`ntk_inr.arguments`.

    Raises:
        SystemExit: it asks for help, or is none; what to know is printed.
    """
    return tyro.cli(
        Command,
        prog="ntk-inr",
        description="Which coordinate network will learn this signal, how fast, and why. --version tells which version "
        "this is, and of JAX. Compiled programs are kept in the user's cache folder, which "
        f"{SWITCH}=0 in the environment turns off.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _run(arguments: list[str], cache: contextlib.AbstractContextManager[None]) -> int:
    if arguments == ["--version"]:
        from importlib import metadata

        print(f"ntk-inr {__version__} with jax {metadata.version('jax')}")
        return 0
    try:
        command = parse(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    with cache:
        from ntk_inr import commands  # imports JAX, for which help and mistakes need not wait

        return commands.run(command)
