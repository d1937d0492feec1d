"""Kills a run again and again, each time at a random moment: `python torture.py FOLDER KILLS SEED`.

A run that comes to its end is compared with one that was never killed: variables, optimizers and
memory of every stage, and the lines of metrics, bit for bit. Then the next run begins, until there
were as many kills. Compiled programs are kept between processes: restarts are cheap.
"""

import collections
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from training_toys import unclocked

SCRIPT = pathlib.Path(__file__).parent / "resumable.py"


@dataclasses.dataclass
class Tally:
    runs: int = 0  # that came to their end
    equal: int = 0
    kills: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # by place
    seconds: float = 0.0


def trace(workdir, stdout):
    """What a finished run has left."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [unclocked(row) for row in rows]
    return json.loads(stdout.splitlines()[-1])["digest"], rows


def place(workdir, before):
    """Where a kill has hit, by what lies in the workdir."""
    found = [p for p in workdir.rglob("*") if ".json." not in p.name]
    for node in workdir.glob("journal/*"):
        if node.is_dir() and not node.with_name(node.name + ".json").exists():
            return "writing a finished stage"
    for step in workdir.glob("checkpoints/*/*"):
        if step.is_dir() and not step.with_name(step.name + ".json").exists():
            return "writing a checkpoint"
    if len(found) == before:
        return "before anything was written"
    return "training"


def torture(folder, kills, seed):
    rng, tally, began = random.Random(seed), Tally(), time.monotonic()
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(SCRIPT), str(workdir)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, **pipes, text=True, env=environment)

    def finish(process):
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        return out

    whole = trace(folder / "whole", finish(start(folder / "whole")))
    again = time.monotonic()
    assert trace(folder / "again", finish(start(folder / "again"))) == whole
    longest = time.monotonic() - again  # of a run whose programs are compiled
    while tally.runs == 0 or sum(tally.kills.values()) < kills:
        workdir = folder / f"run-{tally.runs}"
        while True:
            before = len(list(workdir.rglob("*")))
            process = start(workdir)
            if sum(tally.kills.values()) < kills:
                try:
                    process.wait(rng.uniform(0, longest))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
                    if process.returncode == -signal.SIGKILL:
                        tally.kills[place(workdir, before)] += 1
                        continue
            out = finish(process)
            break
        tally.runs += 1
        tally.equal += trace(workdir, out) == whole
    tally.seconds = time.monotonic() - began
    return tally


if __name__ == "__main__":
    print(torture(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
