"""Rows that a model writes, and the buffer that they are kept in."""

import functools

import jax
import jax.numpy as jnp
import language_toys as toys
import numpy as np
import pytest

from kdjax.methods import rollouts
from kdjax.methods.language_task import decoder

END = toys.TOKENIZER.end
VARIABLES = decoder(toys.STUDENT).init(jax.random.key(1), jnp.zeros((1, 2), jnp.int32))


@functools.partial(jax.jit, static_argnames="start")
def written(batch, rng, start=toys.PROMPT):
    return rollouts.roll_out(
        toys.STUDENT, VARIABLES, batch, rng, prompt_length=start, stop=(END,), temperature=1.0
    )


def test_a_row_is_the_prompt_and_an_answer_of_one_document():
    batch = toys.batch(8, where=np.arange(8) < 7)
    found = written(batch, jax.random.key(0))
    new, start = {n: np.asarray(found.batch[n]) for n in rollouts.ROW}, toys.PROMPT
    np.testing.assert_array_equal(new["tokens"][:, :start], batch["tokens"][:, :start])
    np.testing.assert_array_equal(new["segments"][:, :start], batch["segments"][:, :start])
    assert not new["completion"][:, :start].any()
    assert not new["completion"][7].any()
    for row in range(7):
        answer = new["tokens"][row, start:]
        ends = np.flatnonzero(answer == END)
        length = ends[0] + 1 if ends.size else len(answer)
        np.testing.assert_array_equal(new["completion"][row, start:], np.arange(6) < length)
        np.testing.assert_array_equal(new["segments"][row, start:], np.arange(6) < length)
        seen = new["positions"][row][new["segments"][row] > 0]
        np.testing.assert_array_equal(seen, np.arange(len(seen)))
        assert bool(found.truncated[row]) == (not ends.size)
        np.testing.assert_array_equal(found.log_probs[row] < 0, np.arange(6) < length)


def test_an_answer_follows_its_row_and_not_the_batch():
    batch, rng = toys.batch(8), jax.random.key(0)
    whole, order = written(batch, rng).batch, np.array([5, 2, 0, 7, 1, 3, 6, 4])
    moved = written({n: x[order] for n, x in batch.items()}, rng).batch
    for name in rollouts.ROW:
        np.testing.assert_array_equal(moved[name], whole[name][order])
    other = written({**batch, "id": batch["id"] + 8}, rng).batch
    assert (other["tokens"] != whole["tokens"]).any()


@pytest.mark.parametrize("start", [0, toys.LENGTH])
def test_a_place_where_no_answer_fits_is_refused(start):
    with pytest.raises(ValueError, match=r"prompt_length must be in \[1, 10\)"):
        written(toys.batch(8), jax.random.key(0), start=start)


def numbered(first, count=2):
    """A batch whose every row holds its number."""
    shape = (count, 3)
    tokens = np.broadcast_to(np.arange(first, first + count)[:, None], shape).astype(np.int32)
    return {**dict.fromkeys(rollouts.ROW, tokens), "completion": np.ones(shape, bool)}


def test_a_full_buffer_forgets_the_oldest_rows():
    buffer = rollouts.empty_buffer(numbered(0), 5)
    for first in (1, 3, 5):
        buffer = rollouts.push(buffer, numbered(first))
    assert buffer["tokens"][:, 0].tolist() == [6, 2, 3, 4, 5]
    assert int(buffer["written"]) == 6
    with pytest.raises(ValueError, match="a buffer of 5 rows cannot take a batch of 6"):
        rollouts.push(buffer, numbered(0, 6))
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        rollouts.empty_buffer(numbered(0), 0)


def test_only_written_rows_are_drawn_and_an_empty_buffer_gives_the_batch():
    draw = jax.jit(rollouts.draw)
    batch = {**numbered(90, 4), "id": np.arange(4)}
    empty = rollouts.empty_buffer(batch, 8)
    same = draw(empty, batch, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, same, batch)
    part = rollouts.push(empty, numbered(1, 3))
    found = [draw(part, batch, jax.random.key(k))["tokens"] for k in range(20)]
    assert set(np.unique(found).tolist()) == {1, 2, 3}
    full = rollouts.push(rollouts.push(part, numbered(4, 4)), numbered(8, 4))
    found = [draw(full, batch, jax.random.key(k)) for k in range(40)]
    assert set(np.unique([x["tokens"] for x in found]).tolist()) == set(range(4, 12))
    np.testing.assert_array_equal(found[0]["id"], batch["id"])
    np.testing.assert_array_equal(found[0]["tokens"], found[0]["segments"])  # rows stay whole
