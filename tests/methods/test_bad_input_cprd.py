"""CPRD: scores of the teacher that are equal, and queries without a positive."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses

STUDENT = jnp.array([0.3, -0.2, 0.9, 0.1])


def loss(teacher, **options):
    valid = jnp.array([True, True, True, False])
    return losses.partial_ranking_contrastive_loss(
        STUDENT, jnp.array(teacher, jnp.float32), valid, temperature=0.5, **options
    )


@pytest.mark.parametrize(
    ("tied", "ordered"),
    [
        ([0.5, 0.5, 0.2, 0.1], [0.6, 0.5, 0.2, 0.1]),
        ([0.2, 0.5, 0.5, 0.1], [0.2, 0.6, 0.5, 0.1]),
        ([0.5, 0.5, 0.5, 0.1], [0.7, 0.6, 0.5, 0.1]),
    ],
)
def test_of_equal_scores_the_item_that_comes_first_is_ranked_first(tied, ordered):
    assert float(loss(tied)) == float(loss(ordered))
    assert float(loss(tied, tie_tolerance=0.01)) != float(loss(ordered, tie_tolerance=0.01))


def test_a_query_without_a_positive_has_its_ranking_but_no_contrast():
    rng = np.random.default_rng(0)
    image, text = (
        losses.l2_normalize(jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)) for _ in range(2)
    )
    positives = jnp.eye(3, dtype=bool).at[1, 1].set(False)
    contrast = losses.info_nce(image, text, positives=positives, temperature=0.5)
    ranked = losses.partial_ranking_contrastive_loss(
        image @ text.T, image @ text.T + 1, ~positives, temperature=0.5
    )
    assert float(contrast[1]) == 0
    assert np.all(contrast[jnp.array([0, 2])] > 0)
    assert np.all(ranked > 0)
