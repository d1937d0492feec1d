"""BOOT: what a step computes, from what, and where its gradient goes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, methods, networks
from kdjax.methods import boot, trajectory_regression
from kdjax.methods.generation_task import Diffusion, GenerationTask, held_out
from kdjax.networks import from_function
from kdjax.training import divide, run
from kdjax.training.gradients import gradient
from kdjax.training.optimizers import Training
from kdjax.training.stage import Context
from kdjax.training.state import pick, values_at

MEANS = ((1.5, 0.0), (-1.5, 0.5), (0.0, 1.5))
TEACHER = networks.gaussian_mixture(MEANS, 0.25, losses.cosine_schedule)
STUDENT = networks.build("denoising_mlp", 2, widths=(16,))
CONDITIONED = networks.build("denoising_mlp", 2, widths=(16,), conditions=3)
USUAL = boot.Config()
NOISES = held_out("noise", 8, 64)


def task_of(microbatches=1, steps=20, network=STUDENT, teacher=TEACHER, batch_size=16, **options):
    training = Training(
        steps=steps,
        batch_size=batch_size,
        optimizer="adam",
        learning_rate=3e-3,
        microbatches=microbatches,
    )
    task = GenerationTask(
        NOISES,
        {"student": network},
        {"student": training},
        validate_every=10,
        diffusion=Diffusion(teacher, (2,), **options),
        reference_steps=12,
    )
    return task.with_teacher(task.variables("teacher"))


def batch_of(stage):
    stream = stage.data["train"]
    return {"train": stream.assemble(stream.table, next(stream.items()))}


def step_of(stage, batch=None):
    """The gradient, the metrics and the prepared batch of a stage's first step."""
    batch = batch_of(stage) if batch is None else batch
    (update,), prepare = stage.program.updates, stage.program.prepare
    values = values_at(stage.program.schedules, stage.values, 0, stage.steps)
    live = {"student": jax.tree.map(jnp.asarray, dict(stage.variables["student"]))}
    frozen = {"teacher": stage.variables["teacher"]}

    @jax.jit
    def compute(live, frozen, batch):
        context = Context({}, jax.random.key(0), jnp.int32(0), values)
        batch, _ = prepare({**frozen, **live}, batch, context)
        found = gradient(update, pick(live, update.trains), live, frozen, batch, context)
        metrics = {n: divide(*term[:2]) for n, term in found.metrics.items()}
        return found.gradient, metrics, batch["train"]

    return compute(live, frozen, batch)


def stage_of(task, config=USUAL, module=boot):
    return module.recipe(task, config).send(None)


def close(a, b, rtol=2e-5):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * scale), a, b)


@pytest.mark.parametrize(
    "module", [boot, pytest.param(trajectory_regression, marks=pytest.mark.slow)]
)
def test_the_step_does_not_depend_on_padding_or_micro_batches(module):
    config = module.Config()
    whole = stage_of(task_of(), config, module)
    batch = batch_of(whole)
    grads, metrics, _ = step_of(whole, batch)
    padded = {n: jnp.concatenate([x, x[:8]]) for n, x in batch["train"].items()}
    padded["where"] = jnp.arange(24) < 16
    cut = stage_of(task_of(microbatches=4), config, module)
    found = step_of(cut, {"train": padded})
    close(found[0], grads)
    close(found[1], metrics)


def test_an_example_is_the_same_wherever_it_stands_and_new_in_every_step():
    task = task_of()
    stream = task.stream("student")
    first, second = (x for x, _ in zip(stream.items(), range(2)))
    assert task_of().stream("student") is stream
    with_where = [stream.assemble({}, x) for x in (first, second)]
    draws = [task.diffusion.draw(x) for x in with_where]
    turned = {n: x[::-1] for n, x in with_where[0].items()}
    np.testing.assert_array_equal(task.diffusion.draw(turned).noise, draws[0].noise[::-1])
    drawn = jnp.concatenate([x.noise for x in draws])
    assert len(np.unique(np.asarray(drawn), axis=0)) == 32
    assert not set(np.asarray(first["seed"])) & set(NOISES.splits["test"].arrays()["seed"])


