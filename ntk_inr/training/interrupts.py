"""Signals that ask a run to stop, turned into a flag that the loop looks at."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, a scheduler's time limit, a closed terminal


class Interrupts:
    """Catch the first signal within the block in ``received``; a second one acts as it did before the block.

    Python takes signals in its main thread only: in another one nothing is changed and nothing received. A signal
    that the process ignores, as under ``nohup``, stays ignored.
    """

    def __init__(self, active: bool = True) -> None:
        self.received: str | None = None
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for name in _NAMES if self._active else ():
            number = getattr(signal, name, None)
            # None: not set from Python, so it could not be put back.
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
