"""What dual-head optimization claims of its heads, its two streams and its mixture."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kdjax import losses
from kdjax.methods import dho, zero_shot
from kdjax.methods.task import Task
from kdjax.training import MetricWriter, run, traced
from kdjax.training.gradients import gradient
from kdjax.training.stage import Context, made
from kdjax.training.state import pick

SMALL = dict(labels_per_class=2, labeled_batch_size=16)


def embeddings_of(digits):
    """The mean image of every class: a zero-shot teacher of digits."""
    train = digits.splits["train"].arrays()
    images = train["image"].reshape(len(train["image"]), -1) / 255.0
    means = np.stack([images[train["label"] == c].mean(0) for c in range(10)])
    return jnp.asarray(means, jnp.float32)


@pytest.fixture
def taught(task, digits):
    training = {**task.training}
    training["student"] = dataclasses.replace(training["student"], steps=6)
    nets = {**task.networks, "teacher": zero_shot.classifier(10, scale=20.0)}
    task = Task(digits, nets, training, validate_every=3)
    return task.with_teacher({"params": {"class_embeddings": embeddings_of(digits)}})


def stage_of(task, config):
    return dho.recipe(task, config).send(None)


def gradients(stage, batch, parts=1, values=()):
    """`(combined, by term)` of one step, compiled."""
    (update,) = stage.program.updates
    read = {**stage.values, **dict(values)}
    context = Context({}, jax.random.key(0), jnp.int32(0), jax.tree.map(jnp.float32, read))
    roles = stage.program.live
    live = {role: dict(made(stage.variables[role])) for role in roles}
    frozen = {"teacher": stage.variables["teacher"]}

    @jax.jit
    def compute(live, frozen, batch):
        batch, _ = stage.program.prepare({**frozen, **live}, batch, context)
        cut = dataclasses.replace(update, microbatches=parts, combine=lambda g: (g, {}))
        params = pick(live, update.trains)
        apart = gradient(cut, params, live, frozen, batch, context)
        grads = apart.gradient
        added = jax.tree.map(lambda *x: sum(x), *grads.values())
        return added, grads, apart.metrics

    return compute(live, frozen, batch)


def batch_of(stage):
    return {n: s.assemble(s.table, next(s.items())) for n, s in stage.data.items()}


def close(a, b, rtol=2e-5):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale), a, b)


def under(gradient, *heads):
    return [x for path, x in gradient["student"].items() if path.startswith(heads)]


def test_each_signal_reaches_its_own_head_and_both_the_backbone(taught):
    stage = stage_of(taught, dho.Config(**SMALL))
    _, grads, _ = gradients(stage, batch_of(stage))
    for term, own, other in (
        ("cross_entropy", "head/", "kd_head/"),
        ("kd_labeled", "kd_head/", "head/"),
        ("kd_unlabeled", "kd_head/", "head/"),
    ):
        assert float(optax.tree.norm(under(grads[term], own))) > 0
        assert float(optax.tree.norm(under(grads[term], other))) == 0
        assert float(optax.tree.norm(under(grads[term], "dense0/"))) > 0


def test_the_ends_of_lam_silence_a_signal_on_one_compiled_program(taught):
    stages = [stage_of(taught, dho.Config(**SMALL, lam=lam)) for lam in (0.0, 1.0)]
    assert stages[0].program is stages[1].program
    _, grads, _ = gradients(stages[0], batch_of(stages[0]))
    assert float(optax.tree.norm(grads["cross_entropy"])) == 0
    _, grads, _ = gradients(stages[1], batch_of(stages[1]))
    assert float(optax.tree.norm((grads["kd_labeled"], grads["kd_unlabeled"]))) == 0


def test_gradients_do_not_depend_on_padding_or_micro_batches(taught):
    stage = stage_of(taught, dho.Config(**SMALL))
    batch = batch_of(stage)
    whole, _, metrics = gradients(stage, batch)
    close(gradients(stage, batch, parts=4)[0], whole)

    def pad(part):
        fill = {"image": 1e4, "label": -100, "id": 0, "where": False}
        return {n: jnp.concatenate([x, jnp.full_like(x[:8], fill[n])]) for n, x in part.items()}

    padded, _, after = gradients(stage, {n: pad(part) for n, part in batch.items()}, parts=2)
    close(padded, whole)
    np.testing.assert_allclose(
        after["loss"].total / after["loss"].weight,
        metrics["loss"].total / metrics["loss"].weight,
        rtol=1e-5,
    )


@pytest.mark.slow
def test_the_step_is_the_published_loss(taught):
    config = dho.Config(**SMALL, lam=0.3)
    stage = stage_of(taught, config)
    batch = batch_of(stage)
    _, _, metrics = gradients(stage, batch)
    nets = dho.dual_task(taught, config).networks
    student, teacher = dict(stage.variables["student"]), taught.given["teacher"]
    said = {n: nets["student"].apply(student, x["image"]).output for n, x in batch.items()}
    taught_by = nets["teacher"].apply
    logits = {n: taught_by(teacher, x["image"]).output["logits"] for n, x in batch.items()}
    parts = losses.dho(
        said["labeled"]["ce_logits"],
        said["labeled"]["kd_logits"],
        said["unlabeled"]["kd_logits"],
        logits["labeled"],
        logits["unlabeled"],
        batch["labeled"]["label"],
    )
    expected = 0.3 * parts[0].mean() + 0.7 * (parts[1].mean() + parts[2].mean())
    np.testing.assert_allclose(metrics["loss"].total / metrics["loss"].weight, expected, rtol=1e-5)


def test_tied_heads_have_the_gradient_of_one_head(taught):
    dual, single = (stage_of(taught, dho.Config(**SMALL, heads=h)) for h in ("dual", "single"))
    variables = dict(dual.variables["student"])
    head = variables["params"]["head"]
    variables["params"] = {**variables["params"], "kd_head": {"logits": head}}
    tied = dataclasses.replace(dual, variables={**dual.variables, "student": variables})
    two, _, _ = gradients(tied, batch_of(dual))
    one, _, _ = gradients(single, batch_of(dual))
    body = [under(g, "dense0/") for g in (two, one)]
    close(*body)
    for name in ("kernel", "bias"):
        both = two["student"][f"head/{name}"] + two["student"][f"kd_head/logits/{name}"]
        close(both, one["student"][f"head/{name}"])
    assert float(optax.tree.norm(under(one, "kd_head/"))) == 0


def test_features_are_taught_through_a_map_of_their_own_and_past_the_head(taught):
    config = dho.Config(**SMALL, heads="single", signal="features", lam=0.3)
    stage = stage_of(taught, config)
    batch = batch_of(stage)
    whole, grads, metrics = gradients(stage, batch)
    for term in ("kd_labeled", "kd_unlabeled"):
        assert float(optax.tree.norm(under(grads[term], "head/", "kd_head/"))) == 0
        assert float(optax.tree.norm(under(grads[term], "dense0/"))) > 0
        assert float(optax.tree.norm(grads[term]["projector"])) > 0
    assert float(optax.tree.norm(grads["cross_entropy"]["projector"])) == 0
    student, linear = (made(stage.variables[role]) for role in ("student", "projector"))
    apart = []
    for part in batch.values():
        taught_by = part["image"].reshape(len(part["image"]), -1)  # the teacher sees pixels
        nets = dho.dual_task(taught, config).networks
        said = nets["student"].apply(student, part["image"]).output["features"]
        layer = linear["params"]["linear"]
        apart.append(np.mean((said @ layer["kernel"] + layer["bias"] - taught_by) ** 2))
    for name, expected in zip(batch, apart):
        found = metrics[f"loss/kd_{name}"]
        np.testing.assert_allclose(found.total / found.weight, expected, rtol=1e-4)
    close(gradients(stage, batch, parts=4)[0], whole)


def test_features_are_refused_where_there_are_none(taught):
    config = dho.Config(**SMALL, heads="single", signal="features")
    with pytest.raises(ValueError, match="cache_teacher keeps logits"):
        dho.check(dataclasses.replace(taught, cache_teacher=True), config)
    bare = taught.networks["teacher"]
    blind = bare._replace(
        apply=lambda *x, **options: (out := bare.apply(*x, **options))._replace(
            output=out.output["logits"]
        )
    )
    nets = {**taught.networks, "teacher": blind}
    with pytest.raises(ValueError, match="the teacher's output has no 'features'"):
        dho.check(dataclasses.replace(taught, networks=nets), config)


def test_labels_of_the_unlabelled_stream_are_never_read(taught):
    stage = stage_of(taught, dho.Config(**SMALL))
    batch = batch_of(stage)
    blind = {**batch, "unlabeled": {**batch["unlabeled"], "label": 0 * batch["unlabeled"]["label"]}}
    close(gradients(stage, blind)[0], gradients(stage, batch)[0], rtol=0)


def test_the_streams_hold_the_few_labelled_images_and_all_or_the_rest(taught):
    rows = dho.labeled_rows(taught, 2)
    labels = taught.dataset.splits["train"].labels()
    assert np.bincount(labels[rows]).tolist() == [2] * 10
    config = dho.Config(labels_per_class=2, labeled_batch_size=48, unlabeled="rest")
    stage = stage_of(taught, config)
    items = stage.data["labeled"].items(), stage.data["unlabeled"].items()
    labeled, rest = (np.concatenate([next(x)["row"] for _ in range(5)]) for x in items)
    # 240 places: each of 20 images twelve times, in an epoch of its own each time.
    assert np.bincount(labeled)[rows].tolist() == [12] * 20
    assert not np.isin(rest, rows).any()
    other = dataclasses.replace(taught, seed=1)
    assert dho.labeled_rows(other, 2).tolist() != rows.tolist()


@pytest.mark.slow
def test_the_best_mixture_is_searched_each_time_and_kept_with_the_student(taught):
    metrics = MetricWriter(None)
    config = dho.Config(**SMALL)
    teacher = [np.asarray(x).tobytes() for x in jax.tree.leaves(taught.given)]
    found = run(dho.recipe(taught, config), metrics=metrics)
    assert teacher == [np.asarray(x).tobytes() for x in jax.tree.leaves(taught.given)]
    task = found.on(taught)
    said = dho.answers(task, found.last, "validation")
    labels = taught.dataset.splits["validation"].arrays()["label"]
    best = losses.search_alpha_beta(said["ce_logits"], said["kd_logits"], labels)
    (row,) = [r for r in metrics.rows if r["kind"] == "validation" and r["step"] == 6]
    kept = found.last["interpolation"]
    assert all(isinstance(x, jax.Array) for x in kept.values())  # which can be saved
    for name in ("alpha", "beta"):
        assert float(kept[name]) == pytest.approx(float(getattr(best, name)))
        assert row[name] == pytest.approx(float(kept[name]))
    assert row["accuracy"] == pytest.approx(float(best.accuracy))
    assert row["accuracy"] >= max(row["ce_accuracy"], row["kd_accuracy"])
    # What the network answers is that mixture.
    assert np.mean(said["logits"].argmax(1) == labels) == pytest.approx(row["accuracy"])
    probs = losses.dual_head_probs(said["ce_logits"], said["kd_logits"], **kept)
    np.testing.assert_allclose(np.exp(said["logits"]), probs, rtol=1e-4, atol=1e-6)
    assert np.isfinite(list(task.scores("student", found.selected, None).values())).all()


def test_the_surer_head_decides_where_alpha_is_adaptive(taught):
    config = dho.Config(**SMALL, interpolation="entropy")
    task = dho.dual_task(taught, config)
    said = dho.answers(task, task.variables("student"), "test")
    alpha = losses.entropy_adaptive_alpha(said["ce_logits"], said["kd_logits"])
    probs = losses.dual_head_probs(said["ce_logits"], said["kd_logits"], alpha=alpha)
    np.testing.assert_allclose(np.exp(said["logits"]), probs, rtol=1e-4)


@pytest.mark.slow
def test_heads_begin_at_class_embeddings_where_they_are_given(taught):
    words = jax.random.normal(jax.random.key(1), (10, 12))
    given = dataclasses.replace(taught, given={**taught.given, "class_embeddings": words})
    for head in ("linear", "aligned"):
        stage = stage_of(given, dho.Config(**SMALL, head=head))
        params = stage.variables["student"]["params"]
        np.testing.assert_array_equal(params["head"]["kernel"], words.T)
        assert not params["head"]["bias"].any()
        if head == "aligned":
            np.testing.assert_array_equal(params["kd_head"]["class_embeddings"], words)
            gradients(stage, batch_of(stage))
        else:
            np.testing.assert_array_equal(params["kd_head"]["logits"]["kernel"], words.T)
    bad = dataclasses.replace(given, given={**taught.given, "class_embeddings": words[:, :5]})
    with pytest.raises(ValueError, match="do not fit the student's own head"):
        stage_of(bad, dho.Config(**SMALL)).variables["student"]["params"]


@pytest.mark.slow
def test_a_teacher_of_another_class_order_is_read_in_that_of_the_labels(taught):
    order = tuple(np.random.default_rng(0).permutation(10).tolist())  # column of each class
    embeddings = taught.given["teacher"]["params"]["class_embeddings"]
    shuffled = jnp.zeros_like(embeddings).at[np.array(order)].set(embeddings)
    other = taught.with_teacher({"params": {"class_embeddings": shuffled}})
    one = stage_of(taught, dho.Config(**SMALL))
    two = stage_of(other, dho.Config(**SMALL, class_order=order))
    close(gradients(two, batch_of(two))[0], gradients(one, batch_of(one))[0])
    short = stage_of(taught, dho.Config(**SMALL, class_order=(1, 0)))
    with pytest.raises(ValueError, match="class_order has 2 classes, the teacher 10"):
        gradients(short, batch_of(short))


@pytest.mark.slow
def test_pcgrad_and_the_conflict_are_those_of_labels_against_teacher(taught):
    config = dho.Config(**SMALL, heads="single", alignment="pcgrad", report_conflict=True)
    stage = stage_of(taught, config)
    _, grads, _ = gradients(stage, batch_of(stage))
    labels = grads["cross_entropy"]
    teacher = jax.tree.map(jnp.add, grads["kd_labeled"], grads["kd_unlabeled"])
    merged, metrics = dho.combine(traced.static(config), grads)
    close(merged, losses.pcgrad(labels, teacher))
    body = [under(g, "dense0/") for g in (labels, teacher)]
    expected = losses.gradient_cosine(*body)
    np.testing.assert_allclose(metrics["cosine/backbone"].total, expected, rtol=1e-5)
    wrong = dataclasses.replace(config, main_head="")
    with pytest.raises(ValueError, match="main_head='' leaves no backbone"):
        dho.combine(wrong, grads)


@pytest.mark.slow
def test_a_cached_teacher_gives_the_gradient_of_a_live_one(taught):
    cached = dataclasses.replace(taught, cache_teacher=True)
    recipe = dho.recipe(cached, dho.Config(**SMALL))
    lessons = recipe.send(None).function(None)
    stage = recipe.send(lessons)
    assert "teacher" not in stage.variables
    batch = batch_of(stage)
    live = stage_of(taught, dho.Config(**SMALL))
    found = gradients(
        dataclasses.replace(stage, variables={**stage.variables, "teacher": {}}), batch
    )[0]
    close(found, gradients(live, batch_of(live))[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(temperature=0.0), "temperature must be positive, got 0.0"),
        (dict(beta=-1.0), "beta must be positive, got -1.0"),
        (dict(lam=1.5), r"lam must be in \[0, 1\], got 1.5"),
        (dict(alpha=float("nan")), r"alpha must be in \[0, 1\], got nan"),
        (dict(labels_per_class=-1), "labels_per_class must not be negative"),
        (dict(labeled_batch_size=0), "labeled_batch_size must be at least 1"),
        (dict(heads="three"), "heads must be one of"),
        (dict(head="mlp"), "head must be one of"),
        (dict(unlabeled="none"), "unlabeled must be one of"),
        (dict(alignment="all"), "alignment must be one of"),
        (dict(interpolation="mean"), "interpolation must be one of"),
        (dict(signal="pixels"), "signal must be one of"),
        (dict(signal="features"), 'signal="features" needs heads="single"'),
        (dict(class_order=(0, 2)), r"class_order must be a permutation, got \(0, 2\)"),
    ],
)
def test_a_bad_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dho.Config(**fields)


def test_bad_tasks_are_refused(taught):
    with pytest.raises(ValueError, match="examples, shots=500 are wanted"):
        stage_of(taught, dho.Config(labels_per_class=500))
    with pytest.raises(ValueError, match="all images of train are labelled"):
        stage_of(taught, dho.Config(labels_per_class=0, unlabeled="rest"))
    mixup = {**taught.training}
    mixup["student"] = dataclasses.replace(mixup["student"], augment=("mixup",))
    with pytest.raises(ValueError, match="cannot train on mixup"):
        run(dho.recipe(dataclasses.replace(taught, training=mixup), dho.Config(**SMALL)))
