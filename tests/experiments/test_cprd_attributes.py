"""The experiment of CPRD on synthetic pairs: its data, its measure, its claims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cprd


def test_captions_that_share_more_attributes_are_closer():
    arrays = cprd.pairs(0).splits["pretraining"].arrays()
    assert (arrays["told"].sum(1) == cprd.TOLD).all()
    same = (arrays["told"] == arrays["told"][0]).all(1)
    text, attributes = arrays["tokens"][same, 0], arrays["attributes"][same]
    shared = ((attributes[:, None] == attributes) & arrays["told"][0]).sum(-1)
    distance = ((text[:, None] - text) ** 2).mean(-1)
    means = [distance[shared == n].mean() for n in range(cprd.TOLD)]
    assert means == sorted(means, reverse=True)
    alike = (shared == cprd.TOLD) & ~np.eye(len(text), dtype=bool)
    assert alike.any()  # captions that say the same differ by noise alone, twice its variance
    assert distance[alike].mean() == pytest.approx(2 * cprd.NOISE**2, rel=0.1)


def test_a_seed_is_one_data_set_and_another_seed_another():
    first, again, other = (cprd.pairs(seed).splits["test"].arrays() for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["image"], other["image"])


def test_hard_spearman_reads_the_order_of_the_hardest_negatives_alone():
    rng = np.random.default_rng(0)
    teacher, hardest = rng.normal(size=(12, 12)), 4
    assert cprd.hard_spearman(3 * teacher, teacher, hardest) == pytest.approx(1)
    assert cprd.hard_spearman(-teacher, teacher, hardest) == pytest.approx(-1)
    hard = np.zeros((12, 12), bool)
    for one, mine in ((teacher, hard), (teacher.T, hard.T)):
        others = np.where(np.eye(12, dtype=bool), -np.inf, one)
        np.put_along_axis(mine, np.argsort(others, 1)[:, -hardest:], True, 1)
    assert not hard.all()
    noisy = np.where(hard, teacher, rng.normal(size=(12, 12)))
    assert cprd.hard_spearman(noisy, teacher, hardest) == pytest.approx(1)
    for one_direction in (teacher + 99 * np.arange(12)[:, None], teacher + 99 * np.arange(12)):
        assert cprd.hard_spearman(one_direction, teacher, hardest) < 0.9


def test_students_are_two_mlps_at_the_temperature_that_is_said():
    example = (jnp.zeros((2, 48)), *2 * (jnp.ones((3, 48)),))
    variables = cprd.STUDENT.init(jax.random.key(0), *example)
    sizes = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert sizes == 2 * (48 * 64 + 64 + 64 * 16 + 16)
    out = cprd.STUDENT.apply(variables, *example).output
    assert out["image"].shape == (2, 16)
    np.testing.assert_allclose(jnp.linalg.norm(out["text"], axis=1), 1, rtol=1e-5)
    assert cprd.STUDENT.apply(variables, None, None, None).output["scale"] == np.float32(1 / 0.07)


def test_claims_say_what_fails():
    def found(**recalls):
        return {arm: [{"recall_at_1": x} for x in xs] for arm, xs in recalls.items()}

    good = dict(infonce=(0.2, 0.2), mse=(0.2, 0.21), kl=(0.3, 0.3), random=(0.35, 0.35))
    assert [x[1] for x in cprd.claims(found(**good, cprd=(0.36, 0.36)))] == [True] * 4
    bad = dict(infonce=(0.4, 0.2), mse=(0.3, 0.5), kl=(0.3, 0.3), random=(0.4, 0.4))
    assert [x[1] for x in cprd.claims(found(**bad, cprd=(0.5, 0.29)))] == [False] * 4
    worse = {**good, "mse": (0.1, 0.1)}  # this is not nothing either
    assert [x[1] for x in cprd.claims(found(**worse, cprd=(0.36, 0.36)))][2] is False
