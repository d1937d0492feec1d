"""What a vocabulary-sized loss computes and holds: never all logits, no gradient unasked."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import vocabulary


def shaped(count, width, vocabulary):
    struct = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    return struct((count, width)), struct((vocabulary, width))


def test_no_buffer_is_as_large_as_all_logits():
    count, width, size, chunk = 256, 8, 512, 16
    hidden, head = shaped(count, width, size)

    def total(hidden, head, teacher_hidden, teacher_head):
        return vocabulary.linear_kl(hidden, head, teacher_hidden, teacher_head, chunk=chunk)[0]

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    compiled = step.lower(hidden, head, hidden, head).compile()
    sizes = {
        int(np.prod([int(n) for n in shape.split(",")]))
        for shape in re.findall(r"\w\[([\d,]+)\]", compiled.as_text())
    }
    assert chunk * size in sizes
    assert max(sizes) <= chunk * size
    assert compiled.memory_analysis().temp_size_in_bytes < count * size * 4


def test_the_value_alone_computes_no_gradient():
    hidden, head = shaped(64, 8, 32)

    def total(hidden, head):
        return vocabulary.linear_kl(hidden, head, hidden, head, chunk=16)[0]

    def products(function):
        return len(re.findall("dot_general", str(jax.make_jaxpr(function)(hidden, head))))

    assert products(total) == 2
    assert products(jax.grad(total, argnums=(0, 1))) == 4
