"""What a run tells while it runs: metrics on disk, lines or a bar on the screen."""

import dataclasses
import io
import json
import time

import numpy as np
import pytest
import training_toys as toys
from rich.console import Console

from kdjax.training import Display, MetricWriter, Settings, read_metrics, run
from kdjax.training import Stage as Node
from kdjax.training.nonfinite import NonFinitePolicy
from kdjax.training.reports import Reports


def test_rows_are_json_lines_and_what_is_not_finite_is_null(tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    writer.write("s", 1, "train", {"loss": np.float32(0.5), "gap": np.array([1.0, np.nan])})
    writer.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"stage": "s", "step": 1, "kind": "train", "loss": 0.5, "gap": [1.0, None]}
    assert read_metrics(tmp_path) == [line]


def test_rewinding_drops_what_will_be_repeated_and_a_line_cut_short(tmp_path):
    writer = MetricWriter(tmp_path, tensorboard=False)
    for stage, step in (("first", 10), ("first", 20), ("second", 10), ("second", 20)):
        writer.write(stage, step, "train", {"loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "second", "st')
    writer = MetricWriter(tmp_path, tensorboard=False)
    writer.rewind("second", 10)
    writer.write("second", 15, "train", {"loss": 0})
    writer.close()
    kept = [(row["stage"], row["step"]) for row in read_metrics(tmp_path)]
    assert kept == [("first", 10), ("first", 20), ("second", 10), ("second", 15)]


def test_tensorboard_gets_the_scalars(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    writer = MetricWriter(tmp_path)
    writer.write("s", 7, "train", {"loss": 0.5, "members": np.ones(2)})
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"s/train/loss" in content
    assert b"members" not in content


def toy(display=None, metrics=None, steps=40):
    data = {"train": toys.TableStream(toys.problem(), 24)}

    def recipe():
        yield Node("toy", toys.program(), {"student": toys.init(0)}, data, steps)

    run(recipe(), settings=Settings(log_every=10), display=display, metrics=metrics)


def test_a_window_is_the_mean_of_its_steps():
    windows, single = MetricWriter(None), MetricWriter(None)
    toy(metrics=windows)
    data = {"train": toys.TableStream(toys.problem(), 24)}
    toys.train(
        toys.program(),
        {"student": toys.init(0)},
        40,
        data,
        settings=Settings(log_every=1),
        metrics=single,
    )
    losses = np.array([row["loss/ce"] for row in single.rows])
    assert [row["step"] for row in windows.rows] == [10, 20, 30, 40]
    np.testing.assert_allclose(
        [row["loss/ce"] for row in windows.rows], losses.reshape(4, 10).mean(1), rtol=1e-6
    )
    assert all(0 <= row["stall"] <= 1 for row in windows.rows)
    assert all(row["examples_per_second"] > 0 for row in windows.rows)


@pytest.mark.parametrize(("examples", "expected"), [(None, 24), (6, 6)])
def test_speed_counts_the_examples_that_a_step_trains_on(examples, expected, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    data = {"train": toys.TableStream(toys.problem(), 24)}
    stage = Node("toy", toys.program(), {}, data, 5, examples=examples)
    metrics = MetricWriter(None)
    policy = NonFinitePolicy(stage, "stop", 1)
    reports = Reports(stage, ["loss/ce"], 5, [], policy, metrics, Display(enabled=False))
    now[0] = 1.0  # five steps a second
    for step in range(1, 6):
        reports.add(step, np.ones((1, 2), np.float32), 0.0)
    reports.write()
    assert metrics.rows[-1]["examples_per_second"] == 5 * expected
    with pytest.raises(ValueError, match="examples must be positive, got 0"):
        dataclasses.replace(stage, examples=0)


class SlowStream(toys.TableStream):
    """Longer on its way than a step takes."""

    def items(self, start=0, state=None):
        for item in super().items(start, state):
            time.sleep(0.01)
            yield item


@pytest.mark.parametrize(
    ("stream", "low", "high"), [(toys.TableStream, 0, 0.5), (SlowStream, 0.5, 1)]
)
def test_the_stall_is_the_share_of_time_that_data_is_waited_for(stream, low, high):
    metrics = MetricWriter(None)
    data = {"train": stream(toys.problem(), 24)}
    student = {"student": toys.init(0)}
    toys.train(toys.program(), student, 60, data, settings=Settings(log_every=20), metrics=metrics)
    assert low <= np.median([row["stall"] for row in metrics.rows]) <= high


def shown(terminal):
    display = Display(seconds=0)
    file = io.StringIO()
    display._console = Console(
        file=file, force_terminal=terminal, width=120, highlight=False, soft_wrap=True
    )
    toy(display)
    return file.getvalue()


def test_plain_lines_tell_steps_loss_speed_and_time_left():
    lines = shown(terminal=False).splitlines()
    assert "\x1b" not in "".join(lines)
    assert lines[0].startswith("toy: 10/40 steps  loss ")
    assert " examples/s  ETA " in lines[0]
    assert lines[-1].startswith("toy: 40 steps in ")


def test_a_terminal_gets_a_bar():
    text = shown(terminal=True)
    assert "\x1b[" in text
    assert "40/40 steps" in text
    assert "ETA" in text


def test_a_silent_display_prints_nothing(capsys):
    toy(Display(enabled=False))
    assert capsys.readouterr().out == ""