@pytest.mark.parametrize(
    "kind", [pytest.param(x, marks=pytest.mark.slow) if x != "exact" else x for x in boot.TARGETS]
)
def test_the_loss_is_the_papers_written_out(kind):
    """With every derivative through the target, the weight and the teacher stopped by hand."""
    config = boot.Config(kind, "inverse_step", delta=0.1, boundary_weight=0.5)
    task = task_of()
    stage = stage_of(task, config)
    grads, metrics, made = step_of(stage)
    draws = task.diffusion.draw(batch_of(stage)["train"])
    noise, t = draws.noise, 0.03 + draws.unit * (0.98 - 0.03)
    s = jnp.maximum(t - 0.1, 0.02)
    taught = stage.variables["teacher"]

    def f(z, times):
        return TEACHER.apply(taught, z, times).output

    def loss(params):
        def g(times):
            return STUDENT.apply({"params": params}, noise, times).output

        y = g(t)
        match kind:
            case "exact":
                z = jnp.cos(jnp.pi * t / 2)[:, None] * y + jnp.sin(jnp.pi * t / 2)[:, None] * noise
                r = jnp.tan(jnp.pi * s / 2) / jnp.tan(jnp.pi * t / 2)
                goal = f(z, t) + r[:, None] * (y - f(z, t))
            case "euler":
                z = jnp.cos(jnp.pi * t / 2)[:, None] * y + jnp.sin(jnp.pi * t / 2)[:, None] * noise
                slope = jnp.pi / jnp.sin(jnp.pi * t)
                goal = y + ((t - s) * slope)[:, None] * (f(z, t) - y)
            case "heun":
                goal = losses.boot_target_heun(y, noise, t, s, teacher=f)
        w = 1 / (1 - jnp.tan(jnp.pi * s / 2) / jnp.tan(jnp.pi * t / 2))
        last = jnp.full_like(t, 0.98)
        bootstrap = jnp.mean((g(s) - jax.lax.stop_gradient(goal)) ** 2, -1)
        boundary = jnp.mean((g(last) - f(noise, last)) ** 2, -1)
        return jnp.mean(w * bootstrap) + 0.5 * jnp.mean(boundary)

    value, expected = jax.jit(jax.value_and_grad(loss))(stage.variables["student"]["params"])
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-4)
    close(jax.tree.leaves(grads), jax.tree.leaves(expected), rtol=1e-3)
    np.testing.assert_allclose(made["time"], s, rtol=1e-6)


def test_a_student_that_is_the_trajectory_of_a_still_teacher_has_no_loss():
    """A teacher that always says c, and a student that does: the signal c stays where it is."""

    def constant(params, x, times):
        return jnp.broadcast_to(params["c"], x.shape)

    still = from_function(constant, params={"c": jnp.array([0.5, -1.0])})
    task = task_of(network=still, teacher=still)
    task = task.with_teacher({"params": {"c": jnp.array([2.0, 3.0])}})
    for kind in ("exact", "heun"):
        grads, metrics, _ = step_of(stage_of(task, boot.Config(kind, from_teacher=True)))
        assert float(metrics["loss"]) < 1e-12
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grads)) < 1e-5


def test_times_cover_the_range_and_no_step_is_without_length():
    stage = stage_of(task_of(batch_size=512), boot.Config(weighting="inverse_squared_step"))
    _, _, made = step_of(stage)
    assert 0.02 <= made["time"].min() < 0.03
    assert 0.9 < made["time"].max() <= 0.94 + 1e-6
    assert jnp.isfinite(made["weight"]).all()
    assert made["weight"].min() >= 1


def test_no_data_enters_a_step():
    stage = stage_of(task_of())
    assert set(batch_of(stage)["train"]) == {"seed", "step", "row", "where"}
    assert not stage.data["train"].table


@pytest.mark.parametrize(
    ("prediction", "convert"),
    [
        ("noise", lambda z, x, a, s: (z - a * x) / s),
        ("velocity", lambda z, x, a, s: (a * z - x) / s),
    ],
)
def test_what_the_teacher_predicts_is_converted_to_the_data(prediction, convert):
    def other(params, noisy, times):
        alpha, sigma = (x[:, None] for x in losses.cosine_schedule(times))
        clean = TEACHER.apply({"params": params}, noisy, times).output
        return convert(noisy, clean, alpha, sigma)

    variables = TEACHER.init(jax.random.key(0))
    noisy, times = jax.random.normal(jax.random.key(1), (4, 2)), jnp.array([0.9, 0.5, 0.2, 0.1])
    network = from_function(other, params=variables["params"])
    found = Diffusion(network, (2,), prediction=prediction).clean(variables, noisy, times)
    close(found, TEACHER.apply(variables, noisy, times).output, rtol=1e-4)


def test_guidance_goes_away_from_the_prediction_without_a_condition():
    variables = TEACHER.init(jax.random.key(0))
    noisy, times = jax.random.normal(jax.random.key(1), (2, 2)), jnp.array([0.9, 0.5])
    condition, found = jnp.array([0, 2]), {}
    for scale in (1.0, 2.0):
        model = Diffusion(TEACHER, (2,), conditions=3, guidance=scale)
        found[scale] = model.clean(variables, noisy, times, condition)
    none = TEACHER.apply(variables, noisy, times).output
    close(found[2.0], none + 2 * (found[1.0] - none), rtol=1e-4)
    assert float(jnp.abs(found[1.0] - none).max()) > 0.1


