"""What holds for every kernel that has an example in tests/kernels/examples.

Every day the first kernel of each module is compiled for it, with `-m slow` all others are. What
needs no compilation is asked of all every day, and so are the recorded values (test_goldens.py).
"""

import functools
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import beartype
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import jaxtyped

from kernels.examples import EXAMPLES

HERE = Path(__file__).parent
JITTED = [name for name, example in EXAMPLES.items() if example.jitted]


def home(name):
    """The module of a kernel."""
    return getattr(EXAMPLES[name].kernel, "__module__", "").rpartition(".")[2]


# One of every module: compiling all of them is too much for every day.
FIRST = set({home(name): name for name in reversed(JITTED)}.values())


def kernels(condition=lambda example: True):
    """Parametrizes with names; the tests of a kernel run together, on what was compiled once."""
    names = [name for name in JITTED if condition(EXAMPLES[name])]
    marked = [pytest.param(n, marks=[] if n in FIRST else pytest.mark.slow) for n in names]
    return pytest.mark.parametrize("name", marked, scope="module")


every_kernel = kernels()


def arguments(name, seed=0):
    return EXAMPLES[name].arguments(np.random.default_rng(seed))


def call(name, arrays):
    example = EXAMPLES[name]
    return example.kernel(**arrays, **example.options)


def total(outputs):
    """One number that depends on every floating output, each element with a weight of its own."""
    result = 0.0
    for leaf in jax.tree.leaves(outputs):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            leaf = leaf.astype(jnp.float32)
            weights = jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)
            # A class that is impossible is -inf, and has no gradient.
            result += jnp.sum(jnp.where(jnp.isinf(leaf), 0.0, weights * leaf))
    return result


@functools.lru_cache(maxsize=8)
def compiled(name):
    """(outputs, gradients in every floating argument), compiled."""

    def run(arrays):
        floats = {k: v for k, v in arrays.items() if jnp.issubdtype(v.dtype, jnp.floating)}

        def weighed(floats):
            outputs = call(name, {**arrays, **floats})
            return total(outputs), outputs

        (_, outputs), gradients = jax.value_and_grad(weighed, has_aux=True)(floats)
        return outputs, gradients

    return jax.jit(run)


