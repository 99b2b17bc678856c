"""How the command says what is wrong, and how nothing that it prints can stop it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from ntk_inr._text import printable


class Output:
    """A stream to print to that never fails, so that no result is lost to it.

    What its encoding lacks becomes a question mark. After an error, as of a full disk or a reader that has left, the
    rest is dropped.

    Attributes:
        failure: that error.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream: Any = stream or io.StringIO()  # None: closed before Python began
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write ``text``, or drop it."""
        encoding = self.encoding or "utf-8"
        self._try(lambda: self._stream.write(text.encode(encoding, "replace").decode(encoding)))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, or drop it."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], Any]) -> None:
        if self.failure is not None:
            return
        try:
            action()
        except OSError as error:
            self.failure = error
            with contextlib.suppress(OSError, ValueError):  # where it is no file of the system
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())  # Python flushes what is buffered once more when it ends
                os.close(nowhere)


@contextlib.contextmanager
def output() -> Iterator[Output]:
    """Let everything inside print to streams that never fail; what is yielded is that for stdout."""
    printed: Any = Output(sys.stdout)
    errors: Any = Output(sys.stderr)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        yield printed


@contextlib.contextmanager
def log_in_lines(name: str) -> Iterator[None]:
    """Let the logger ``name`` say inside what went wrong without a traceback."""

    def without_traceback(record: logging.LogRecord) -> bool:
        if record.exc_info:
            record.msg, record.args = f"{record.getMessage()}: {record.exc_info[1]}", ()
            record.exc_info = record.exc_text = None
        return True

    logger = logging.getLogger(name)
    logger.addFilter(without_traceback)
    try:
        yield
    finally:
        logger.removeFilter(without_traceback)


def print_error(message: str, what: str = "error:") -> None:
    """Print one line to stderr."""
    from rich.console import Console  # here, and below, since help is printed without it

    style = "bold red" if what == "error:" else "bold"
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[{style}]ntk-inr: {what}[/] {shown(' '.join(message.splitlines()))}")


def shown(text: Any) -> str:
    """Return text that came from outside, such as a path, as what a console prints as it is."""
    from rich.markup import escape

    return escape(printable(str(text)))


def in_options(message: str, options: Mapping[str, str]) -> str:
    """Return a message of the library with a command's options in place of keywords.

    The library's messages write a keyword as ``name=value`` or ``name=``, and begin with ``name is`` or
    ``name['key'] is`` where they are about its value. What a network's name carries, "siren:depth=3", stays.

    Args:
        message: such as "size=8 is too small; give out= too.".
        options: what stands for a keyword, such as {"target_psnr": "--target", "angles": "--set angles="}.
    """
    names = "|".join(options)
    value = r"True|False|None|'[^']*'|\"[^\"]*\"|-?\d+(?:\.\d+)?(?:e[-+]?\d+)?"

    def option(match: re.Match[str]) -> str:
        name, key, value = match["name"], match["key"], (match["value"] or "").strip("'\"")
        written = options[name]
        if written.endswith("="):
            return f"{written}{value}" if match["equals"] else match[0]
        if value == "False":
            return written.replace("--", "--no-", 1)
        return " ".join(part for part in (written, key, value) if part and part != "True")

    keyword = (
        rf"(?<![:,])\b(?P<name>{names})(?:(?P<equals>=)(?P<value>{value})?(?![\w(])|\[['\"](?P<key>[^'\"]+)['\"]\])"
    )
    message = re.sub(keyword, option, message)
    return re.sub(rf"(?:^|(?<=and ))({names})(?= is )", lambda match: options[match[1]].removesuffix("="), message)


def check_device() -> None:
    """Raise ``ValueError`` where JAX has none of the devices that it is to run on."""
    import jax  # here, since help and mistakes are printed without it

    with log_in_lines("jax._src.xla_bridge"):
        try:
            jax.devices()
        except Exception as error:  # of several kinds, such as an AssertionError without a word
            asked = os.environ.get("JAX_PLATFORMS")
            told = f" that JAX_PLATFORMS={asked} asks for" if asked else ""
            reason = f" ({error})" if str(error) else ""
            raise ValueError(
                f"JAX finds no device{told}{reason}; unset JAX_PLATFORMS, or install JAX for that device."
            ) from error
