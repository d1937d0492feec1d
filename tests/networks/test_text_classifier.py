"""A sentence classifier: padding has no influence, and every token sees the whole sentence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.networks import build

TOKENS = np.array([[4, 2, 7, 1, 3], [5, 6, 8, 8, 8], [8, 8, 8, 8, 8]])
SEGMENTS = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])


@functools.cache
def made():
    options = dict(vocabulary=9, width=8, num_layers=1, num_heads=2, hidden=12, max_length=8)
    network = build("text_classifier", 3, **options)
    variables = jax.jit(network.init)(jax.random.key(0), TOKENS, SEGMENTS)
    taps = ("block0/out",)
    apply = jax.jit(functools.partial(network.apply, taps=taps))
    return network, variables, apply


def test_what_is_padded_and_how_far_has_no_influence():
    _, variables, apply = made()
    found = apply(variables, TOKENS, SEGMENTS).output
    around = ((0, 0), (2, 1))
    longer = np.pad(np.where(SEGMENTS > 0, TOKENS, 0), around), np.pad(SEGMENTS, around)
    padded = apply(variables, *longer).output
    for name in ("logits", "features"):
        assert np.isfinite(found[name]).all()
        np.testing.assert_allclose(padded[name], found[name], rtol=1e-5, atol=1e-6)
    assert not found["features"][2].any()  # of no tokens


def test_a_token_sees_those_after_it_and_their_order():
    _, variables, apply = made()
    before = apply(variables, TOKENS, SEGMENTS).taps["block0/out"][0, 0]
    changed = TOKENS.copy()
    changed[0, 4] = 6
    assert (
        np.abs(apply(variables, changed, SEGMENTS).taps["block0/out"][0, 0] - before).max() > 1e-6
    )
    turned = TOKENS[:, [0, 1, 2, 4, 3]]
    assert np.abs(apply(variables, turned, SEGMENTS).taps["block0/out"][0, 0] - before).max() > 1e-6


def test_padding_has_no_gradient():
    network, variables, _ = made()

    @jax.jit
    @jax.grad
    def loss(variables):
        return jnp.sum(network.apply(variables, TOKENS[1:], SEGMENTS[1:]).output["logits"] ** 2)

    used = np.abs(loss(variables)["params"]["embedding"]["embedding"]).max(1) > 0
    assert np.flatnonzero(used).tolist() == [5, 6]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(loss(variables)))


def test_bad_sentences_and_options_are_refused():
    _, variables, apply = made()
    with pytest.raises(TypeError, match="tokens must be integers, got dtype float32"):
        apply(variables, np.zeros((1, 3), np.float32), np.ones((1, 3), int))
    with pytest.raises(ValueError, match=r"with length <= 8, got shape \(1, 9\)"):
        apply(variables, np.zeros((1, 9), int), np.ones((1, 9), int))
    with pytest.raises(ValueError, match=r"must have the shape \(1, 3\) of tokens, got \(1, 2\)"):
        apply(variables, np.zeros((1, 3), int), np.ones((1, 2), int))
    with pytest.raises(ValueError, match="needs the option 'vocabulary'"):
        build("text_classifier", 3)
    with pytest.raises(ValueError, match="must be a multiple of num_heads=3"):
        build("text_classifier", 3, vocabulary=9, width=8, num_heads=3)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        build("text_classifier", 3, vocabulary=9, dropout=1.0)
