"""A request to stop: it is noted, and obeyed once the stage has saved."""

from __future__ import annotations

import signal
import threading
from typing import Any


class Interrupted(SystemExit):
    """The run was asked to stop, has saved, and continues when it is started again."""


class Interrupts:
    """Turns SIGTERM and Ctrl-C into a request to save and stop; a second Ctrl-C stops at once."""

    def __init__(self):
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number, frame):
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(self, *error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