@pytest.mark.slow
def test_the_guided_teacher_is_distilled_on_the_condition_alone():
    usual = dict(network=CONDITIONED, conditions=3)
    task = task_of(**usual, guidance=2.0)
    stage = stage_of(task)
    _, _, made = step_of(stage)
    condition, noise = made["condition"], made["noise"]
    assert set(np.asarray(condition)) == {0, 1, 2}
    first = jnp.full(16, 0.98)
    taught = stage.variables["teacher"]
    none, one = (
        TEACHER.apply(taught, noise, first, c).output for c in (condition * 0 + 3, condition)
    )
    close(made["boundary"], none + 2 * (one - none), rtol=1e-4)
    plain = task_of(**usual).diffusion.clean(taught, noise, first, condition)
    close(plain, one)


def test_a_run_learns_and_leaves_the_teacher_as_it_was(tmp_path):
    task = task_of(steps=100, batch_size=64)
    teacher = task.teacher()
    before = jax.tree.map(np.array, teacher)
    reference = task.reference(teacher)
    trained = run(boot.recipe(task, boot.Config(delta=0.1, average=0.5)), workdir=tmp_path)
    jax.tree.map(np.testing.assert_array_equal, teacher, before)
    scores = task.scores("student", trained.last, reference)
    assert scores["trajectory_error"] < 0.8 * scores["ddim_1_error"]
    assert scores["ddim_4_error"] < scores["ddim_2_error"] < scores["ddim_1_error"]
    assert scores["error_over_ddim_4"] == scores["trajectory_error"] / scores["ddim_4_error"]
    assert trained.selected_step in range(10, 101, 10)


def test_the_average_follows_the_student():
    stage = stage_of(task_of(), boot.Config(average=0.75))
    (update,) = stage.program.updates
    variables = {"student": {"params": jnp.ones(2)}, "average": {"params": jnp.zeros(2)}}
    moved, _ = update.after(variables, Context({}, None, jnp.int32(0), {}), {})
    np.testing.assert_array_equal(moved["average"]["params"], 0.25)
    assert stage.program.carries == ("average",)
    jax.tree.map(
        np.testing.assert_array_equal,
        dict(stage.variables["average"]),
        dict(stage.variables["student"]),
    )


@pytest.mark.slow
def test_regression_learns_the_ends_of_trajectories():
    task = task_of()
    stage = stage_of(task, trajectory_regression.Config(num_steps=5), trajectory_regression)
    _, metrics, made = step_of(stage)
    ends = task.diffusion.sample(task.teacher(), made["noise"], steps=5)
    close(made["end"], ends)
    student = STUDENT.apply(stage.variables["student"], made["noise"], jnp.full(16, 0.02)).output
    np.testing.assert_allclose(metrics["loss"], jnp.mean((student - ends) ** 2), rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "ddim"}, "target must be one of"),
        ({"weighting": "step"}, "weighting must be one of"),
        ({"delta": 0.0}, r"delta must be in \(0, 1\), got 0.0"),
        ({"boundary_weight": -1.0}, "boundary_weight must not be negative, got -1.0"),
        ({"margin": 0.0}, r"margin must be in \(0, 1\), got 0.0"),
        ({"average": 1.0}, r"average must be in \[0, 1\), got 1.0"),
        ({"detla": 0.1}, "did you mean 'delta'"),
    ],
)
def test_a_bad_config_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        methods.configure("boot", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t_max": 1.0}, "t_max=1.0: no signal is left there"),
        ({"t_min": 0.0}, "at 0 there is no noise"),
        ({"t_min": 0.5, "t_max": 0.5}, "t_min=0.5 and t_max=0.5 must be 0 < t_min < t_max"),
        ({"schedule": "sine"}, "schedule must be one of"),
        ({"prediction": "data"}, "prediction must be one of"),
        ({"guidance": 2.0}, "guidance=2.0 needs conditions, and there are none"),
        ({"conditions": -1}, "conditions must not be negative, got -1"),
    ],
)
def test_a_bad_diffusion_model_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        task_of(**changes)


def test_a_bad_task_is_refused():
    task = task_of()
    with pytest.raises(ValueError, match="the student must give examples of shape"):
        task_of(network=from_function(lambda params, x, t: x.sum(-1), params={}))
    with pytest.raises(ValueError, match="reference_steps must be more than 8, got 8"):
        dataclasses.replace(task, reference_steps=8)
    with pytest.raises(ValueError, match="no data to train a teacher on"):
        stage_of(dataclasses.replace(task, given={}))
    with pytest.raises(ValueError, match="cache_teacher keeps outputs on data"):
        dataclasses.replace(task, cache_teacher=True)
    with pytest.raises(ValueError, match="compared with the teacher"):
        task.scores("student", task.variables("student"), None)
    with pytest.raises(ValueError, match=r"margin=0\.97 must be less than t_max - t_min"):
        stage_of(task, boot.Config(margin=0.97))
    with pytest.raises(ValueError, match="must have the teacher's architecture"):
        stage_of(task, boot.Config(from_teacher=True))
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        trajectory_regression.Config(num_steps=0)
    with pytest.raises(ValueError, match="boot is for generation tasks"):
        methods.check_task("boot", "classification")
