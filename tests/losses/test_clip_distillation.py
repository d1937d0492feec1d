"""Distillation of models of image-text pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import clip_distillation as clip
from kdjax.losses import clip_features
from kdjax.losses.contrastive import clip_info_nce, l2_normalize

quick = settings(deadline=None, database=None, derandomize=True, max_examples=15)
seeds = given(seed=st.integers(0, 2**31 - 1))
BATCH, FEATURES = 5, 4
KERNEL = jnp.float32(np.random.default_rng(7).normal(size=(2, 2 * FEATURES, FEATURES)))
BIAS = jnp.float32(np.random.default_rng(8).normal(size=(2, FEATURES)))

LOSSES = {
    "ckd": functools.partial(clip.clip_kd_ckd, student_scale=3.0, teacher_scale=5.0),
    "fd": clip_features.clip_kd_fd,
    "icl": functools.partial(clip.clip_kd_icl, scale=2.66),
    "cross_kd": functools.partial(clip.clip_kd_cross_kd, scale=2.66, teacher_scale=5.0),
    "gd": functools.partial(
        clip_features.clip_kd_gd, student_temperature=0.4, teacher_temperature=0.3
    ),
    "afd": lambda *features, **options: clip_features.clip_kd_afd(
        *features, *KERNEL, *BIAS, scale=2.0, **options
    ),
    "affinity": functools.partial(clip.affinity_mimicking, student_scale=3.0, teacher_scale=5.0),
}
COMPILED = {
    name: jax.jit(lambda *features, where=None, loss=loss: loss(*features, where=where))
    for name, loss in LOSSES.items()
}
every = pytest.mark.parametrize("name", list(LOSSES))


def unit(seed, count=4, size=BATCH):
    drawn = np.random.default_rng(seed).normal(size=(count, size, FEATURES))
    return list(jnp.float32(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)))


def close(actual, expected, rtol=5e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


# The definitions by hand.


def test_affinity_of_equal_logits_is_the_teachers_entropy():
    pairs, flat = jnp.eye(2), jnp.ones((2, 1))
    affinity = functools.partial(clip.affinity_mimicking, student_scale=1.0, teacher_scale=1.0)
    close(affinity(pairs, pairs, pairs, pairs), [0.582203] * 2)
    close(affinity(flat, flat, pairs, pairs), [0.693147] * 2)


def test_features_of_orthogonal_directions_are_two_apart():
    student, teacher = jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 1.0]])
    close(clip_features.clip_kd_fd(student, student, teacher, teacher), [2.0])


def test_interactive_contrast_with_the_teacher_itself_is_info_nce():
    image, text = unit(0, 2)
    loss = clip.clip_kd_icl(image, text, image, text, scale=3.0)
    close(loss, clip_info_nce(image, text, scale=3.0))


def test_ckd_is_affinity_mimicking_less_the_teachers_entropy():
    image, text, teacher_image, teacher_text = unit(0)
    features = (image, text, teacher_image, teacher_text)
    entropy = clip.affinity_mimicking(
        teacher_image, teacher_text, teacher_image, teacher_text, student_scale=5, teacher_scale=5
    )
    close(LOSSES["affinity"](*features) - entropy, LOSSES["ckd"](*features))


def test_gradient_distillation_compares_the_gradients_of_info_nce():
    image, text, teacher_image, teacher_text = unit(0)

    def gradients(image, text, temperature):
        def direction(query, key):
            logits = query @ key.T / temperature
            return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))

        of_both = jax.grad(direction, argnums=(0, 1))
        return jnp.stack([*of_both(image, text), *of_both(text, image)])

    difference = gradients(image, text, 0.4) - gradients(teacher_image, teacher_text, 0.3)
    expected = jnp.sum(jnp.mean(difference**2, axis=-1), axis=0)
    close(LOSSES["gd"](image, text, teacher_image, teacher_text), expected, 1e-4)


def test_augmented_features_are_contrasted_by_clips_loss():
    image, text, teacher_image, teacher_text = unit(0)
    fused = [
        l2_normalize(jnp.concatenate(both, axis=1) @ KERNEL[i] + BIAS[i])
        for i, both in enumerate([(image, teacher_image), (text, teacher_text)])
    ]
    loss = LOSSES["afd"](image, text, teacher_image, teacher_text)
    close(loss, clip_info_nce(*fused, scale=2.0))


@pytest.mark.parametrize(
    "loss",
    [
        functools.partial(clip.clip_kd_ckd, student_scale=3.0, teacher_scale=3.0),
        clip_features.clip_kd_fd,
        functools.partial(clip.clip_kd_cross_kd, scale=3.0, teacher_scale=3.0),
        functools.partial(
            clip_features.clip_kd_gd, student_temperature=0.4, teacher_temperature=0.4
        ),
    ],
    ids=["ckd", "fd", "cross_kd", "gd"],
)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(loss):
    image, text = unit(0, 2)
    value, gradients = jax.value_and_grad(
        lambda a, b: jnp.sum(loss(a, b, image, text)), argnums=(0, 1)
    )(image, text)
    assert abs(value) < 1e-6
    for gradient in gradients:
        assert np.max(np.abs(gradient)) < 1e-5


# Invariances.


@every
@quick
@seeds
def test_a_permutation_of_the_pairs_permutes_the_losses(name, seed):
    features = unit(seed)
    order = np.random.default_rng(seed).permutation(BATCH)
    loss = COMPILED[name](*features)
    assert np.all(loss >= -1e-6)
    close(COMPILED[name](*(x[order] for x in features)), loss[order])


@every
@quick
@given(seed=st.integers(0, 1000), factor=st.floats(1e-2, 1e2))
def test_clip_kd_forgets_the_students_lengths_and_affinity_does_not(name, seed, factor):
    image, text, *teacher = unit(seed)
    loss = COMPILED[name](image, text, *teacher)
    longer = COMPILED[name](image * np.float32(factor), text, *teacher)
    if name == "affinity":
        assert abs(factor - 1) < 0.1 or np.max(np.abs(longer - loss)) > 1e-3
    else:
        close(longer, loss, 1e-4, 1e-5)


@every
@quick
@seeds
def test_only_relations_among_the_students_survive_its_rotation(name, seed):
    image, text, *teacher = unit(seed)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(FEATURES, FEATURES)))
    rotation = np.float32(rotation)
    loss = COMPILED[name](image, text, *teacher)
    rotated = COMPILED[name](image @ rotation, text @ rotation, *teacher)
    if name in ("ckd", "affinity"):
        close(rotated, loss, 1e-4, 1e-5)
    else:
        assert np.max(np.abs(rotated - loss)) > 1e-3


@every
@pytest.mark.parametrize("hidden", [(0,), (1, 2, 4)])
def test_padding_is_the_same_as_a_smaller_batch(name, hidden):
    features = unit(0)
    where = ~np.isin(np.arange(BATCH), hidden)
    padded = [jnp.where(where[:, None], x, jnp.nan) for x in features]
    loss = COMPILED[name](*padded, where=where)
    assert np.all(loss[~where] == 0)
    close(loss[where], COMPILED[name](*(x[where] for x in features)))


@every
def test_all_pairs_hidden_is_zero_not_nan(name):
    features = [jnp.full_like(x, jnp.nan) for x in unit(0)]

    def total(image):
        return jnp.sum(LOSSES[name](image, *features[1:], where=np.zeros(BATCH, bool)))

    value, gradient = jax.value_and_grad(total)(features[0])
    assert value == 0
    assert np.all(gradient == 0)


def test_images_and_texts_change_places_where_both_directions_count():
    image, text, teacher_image, teacher_text = unit(0)
    for name in ("ckd", "fd", "icl", "cross_kd", "gd", "affinity"):
        swapped = LOSSES[name](text, image, teacher_text, teacher_image)
        close(swapped, LOSSES[name](image, text, teacher_image, teacher_text))


def test_zero_features_have_a_finite_gradient():
    zero = jnp.zeros((BATCH, FEATURES))
    _, text, *teacher = unit(0)
    for name, loss in LOSSES.items():
        gradient = jax.grad(lambda x, f=loss: jnp.sum(f(x, text, *teacher)))(zero)
        assert np.all(np.isfinite(gradient)), name
