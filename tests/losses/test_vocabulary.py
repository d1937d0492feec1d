"""Losses of a whole vocabulary from hidden states and heads: the dense ones, never that large."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.losses import divergences, log_space, logits, sparse, tokens, vocabulary
from kdjax.losses.vocabulary_arguments import Head

B, L, D, DT, V = 2, 5, 3, 4, 7
T = 2.0
PROPERTIES = settings(deadline=None, database=None, derandomize=True, max_examples=8)


def taid(form, t):
    """The dense TAID loss of softened logits."""

    def dense(p_logits, q_logits):
        between = (1 - t) * jax.lax.stop_gradient(q_logits) + t * p_logits
        log_p, log_q = jax.nn.log_softmax(between), jax.nn.log_softmax(q_logits)
        return {"cross_entropy": log_space.cross_entropy, "kl": log_space.kl}[form](log_p, log_q)

    return dense


# name: (linear loss, its options, the dense divergence of teacher's and student's logits)
CASES = {
    "kl": (vocabulary.linear_kl, {}, divergences.forward_kl),
    "reverse_kl": (vocabulary.linear_reverse_kl, {}, divergences.reverse_kl),
    "jsd": (
        vocabulary.linear_generalized_jsd,
        {"beta": 0.3},
        functools.partial(divergences.generalized_jsd, beta=0.3),
    ),
    "skewed": (
        vocabulary.linear_skewed_kl,
        {"lam": 0.2},
        functools.partial(divergences.skewed_forward_kl, lam=0.2),
    ),
    "skewed_reverse": (
        vocabulary.linear_skewed_kl,
        {"lam": 0.2, "direction": "reverse"},
        functools.partial(divergences.skewed_reverse_kl, lam=0.2),
    ),
    "total_variation": (vocabulary.linear_total_variation, {}, divergences.total_variation),
    "alpha_beta": (
        vocabulary.linear_alpha_beta,
        {"alpha": 0.2, "beta": 0.7},
        functools.partial(divergences.alpha_beta_divergence, alpha=0.2, beta=0.7),
    ),
    "taid": (vocabulary.linear_taid, {"t": 0.4}, taid("cross_entropy", 0.4)),
    "taid_kl": (vocabulary.linear_taid, {"t": 0.4, "form": "kl"}, taid("kl", 0.4)),
}


def arrays(seed=0, dtype=jnp.float32):
    """{name: array} of a student, a teacher, labels (one outside) and a mask."""
    generator = np.random.default_rng(seed)
    shapes = {
        "hidden": (B, L, D),
        "weight": (V, D),
        "bias": (V,),
        "teacher_hidden": (B, L, DT),
        "teacher_weight": (V, DT),
        "teacher_bias": (V,),
    }
    found = {name: jnp.asarray(generator.normal(size=s), dtype) for name, s in shapes.items()}
    found["labels"] = (
        jnp.asarray(generator.integers(0, V, (B, L)).astype(np.int32)).at[0, 1].set(-100)
    )
    found["where"] = jnp.asarray(generator.random((B, L)) > 0.3).at[0, :2].set(True)
    return found


def student_of(x):
    return {name: x[name] for name in ("hidden", "weight", "bias")}


def linear(name, x, **options):
    """Both pairs, with biases and both soft caps."""
    loss, own, _ = CASES[name]
    return loss(
        x["hidden"],
        Head(x["weight"], x["bias"], 3.0),
        x["teacher_hidden"],
        Head(x["teacher_weight"], x["teacher_bias"], 4.0),
        **{"labels": x["labels"], "where": x["where"], "temperature": T, "chunk": 4, **own},
        **options,
    )


def dense_logits(x):
    student = jnp.matmul(x["hidden"], x["weight"].T, precision="highest") + x["bias"]
    teacher = jnp.matmul(x["teacher_hidden"], x["teacher_weight"].T, precision="highest")
    teacher = jax.lax.stop_gradient(teacher + x["teacher_bias"])
    return 3 * jnp.tanh(student / 3), 4 * jnp.tanh(teacher / 4)


def dense(name, x):
    student, teacher = dense_logits(x)
    soft = CASES[name][2](teacher / T, student / T)
    hard = logits.cross_entropy(student, x["labels"])
    labelled = x["where"] & (x["labels"] >= 0)
    return (
        tokens.token_total(soft, where=x["where"]),
        tokens.token_total(hard, where=labelled),
    )


def of_student(loss, x):
    """(value, gradients) of one number made of both pairs, with different cotangents."""

    def number(student):
        (soft, count), (hard, labelled) = loss({**x, **student})
        return soft / count + 0.7 * hard / labelled, (soft, count, hard, labelled)

    return jax.value_and_grad(number, has_aux=True)(student_of(x))


def close(actual, expected, rtol, scale):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        largest = float(np.max(np.abs(b), initial=1e-30))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=scale * largest)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        *((name, "float32", 1e-5) for name in CASES),
        ("jsd", "float64", 1e-10),
        *(
            pytest.param(name, "float64", 1e-10, marks=pytest.mark.slow)
            for name in CASES
            if name != "jsd"
        ),
    ],
)
def test_value_and_gradients_are_the_dense_ones(name, dtype, tolerance):
    with jax.enable_x64(dtype == "float64"):
        x = arrays(dtype=dtype)

        @jax.jit
        def both(x):
            ours = of_student(functools.partial(linear, name), x)
            return ours, of_student(functools.partial(dense, name), x)

        ours, theirs = both(x)
        close(ours, theirs, tolerance, tolerance)


@pytest.mark.parametrize(
    ("name", "option", "ends"),
    [
        ("jsd", "beta", (0.0, 1.0)),
        pytest.param("alpha_beta", "beta", (0.0, -0.2), marks=pytest.mark.slow),
    ],
)
def test_traced_scalars_reach_the_end_points_in_one_compilation(name, option, ends):
    loss, own, divergence = CASES[name]
    x = arrays()

    @jax.jit
    def gradient(student, value, temperature):
        total = lambda s: loss(  # noqa: E731
            s["hidden"],
            s["weight"],
            x["teacher_hidden"],
            x["teacher_weight"],
            **{**own, option: value},
            temperature=temperature,
        )
        return jax.value_and_grad(total, has_aux=True)(student)

    for value, temperature in zip(ends, (1.0, 3.0)):
        (total, weight), ours = gradient(student_of(x), jnp.float32(value), temperature)

        def expected(student, value=value, temperature=temperature):
            s = student["hidden"] @ student["weight"].T / temperature
            t = x["teacher_hidden"] @ x["teacher_weight"].T / temperature
            options = {**divergence.keywords, option: value}
            return jnp.sum(divergence.func(t, s, **options))

        value, theirs = jax.value_and_grad(expected)(student_of(x))
        assert weight == B * L
        np.testing.assert_allclose(total, value, rtol=1e-5, atol=1e-5)
        close(ours, theirs, 1e-4, 1e-5)
    assert gradient._cache_size() == 1


@pytest.mark.parametrize(("beta", "end"), [(0.0, "kl"), (1.0, "reverse_kl")])
def test_the_end_points_of_the_jsd_are_both_directions_of_the_kl(beta, end):
    x = arrays()
    teacher = x["teacher_hidden"], x["teacher_weight"]

    @jax.jit
    def both(hidden, head):
        found = vocabulary.linear_generalized_jsd(hidden, head, *teacher, beta=beta)
        return found, CASES[end][0](hidden, head, *teacher)

    close(*both(x["hidden"], x["weight"]), 1e-6, 1e-6)


def test_dense_logits_and_hidden_states_are_one_teacher():
    x = arrays()
    head = Head(x["weight"], x["bias"])
    _, teacher = dense_logits(x)
    of_logits = vocabulary.linear_kl(x["hidden"], head, teacher_logits=teacher, chunk=4)
    of_hidden = vocabulary.linear_kl(
        x["hidden"],
        head,
        x["teacher_hidden"],
        Head(x["teacher_weight"], x["teacher_bias"], 4.0),
        chunk=10,
    )
    close(of_logits, of_hidden, 1e-5, 1e-6)


SPARSE = {
    "kl": sparse.sparse_kl,
    "jsd": sparse.sparse_js,
    "total_variation": sparse.sparse_tvd,
}


@pytest.mark.parametrize("k", [3, pytest.param(V, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SPARSE)
def test_a_sparse_teacher_has_a_bucket_for_its_tail(name, k):
    x = arrays()
    _, teacher = dense_logits(x)
    log_probs, ids = jax.lax.top_k(jax.nn.log_softmax(teacher), k)
    if k < V:
        ids, log_probs = ids.at[0, 0, 2].set(-1), log_probs.at[1, 1, 1].set(-jnp.inf)
    loss, own, divergence = CASES[name]
    own = {"beta": 0.5} if name == "jsd" else own

    def ours(student):
        return loss(
            student["hidden"],
            Head(student["weight"], student["bias"]),
            teacher_ids=ids,
            teacher_log_probs=log_probs,
            where=x["where"],
            temperature=T,
            chunk=4,
            **own,
        )

    def theirs(student):
        s = student["hidden"] @ student["weight"].T + student["bias"]
        if k == V:
            options = own and {"beta": 0.5}
            divergence_of = divergence.func if own else divergence
            found = divergence_of(teacher / T, s / T, **options)
        else:
            found = SPARSE[name](s, ids, log_probs, missing="tail", temperature=T)
        return tokens.token_total(found, where=x["where"])

    both = jax.jit(lambda s: [jax.value_and_grad(f, has_aux=True)(s) for f in (ours, theirs)])
    close(*both(student_of(x)), 1e-5, 1e-5)


@functools.cache
def compiled(chunk):
    """(both pairs, gradients of a sum of the totals)."""

    def number(student, x):
        pairs = CASES["jsd"][0](
            student["hidden"],
            Head(student["weight"], student["bias"]),
            x["teacher_hidden"],
            x["teacher_weight"],
            labels=x["labels"],
            where=x["where"],
            chunk=chunk,
        )
        (soft, _), (hard, _) = pairs
        return soft + 0.7 * hard, pairs

    def run(x):
        (_, pairs), gradients = jax.value_and_grad(number, has_aux=True)(student_of(x), x)
        return pairs, gradients

    return jax.jit(run)


@PROPERTIES
@given(st.sampled_from([1, 7, 20]), st.integers(0, 99))
def test_the_size_of_the_chunks_is_irrelevant(chunk, seed):
    x = arrays(seed)
    close(compiled(chunk)(x), compiled(None)(x), 1e-5, 1e-6)


def test_the_order_of_the_vocabulary_and_a_constant_on_all_logits_are_irrelevant():
    x = arrays()
    order = jnp.array([3, 0, 6, 1, 5, 2, 4])
    moved = {k: x[k][order] for k in ("weight", "bias", "teacher_weight", "teacher_bias")}
    moved["labels"] = jnp.where(x["labels"] < 0, -1, jnp.argsort(order)[x["labels"]])
    moved["bias"] = moved["bias"] + 20.0
    value, gradient = compiled(4)(x)
    of_moved = compiled(4)({**x, **moved})
    close(of_moved[0], value, 1e-4, 1e-5)
    for name in ("weight", "bias"):
        close(of_moved[1][name], gradient[name][order], 1e-3, 1e-5)
    np.testing.assert_allclose(np.sum(of_moved[1]["bias"]), 0, atol=1e-5)


def test_what_the_mask_hides_is_exactly_nothing():
    x = arrays()
    hidden = ~x["where"]
    clean = compiled(4)(x)
    for poison in (jnp.nan, jnp.inf):
        spoilt = {
            k: jnp.where(hidden[..., None], poison, x[k]) for k in ("hidden", "teacher_hidden")
        }
        found = compiled(4)({**x, **spoilt})
        jax.tree.map(np.testing.assert_array_equal, found, clean)
        assert np.all(found[1]["hidden"][hidden] == 0)


def test_nothing_that_counts_gives_nothing():
    x = arrays()
    pairs, gradient = compiled(4)({**x, "where": jnp.zeros_like(x["where"])})
    assert pairs == ((0, 0), (0, 0))
    assert all(np.all(leaf == 0) for leaf in gradient.values())
    none = jnp.zeros((0, D)), x["weight"], jnp.zeros((0, DT)), x["teacher_weight"]
    assert vocabulary.linear_kl(*none) == (0, 0)


def test_half_precision_is_added_up_in_float32():
    # The same token 2048 times, in as many chunks: bfloat16 sums would stop at the 256th.
    count = 2048
    hidden, head = jnp.ones((count, 1)), jnp.array([[1.0], [0.0]])
    teacher = jnp.array([[0.0], [1.0]])

    def total(hidden, head):
        found, weight = vocabulary.linear_kl(
            hidden, head, hidden.astype(head.dtype), teacher.astype(head.dtype), chunk=1
        )
        return found, weight

    step = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    (value, weight), (of_hidden, of_head) = step(hidden, head)
    half = step(hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16))
    assert half[0][0].dtype == half[0][1].dtype == jnp.float32
    assert half[0][1] == weight == count
    np.testing.assert_allclose(half[0][0], value, rtol=1e-4)
    for ours, expected in zip(half[1], (of_hidden, of_head)):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), expected, rtol=1e-2)


def test_taid_begins_at_the_student_and_ends_at_the_teacher():
    x = arrays()
    student, teacher = dense_logits(x)

    @jax.jit
    def at(t):
        def total(s):
            return vocabulary.linear_taid(
                s["hidden"],
                Head(s["weight"], s["bias"], 3.0),
                x["teacher_hidden"],
                Head(x["teacher_weight"], x["teacher_bias"], 4.0),
                t=t,
            )[0]

        return jax.value_and_grad(total)(student_of(x))

    value, gradient = at(0.0)
    entropy = log_space.cross_entropy(*(jax.nn.log_softmax(student),) * 2)
    np.testing.assert_allclose(value, jnp.sum(entropy), rtol=1e-5)
    assert all(np.max(np.abs(leaf)) < 1e-5 for leaf in gradient.values())
    value, gradient = at(1.0)
    soft = tokens.soft_cross_entropy(student, teacher)
    np.testing.assert_allclose(value, jnp.sum(soft), rtol=1e-5)

    def forward(s):
        return jnp.sum(divergences.forward_kl(teacher, dense_logits({**x, **s})[0]))

    close(gradient, jax.grad(forward)(student_of(x)), 1e-4, 1e-5)


def test_shared_ids_compare_rows_of_two_vocabularies():
    x = arrays()
    generator = np.random.default_rng(1)
    teacher_weight = jnp.asarray(generator.normal(size=(9, DT)), jnp.float32)
    ids = np.array([5, 0, 2]), np.array([8, 1, 3])

    def ours(student):
        (soft, count), (hard, labelled) = vocabulary.linear_kl(
            student["hidden"],
            Head(student["weight"], student["bias"]),
            x["teacher_hidden"],
            teacher_weight,
            shared_ids=ids,
            labels=x["labels"],
            chunk=4,
        )
        return soft / count + hard / labelled

    def theirs(student):
        s = student["hidden"] @ student["weight"].T + student["bias"]
        t = x["teacher_hidden"] @ teacher_weight.T
        soft = divergences.forward_kl(t[..., ids[1]], s[..., ids[0]])
        hard = logits.cross_entropy(s, x["labels"])
        return jnp.mean(soft) + jnp.sum(hard) / jnp.sum(x["labels"] >= 0)

    both = jax.jit(lambda s: [jax.value_and_grad(f)(s) for f in (ours, theirs)])
    close(*both(student_of(x)), 1e-5, 1e-5)


def test_cross_entropy_alone_is_the_dense_one():
    x = arrays()

    def ours(s):
        return vocabulary.linear_cross_entropy(
            s["hidden"], Head(s["weight"], s["bias"], 3.0), x["labels"], where=x["where"], chunk=4
        )

    def theirs(s):
        found = logits.cross_entropy(dense_logits({**x, **s})[0], x["labels"])
        return tokens.token_total(found, where=x["where"] & (x["labels"] >= 0))

    both = jax.jit(lambda s: [jax.value_and_grad(f, has_aux=True)(s) for f in (ours, theirs)])
    close(*both(student_of(x)), 1e-5, 1e-5)


@pytest.mark.slow
def test_students_behind_one_teacher_rematerialised_and_used_twice():
    x, y = arrays(0), arrays(1)
    students = jax.tree.map(lambda *leaves: jnp.stack(leaves), student_of(x), student_of(y))

    def one(student):
        (soft, count), (hard, labelled) = jax.checkpoint(linear, static_argnums=0)(
            "kl", {**x, **student}
        )
        again, _ = linear("kl", {**x, **student, "where": ~x["where"]})[0]
        return soft / count + 0.7 * hard / labelled + again

    def shared(head):
        each = jax.vmap(
            lambda hidden: vocabulary.linear_kl(
                hidden, head, x["teacher_hidden"], x["teacher_weight"], chunk=4
            )[0]
        )
        return jnp.sum(each(students["hidden"]))

    @jax.jit
    def together(students):
        return jax.vmap(jax.value_and_grad(one))(students), jax.grad(shared)(x["weight"])

    @jax.jit
    def alone(student, hidden):
        of_head = jax.grad(
            lambda head: vocabulary.linear_kl(
                hidden, head, x["teacher_hidden"], x["teacher_weight"], chunk=4
            )[0]
        )(x["weight"])
        return jax.value_and_grad(one)(student), of_head

    mapped, of_shared = together(students)
    singles = [alone(student_of(z), z["hidden"]) for z in (x, y)]
    for i, (single, _) in enumerate(singles):
        close(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), single, 1e-5, 1e-5)
    close(of_shared, sum(of_head for _, of_head in singles), 1e-5, 1e-5)


def test_no_gradient_reaches_the_teacher():
    x = arrays()
    parts = {k: x[k] for k in ("teacher_hidden", "teacher_weight", "teacher_bias")}
    gradient = jax.jit(jax.grad(lambda parts: linear("kl", {**x, **parts})[0][0]))(parts)
    assert all(np.all(leaf == 0) for leaf in gradient.values())


def test_sparse_masses_and_ids_are_taken_as_by_the_sparse_losses():
    # A mass above 1 counts as 1, an id outside the vocabulary as no entry.
    x = arrays()
    ids = jnp.broadcast_to(jnp.array([0, 4, V]), (B, L, 3))
    log_probs = jnp.log(jnp.broadcast_to(jnp.array([0.7, 0.4, 0.2]), (B, L, 3)))

    @jax.jit
    def both(hidden, head):
        ours = vocabulary.linear_kl(hidden, head, teacher_ids=ids, teacher_log_probs=log_probs)
        theirs = sparse.sparse_kl(hidden @ head.T, ids, log_probs, missing="tail")
        return ours, jnp.sum(theirs)

    (total, weight), expected = both(x["hidden"], x["weight"])
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert weight == B * L
