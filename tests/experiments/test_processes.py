"""The commands on two processes: the tables, records and caches of one."""

import concurrent.futures
import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from kdjax.training import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
PROSE = "the cat sat on the mat and the dog sat on the log. " * 3
DIGITS = (
    "--config=configs/digits/compare_plackett_luce.py",
    "--config.seeds=2",
    "--config.teacher.training.steps=40",
    "--config.student.training.steps=40",
    "--config.validate_every=20",
)
TEXT = (
    "--config=configs/language/python.py",
    "--config.data.length=16",
    "--config.data.rows=(32,4,4)",
    "--config.teacher.cached=True",
    "--config.teacher.training.steps=4",
    "--config.student.training.steps=4",
    "--config.student.warm_up=2",
    *(
        f"--config.{role}.network.{field}={value}"
        for role in ("teacher", "student")
        for field, value in dict(width=8, num_layers=1, num_heads=2, hidden=8).items()
    ),
)


def start(module, folder, processes, *flags):
    """The first process's stdout."""
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        port = sock.getsockname()[1]
    cluster = [f"--coordinator=localhost:{port}", f"--processes={processes}"]

    def one(process):
        mine = [*cluster, f"--process={process}"] if processes > 1 else []
        done = subprocess.run(
            [sys.executable, "-m", module, f"--workdir={folder / 'w'}", *flags, *mine],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **changed},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    changed = {"KDJAX_DATA_DIR": str(folder / "data")} if flags[0] == TEXT[0] else {}
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        return list(pool.map(one, range(processes)))


def close(a, b, atol=1e-4):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol)


def same_metrics(one, two):
    rows = [read_metrics(folder) for folder in (one, two)]
    assert len(rows[0]) == len(rows[1]) > 0
    for a, b in zip(*rows):
        assert a.keys() == b.keys()
        for name in a:
            if isinstance(a[name], str):
                assert a[name] == b[name]
            elif not name.startswith(("examples_per_second", "stall", "time/")):
                close(a[name], b[name])


@pytest.mark.slow
def test_a_run_on_text_with_a_cached_teacher_gives_what_one_process_gives(tmp_path):
    text = tmp_path / "prose.txt"
    text.write_text("\n\n".join(f"{i}: {PROSE}" for i in range(60)))
    folders, tables = [tmp_path / "one", tmp_path / "two"], []
    for processes, folder in zip((1, 2), folders):
        flags = (*TEXT, f"--config.data.name=text:{text}")
        first, *others = start("experiments.run", folder, processes, *flags)
        assert not any("perplexity" in out for out in others)
        table = first[first.index("model ") : first.index("report:")]
        tables.append(re.findall(r"(teacher|alone|student) +(\d\S*)", table))
        assert "Samples" in (folder / "w/report.html").read_text()
        assert len(list((folder / "data/teacher_cache").iterdir())) == 1
    assert len(tables[0]) == 3
    for (a, x), (b, y) in zip(*tables, strict=True):
        assert a == b
        close(float(x), float(y))
    same_metrics(*(folder / "w" for folder in folders))


@pytest.mark.slow
@pytest.mark.parametrize("vmap", [True, False])
def test_a_comparison_gives_the_records_of_one_process(tmp_path, vmap):
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        outs = start("experiments.compare", folder, processes, *DIGITS, f"--config.vmap={vmap}")
        assert ["records, table and plots" in out for out in outs] == [True, False][:processes]
        records = sorted((folder / "w/results").glob("*.json"))
        found.append({path.name: json.loads(path.read_text())["metrics"] for path in records})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 12
    for name, metrics in found[0].items():
        for which, values in metrics.items():
            for metric, value in values.items():
                close(value, found[1][name][which][metric], atol=2 / 360)  # test examples
