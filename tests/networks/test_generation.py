"""Sampling: the same as recomputing, the same in every batch, from the stated distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from kdjax.networks import DecoderConfig, build
from kdjax.networks.generation import Corrector, Mixture, draw, generate
from kdjax.networks.network import Applied, Network

KEY = jax.random.key(0)
VOCABULARY, PROMPT, NEW = 11, 4, 5
SMALL = {"width": 8, "num_layers": 1, "num_heads": 4, "num_key_value_heads": 2, "hidden": 12}
CONFIGS = {
    "windowed": {"window": 3, "attention_bias": True, "tied": False, "rope_interleaved": True},
    "gemma": {
        "num_layers": 2,
        "window": 3,
        "window_every": 2,
        "rope_base_local": 100.0,
        "norm_offset": True,
        "activation": "gelu_tanh",
        "query_key_norm": True,
        "post_norms": True,
        "embedding_scale": True,
        "attention_softcap": 2.0,
        "logit_softcap": 3.0,
    },
}
PROMPTS = np.array([[0, 0, 3, 1], [2, 7, 1, 8], [0, 0, 0, 5]])
WHERE = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]], bool)


@functools.cache
def decoder(name):
    """Network, config, and variables far from their start."""
    options = {**SMALL, **CONFIGS[name]}
    network, config = (
        build("decoder", VOCABULARY, **options),
        DecoderConfig(vocabulary=VOCABULARY, **options),
    )
    shapes = jax.eval_shape(network.init, KEY, jnp.zeros((1, 2), int))
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: random.normal(0, 0.6, x.shape).astype(np.float32), shapes)
    return network, config, variables


def sampled(name="windowed", prompts=PROMPTS, where=WHERE, rng=KEY, **options):
    return generate(*decoder(name), prompts, where, rng, max_new_tokens=NEW, **options)


def unpadded(generated, row, where=WHERE):
    """The tokens of a row's prompt and completion."""
    keep = np.concatenate([where[row], np.ones(NEW, bool)])
    return np.asarray(generated.tokens)[row][keep]


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_generation_equals_recomputing_each_step_from_scratch(name):
    network, _, variables = decoder(name)
    forward = jax.jit(lambda *inputs: network.apply(variables, *inputs).output["logits"])
    greedy, warm = sampled(name, temperature=0), sampled(name, temperature=1.5)
    for step in range(NEW):
        tokens, segments = np.zeros((2, 6, PROMPT + NEW), np.int32)
        ends, expected = [], []
        for i, (generated, row) in enumerate((g, r) for g in (greedy, warm) for r in range(3)):
            known = unpadded(generated, row)
            ends.append(int(WHERE[row].sum()) + step)
            tokens[i, : ends[-1]] = known[: ends[-1]]
            segments[i, : ends[-1]] = 1
            expected.append(known[ends[-1]])
        logits = forward(tokens, None, segments)[np.arange(6), np.array(ends) - 1]
        log_probs = jax.nn.log_softmax(logits)
        np.testing.assert_array_equal(np.argmax(logits[:3], -1), expected[:3])
        got = np.concatenate([greedy.log_probs[:, step], warm.log_probs[:, step]])
        np.testing.assert_allclose(got, log_probs[np.arange(6), np.array(expected)], atol=3e-5)
    assert (warm.tokens != greedy.tokens).any()


def test_a_row_samples_the_same_in_any_batch_and_padding_given_its_key():
    keys = jax.random.split(KEY, 3)
    first = sampled(rng=keys)
    order = np.array([2, 0, 0])
    second = sampled(prompts=PROMPTS[order], where=WHERE[order], rng=keys[order])
    np.testing.assert_array_equal(second.tokens, np.asarray(first.tokens)[order])
    wider = np.pad(PROMPTS, ((0, 0), (2, 0)), constant_values=9)
    wider_where = np.pad(WHERE, ((0, 0), (2, 0)))
    third = sampled(prompts=wider, where=wider_where, rng=keys)
    np.testing.assert_array_equal(third.tokens[:, -NEW:], first.tokens[:, -NEW:])
    np.testing.assert_allclose(third.log_probs, first.log_probs, atol=2e-5)
    garbage = np.where(WHERE, PROMPTS, 7)  # what stands in the padding
    np.testing.assert_array_equal(
        sampled(prompts=garbage, rng=keys).tokens[:, PROMPT:], first.tokens[:, PROMPT:]
    )


def test_one_key_is_folded_with_the_row_and_reproduces():
    keys = jnp.stack([jax.random.fold_in(KEY, row) for row in range(3)])
    np.testing.assert_array_equal(sampled().tokens, sampled(rng=keys).tokens)
    assert (sampled().tokens != sampled(rng=jax.random.key(1)).tokens).any()


