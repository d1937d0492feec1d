"""What vocabulary-sized losses refuse, and what they say of it."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.losses import vocabulary
from kdjax.losses.vocabulary_arguments import Head

H, W = jnp.zeros((2, 3, 4)), jnp.zeros((6, 4))
Y, IDS, LOGP = jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 3, 2), jnp.int32), jnp.zeros((2, 3, 2))
TEACHER = {"teacher_hidden": H, "teacher_head": W}
SPARSE_TEACHER = {"teacher_ids": IDS, "teacher_log_probs": LOGP}
PAIR = (np.array([0, 1]), np.array([2, 3]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"teacher_hidden": H, "teacher_head": W[:5]},
            ValueError,
            r"vocabulary = 6 as in student_head, got shape \(5, 4\)",
        ),
        (
            {"teacher_hidden": H, "teacher_head": W[:, :3]},
            ValueError,
            r"teacher_width = 4 as in teacher_hidden",
        ),
        (
            {"teacher_hidden": H[:1], "teacher_head": W},
            ValueError,
            r"teacher_hidden must be shaped \[\.\.\., teacher_width\]",
        ),
        (
            {"teacher_logits": jnp.zeros((2, 3, 7))},
            ValueError,
            r"teacher_logits must be .* vocabulary = 6 as in student_head",
        ),
        (
            {"teacher_hidden": H, "teacher_head": (W, None)},
            TypeError,
            "teacher_head must be an array .* or a Head, got a tuple",
        ),
        (
            {"teacher_hidden": H, "teacher_head": Head(W, jnp.zeros(5))},
            ValueError,
            r"teacher_head\.bias must be shaped \[vocabulary\]",
        ),
        (
            {"teacher_hidden": H, "teacher_head": Head(W, softcap=0.0)},
            ValueError,
            r"teacher_head\.softcap must be finite and > 0",
        ),
        (
            {"teacher_hidden": H.astype(int), "teacher_head": W},
            TypeError,
            "teacher_hidden must be a floating-point array",
        ),
        ({}, ValueError, "one teacher must be given: .*; got none"),
        ({**TEACHER, **SPARSE_TEACHER}, ValueError, "got teacher_hidden and teacher_log_probs"),
        (
            {"teacher_hidden": H},
            ValueError,
            "teacher_hidden needs teacher_head, which is not given",
        ),
        (
            {"teacher_ids": IDS, "teacher_logits": jnp.zeros((2, 3, 6))},
            ValueError,
            "teacher_ids needs teacher_log_probs",
        ),
        (
            {**SPARSE_TEACHER, "teacher_ids": IDS[..., :1]},
            ValueError,
            r"teacher_ids must have the shape \(2, 3, 2\)",
        ),
        ({**SPARSE_TEACHER, "teacher_ids": LOGP}, TypeError, "teacher_ids must be integers"),
        (
            {"teacher_ids": jnp.zeros((2, 3, 7), int), "teacher_log_probs": jnp.zeros((2, 3, 7))},
            ValueError,
            "k must be >= 1 and <= 6, got 7",
        ),
        ({**TEACHER, "temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0"),
        ({**TEACHER, "where": jnp.ones((2, 3))}, TypeError, "where must be boolean"),
        (
            {**TEACHER, "where": jnp.ones(3, bool)},
            ValueError,
            r"where must have the shape \(2, 3\) of student_hidden",
        ),
        (
            {**TEACHER, "labels": Y[0]},
            ValueError,
            r"labels must have the shape \(2, 3\) of student_hidden",
        ),
        ({**TEACHER, "labels": H[..., 0]}, TypeError, "labels must be integers"),
        ({**TEACHER, "chunk": 0}, ValueError, "chunk must be >= 1, got 0"),
        ({**TEACHER, "chunk": 2.0}, TypeError, "chunk must be an integer"),
        ({**TEACHER, "shared_ids": (PAIR[0], PAIR[1][:1])}, ValueError, "two arrays of one shape"),
        ({**TEACHER, "shared_ids": PAIR[0]}, TypeError, "shared_ids must be a tuple"),
        (
            {**TEACHER, "shared_ids": (PAIR[0], PAIR[1] + 3)},
            ValueError,
            r"shared_ids\[1\] must lie in \[0, 6\), got 5 to 6",
        ),
        (
            {**TEACHER, "shared_ids": (PAIR[0] * 0, PAIR[1])},
            ValueError,
            r"shared_ids\[0\] must be different ids",
        ),
        ({**SPARSE_TEACHER, "shared_ids": PAIR}, ValueError, "shared_ids is for dense teachers"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        vocabulary.linear_kl(H, W, **options)


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (vocabulary.linear_generalized_jsd, {"beta": 1.1}, r"beta must lie in \[0, 1\], got 1.1"),
        (vocabulary.linear_skewed_kl, {"lam": -0.1}, r"lam must lie in \[0, 1\], got -0.1"),
        (vocabulary.linear_skewed_kl, {"direction": "up"}, "direction must be one of 'forward'"),
        (vocabulary.linear_alpha_beta, {"alpha": float("nan")}, "alpha must be finite, got nan"),
        (vocabulary.linear_taid, {"t": 1.5}, r"t must lie in \[0, 1\], got 1.5"),
        (vocabulary.linear_taid, {"t": 0.5, "form": "js"}, "form must be one of 'cross_entropy'"),
        (vocabulary.linear_taid, {"t": 0.5, **SPARSE_TEACHER}, "teacher_ids must not be given"),
    ],
)
def test_bad_scalars_are_refused(loss, options, message):
    teacher = {} if "teacher_ids" in options else TEACHER
    with pytest.raises(ValueError, match=message):
        loss(H, W, **teacher, **options)
