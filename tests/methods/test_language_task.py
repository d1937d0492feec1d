"""What a language task keeps of its teacher, and batches and models that give nothing to learn."""

import dataclasses

import jax
import jax.numpy as jnp
import language_toys as toys
import numpy as np
import pytest

from kdjax.data import Split
from kdjax.data.tokenizers import CharacterTokenizer
from kdjax.methods import (
    distillm,
    gkd,
    language_model,
    minillm,
    rollouts,
    sequence_kd,
    sinkd,
    taid,
)
from kdjax.methods.language_task import teach
from kdjax.training.stage import Context


def drained(generator):
    """What a recipe without stages returns."""
    with pytest.raises(StopIteration) as stopped:
        next(generator)
    return stopped.value.value


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder of the caches."""
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path))
    return tmp_path / "teacher_cache"


def cached(**changes):
    """The task with a cached teacher, and that teacher's variables."""
    task = toys.given(cache_teacher=True, **changes)
    return task, task.given["teacher"]


def test_a_cached_teachers_states_are_those_of_the_live_one_in_the_order_of_the_rows(kept):
    task, teacher = cached()
    rows = task.dataset.splits["train"].arrays()
    batch = {"train": {**rows, "id": np.arange(48), "where": np.ones(48, bool)}}
    (live, _) = jax.jit(teach(toys.TEACHER))(
        {"teacher": teacher}, batch, Context(None, *[None] * 3)
    )
    states, predicted = live["train"]["teacher_hidden"], rows["segments"] > 0
    np.testing.assert_allclose(
        task.cached(teacher)[predicted], np.asarray(states)[predicted], rtol=1e-4, atol=1e-5
    )
    roles, fields = drained(task.taught(teacher))
    assert set(roles["teacher"]["params"]) == {"embedding"}  # its head is all that is read of it
    assert fields["teacher_hidden"].shape == states.shape
    assert len(list(kept.iterdir())) == 1


def test_another_teacher_text_or_tokenizer_reads_no_cache_of_this_one(kept):
    task, teacher = cached()
    first = task.cached(teacher)
    moved = jax.tree.map(lambda x: x + 0.1, teacher)
    assert np.abs(task.cached(moved) - first).max() > 1e-3
    splits = {**task.dataset.splits, "train": Split.of(toys.rows(40, seed=0), "toys/fewer")}
    other = dataclasses.replace(task, dataset=dataclasses.replace(task.dataset, splits=splits))
    assert len(other.cached(teacher)) == 40
    renamed = CharacterTokenizer("abcdefghijk")
    renamed.fingerprint = "another"
    dataclasses.replace(task, tokenizer=renamed).cached(teacher)
    assert len(list(kept.iterdir())) == 4
    task.cached(teacher)
    assert len(list(kept.iterdir())) == 4


def test_the_row_at_which_a_cached_teacher_is_not_a_number_is_named(kept):
    task, teacher = cached()
    tokens = task.dataset.splits["train"].arrays()["tokens"]
    segments = task.dataset.splits["train"].arrays()["segments"]
    rare = int(tokens[19][segments[19] > 0][0])
    row = next(i for i in range(48) if (tokens[i][segments[i] > 0] == rare).any())
    table = teacher["params"]["embedding"]["embedding"]
    poisoned = {**teacher["params"], "embedding": {"embedding": table.at[rare].set(jnp.nan)}}
    with pytest.raises(ValueError, match=rf"\(id {row}\): the teacher's hidden .*not a number"):
        task.cached({"params": poisoned})
    assert not list(kept.glob("*/manifest.json"))


ARMS = {
    "language_model": (language_model, language_model.Config()),
    "sequence_kd": (sequence_kd, sequence_kd.Config(label_weight=0.5)),
    "taid": (taid, taid.Config()),
    "sinkd": (sinkd, sinkd.Config(max_positions=16)),
    "gkd": (gkd, gkd.Config(on_policy=1.0)),
    "distillm": (distillm, distillm.Config(threshold=1.0, capacity=16)),
    "minillm": (minillm, minillm.Config(rollouts=16)),
}


WRITTEN = ("distillm", "minillm", "gkd")  # by a model: which tokens count is not the data's


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        *(pytest.param(n, "where", marks=[pytest.mark.slow] * (n in WRITTEN[:2])) for n in ARMS),
        *((n, "completion") for n in ARMS if n not in WRITTEN),
    ],
)
def test_a_batch_in_which_nothing_is_predicted_has_no_loss_and_no_gradient(name, hidden):
    module, config = ARMS[name]
    stage = module.recipe(toys.given(), config).send(None)
    batch = {"train": toys.batch(16)}
    batch["train"][hidden] = np.zeros_like(batch["train"][hidden])
    memory = stage.memory
    if stage.program.prepare is not None:
        batch, memory = toys.prepared(stage, batch, step=0)
    gradient, metrics = toys.gradient_of(stage, batch, memory=memory)
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(gradient))
    assert metrics["loss"] == 0
    assert all(np.isfinite(x) for x in metrics.values())


def test_answers_of_a_model_that_knows_no_end_stop_at_the_limit_and_say_so():
    task = toys.given()
    params = task.variables("student")["params"]
    same = jnp.zeros_like(params["final_norm"]["scale"])  # all logits are 0: it says "a" for ever
    endless = {"params": {**params, "final_norm": {"scale": same}}}
    assert task.sample("student", endless, [[1, 2], [3]], max_new_tokens=5) == ["aaaaa"] * 2
    found = rollouts.roll_out(
        toys.STUDENT,
        endless,
        toys.batch(4),
        jax.random.key(0),
        prompt_length=toys.PROMPT,
        stop=(toys.TOKENIZER.end,),
        temperature=0.0,
    )
    assert found.truncated.all()
    assert found.batch["completion"][:, toys.PROMPT :].all()
    with pytest.raises(ValueError, match="max_length - max_new_tokens = 16 - 15 long"):
        task.sample("student", endless, [[1, 2]], max_new_tokens=15)
