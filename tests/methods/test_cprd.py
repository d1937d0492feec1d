"""CPRD: who teaches whom, what the ranking sees, and what it comes to at its limits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import retrieval_toys

from kdjax import losses
from kdjax.methods import contrastive, cprd
from kdjax.training import run
from kdjax.training.gradients import gradient
from kdjax.training.stage import Context
from kdjax.training.state import pick

CONFIG = cprd.Config(candidates=4)


@pytest.fixture(scope="module")
def task():
    return dataclasses.replace(retrieval_toys.crossed(), given={})


def context():
    return Context({}, jax.random.key(0), jnp.int32(0), {})


def batch_of(task):
    stream = task.stream("student")
    batch = stream.assemble(stream.table, next(stream.items()))
    return {**batch, **{name: batch[name][:, :1] for name in ("tokens", "segments")}}


@pytest.fixture(scope="module")
def compute(task):
    """Terms and gradients of student and teacher, of a batch; a compilation a number of parts."""
    live = {role: task.variables(role) for role in ("student", "teacher")}

    def evaluate(batch, parts=1, config=CONFIG):
        training = dataclasses.replace(task.training["student"], microbatches=parts)
        program = cprd.program(*(task.networks[r] for r in live), training, config)
        (update,) = program.updates

        @jax.jit
        def compiled(live, batch):
            ready, _ = program.prepare(live, {"train": batch}, context())
            return gradient(update, pick(live, update.trains), live, {}, ready, context())

        return compiled(live, batch)

    return evaluate


def square(seed, size=6):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(size, size)), jnp.float32)


def transferred(student, teacher, config=CONFIG, scale=2.0, negative=None):
    negative = ~jnp.eye(len(student), dtype=bool) if negative is None else negative
    return cprd.transferred(student, teacher, negative, scale, jax.random.key(0), config)


def test_micro_batches_and_padding_do_not_change_the_gradient(task, compute):
    batch = batch_of(task)
    whole = compute(batch).gradient
    padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros_like(x)]), batch)
    padded["where"] = padded["where"].at[16:].set(False)
    other = compute(padded, 4).gradient
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), other, whole)
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(whole))


def test_only_mined_items_of_other_texts_have_a_gradient_and_the_teacher_has_none():
    student, teacher = square(0), square(1)
    negative = ~jnp.eye(6, dtype=bool)
    negative = negative.at[0, 1].set(False)  # another picture of the same text
    config = dataclasses.replace(CONFIG, candidates=3, valid_fraction=1.0)

    def loss(student, teacher):
        return transferred(student, teacher, config, negative=negative)[0].sum()

    of_student, of_teacher = jax.grad(loss, (0, 1))(student, teacher)
    hardest = losses.mine_hard_negatives(student, ~negative, negatives=3).indices
    mined = np.zeros((6, 6), bool)
    np.put_along_axis(mined, np.asarray(hardest), True, 1)
    assert not mined[0, 1]
    np.testing.assert_array_equal(np.asarray(of_student) != 0, mined)
    assert not of_teacher.any()


@pytest.mark.parametrize(
    ("transfer", "same"),
    [("partial_ranking", True), ("ranknet", True), ("listwise_kl", False), ("score_mse", False)],
)
def test_transfers_of_ranks_do_not_see_the_teachers_values(transfer, same):
    config = dataclasses.replace(CONFIG, transfer=transfer)
    a, b = (transferred(square(0), t, config)[0] for t in (square(1), 5 * square(1) - 3))
    assert np.allclose(a, b, rtol=1e-5) == same


def test_all_valid_is_listmle_of_the_mined_items():
    student, teacher = square(0), square(1)
    config = dataclasses.replace(CONFIG, valid_fraction=1.0)
    mined = losses.mine_hard_negatives(student, jnp.eye(6, dtype=bool), negatives=4).indices
    s, t = (jnp.take_along_axis(x, mined, 1) for x in (student, teacher))
    expected = losses.listmle(2.0 * s, t) / 4
    np.testing.assert_allclose(transferred(student, teacher, config)[0], expected, rtol=1e-5)


def test_half_valid_contrasts_the_first_two_of_four_with_what_is_below_them():
    student, teacher = square(0), square(1)
    found = transferred(student, teacher)[0]
    for query in range(6):
        others = [i for i in np.argsort(-student[query]) if i != query][:4]
        others.sort(key=lambda i: -teacher[query, i])
        s = 2.0 * np.asarray(student[query])[others]
        expected = sum(np.log(np.exp(s[j:]).sum()) - s[j] for j in range(2)) / 2
        np.testing.assert_allclose(found[query], expected, rtol=1e-5)


def test_random_negatives_are_not_the_hardest():
    student, teacher = square(0, 12), square(1, 12)
    other = dataclasses.replace(CONFIG, negatives="random")
    a, b = (transferred(student, teacher, c)[0] for c in (CONFIG, other))
    assert not np.allclose(a, b)


def test_a_divergence_from_the_teacher_itself_is_zero():
    config = dataclasses.replace(CONFIG, transfer="listwise_kl")
    np.testing.assert_allclose(transferred(square(1) / 2, square(1), config)[0], 0, atol=1e-6)


def test_a_cross_encoder_scores_pairs_one_by_one_as_it_does_together(task):
    variables, network = task.variables("teacher"), task.networks["teacher"]
    found, test = task.predict("teacher", variables), task.dataset.splits["test"].arrays()
    assert found.shape == (20, 40)
    for image, text in ((3, 7), (11, 0)):
        x = jnp.asarray(test["image"][image : image + 1]) / 255
        one = [test[name][text][1:] for name in ("tokens", "segments")]
        score = network.apply(variables, x, *one).output["score"]
        np.testing.assert_allclose(found[image, 2 * text + 1], score[0, 0], atol=1e-5)


@pytest.mark.slow
def test_a_cross_encoder_learns_and_its_student_ranks_more_like_it(task):
    teacher = run(contrastive.teacher(task))
    frozen = jax.tree.map(np.array, teacher)
    assert task.scores("teacher", teacher, None)["recall_at_5"] > 0.3
    taught = task.with_teacher(teacher)
    alone = run(contrastive.recipe(taught, contrastive.Config()))
    ranked = run(cprd.recipe(taught, dataclasses.replace(CONFIG, distillation_weight=4.0)))
    reference = task.reference(teacher)
    likeness = [task.scores("student", x.last, reference)["spearman"] for x in (alone, ranked)]
    assert likeness[1] > likeness[0]
    jax.tree.map(np.testing.assert_array_equal, frozen, jax.tree.map(np.array, teacher))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(candidates=1), "candidates must be at least 2, got 1"),
        (dict(candidates=2.5), "candidates must be an integer, got 2.5"),
        (dict(valid_fraction=1.1), r"valid_fraction must be in \[0, 1\], got 1.1"),
        (dict(distillation_weight=-1.0), "distillation_weight must not be negative"),
        (dict(tie_tolerance=float("nan")), "tie_tolerance must not be negative"),
        (dict(transfer="mse"), "transfer must be one of .* got 'mse'"),
        (dict(negatives="easy"), "negatives must be one of .* got 'easy'"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        cprd.Config(**changes)


def test_what_cannot_be_mined_or_cached_is_refused(task, compute):
    with pytest.raises(ValueError, match="candidates=16 must be fewer than the 16 of a batch"):
        compute(batch_of(task), config=cprd.Config(candidates=16))
    with pytest.raises(ValueError, match="a cross-encoder has none"):
        dataclasses.replace(task, cache_teacher=True)
