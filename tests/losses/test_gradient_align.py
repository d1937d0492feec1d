"""Gradient alignment on trees: worked numbers, both scopes, degenerate gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdjax import losses

MAIN = {
    "backbone": {"kernel": jnp.array([1.0, 0.0])},
    "head": jnp.array([1.0, 0.0]),
    "auxiliary_head": jnp.zeros(1),
}
AUXILIARY = {
    "backbone": {"kernel": jnp.array([-1.0, 1.0])},
    "head": jnp.array([0.0, 2.0]),
    "auxiliary_head": jnp.array([3.0]),
}


def test_worked_numbers_of_scope_all():
    merged = losses.gradient_align(MAIN, AUXILIARY)
    np.testing.assert_array_equal(merged["backbone"]["kernel"], [0.5, 1.0])
    np.testing.assert_array_equal(merged["head"], [1.5, 2.0])
    np.testing.assert_array_equal(merged["auxiliary_head"], [3.0])


@pytest.mark.parametrize(
    "shared",
    [
        lambda path: path == "backbone/kernel",
        {"backbone": True, "head": False, "auxiliary_head": False},
        {"backbone": {"kernel": True}, "head": False, "auxiliary_head": False},
    ],
)
def test_scope_shared_projects_the_shared_parameters_and_sums_the_others(shared):
    merged = losses.gradient_align(MAIN, AUXILIARY, scope="shared", shared=shared)
    np.testing.assert_array_equal(merged["backbone"]["kernel"], [1.0, 1.0])
    np.testing.assert_array_equal(merged["head"], [1.0, 2.0])
    np.testing.assert_array_equal(merged["auxiliary_head"], [3.0])


vectors = arrays(np.float32, (2, 6), elements=st.floats(-10, 10, width=32))


@settings(deadline=None, database=None, derandomize=True, max_examples=50)
@given(vectors)
def test_what_is_left_of_the_auxiliary_gradient_never_opposes_the_main_one(gradients):
    main, auxiliary = jnp.asarray(gradients)
    merged = losses.gradient_align([main], [auxiliary])[0]
    product = jnp.vdot(main, merged - main)
    assert product >= -1e-3
    if jnp.vdot(main, auxiliary) >= 0:
        np.testing.assert_allclose(merged, main + auxiliary, rtol=1e-5, atol=1e-4)


def test_agreeing_gradients_are_summed_and_zero_ones_left_alone():
    zero = jax.tree.map(jnp.zeros_like, MAIN)
    for main, auxiliary in ((AUXILIARY, AUXILIARY), (zero, AUXILIARY), (MAIN, zero)):
        merged = losses.gradient_align(main, auxiliary)
        jax.tree.map(np.testing.assert_array_equal, merged, jax.tree.map(jnp.add, main, auxiliary))


def test_inner_products_run_over_all_leaves_together():
    # Leaf by leaf the second would be projected; together the two agree.
    main = [jnp.array([2.0]), jnp.array([1.0])]
    auxiliary = [jnp.array([2.0]), jnp.array([-1.0])]
    merged = losses.gradient_align(main, auxiliary)
    assert [leaf.item() for leaf in merged] == [4.0, 0.0]


def test_half_precision_is_merged_in_float32_and_given_back_in_its_own_type():
    main = {"kernel": jnp.full(4096, 8.0, jnp.float16)}
    auxiliary = {"kernel": jnp.full(4096, -4.0, jnp.float16)}
    merged = losses.gradient_align(main, auxiliary)
    assert merged["kernel"].dtype == jnp.float16
    np.testing.assert_array_equal(merged["kernel"], main["kernel"])


def test_compiled_it_is_the_same():
    merged = losses.gradient_align(MAIN, AUXILIARY)
    jax.tree.map(
        np.testing.assert_array_equal, jax.jit(losses.gradient_align)(MAIN, AUXILIARY), merged
    )
