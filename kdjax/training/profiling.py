"""Where the time of a step goes: sums that the loop keeps at no cost, and traces of chosen steps.

Nothing here is part of the compiled step, and nothing waits for the device but the end of a trace.
The rows of metrics hold, in milliseconds a step, means over the steps of their window:

- `time/step`: from the last dispatch of the window before to the last of this one.
- `time/data`: the host in the streams, whether or not the device was computing meanwhile.
- `time/dispatch`: the host placing the batch and calling the compiled step, until the call returns.
  The first window holds the compilation. Where the runtime takes no more work, it holds that wait.
- `time/blocked`: the host waiting for reports of steps that were dispatched earlier.
- `time/device`: the most that the device can have computed: `time/step` less the time in which all
  that was dispatched was finished and the host was in the streams (`stall`, a share of the window).

A run that is bound by the device has `time/device` near `time/step`, and the host waits in
`time/blocked` or `time/dispatch`; one bound by its data has a large `stall`. What is left of
`time/step` is the host's own: validation, checkpoints, metrics. A trace shows the rest.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re

import jax

from kdjax.training.progress import Display


class Clock:
    """Host seconds since the last `take`, by what the loop did in them."""

    def __init__(self):
        self.steps, self.data, self.dispatch, self.blocked = 0, 0.0, 0.0, 0.0

    def add(self, data: float, dispatch: float) -> None:
        """A step: seconds in the streams, and in placing its batch and calling it."""
        self.steps += 1
        self.data += data
        self.dispatch += dispatch

    def take(self) -> dict[str, float]:
        """Milliseconds a step of each part, and a new beginning."""
        scale = 1000 / max(self.steps, 1)
        found = {name: getattr(self, name) * scale for name in ("data", "dispatch", "blocked")}
        self.__init__()
        return found


@dataclasses.dataclass(frozen=True)
class Profile:
    """Which steps are traced.

    Attributes:
      folder: traces go to `folder/<stage>`, for TensorBoard's profiler, XProf and Perfetto.
      first, last: steps of a stage, counted from 1, both traced.
      stage: the name of the only stage that is traced; empty: every stage.
    """

    folder: pathlib.Path
    first: int
    last: int
    stage: str = ""

    def __post_init__(self):
        if not 1 <= self.first <= self.last:
            raise ValueError(
                f"the steps to profile must be FIRST:LAST with 1 <= FIRST <= LAST, got "
                f"{self.first}:{self.last}"
            )

    @staticmethod
    def of(text: str, folder: pathlib.Path, stage: str = "") -> Profile:
        """The profile of a range such as `10:15`.

        >>> Profile.of("10:15", pathlib.Path("profile")).last
        15
        """
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if not found:
            raise ValueError(
                f"the steps to profile must be FIRST:LAST, such as 10:15, got {text!r}"
            )
        return Profile(folder, int(found[1]), int(found[2]), stage)


class Profiler:
    """Traces the steps of one stage that a profile names; `profile` None: does nothing.

    The trace begins with nothing in flight and ends when its last step is computed: these two
    waits are the only ones.
    """

    def __init__(self, profile: Profile | None, stage: str, display: Display):
        if profile is not None and profile.stage not in ("", stage):
            profile = None
        self._profile, self._stage, self._display = profile, stage, display
        self._from = self._last = 0
        self._annotation = None

    def before(self, step: int, report: jax.Array | None) -> None:
        """Called before `step` is dispatched, with the report of the one before."""
        if self._profile is None:
            return
        if self._from and step > self._profile.last:
            self._end(report)
        elif self._profile.first <= step <= self._profile.last:
            if not self._from:
                jax.block_until_ready(report)
                jax.profiler.start_trace(str(self._profile.folder / self._stage.replace("/", "_")))
                self._from = step
            self._mark(step)

    def _mark(self, step: int | None) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None
        if step is not None:
            self._last = step
            self._annotation = jax.profiler.StepTraceAnnotation(self._stage, step_num=step)
            self._annotation.__enter__()

    def _end(self, report: jax.Array | None) -> None:
        profile, self._profile = self._profile, None
        jax.block_until_ready(report)
        self._mark(None)
        jax.profiler.stop_trace()
        self._display.say(
            f"{self._stage}: traced steps {self._from} to {self._last}, {profile.folder}"
        )

    def close(self, report: jax.Array | None) -> None:
        """At the end of the stage, however it ends: a trace that runs is written."""
        if self._profile is None:
            return
        if self._from:
            self._end(report)
        else:
            first, last = self._profile.first, self._profile.last
            self._display.say(
                f"{self._stage}: none of the steps {first}:{last} to profile came up in this run"
            )
