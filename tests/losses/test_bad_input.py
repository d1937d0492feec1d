"""Bad input is refused while tracing, with the argument, what came and what was expected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kernels.examples import EXAMPLES

S = jnp.zeros((2, 3))
WIDE = jnp.zeros((2, 4))
Y = jnp.zeros(2, jnp.int32)

PAIRS = [
    "alpha_beta_divergence",
    "binary_kl",
    "binary_kl_norm",
    "dist",
    "forward_kl",
    "generalized_jsd",
    "jeffreys",
    "kd",
    "kl_divergence",
    "logit_standardized_kd",
    "reverse_kl",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "total_variation",
]
TRIPLES = ["dkd", "nkd", "plackett_luce"]
LABELLED = [*TRIPLES, "cross_entropy", "teacher_optimal_ranking"]
TEMPERED = [
    "binary_kl",
    "binary_kl_norm",
    "dist",
    "dkd",
    "kd",
    "logit_standardized_kd",
    "nkd",
    "plackett_luce",
]
NO_LOGITS = [
    "gradient_align",
    "gradient_cosine",
    "listmle_weights",
    "p_listmle_weights",
    "pcgrad",
    "valid_labels",
]
OTHER = ["plackett_luce_nll", "standardize_logits"]


def call(name, first=S, second=S, labels=Y, **options):
    kernel = getattr(losses, name)
    if name in TRIPLES:
        return kernel(first, second, labels, **options)
    if name in ("cross_entropy", "teacher_optimal_ranking"):
        return kernel(first, labels, **options)
    return kernel(first, second, **options)


def test_the_tables_and_the_examples_name_every_kernel():
    here = {*PAIRS, *LABELLED, *NO_LOGITS, *OTHER}
    examples = {name.partition(":")[0] for name in EXAMPLES}
    public = {n: x for n, x in vars(losses).items() if callable(x) and not n.startswith("_")}
    types = {n for n, x in public.items() if isinstance(x, type)}
    assert public.keys() - here - examples - types == set()
    assert {n for n in here | examples if not n.startswith("compat.")} <= public.keys()


def test_every_example_says_what_is_refused():
    silent = [n for n, example in EXAMPLES.items() if not example.refused]
    # A variant of a kernel has the same checks.
    spoken = {name.partition(":")[0] for name, example in EXAMPLES.items() if example.refused}
    assert [n for n in silent if n.partition(":")[0] not in spoken] == []


@pytest.mark.parametrize("name", [*PAIRS, *TRIPLES])
def test_class_counts_that_differ_are_named(name):
    with pytest.raises(ValueError, match=r"one shape .*\(2, 3\) and \(2, 4\)"):
        call(name, S, WIDE)


@pytest.mark.parametrize("name", [*PAIRS, *TRIPLES])
def test_ranks_that_differ_are_named(name):
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3,\)"):
        call(name, S, S[0])


@pytest.mark.parametrize("name", [*PAIRS, *LABELLED])
def test_a_scalar_is_no_logits(name):
    with pytest.raises(ValueError, match=r"logits must be shaped \[\.\.\., classes\], got .*\(\)"):
        call(name, jnp.float32(1), jnp.float32(1))


@pytest.mark.parametrize("name", [*PAIRS, *LABELLED])
def test_integer_logits_are_refused(name):
    with pytest.raises(TypeError, match=r"logits must be a floating-point array, got dtype int32"):
        call(name, S.astype(int), S.astype(int))


@pytest.mark.parametrize("name", LABELLED)
def test_labels_that_are_not_integers_are_refused(name):
    with pytest.raises(TypeError, match="labels must be integers, got dtype float32"):
        call(name, labels=jnp.zeros(2))
    with pytest.raises(TypeError, match="labels must be integers, got dtype bool"):
        call(name, labels=jnp.zeros(2, bool))


@pytest.mark.parametrize("shape", [(2, 1), (3,), ()])
@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_another_shape_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"labels must have the shape \(2,\)"):
        call(name, labels=jnp.zeros(shape, jnp.int32))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), np.float32(0)])
@pytest.mark.parametrize("name", TEMPERED)
def test_temperature_must_be_positive(name, temperature):
    with pytest.raises(ValueError, match="temperature must be finite and > 0, got"):
        call(name, temperature=temperature)


@pytest.mark.parametrize("name", TEMPERED)
def test_temperature_is_checked_under_jit_and_when_a_concrete_array(name):
    with pytest.raises(ValueError, match="temperature must be finite and > 0"):
        jax.jit(lambda s: call(name, s, s, temperature=0.0))(S)
    with pytest.raises(ValueError, match="temperature must be finite and > 0"):
        call(name, temperature=jnp.float32(-2))


@pytest.mark.parametrize("name", TEMPERED)
def test_temperature_must_be_one_number(name):
    with pytest.raises(ValueError, match=r"temperature must be a scalar, got shape \(2,\)"):
        call(name, temperature=jnp.ones(2))
    with pytest.raises(TypeError, match="temperature must be a number, got 'hot'"):
        call(name, temperature="hot")
    with pytest.raises(TypeError, match="temperature must be a number, got True"):
        call(name, temperature=True)


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("generalized_jsd", "beta", 1.1, r"beta must lie in \[0, 1\], got 1.1"),
        ("generalized_jsd", "beta", -0.1, r"beta must lie in \[0, 1\], got -0.1"),
        ("skewed_forward_kl", "lam", 2, r"lam must lie in \[0, 1\], got 2"),
        ("skewed_reverse_kl", "lam", -1, r"lam must lie in \[0, 1\], got -1"),
        ("alpha_beta_divergence", "alpha", float("nan"), "alpha must be finite, got nan"),
        ("alpha_beta_divergence", "beta", float("inf"), "beta must be finite, got inf"),
        ("cross_entropy", "label_smoothing", 1.5, r"label_smoothing must lie in \[0, 1\]"),
        ("cross_entropy", "smoothed_classes", "none", "smoothed_classes must be one of 'all', "),
        ("dkd", "alpha", -1.0, "alpha must be finite and >= 0, got -1"),
        ("dkd", "beta", -1.0, "beta must be finite and >= 0, got -1"),
        ("nkd", "gamma", -1.0, "gamma must be finite and >= 0, got -1"),
        ("dist", "beta", -1.0, "beta must be finite and >= 0, got -1"),
        ("dist", "gamma", -1.0, "gamma must be finite and >= 0, got -1"),
        ("dist", "epsilon", -1.0, "epsilon must be finite and >= 0, got -1"),
        ("dist", "where", jnp.ones(3, bool), r"where must have the shape \(2,\) .* got \(3,\)"),
    ],
)
def test_values_out_of_range_are_refused(name, option, value, message):
    with pytest.raises(ValueError, match=message):
        call(name, **{option: value})


def test_dist_needs_a_batch_and_a_boolean_mask():
    with pytest.raises(ValueError, match=r"\[batch, \.\.\., classes\], got shape \(3,\)"):
        losses.dist(S[0], S[0])
    with pytest.raises(TypeError, match="where must be boolean, got dtype float32"):
        losses.dist(S, S, where=jnp.ones(2))


def test_standardisation_needs_a_positive_epsilon():
    with pytest.raises(ValueError, match="epsilon must be finite and > 0, got 0"):
        losses.standardize_logits(S, epsilon=0.0)


def test_rankings_and_weights_must_fit_the_logits():
    ranking = jnp.zeros((2, 3), jnp.int32)
    with pytest.raises(TypeError, match="ranking must be of integers, got dtype float32"):
        losses.plackett_luce_nll(S, S, S)
    with pytest.raises(ValueError, match=r"one shape .*\(2, 3\) and \(3,\)"):
        losses.plackett_luce_nll(S, ranking[0], S)
    with pytest.raises(ValueError, match=r"weights must be shaped \(2, 3\) .* got \(2, 1\)"):
        losses.plackett_luce_nll(S, ranking, S[:, :1])
    with pytest.raises(TypeError, match="weights must be a floating-point array"):
        losses.plackett_luce_nll(S, ranking, ranking)


@pytest.mark.parametrize("weights", [losses.listmle_weights, losses.p_listmle_weights])
def test_weights_need_a_class(weights):
    with pytest.raises(ValueError, match="num_classes must be >= 1, got 0"):
        weights(0)
    with pytest.raises(TypeError, match=r"num_classes must be an integer, got 2\.0"):
        weights(2.0)


def test_valid_labels_must_be_integers():
    with pytest.raises(TypeError, match="labels must be integers, got dtype float32"):
        losses.valid_labels(jnp.zeros(2), 3)


G = {"backbone": jnp.ones(2), "head": jnp.ones(3)}


@pytest.mark.parametrize(
    ("auxiliary", "options", "error", "message"),
    [
        (G, {"scope": "some"}, ValueError, "scope must be one of 'all', 'shared', got 'some'"),
        ({"head": jnp.ones(3)}, {}, ValueError, "must be trees of one structure"),
        ({**G, "head": jnp.ones(2)}, {}, ValueError, r"one shape at 'head', got \(3,\) and \(2,\)"),
        ({**G, "head": jnp.ones(3, int)}, {}, TypeError, "auxiliary_gradient must be of floats"),
        (G, {"scope": "shared"}, ValueError, "scope 'shared' needs shared"),
        (G, {"shared": lambda path: True}, ValueError, "shared must not be given"),
        (G, {"scope": "shared", "shared": {"backbone": 1, "head": 0}}, TypeError, "True or False"),
        (G, {"scope": "shared", "shared": lambda path: False}, ValueError, "at least one"),
    ],
)
def test_gradients_that_cannot_be_aligned_are_refused(auxiliary, options, error, message):
    with pytest.raises(error, match=message):
        losses.gradient_align(G, auxiliary, **options)
