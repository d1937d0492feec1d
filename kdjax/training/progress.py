"""Progress on the screen: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Shows where a run is. Silent unless `enabled`, and on every process but the first.

    Args:
      enabled: False: shows nothing.
      seconds: the least time between two plain lines.
    """

    def __init__(self, enabled: bool = True, seconds: float = 5.0):
        self._on = enabled and jax.process_index() == 0
        self._seconds, self._last = seconds, 0.0
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._started, self._first = 0.0, 0

    def say(self, line: str) -> None:
        if self._on:
            self._console.print(line, markup=False)

    def begin(self, stage: str, step: int, steps: int) -> None:
        self._stage, self._steps, self._first = stage, steps, step
        self._started = self._last = time.monotonic()
        if self._on and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed}/{task.total} steps"),
                TextColumn("{task.fields[text]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task(stage, total=steps, completed=step, text="")
            self._bar.start()

    def update(self, step: int, loss: float, rate: float) -> None:
        """Shows a step that has been computed, its loss, and examples a second."""
        text = f"loss {loss:.4f}  {rate:,.0f} examples/s"
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif self._on and now - self._last >= self._seconds:
            self._last = now
            left = (now - self._started) / max(step - self._first, 1) * (self._steps - step)
            self.say(f"{self._stage}: {step}/{self._steps} steps  {text}  ETA {left:.0f} s")

    def end(self, text: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self.say(f"{self._stage}: {text}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