# A decoder whose logits are known: after token i, the row i of `table`.


def table_decoder(on_call=lambda: None):
    def apply(variables, tokens, positions, segments, cache, **_):
        on_call()
        features = jax.nn.one_hot(tokens, variables["params"]["embedding"]["embedding"].shape[1])
        output = {"logits": None, "features": features, "cache": cache}
        return Applied(output, variables, {})

    return Network(lambda rng, tokens: None, apply)


def of_table(table):
    return {"params": {"embedding": {"embedding": jnp.asarray(table, jnp.float32).T}}}


COUNTING = 50 * np.eye(6)[[1, 2, 3, 4, 5, 0]]  # after i comes i + 1
SIX = DecoderConfig(vocabulary=6, max_length=16)
TABLE = table_decoder()
STARTS, FULL = np.array([[0], [3], [4]]), np.ones((3, 1), bool)


def test_stop_tokens_are_kept_and_end_a_sequence_and_others_are_truncated():
    out = generate(TABLE, SIX, of_table(COUNTING), STARTS, FULL, KEY, max_new_tokens=3, stop=(5, 4))
    np.testing.assert_array_equal(out.tokens, [[0, 1, 2, 3], [3, 4, 0, 0], [4, 5, 0, 0]])
    np.testing.assert_array_equal(out.completion, [[0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_array_equal(out.truncated, [True, False, False])
    assert (out.log_probs[1:, 1:] == 0).all()
    last = generate(
        TABLE, SIX, of_table(COUNTING), STARTS, FULL, KEY, max_new_tokens=3, stop=(3, 3)
    )
    np.testing.assert_array_equal(last.truncated, [False, True, True])  # the last place was a stop
    np.testing.assert_array_equal(last.tokens[1:], [[3, 4, 5, 0], [4, 5, 0, 1]])
    assert last.completion[:, 1:].all()


def test_a_row_without_a_prompt_gets_no_completion():
    where = np.array([[True], [False], [True]])
    out = generate(
        TABLE, SIX, of_table(COUNTING), STARTS, where, KEY, max_new_tokens=3, stop=(5, 5)
    )
    np.testing.assert_array_equal(out.tokens, [[0, 1, 2, 3], [3, 0, 0, 0], [4, 5, 0, 0]])
    np.testing.assert_array_equal(out.completion.sum(-1), [3, 0, 1])
    np.testing.assert_array_equal(out.truncated, [True, False, False])


def test_top_k_and_top_p_both_act():
    # The two most probable, 4 and 3 of 7, of which one reaches one half; of all, 0.4 does not.
    table = of_table(np.tile(np.log([0.3, 0.4, 0.2, 0.1]), (4, 1)))
    config = DecoderConfig(vocabulary=4, max_length=9)
    prompts, where = np.zeros((9, 1), int), np.ones((9, 1), bool)
    options = {"max_new_tokens": 8, "top_k": 2}
    out = generate(TABLE, config, table, prompts, where, KEY, top_p=0.5, **options)
    assert (out.tokens[:, 1:] == 1).all()
    np.testing.assert_allclose(out.log_probs, np.log(0.4), atol=1e-6)  # before the truncation
    out = generate(TABLE, config, table, prompts, where, KEY, top_p=0.6, **options)
    assert set(np.unique(out.tokens[:, 1:])) == {0, 1}


def test_it_compiles_once_a_shape_and_ends_with_the_last_sequence():
    traces, calls = [], []

    def on_call():
        traces.append(None)
        jax.debug.callback(lambda: calls.append(None))

    network = table_decoder(on_call)

    def run(temperature, start):
        starts, where = jnp.array([[start], [start - 1]]), jnp.ones((2, 1), bool)
        options = {"max_new_tokens": 9, "stop": (5,), "temperature": temperature}
        out = generate(network, SIX, of_table(COUNTING), starts, where, KEY, **options)
        jax.block_until_ready(out)
        jax.effects_barrier()
        return out

    assert run(1.0, 4).completion.sum() == 3
    assert len(calls) == 2  # the prompt, then one step for the second sequence
    traced = len(traces)
    assert run(0.5, 2).completion.sum() == 7
    assert len(calls) == 2 + 4
    assert run(jnp.float32(0), 2).completion.sum() == 7
    assert len(traces) == traced


def test_mixture_samples_from_and_reports_the_mixed_distribution():
    student, teacher = np.log([0.5, 0.3, 0.2]), np.log([0.1, 0.1, 0.8])
    config = DecoderConfig(vocabulary=3, max_length=4)
    mixed = functools.partial(Mixture, TABLE, config, of_table(np.tile(teacher, (3, 1))))

    keys = jax.random.split(KEY, 3000)
    prompts, where = np.zeros((3000, 1), int), np.ones((3000, 1), bool)
    shifted = of_table(np.tile(student, (3, 1)) + 4.0)  # logits are known up to a constant
    for weight in (0.0, 0.25, 1.0):
        options = {"max_new_tokens": 2, "mixture": mixed(weight)}
        out = generate(TABLE, config, shifted, prompts, where, keys, **options)
        expected = (1 - weight) * np.exp(student) + weight * np.exp(teacher)
        tokens = np.asarray(out.tokens[:, 1:])
        np.testing.assert_allclose(out.log_probs, np.log(expected)[tokens], atol=1e-5)
        counts = np.bincount(tokens.ravel(), minlength=3)
        assert stats.chisquare(counts, expected * counts.sum()).pvalue > 1e-3


def test_a_corrector_lets_pass_what_is_among_its_best_and_draws_the_rest_itself():
    """P(y) = q(y) [y among the best two of p] + (1 - q(these two)) p(y)^(1 / T) / Z."""
    model, other = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.1, 0.4, 0.3, 0.2])
    config = DecoderConfig(vocabulary=4, max_length=4)
    prompts, where = np.zeros((3000, 1), int), np.ones((3000, 1), bool)
    best = np.array([0, 1, 1, 0])
    for temperature in (1.0, 0.5):
        corrector = Corrector(
            TABLE, config, of_table(np.tile(np.log(other), (4, 1))), 2, temperature
        )
        out = generate(
            TABLE,
            config,
            of_table(np.tile(np.log(model), (4, 1))),
            prompts,
            where,
            jax.random.split(KEY, 3000),
            max_new_tokens=2,
            corrector=corrector,
        )
        tokens, corrected = np.asarray(out.tokens[:, 1:]), np.asarray(out.corrected)
        sharp = other ** (1 / temperature)
        for drawn, expected in (
            (tokens[~corrected], model * best / (model * best).sum()),
            (tokens[corrected], sharp / sharp.sum()),
        ):
            counts, kept = np.bincount(drawn, minlength=4), expected > 0
            assert counts[~kept].sum() == 0
            assert stats.chisquare(counts[kept], expected[kept] * counts.sum()).pvalue > 1e-3
        np.testing.assert_allclose(corrected.mean(), 1 - (model * best).sum(), atol=0.02)
        np.testing.assert_allclose(out.log_probs, np.log(model)[tokens], atol=1e-5)


@functools.cache
def another(name):
    """A decoder of the same form as `decoder` makes, and other variables."""
    network, config, variables = decoder(name)
    return network, config, jax.tree.map(lambda x: np.roll(x, 1), variables)


def test_a_corrector_that_accepts_all_changes_nothing_and_one_that_accepts_one_decodes_greedily():
    plain = sampled()
    free = sampled(corrector=Corrector(*another("windowed"), VOCABULARY))
    np.testing.assert_array_equal(free.tokens, plain.tokens)
    np.testing.assert_allclose(free.log_probs, plain.log_probs, atol=1e-5)
    assert not free.corrected.any()
    assert not plain.corrected.any()
    strict = sampled(corrector=Corrector(*another("windowed"), 1, 0.0))
    greedy = generate(
        *another("windowed"), PROMPTS, WHERE, KEY, max_new_tokens=NEW, temperature=0.0
    )
    np.testing.assert_array_equal(strict.tokens, greedy.tokens)
    assert strict.corrected.any()


@pytest.mark.slow
def test_a_corrector_judges_each_token_after_the_text_as_it_was_mended():
    accept, name = 4, "windowed"
    network, _, variables = another(name)
    out = sampled(name, rng=jax.random.split(KEY, 3), corrector=Corrector(*another(name), accept))
    free, places = 0, WHERE.sum(1)
    for row in range(3):
        known = jnp.asarray(unpadded(out, row))[None]
        logits = network.apply(variables, known).output["logits"][0]
        for step in range(NEW):
            before = logits[places[row] + step - 1]
            rank = int((before > before[known[0, places[row] + step]]).sum())
            if not out.corrected[row, step]:
                free += 1
                assert rank < accept
    assert 0 < free < 3 * NEW


def test_nothing_is_differentiated():
    def loss(table):
        out = generate(
            TABLE, SIX, of_table(table), STARTS, FULL, KEY, max_new_tokens=3, stop=(5, 4)
        )
        return out.log_probs.sum() + table.sum()

    np.testing.assert_array_equal(jax.grad(loss)(jnp.asarray(COUNTING)), np.ones((6, 6)))


draws = jax.jit(jax.vmap(draw, (0, None, None, None, None)), static_argnums=3)
PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.25, 0.15, 0.05])


