"""Rematerialisation: the same values, gradients and paths, and less memory."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from kdjax.networks import build

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
TOKENS = np.random.default_rng(0).integers(0, 5, (2, 12))
# On a CPU, XLA takes the barriers away early, and then merges what is to be computed again with
# what was computed before. An accelerator's compiler keeps them, as here.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse,cse_barrier_expander,optimization-barrier-expander"}
NETWORKS = {
    "decoder": (dict(num_layers=2, width=8, num_heads=2, hidden=16), TOKENS),
    "vit": (dict(depth=2, width=8, heads=2, dropout=0.3), IMAGES),
    "resnet8": (dict(widths=(4, 4, 8, 8)), IMAGES),
    "wrn_10_1": (dict(dropout=0.3), IMAGES),
}


@functools.cache
def outcome(name, remat):
    """`(variables, loss, changed collections, gradient)` of a network in training."""
    options, x = NETWORKS[name]
    network = build(name, 5, remat=remat, **options)
    variables = network.init(jax.random.key(0), jnp.asarray(x))

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, rest):
        out = network.apply({**rest, "params": params}, x, train=True, rng=jax.random.key(1))
        changed = {k: v for k, v in out.variables.items() if k != "params"}
        return jax.nn.log_softmax(out.output["logits"])[..., 0].mean(), changed

    rest = {k: v for k, v in variables.items() if k != "params"}
    (value, changed), gradient = jax.jit(loss)(variables["params"], rest)
    return variables, (value, changed, gradient)


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        pytest.param("vit", "block", marks=pytest.mark.slow),
        pytest.param("resnet8", "block", marks=pytest.mark.slow),
        pytest.param("wrn_10_1", "block", marks=pytest.mark.slow),
        pytest.param("decoder", "block", marks=pytest.mark.slow),
        pytest.param("vit", "dots_saveable", marks=pytest.mark.slow),
        pytest.param("decoder", "dots_with_no_batch_dims_saveable", marks=pytest.mark.slow),
        pytest.param("resnet8", "nothing_saveable", marks=pytest.mark.slow),
        pytest.param("wrn_10_1", "everything_saveable", marks=pytest.mark.slow),
    ],
)
def test_loss_gradient_statistics_dropout_and_paths_are_those_of_the_network_as_it_is(name, remat):
    kept, recomputed = outcome(name, ""), outcome(name, remat)
    assert jax.tree.structure(kept) == jax.tree.structure(recomputed)
    jax.tree.map(np.testing.assert_array_equal, kept[0], recomputed[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), kept[1], recomputed[1]
    )
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(recomputed[1][2]))


def memory(name, remat, shape, **options):
    """Bytes of temporary memory of the compiled gradient of a network; nothing is computed."""
    network = build(name, 5, remat=remat, **options)
    x = jax.ShapeDtypeStruct(shape, jnp.int32 if name == "decoder" else jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), x)

    def loss(params, rest, x):
        out = network.apply({**rest, "params": params}, x, train=True, rng=jax.random.key(1))
        return out.output["logits"].mean()

    rest = {k: v for k, v in variables.items() if k != "params"}
    lowered = jax.jit(jax.grad(loss)).lower(variables["params"], rest, x)
    return lowered.compile(compiler_options=KEEP_BARRIERS).memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_a_deep_network_takes_a_fraction_of_the_temporary_memory():
    deep = functools.partial(memory, "vit", shape=(8, 32, 32, 3), depth=4, width=16, heads=2)
    kept, dots, blocks = deep(""), deep("dots_saveable"), deep("block")
    assert blocks < 0.4 * kept, (blocks, dots, kept)
    assert blocks < dots < kept, (blocks, dots, kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("decoder", (4, 128), dict(num_layers=6, width=16, hidden=64)),
        ("resnet32", (16, 16, 16, 3), {}),
        ("wrn_28_1", (16, 16, 16, 3), {}),
    ],
)
def test_every_deep_network_takes_less_temporary_memory(name, shape, options):
    kept, blocks = (memory(name, remat, shape, **options) for remat in ("", "block"))
    assert blocks < 0.7 * kept, (blocks, kept)


@pytest.mark.parametrize("name", ["vit", "resnet8", "wrn_10_1", "decoder"])
def test_a_policy_that_does_not_exist_is_refused(name):
    with pytest.raises(ValueError, match=r"remat must be one of .*'dots_saveable'.*got 'dots'"):
        build(name, 5, remat="dots")
