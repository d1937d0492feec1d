"""Traces hold the steps that were asked for; the parts of a step's time mean what they say."""

import time

import jax
import pytest
import training_toys as toys

from kdjax.training import Display, MetricWriter, Profile, Settings, Stage, run
from kdjax.training.profiling import Clock, Profiler

PARTS = {f"time/{name}" for name in ("step", "data", "dispatch", "blocked", "device")}


class Lines(Display):
    """Keeps what is said."""

    def __init__(self):
        super().__init__(enabled=False)
        self.lines = []

    def say(self, line):
        self.lines.append(line)


class SlowStream(toys.TableStream):
    """20 ms a batch: the device is done long before."""

    def items(self, start=0, state=None):
        for item in super().items(start):
            time.sleep(0.02)
            yield item


def rows(stream, steps=20, settings=None):
    metrics = MetricWriter(None)
    data = {"train": stream(toys.problem(), 24)}
    settings = settings or Settings(log_every=10)
    toys.train(PROGRAM, {"student": toys.init(0)}, steps, data, settings, metrics)
    return metrics.rows


PROGRAM = toys.program()


def test_the_parts_of_a_step_that_waits_for_data():
    last = rows(SlowStream)[-1]
    assert set(last) >= PARTS
    assert last["time/step"] >= last["time/data"] >= 20
    assert last["stall"] > 0.5
    assert last["time/device"] == pytest.approx(last["time/step"] * (1 - last["stall"]))
    parts = sum(last[f"time/{name}"] for name in ("data", "dispatch", "blocked"))
    assert parts <= last["time/step"]


def test_the_parts_of_a_step_that_does_not():
    last = rows(toys.TableStream, 200)[-1]
    assert 0 < last["time/data"] < last["time/step"]
    assert 0 < last["time/dispatch"] < last["time/step"]
    assert last["time/step"] * 1000 == pytest.approx(24e6 / last["examples_per_second"])


def test_the_clock_costs_less_than_a_thousandth_of_two_milliseconds():
    clock, profiler, count = Clock(), Profiler(None, "toy", Lines()), 20000

    def block():
        began = time.thread_time()  # the machine's other work does not count
        for step in range(count):
            profiler.before(step, None)
            ready = time.monotonic()
            clock.add(0.1, time.monotonic() - ready)
        return (time.thread_time() - began) / count

    assert min(block() for _ in range(5)) < 2e-6


def steps_of(folder, stage="toy"):
    """The numbers of the steps in the trace of a stage."""
    (path,) = (folder / stage).rglob("*.xplane.pb")
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events]
    return sorted(dict(event.stats)["step_num"] for event in events if event.name == stage)


def trained(profile, steps=8, display=None):
    def recipe():
        data = {"train": toys.TableStream(toys.problem(), 24)}
        for name in ("toy", "other"):
            yield Stage(name, PROGRAM, {"student": toys.init(0)}, data, steps)

    run(recipe(), settings=Settings(profile=profile), display=display)


@pytest.mark.parametrize(
    ("first", "last", "expected"), [(4, 6, [4, 5, 6]), (1, 1, [1]), (7, 20, [7, 8])]
)
def test_a_trace_holds_its_steps(tmp_path, first, last, expected):
    display = Lines()
    trained(Profile(tmp_path, first, last, "toy"), display=display)
    assert steps_of(tmp_path) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]
    said = [line for line in display.lines if "traced" in line]
    assert said == [f"toy: traced steps {first} to {expected[-1]}, {tmp_path}"]


def test_a_trace_begins_before_its_first_step_and_ends_after_its_last(tmp_path, monkeypatch):
    seen = []
    for name in ("start_trace", "stop_trace"):
        monkeypatch.setattr(jax.profiler, name, lambda *folder, name=name: seen.append(name))
    profile = Profile(tmp_path, 4, 6)
    settings = Settings(profile=profile, on_step=lambda name, step: seen.append(step))
    toys.train(PROGRAM, {"student": toys.init(0)}, 8, settings=settings)
    assert seen == [1, 2, 3, "start_trace", 4, 5, 6, "stop_trace", 7, 8]


def test_without_a_name_every_stage_is_traced(tmp_path):
    trained(Profile(tmp_path, 2, 3))
    assert {name: steps_of(tmp_path, name) for name in ("toy", "other")} == {
        "toy": [2, 3],
        "other": [2, 3],
    }


def test_a_range_past_the_end_of_a_stage_is_said(tmp_path):
    display = Lines()
    trained(Profile(tmp_path, 9, 12, "toy"), display=display)
    assert list(tmp_path.iterdir()) == []
    expected = "toy: none of the steps 9:12 to profile came up in this run"
    assert [line for line in display.lines if "profile" in line] == [expected]


def test_a_stage_that_fails_ends_its_trace(tmp_path):
    def fail(name, step):
        if step == 3:
            raise RuntimeError("stop here")

    settings = Settings(profile=Profile(tmp_path, 2, 6), on_step=fail)
    with pytest.raises(RuntimeError, match="stop here"):
        toys.train(PROGRAM, {"student": toys.init(0)}, 8, settings=settings)
    assert steps_of(tmp_path) == [2, 3]
    trained(Profile(tmp_path, 1, 1, "other"))  # no trace is left open


@pytest.mark.parametrize(
    "text", ["", "5", "5:", ":5", "a:b", "0:3", "6:5", "-1:5", "1:2:3", "1.5:2"]
)
def test_a_malformed_range_is_refused(text, tmp_path):
    with pytest.raises(ValueError, match="the steps to profile must be FIRST:LAST"):
        Profile.of(text, tmp_path)