@pytest.mark.parametrize(
    ("options", "support"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 2.0}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_k": 6}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 1, "temperature": 9.0}, [1]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.81}, [1, 2, 3, 4]),
        ({"top_p": 1e-9}, [1]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4, 5]),
        ({"top_k": 2, "top_p": 0.63}, [1, 3]),  # 0.4 / 0.65 is less than 0.63
        ({"top_k": 2, "top_p": 0.61}, [1]),
        ({"temperature": 0.25, "top_p": 0.81}, [1]),  # 0.855 of the sharpened mass
        ({"temperature": 0.0, "top_p": 0.9}, [1]),
        ({"temperature": 0.0}, [1]),
    ],
)
def test_draws_follow_the_truncated_distribution(options, support):
    temperature = options.get("temperature", 1.0)
    keys, log_probs = jax.random.split(KEY, 4000), jnp.log(PROBABILITIES) - 3.0
    tokens = draws(keys, log_probs, temperature, options.get("top_k"), options.get("top_p"))
    counts = np.bincount(tokens, minlength=6)
    assert np.flatnonzero(counts).tolist() == support
    if len(support) > 1:
        expected = PROBABILITIES[support] ** (1 / temperature)
        expected *= 4000 / expected.sum()
        assert stats.chisquare(counts[support], expected).pvalue > 1e-3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be a positive integer, got 0"),
        (
            {"max_new_tokens": 16},
            ValueError,
            r"prompts must be at most max_length - max_new_tokens = 16 - 16 long \(config\), got 1",
        ),
        ({"temperature": -0.1}, ValueError, "temperature must be finite and at least 0, got -0.1"),
        ({"temperature": jnp.inf}, ValueError, "temperature must be finite and at least 0"),
        ({"top_k": 0}, ValueError, "top_k must be a positive integer, got 0"),
        ({"top_k": 7}, ValueError, "top_k must be at most the vocabulary, 6, got 7"),
        ({"top_p": 0.0}, ValueError, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, ValueError, r"top_p must be in \(0, 1\], got 1.5"),
        ({"stop": (1, 6)}, ValueError, r"stop ids must be in \[0, 6\), got 6"),
        ({"prompts": STARTS[0]}, ValueError, r"prompts must be shaped \[batch, prompt\]"),
        ({"prompts": STARTS + 0.5}, TypeError, "prompts must be integers, got dtype float64"),
        ({"prompt_where": FULL[:2]}, ValueError, r"prompt_where must have the shape \(3, 1\)"),
        ({"prompt_where": STARTS}, TypeError, "prompt_where must be boolean, got dtype int64"),
        (
            {"rng": jax.random.split(KEY, 2)},
            ValueError,
            r"rng must be one key or one a prompt, \[3",
        ),
        ({"rng": jnp.zeros(2, jnp.uint32)}, TypeError, "rng must be made by jax.random.key"),
        (
            {"mixture": Mixture(TABLE, DecoderConfig(vocabulary=5), {}, 0.5)},
            ValueError,
            "mixture must have the vocabulary 6 of config, got 5",
        ),
        (
            {"mixture": Mixture(TABLE, SIX, {}, 1.5)},
            ValueError,
            r"mixture.weight must be in \[0, 1\], got 1.5",
        ),
        (
            {"mixture": Mixture(TABLE, DecoderConfig(vocabulary=6, max_length=3), {}, 0.5)},
            ValueError,
            r"= 3 - 3 long \(mixture.config\), got 1",
        ),
        (
            {"corrector": Corrector(TABLE, SIX, {}, 7)},
            ValueError,
            "corrector.accept must be at most the vocabulary, 6, got 7",
        ),
        (
            {"corrector": Corrector(TABLE, SIX, {}, 0)},
            ValueError,
            "corrector.accept must be a positive integer, got 0",
        ),
        (
            {"corrector": Corrector(TABLE, SIX, {}, 1, -1.0)},
            ValueError,
            "corrector.temperature must be finite and at least 0, got -1.0",
        ),
        (
            {
                "corrector": Corrector(TABLE, SIX, {}, 1),
                "mixture": Mixture(TABLE, SIX, {}, 0.5),
            },
            ValueError,
            "mixture and corrector must not both be given",
        ),
    ],
)
def test_bad_arguments_are_refused(changes, error, message):
    arguments = {"prompts": STARTS, "prompt_where": FULL, "rng": KEY, "max_new_tokens": 3}
    arguments |= changes
    with pytest.raises(error, match=message):
        generate(TABLE, SIX, of_table(COUNTING), **arguments)


def test_prompts_that_are_not_left_padded_are_refused():
    where = np.array([[True, True], [True, False]])
    with pytest.raises(
        ValueError, match="left-padded, but prompt_where has False after True in row 1"
    ):
        generate(
            TABLE, SIX, of_table(COUNTING), np.zeros((2, 2), int), where, KEY, max_new_tokens=3
        )
