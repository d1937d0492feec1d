"""Each file that a run keeps, cut short or with one bit turned, is noticed and named."""

import collections
import random
import shutil

import jax
import numpy as np
import pytest
import training_toys as toys
from short_run import Killed, go_on

from kdjax.training import CheckpointError, load_variables, save_variables

HOW = ("cut short", "one bit turned")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run with a finished stage, a computation and two checkpoints; how it would have ended."""
    whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
    with pytest.raises(Killed):
        go_on(killed, ("student", 34))
    return killed, go_on(whole)[0]


def damage(path, how, rng):
    content = bytearray(path.read_bytes())
    if how == "cut short":
        content = content[: rng.randrange(len(content))]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def victims(folder):
    """What is read again; not the lock, nor pictures of metrics for TensorBoard."""
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    kept = [p for p in files if p.parts[0] in ("journal", "checkpoints")]
    return [p for p in kept if (folder / p).stat().st_size]


def cases(folder):
    return [(victim, how) for victim in victims(folder) for how in HOW]


def suffer(kept, tmp_path, chosen, seed):
    """What happened, counted; fails where parameters came out wrong, or without a word."""
    folder, expected = kept
    rng, tally = random.Random(seed), collections.Counter()
    for i, (victim, how) in enumerate(chosen):
        workdir = tmp_path / str(i)
        shutil.copytree(folder, workdir)
        damage(workdir / victim, how, rng)
        if (
            victim.parts[-1] == "20.json" or "20" in victim.parts
        ):  # read only where the newer one is not whole
            (workdir / "checkpoints" / "0002-student" / "30.json").unlink()
        bits, lines = go_on(workdir)
        node = victim.parts[1 if victim.parts[0] == "journal" else 2].removesuffix(".json")
        named = [line for line in lines if node in line and ("damaged" in line or "is not" in line)]
        assert named, f"{victim}, {how}: {lines}"
        assert bits == expected, f"{victim}, {how}: other parameters"
        tally[victim.parts[0], how] += 1
        shutil.rmtree(workdir)
    return tally


def test_a_damaged_file_is_named_and_what_it_held_computed_again(kept, tmp_path):
    every = cases(kept[0])
    assert {victim.parts[0] for victim, _ in every} == {"journal", "checkpoints"}
    suffer(kept, tmp_path, random.Random(0).sample(every, 8), 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_every_damaged_file_is_named_and_what_it_held_computed_again(kept, tmp_path, seed, capsys):
    every = cases(kept[0])
    tally = suffer(kept, tmp_path, every, seed)
    assert sum(tally.values()) == len(every)
    with capsys.disabled():
        print(dict(tally))


def test_a_damaged_line_of_metrics_is_said_and_a_last_one_cut_short_is_dropped(kept, tmp_path):
    folder, expected = kept
    shutil.copytree(folder, tmp_path / "w")
    path = tmp_path / "w" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"\xff" + lines[1][1:], *lines[2:-1], lines[-1][:9]]))
    bits, said = go_on(tmp_path / "w")
    assert bits == expected
    assert [line for line in said if "metrics" in line] == [
        "metrics.jsonl: line 2 was damaged and is left out"
    ]


def test_every_damaged_file_of_weights_is_refused_by_name(tmp_path):
    variables = toys.init(0)
    save_variables(tmp_path / "w", variables)
    rng, count = random.Random(0), 0
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
        content = path.read_bytes()
        for how in HOW if content else ():
            damage(path, how, rng)
            with pytest.raises(CheckpointError, match=path.name):
                load_variables(tmp_path / "w", variables)
            path.write_bytes(content)
            count += 1
    assert count >= 10
    found = load_variables(tmp_path / "w", variables)
    jax.tree.map(np.testing.assert_array_equal, found, variables)
