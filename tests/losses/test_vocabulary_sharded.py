"""Heads cut over four simulated devices: the same losses, nothing large is exchanged."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from kdjax.losses import vocabulary
from kdjax.losses.vocabulary_arguments import Head

B, L, D, DT, V, K = 4, 6, 5, 7, 64, 3
mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
rng = np.random.default_rng(0)
normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
student = {"hidden": normal(B, L, D), "weight": normal(V, D), "bias": normal(V)}
where = jnp.asarray(rng.random((B, L)) > 0.3)
labels = jnp.asarray(rng.integers(-1, V, (B, L)))
teacher = {"hidden": normal(B, L, DT), "weight": normal(V, DT), "bias": normal(V)}
logits = normal(B, L, V)
log_probs, ids = jax.lax.top_k(jax.nn.log_softmax(logits), K)
heads = P("model", None)
# What each teacher is, and how it is cut.
TEACHERS = {
    "hidden": (
        {"teacher": teacher},
        {"teacher": {"hidden": P(), "weight": heads, "bias": P("model")}},
    ),
    "logits": ({"teacher_logits": logits}, {"teacher_logits": P(None, None, "model")}),
    "sparse": (
        {"teacher_ids": ids, "teacher_log_probs": log_probs},
        {"teacher_ids": P(), "teacher_log_probs": P()},
    ),
}

def loss(student, rest, where, labels, **options):
    rest = dict(rest)
    if (teacher := rest.pop("teacher", None)) is not None:
        rest["teacher_hidden"] = teacher["hidden"]
        rest["teacher_head"] = Head(teacher["weight"], teacher["bias"])
    soft, hard = vocabulary.linear_generalized_jsd(
        student["hidden"], Head(student["weight"], student["bias"], 5.0), **rest,
        where=where, labels=labels, beta=0.3, temperature=2.0, chunk=8, **options,
    )
    return soft, hard

def scalar(pairs):
    (soft, tokens), (hard, labelled) = pairs
    return soft / tokens + 0.5 * hard / labelled

STUDENT = {"hidden": P(), "weight": heads, "bias": P("model")}

def placed(tree, specs):
    return jax.tree.map(
        lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), tree, specs
    )

def collectives(text):
    # Every collective of the compiled text: [(operation, [dimensions of its results])]
    found = []
    for line in text.splitlines():
        match = re.search(r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute"
                          r"|reduce-scatter)(-start)?\\(", line)
        if match:
            shapes = re.findall(r"\\[([\\d,]*)\\]", match[1])
            found.append((match[2], [[int(n) for n in s.split(",") if n] for s in shapes]))
    return found

def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(np.asarray(x) - np.asarray(y)))) for x, y in pairs)

out = {"devices": len(jax.devices())}
for name, (rest, specs) in TEACHERS.items():
    step = jax.value_and_grad(lambda s, r: scalar(loss(s, r, where, labels)))
    expected = jax.jit(step)(student, rest)
    arguments = placed(student, STUDENT), placed(rest, specs)

    automatic = jax.jit(step).lower(*arguments).compile()
    result = automatic(*arguments)
    out[f"{name} jit"] = {
        "difference": difference(result, expected),
        "collectives": collectives(automatic.as_text()),
        "gradient": str(result[1]["weight"].sharding.spec),
    }

    def inside(s, r):
        return scalar(loss(s, r, where, labels, axis_name="model"))

    mapped = jax.jit(jax.value_and_grad(
        jax.shard_map(inside, mesh=mesh, in_specs=(STUDENT, specs), out_specs=P())
    )).lower(*arguments).compile()
    result = mapped(*arguments)
    out[f"{name} shard_map"] = {
        "difference": difference(result, expected),
        "collectives": collectives(mapped.as_text()),
        "gradient": str(result[1]["weight"].sharding.spec),
    }

# Tokens cut as well, and the gradient taken inside.
rest, specs = TEACHERS["hidden"]
tokens = {"hidden": P("data"), "weight": heads, "bias": P("model")}

def local(s, r, where, labels):
    def total(s):
        pairs = loss(s, r, where, labels, axis_name="model")
        return scalar(jax.lax.psum(pairs, "data"))
    return jax.value_and_grad(total)(s)

mapped = jax.jit(jax.shard_map(
    local, mesh=mesh, in_specs=(tokens, {"teacher": tokens}, P("data"), P("data")),
    out_specs=(P(), tokens),
))
whole = jax.value_and_grad(lambda s, r: scalar(loss(s, r, where, labels)))
expected = jax.jit(whole)(student, rest)
compiled = mapped.lower(student, rest, where, labels).compile()
out["both"] = {
    "difference": difference(compiled(student, rest, where, labels), expected),
}

def refusal(function):
    try:
        function()
    except ValueError as error:
        return str(error)

def without_types(s, r):
    return scalar(loss(s, r, where, labels, axis_name="model"))

wide = {**student, "hidden": normal(B, L, 2 * D)}
for name, wrong, check, arrays in (
    ("unchecked", STUDENT, False, student),
    ("whole", {**STUDENT, "weight": P(), "bias": P()}, True, student),
    ("tokens", {**STUDENT, "hidden": P(None, None, "model")}, True, wide),
):
    mapped = jax.shard_map(
        without_types, mesh=mesh, in_specs=(wrong, specs), out_specs=P(), check_vma=check
    )
    out[name] = refusal(lambda: jax.eval_shape(mapped, arrays, rest))
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def found():
    flags = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


every_way = pytest.mark.parametrize("way", ["jit", "shard_map"])
every_teacher = pytest.mark.parametrize("teacher", ["hidden", "logits", "sparse"])


@every_way
@every_teacher
def test_a_head_cut_over_devices_gives_what_one_device_does(found, teacher, way):
    assert found["devices"] == 4
    assert found[f"{teacher} {way}"]["difference"] < 1e-5


@every_way
@every_teacher
def test_devices_exchange_sums_of_the_size_of_the_tokens_alone(found, teacher, way):
    collectives = found[f"{teacher} {way}"]["collectives"]
    assert collectives
    vocabulary = {64, 32}
    for operation, shapes in collectives:
        assert operation == "all-reduce", collectives
        for shape in shapes:
            assert not vocabulary & set(shape), collectives


@every_way
@every_teacher
def test_the_gradient_of_a_cut_head_stays_cut(found, teacher, way):
    assert "model" in found[f"{teacher} {way}"]["gradient"]


def test_tokens_may_be_cut_as_well(found):
    assert found["both"]["difference"] < 1e-5


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("unchecked", "student_head must be cut over the vocabulary along axis 'model'"),
        ("whole", "student_head must be cut over the vocabulary along axis 'model'"),
        ("tokens", "student_hidden must be the same on all devices of axis 'model'"),
    ],
)
def test_what_is_cut_otherwise_is_refused(found, case, message):
    assert message in found[case]
