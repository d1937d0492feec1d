"""A student that starts from every so many layers, and the leading part, of its teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.networks import ViT
from kdjax.networks.inheritance import inherit_weights

HEAD_DIM = 2
IMAGES = jnp.ones((1, 4, 4, 1))


def vit(depth, heads):
    return ViT(3, patch=2, width=heads * HEAD_DIM, depth=depth, heads=heads, mlp_ratio=2)


def shapes_of(network):
    return jax.eval_shape(lambda: network.init(jax.random.key(0), IMAGES)["params"])


def params_of(network):
    params = shapes_of(network)
    leaves, tree = jax.tree.flatten(params)
    # Every number is another, so that what was taken from where can be told.
    starts = np.cumsum([0] + [leaf.size for leaf in leaves])
    return jax.tree.unflatten(
        tree,
        [
            jnp.arange(start, start + leaf.size, dtype=leaf.dtype).reshape(leaf.shape)
            for start, leaf in zip(starts, leaves, strict=False)
        ],
    )


@pytest.fixture(scope="module")
def teacher():
    return params_of(vit(5, 3))


@pytest.fixture(scope="module")
def shapes():
    return shapes_of(vit(2, 2))


def test_a_vit_inherits_whole_heads_of_every_second_layer(teacher, shapes):
    student = inherit_weights(teacher, shapes)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), student, shapes)
    for i, j in ((0, 0), (1, 2)):
        mine, theirs = student[f"block{i}"], teacher[f"block{j}"]
        np.testing.assert_array_equal(
            mine["attention"]["query"]["kernel"], theirs["attention"]["query"]["kernel"][:4, :2]
        )
        np.testing.assert_array_equal(
            mine["attention"]["out"]["kernel"], theirs["attention"]["out"]["kernel"][:2, :, :4]
        )
        np.testing.assert_array_equal(mine["mlp_in"]["kernel"], theirs["mlp_in"]["kernel"][:4, :8])
    np.testing.assert_array_equal(student["head"]["kernel"], teacher["head"]["kernel"][:4])
    applied = jax.eval_shape(lambda: vit(2, 2).apply({"params": student}, IMAGES))
    assert applied["logits"].shape == (1, 3)


def test_a_teacher_of_the_same_shape_is_inherited_whole(teacher):
    jax.tree.map(np.testing.assert_array_equal, inherit_weights(teacher, teacher), teacher)


def test_the_student_keeps_its_dtype(teacher):
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), teacher)
    student = inherit_weights(teacher, half)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(student))


def test_inheritance_compiles(teacher, shapes):
    compiled = jax.jit(lambda params: inherit_weights(params, shapes))(teacher)
    jax.tree.map(np.testing.assert_array_equal, compiled, inherit_weights(teacher, shapes))


def test_a_fused_projection_is_cut_within_queries_keys_and_values():
    # Three matrices of three heads of two features.
    kernel = jnp.tile(jnp.arange(18.0), (2, 1))
    teacher = {"block0": {"qkv": {"kernel": kernel}}}
    student = {"block0": {"qkv": {"kernel": jnp.zeros((1, 12))}}}
    cut = inherit_weights(teacher, student, fused={r"qkv/kernel": 3}, head_dim=2)
    expected = [[0.0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15]]
    assert cut["block0"]["qkv"]["kernel"].tolist() == expected
    plain = inherit_weights(teacher, student)
    assert plain["block0"]["qkv"]["kernel"].tolist() != expected


def test_towers_are_counted_by_themselves():
    def tower(depth, start):
        return {f"block{i}": jnp.full(1, start + i) for i in range(depth)}

    teacher = {"image": tower(6, 0), "text": tower(4, 10)}
    student = {"image": tower(2, 0), "text": tower(4, 0)}
    inherited = jax.tree.map(lambda x: int(x[0]), inherit_weights(teacher, student))
    assert inherited["image"] == {"block0": 0, "block1": 3}
    assert inherited["text"] == {f"block{i}": 10 + i for i in range(4)}


@pytest.mark.parametrize(
    ("teacher", "student", "options", "message"),
    [
        ({"a": (2,)}, {"b": (2,)}, {}, "teacher_params must hold b for the student's b"),
        ({"a": (2,)}, {"a": (3,)}, {}, r"a must be no larger than the teacher's, of shape \(2,\)"),
        ({"a": (2,)}, {"a": (2, 1)}, {}, r"a must be no larger .* got \(2, 1\)"),
        (
            {"block0": (2,)},
            {"block0": (2,), "block1": (2,)},
            {},
            r"at least the student's 2 layers block\*, got 1",
        ),
        ({"qkv": (9,)}, {"qkv": (8,)}, {"fused": {"qkv": 3}}, "must hold 3 matrices, got 8"),
        (
            {"qkv": (18,)},
            {"qkv": (9,)},
            {"fused": {"qkv": 3}, "head_dim": 2},
            "3 matrices of heads of 2, got 9 features in the student",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(teacher, student, options, message):
    teacher = {name: jnp.zeros(shape) for name, shape in teacher.items()}
    student = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in student.items()}
    with pytest.raises(ValueError, match=message):
        inherit_weights(teacher, student, **options)