def assert_trees_close(actual, expected, rtol=2e-5, scale=1e-6):
    """Equal to rtol, or to `scale` of the largest element: sums may be taken in another order."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        finite = np.asarray(b)[np.isfinite(b)]
        largest = np.max(np.abs(finite), initial=1e-30)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=scale * float(largest))


@every_kernel
def test_annotated_shapes_hold(name):
    arrays = {k: jnp.asarray(v) for k, v in arguments(name).items()}
    example = EXAMPLES[name]
    checked = jaxtyped(typechecker=beartype.beartype)(example.kernel)
    shapes = jax.eval_shape(lambda arrays: checked(**arrays, **example.options), arrays)
    outputs, _ = compiled(name)(arrays)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, outputs)


@every_kernel
def test_compiled_rematerialised_and_mapped_agree_with_each_other(name):
    arrays = {k: jnp.asarray(v) for k, v in arguments(name).items()}
    outputs, gradients = compiled(name)(arrays)
    example = EXAMPLES[name]

    def rematerialised(wanted):
        return total(jax.checkpoint(lambda w: call(name, {**arrays, **w}))(wanted))

    other = {k: jnp.asarray(v) for k, v in arguments(name, seed=1).items()}
    both = jax.tree.map(lambda *x: jnp.stack(x), arrays, other)

    @jax.jit
    def again(wanted, both):
        return jax.grad(rematerialised)(wanted), jax.vmap(lambda a: call(name, a))(both)

    wanted = {k: arrays[k] for k in example.differentiated}
    of_wanted, mapped = again(wanted, both)
    assert_trees_close(of_wanted, {k: gradients[k] for k in wanted}, rtol=1e-4, scale=1e-5)
    assert_trees_close(jax.tree.map(lambda x: x[0], mapped), outputs)
    assert_trees_close(jax.tree.map(lambda x: x[1], mapped), compiled(name)(other)[0])


@pytest.mark.slow  # each operation is compiled by itself; the families' tests are eager as well
@every_kernel
def test_compiled_agrees_with_eager(name):
    arrays = {k: jnp.asarray(v) for k, v in arguments(name).items()}
    assert_trees_close(compiled(name)(arrays)[0], call(name, arrays))


@every_kernel
def test_outputs_are_float32_whatever_comes_in(name):
    arrays = arguments(name)
    for dtype in (jnp.bfloat16, jnp.float16):
        half = {
            k: jax.ShapeDtypeStruct(v.shape, dtype if v.dtype == np.float32 else v.dtype)
            for k, v in arrays.items()
        }
        outputs, gradients = jax.eval_shape(compiled(name), half)
        for leaf in jax.tree.leaves(outputs):
            assert not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == jnp.float32
        assert all(leaf.dtype == dtype for leaf in gradients.values())


@every_kernel
def test_gradients_flow_where_the_signature_says_and_nowhere_else(name):
    example = EXAMPLES[name]
    _, gradients = compiled(name)(arguments(name))
    for argument, gradient in gradients.items():
        assert np.all(np.isfinite(gradient)), argument
        if argument in example.stopped or argument.startswith("teacher"):
            assert np.all(gradient == 0), f"a gradient reaches {argument}"
        elif argument in example.differentiated:
            assert np.any(gradient != 0), f"no gradient reaches {argument}"
    unknown = {*example.differentiated, *example.stopped} - set(gradients)
    assert not unknown, unknown


@pytest.mark.slow  # another compilation of each, in float64; the goldens hold most gradients
@kernels(lambda example: example.differentiated and example.sloped)
def test_gradient_is_the_slope(name):
    with jax.enable_x64(True):
        arrays = {
            k: jnp.asarray(v, jnp.float64 if v.dtype == np.float32 else None)
            for k, v in arguments(name).items()
        }
        generator = np.random.default_rng(2)
        wanted = EXAMPLES[name].differentiated
        direction = {k: jnp.asarray(generator.normal(size=arrays[k].shape)) for k in wanted}

        def along(step):
            moved = {k: arrays[k] + step * direction[k] for k in wanted}
            return sum(
                jnp.vdot(jnp.cos(jnp.arange(leaf.size)), jnp.where(jnp.isinf(leaf), 0, leaf))
                for leaf in jax.tree.leaves(call(name, {**arrays, **moved}))
                if jnp.issubdtype(leaf.dtype, jnp.floating)
            )

        @jax.jit
        def slopes():
            steps = jnp.array([1e-5, -1e-5])
            above, below = jax.lax.map(along, steps)
            return jax.jvp(along, (0.0,), (1.0,))[1], (above - below) / 2e-5

        slope, measured = slopes()
        np.testing.assert_allclose(slope, measured, rtol=1e-5, atol=1e-7)


@kernels(lambda example: example.extreme)
def test_extreme_arguments_have_finite_values_and_gradients(name):
    example = EXAMPLES[name]
    for seed in range(8):
        generator = np.random.default_rng(seed)
        arrays = arguments(name, seed)
        for argument in example.extreme:
            shape = arrays[argument].shape
            arrays[argument] = generator.choice(
                np.array([-1e4, -30.0, 0.0, 1.0, 1e4], np.float32), shape
            )
        for dtype in (jnp.bfloat16, jnp.float16):
            rounded = {
                k: jnp.asarray(v).astype(dtype).astype(jnp.float32) if k in example.extreme else v
                for k, v in arrays.items()
            }
            outputs, gradients = compiled(name)(rounded)
            for leaf in jax.tree.leaves(outputs):
                assert np.all(np.less(leaf, np.inf)), (seed, dtype, leaf)  # -inf: impossible
            for argument, gradient in gradients.items():
                assert np.all(np.isfinite(gradient)), (seed, dtype, argument)


@kernels(lambda example: example.masked)
def test_what_the_mask_hides_is_exactly_nothing(name):
    arrays = arguments(name)
    assert not np.all(arrays["where"]), "nothing is masked in the example"
    clean, gradients = compiled(name)(arrays)
    for poison in (np.nan, np.inf):
        spoilt = dict(arrays)
        for argument, index in EXAMPLES[name].masked.items():
            spoilt[argument] = arrays[argument].copy()
            spoilt[argument][index] = poison
        outputs, of_spoilt = compiled(name)(spoilt)
        jax.tree.map(np.testing.assert_array_equal, outputs, clean)
        for argument, index in EXAMPLES[name].masked.items():
            assert np.all(of_spoilt[argument][index] == 0), argument
        jax.tree.map(np.testing.assert_array_equal, of_spoilt, gradients)


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        pytest.param(name, refused, id=f"{name}-{number}")
        for name, example in EXAMPLES.items()
        for number, refused in enumerate(example.refused)
    ],
)
def test_bad_arguments_are_refused(name, refused):
    example = EXAMPLES[name]
    with pytest.raises(refused.error, match=refused.message):
        example.kernel(**{**arguments(name), **example.options, **refused.changes})


def test_public_functions_say_what_they_take_and_return():
    for name, example in EXAMPLES.items():
        documentation = inspect.getdoc(example.kernel) or ""
        for part in ("Args:", "Returns:", "Source:", ">>>"):
            assert part in documentation, f"{name} has no {part!r}"
        for argument in arguments(name):
            assert f"{argument}" in documentation, f"{name} does not tell of {argument}"


# Where examples of a batch meet; elsewhere the axis of the batch is only carried along.
COMPARING = [
    "clip_distillation",
    "clip_features",
    "contrastive",
    "correlations",
    "data_free",
    "dataset_matching",
    "dense_memory",
    "dense_relations",
    "fusion_ratios",
    "logits",
    "memory_bank",
    "policy",
    "preference",
    "relation_matrices",
    "relations",
    "routing",
    "residual_quantization",
    "student_search",
    "survival",
    "teacher_free",
    "tokens",
    "torchdistill",
    "torchdistill_features",
    "transport",
    "zero_cost",
]


def sharded(which):
    """The kernels with an axis of examples: the `comparing` ones, the `first` of their modules, or
    the `others`."""
    names = [n for n in JITTED if EXAMPLES[n].batched]
    comparing = [n for n in names if home(n) in COMPARING]
    first = {home(n): n for n in reversed(comparing)}.values()
    others = [n for n in names if n not in comparing]
    return {"comparing": comparing, "first": first, "others": others}[which]


def sharded_differences(which):
    """{kernel: error} of those that differ on eight devices from one."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    errors = {}
    for name in sharded(which):
        arrays = arguments(name)

        def place(argument, array, name=name):
            cut = argument in EXAMPLES[name].batched
            return jax.device_put(
                jnp.asarray(array),
                NamedSharding(mesh, PartitionSpec("data") if cut else PartitionSpec()),
            )

        try:
            batch = {k: v for k, v in arrays.items() if k in EXAMPLES[name].batched}
            wider = {
                k: np.concatenate([v] + [arguments(name, s)[k] for s in range(1, 8)])
                for k, v in batch.items()
            }
            arrays = {**arrays, **wider}
            one = jax.device_get(compiled(name)(arrays))
            eight = compiled(name)({k: place(k, v) for k, v in arrays.items()})
            assert_trees_close(jax.device_get(eight), one, rtol=1e-4, scale=1e-5)
        except Exception as error:
            errors[name] = str(error)[:500]
    return errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "which", ["first", *(pytest.param(n, marks=pytest.mark.slow) for n in ("comparing", "others"))]
)
def test_eight_devices_compute_what_one_does(which):
    script = (
        f"import sys, json; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]\n"
        "import test_examples\n"
        f"print(json.dumps(test_examples.sharded_differences({which!r})))"
    )
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {}
