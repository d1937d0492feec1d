"""A request to stop: it is noted, and obeyed once the stage has saved.

Several processes must stop at one step. There the JAX runtime takes SIGTERM: it tells all of them
over the network and lets them agree on the point to stop at, which no device takes part in.
"""

from __future__ import annotations

import itertools
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

_points = itertools.count()  # of this process, over all its runs: the runtime compares them


class Interrupted(SystemExit):
    """The run was asked to stop, has saved, and continues when it is started again."""


class Interrupts:
    """Turns SIGTERM and Ctrl-C into a request to save and stop; a second Ctrl-C stops at once.

    On several processes the request may reach any of them, and all stop.
    """

    def __init__(self):
        self._several = jax.process_count() > 1
        self._heard: int | None = None  # by this process
        self._obeyed: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            taken = (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT)
            for number in taken:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number, frame):
        if self._heard is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._heard = number
        if self._several:
            signal.raise_signal(signal.SIGTERM)  # which the runtime passes on

    def reached(self) -> int | None:
        """The signal to obey here, or None. To be called at every point where a run can stop.

        Every process comes by the same points, and one that all can still reach is chosen: each
        finds the same answer there, whichever was asked.
        """
        if not self._several:
            self._obeyed = self._heard
        elif self._obeyed is None and multihost_utils.reached_preemption_sync_point(next(_points)):
            self._obeyed = self._heard or signal.SIGTERM
        return self._obeyed

    def __exit__(self, *error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
