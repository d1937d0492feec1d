"""OPSD: two contexts of one model on the same answers, and what the student learns from it."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import language_toys as toys
import numpy as np
import pytest
from opsd_toys import (
    ADAPTED,
    FEATURES,
    MODEL,
    PLACES,
    PLAIN,
    REQUEST,
    TRANSITION,
    alike,
    gradient_of,
    other_teacher,
    prepared,
    privileged,
    reasoning,
    stage_of,
    task,
)

from kdjax import losses
from kdjax.losses import self_distillation
from kdjax.methods import gkd, opsd, rollouts
from kdjax.methods.language_task import decoder
from kdjax.networks.generation import generate
from kdjax.training import Settings, run
from kdjax.training.stage import Context


@pytest.fixture(scope="module")
def batch():
    return {"train": privileged(toys.batch(8))}


@pytest.fixture(scope="module")
def stage():
    return other_teacher(stage_of(PLAIN))


@pytest.fixture(scope="module")
def ready(stage, batch):
    return prepared(stage, batch)


@pytest.fixture(scope="module")
def usual(stage, ready):
    return gradient_of(stage, ready)


@jax.jit
def features(variables, tokens):
    return decoder(MODEL).apply(variables, tokens[None]).output["features"][0]


def states(variables, tokens):
    """The hidden states of one sequence from its first token on; what follows it is not seen."""
    followed = np.zeros(MODEL.max_length, np.int32)
    followed[: len(tokens)] = tokens
    return features(variables, followed)[: len(tokens)]


def test_the_teacher_judges_the_students_answer_after_its_own_prompt(stage, ready, batch):
    train, asked = ready["train"], batch["train"]
    for row in range(8):
        answer = np.asarray(train["tokens"][row])[np.asarray(train["completion"][row])]
        prompt = asked["teacher_prompt"][row][asked["teacher_prompt_where"][row]]
        expected = states(stage.variables["teacher"], [*prompt, *answer])[len(prompt) - 1 : -1]
        found = train[FEATURES][row, : len(answer)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert train[FEATURES].shape == (8, toys.LENGTH - toys.PROMPT, MODEL.width)
    assert len(set(asked["teacher_prompt_where"].sum(1).tolist())) > 1


def test_what_leads_to_the_answer_comes_after_what_the_teacher_reasoned():
    batch = reasoning({n: x[:1] for n, x in toys.batch(8).items()})
    size = int(batch["teacher_prompt_where"].sum())
    prompt = batch["teacher_prompt"][0, -size:].tolist()
    answer, where = np.array([[6, 7, 0]]), np.array([[True, True, False]])
    for rationale, between in (
        (None, TRANSITION),
        ((np.array([[8, 9]]), np.array([[True, False]])), (*REQUEST, 8, *TRANSITION)),
    ):
        rows = {
            n: np.asarray(x[0])
            for n, x in opsd.teacher_rows(batch, answer, where, rationale).items()
        }
        seen = rows["segments"] > 0
        assert rows["tokens"][seen].tolist() == [*prompt, *between, 6, 7]
        assert rows["positions"][seen].tolist() == list(range(seen.sum()))
        assert rows["tokens"][-3:].tolist() == [6, 7, 0]


def test_a_shift_by_one_is_another_loss(stage, ready, usual):
    moved = jnp.roll(ready["train"][FEATURES], 1, axis=1)
    shifted = {"train": {**ready["train"], FEATURES: moved}}
    _, metrics = gradient_of(stage, shifted)
    assert abs(metrics["loss"] / usual[1]["loss"] - 1) > 0.01


def test_the_students_rows_do_not_hold_the_solution(ready, batch):
    prompts = slice(0, toys.PROMPT)
    for name in ("tokens", "segments", "positions"):
        np.testing.assert_array_equal(
            ready["train"][name][:, prompts], batch["train"][name][:, prompts]
        )
    assert "teacher_prompt" not in ready["train"]


def test_an_answer_does_not_depend_on_the_datas_solution(stage, ready, batch):
    train = batch["train"]
    hidden = np.where(train["completion"], 0, train["tokens"])
    changed = {"train": {**train, "tokens": hidden}}
    again = prepared(stage, changed)
    np.testing.assert_array_equal(again["train"]["tokens"], ready["train"]["tokens"])


def test_in_one_context_a_model_has_nothing_to_teach_itself():
    batch = {"train": alike(toys.batch(8))}
    stage = stage_of(PLAIN, alike)
    found, metrics = gradient_of(stage, prepared(stage, batch))
    assert abs(metrics["loss"]) < 1e-6
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(found)) < 1e-5


def test_with_identical_prompts_it_is_gkd_on_its_own_answers():
    batch = {"train": alike(toys.batch(8))}
    stage = other_teacher(stage_of(PLAIN, alike))
    ready = prepared(stage, batch)
    found, metrics = gradient_of(stage, ready)
    train = {n: x for n, x in ready["train"].items() if n not in (FEATURES, "truncated")}
    rows = (train[n] for n in ("tokens", "positions", "segments"))
    out = jax.jit(decoder(MODEL).apply)(stage.variables["teacher"], *rows).output["features"]
    train |= {FEATURES: out, "on_policy": jnp.ones(8)}
    config = gkd.Config(on_policy=1.0)
    step = gkd.program(MODEL, MODEL, toys.task().training["student"], config, toys.PROMPT, ())
    expected, other = gradient_of(dataclasses.replace(stage, program=step), {"train": train})
    toys.close(found, expected)
    np.testing.assert_allclose(metrics["loss"], other["loss"], rtol=1e-5)


def live_and_fixed():
    fixed, live = stage_of(PLAIN), stage_of(dataclasses.replace(PLAIN, teacher="live"))
    assert set(live.variables) == {"student"}
    return live, fixed


def test_no_gradient_goes_through_the_live_teacher(batch):
    live, fixed = live_and_fixed()
    ready = prepared(fixed, batch)
    found = gradient_of(live, ready)
    toys.close(found, gradient_of(fixed, ready))
    assert found[1]["loss"] > 0


@pytest.mark.slow
def test_the_live_teacher_is_the_student(batch):
    live, fixed = (prepared(stage, batch)["train"] for stage in live_and_fixed())
    toys.close(live[FEATURES], fixed[FEATURES])
    other = jax.tree.map(lambda x: x * 1.1, stage_of(PLAIN).variables["student"])
    moved = dataclasses.replace(live_and_fixed()[0], variables={"student": other})
    assert jnp.abs(prepared(moved, batch)["train"][FEATURES] - live[FEATURES]).max() > 1e-3


@pytest.mark.parametrize(
    "config", [PLAIN, pytest.param(PLACES, marks=pytest.mark.slow)], ids=["chunks", "places"]
)
def test_gradients_do_not_depend_on_padding_or_micro_batches(stage, ready, config):
    chosen = dataclasses.replace(stage, program=stage_of(config).program)
    whole = gradient_of(chosen, ready)
    padded = {"train": toys.padded(ready["train"])}
    padded["train"][FEATURES][8:] = np.nan
    toys.close(gradient_of(chosen, padded, 3), whole)
    assert whole[1]["loss"] > 0


@pytest.mark.slow
def test_what_is_written_does_not_depend_on_padding(stage, ready, batch):
    more = {"train": toys.padded(batch["train"])}
    more["train"]["id"] = np.concatenate([batch["train"]["id"], np.arange(4)])
    again = prepared(stage, more)["train"]
    for name in (*rollouts.ROW, FEATURES):
        np.testing.assert_allclose(again[name][:8], ready["train"][name], rtol=1e-4, atol=1e-5)
    assert not again["completion"][8:].any()


@pytest.fixture(scope="module")
def arrays():
    """`(hidden, head, teacher_hidden, teacher_head, tokens, where)` of three answers."""
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, taught = (jax.random.normal(k, (3, 5, 4)) for k in keys[:2])
    heads = [losses.Head(jax.random.normal(k, (7, 4))) for k in keys[2:]]
    where = jnp.arange(5) < jnp.array([[5], [2], [0]])
    return hidden, heads[0], taught, heads[1], jnp.arange(15).reshape(3, 5) % 7, where


def logits_of(arrays):
    hidden, head, taught, other, *_ = arrays
    return hidden @ head.weight.T, taught @ other.weight.T


def test_place_by_place_the_loss_is_that_of_the_chunks(arrays):
    hidden, head, taught, other, tokens, where = arrays
    config = dataclasses.replace(PLAIN, beta=0.3, temperature=1.4)

    @functools.partial(jax.jit, static_argnums=0)
    @functools.partial(jax.grad, argnums=(1, 2, 3, 4), has_aux=True)
    def compared(apart, hidden, weight, taught, taught_weight):
        given = hidden, losses.Head(weight), taught, losses.Head(taught_weight), tokens, where
        if apart:
            found = losses.token_total(opsd.token_losses(config, *given), where=where)
        else:
            found = opsd.total(config, *given)
        return found[0], found

    weights = hidden, head.weight, taught, other.weight
    whole, places = (compared(apart, *weights) for apart in (False, True))
    toys.close(places, whole)
    assert whole[1][1] == 7
    for teachers in (whole[0][2:], places[0][2:]):
        assert all(not x.any() for x in jax.tree.leaves(teachers))


@pytest.mark.slow
def test_reductions_and_losses_are_those_of_the_kernels(arrays):
    student, teacher = logits_of(arrays)
    *_, tokens, where = arrays
    kernel = functools.partial(self_distillation.opsd, student, teacher)
    sampled = losses.sampled_token_reverse_kl(student, teacher, tokens, temperature=1.3)
    jsd = kernel(beta=0.2, temperature=1.3)
    mean, sequences = losses.token_total, losses.sequence_total
    jsd_of = dataclasses.replace(PLACES, top_k=None)
    for config, values, reduce in (
        (PLACES, kernel(beta=0.2, temperature=1.3, top_k=3), sequences),
        (jsd_of, jsd, sequences),
        (dataclasses.replace(PLACES, top_k=7, reduction="token_mean"), jsd, mean),
        (dataclasses.replace(jsd_of, loss="sampled_token", reduction="token_mean"), sampled, mean),
    ):
        found = jax.jit(functools.partial(opsd.total, config))(*arrays)
        np.testing.assert_allclose(found, reduce(values, where=where), rtol=1e-5, atol=1e-6)


def test_the_sampled_token_has_the_gradient_of_the_reverse_kl(arrays):
    student, teacher = (x[0, 0] for x in logits_of(arrays))

    @jax.jit
    @jax.grad
    def expected(logits):
        return self_distillation.opsd(logits, teacher, beta=1.0)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    @jax.grad
    def sampled(logits, token):
        return losses.sampled_token_reverse_kl(logits, teacher, token)

    found = jax.nn.softmax(student) @ sampled(student, jnp.arange(7))
    np.testing.assert_allclose(found, expected(student), rtol=1e-5, atol=1e-6)


def test_one_token_of_the_teacher_teaches_nothing():
    student, teacher = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.0, 0.5])
    for logits in self_distillation.topk_teacher_support(student, teacher, k=1):
        np.testing.assert_array_equal(logits, [0.0])
    with pytest.raises(ValueError, match="top_k must be >= 2"):
        self_distillation.opsd(student, teacher, top_k=1)


def unended(train):
    """Which answers are truncated, after a check of what is trained of them."""
    train = {n: np.asarray(x) for n, x in train.items()}
    cut, answers = train["truncated"], slice(toys.PROMPT, None)
    assert train["completion"][cut, answers].all()
    assert (train["tokens"][cut, answers] != toys.TOKENIZER.end).all()
    return cut


def test_answers_that_meet_their_limit_are_trained_without_an_end(ready):
    assert 0 < unended(ready["train"]).sum() < 8


@pytest.mark.slow
def test_answers_are_as_long_as_told(batch):
    stage = stage_of(dataclasses.replace(PLAIN, max_new_tokens=2))
    ready = prepared(stage, batch)
    assert ready["train"]["tokens"].shape == (8, toys.PROMPT + 2)
    assert ready["train"][FEATURES].shape[1] == 2
    assert unended(ready["train"]).any()
    _, metrics = gradient_of(stage, ready)
    assert 1 <= metrics["answer_length"] <= 2


def test_what_was_written_is_reported(ready, usual):
    train, (_, metrics) = ready["train"], usual
    np.testing.assert_allclose(metrics["truncated"], train["truncated"].mean())
    np.testing.assert_allclose(metrics["answer_length"], train["completion"].sum() / 8)
    np.testing.assert_allclose(metrics["solution_cut"], 0.5)
    assert 0 < metrics["truncated"] < 1


def test_an_average_teacher_follows_the_student():
    student, teacher = {"params": {"w": jnp.ones(2)}}, {"params": {"w": jnp.zeros(2)}}

    def after(decay, step):
        config = dataclasses.replace(PLAIN, teacher="ema", ema_decay=decay)
        (update,) = stage_of(config).program.updates
        context = Context({}, None, jnp.int32(step), {})
        variables, memory = update.after({"student": student, "teacher": teacher}, context, {})
        assert memory == {}
        return float(variables["teacher"]["params"]["w"][0])

    assert after(0.9, step=0) == 1  # the first step copies
    np.testing.assert_allclose(after(0.9, step=3), 0.1, rtol=1e-6)
    assert (after(1.0, step=3), after(0.0, step=3)) == (0, 1)


def test_adapters_start_as_the_model_and_have_the_gradient_of_its_kernels():
    stage, plain = stage_of(ADAPTED), stage_of(PLAIN)
    assert set(stage.variables) == {"base", "student"}  # the teacher is the base, no second copy
    batch = {"train": privileged(toys.batch(8))}
    ready = prepared(stage, batch)
    toys.close(ready, prepared(plain, batch))
    found, metrics = gradient_of(stage, ready)
    expected, other = gradient_of(plain, ready)
    np.testing.assert_allclose(metrics["loss"], other["loss"], rtol=1e-5)
    assert metrics["loss"] > 0
    adapters = stage.variables["student"]["params"]["block0"]
    names = ("query", "key", "value", "out", "gate", "up", "down")
    assert len(found["student"]) == 2 * len(names)
    for name in names:  # B is zero: A has no gradient yet, and B has 6 / 2 of the kernel's
        path = f"block0/{name}/kernel"
        through = 3 * adapters[name]["kernel"]["a"].T @ expected["student"][path]
        np.testing.assert_allclose(found["student"][f"{path}/b"], through, rtol=1e-3, atol=1e-6)
        assert not found["student"][f"{path}/a"].any()


@pytest.mark.slow
def test_an_average_or_live_teacher_has_adapters_too(batch):
    for teacher, roles in (("ema", {"base", "student", "teacher"}), ("live", {"base", "student"})):
        stage = stage_of(dataclasses.replace(ADAPTED, teacher=teacher))
        assert set(stage.variables) == roles
        role = "teacher" if teacher == "ema" else "student"
        moved = jax.tree.map(lambda x: x + 0.3, stage.variables[role])
        other = dataclasses.replace(stage, variables={**stage.variables, role: moved})
        expected = ADAPTED.lora.merge(stage.variables["base"], moved)
        plain = stage_of(PLAIN)
        merged = {"teacher": expected, "student": opsd.whole(ADAPTED, other.variables, "student")}
        plain = dataclasses.replace(plain, variables=merged)
        toys.close(prepared(other, batch)["train"], prepared(plain, batch)["train"])


@pytest.mark.slow
def test_a_teacher_may_reason_before_it_judges(stage):
    config = dataclasses.replace(PLAIN, max_rationale_tokens=4)
    chosen = dataclasses.replace(stage, program=stage_of(config, reasoning).program)
    batch = {"train": reasoning(toys.batch(8))}
    train, asked = prepared(chosen, batch)["train"], batch["train"]
    teacher, end = stage.variables["teacher"], toys.TOKENIZER.end
    context = np.concatenate([asked["teacher_prompt"], asked["request"]], axis=1)
    shown = np.concatenate([asked["teacher_prompt_where"], asked["request"] > 0], axis=1)
    rng = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 3), 0))[1]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, asked["id"])
    written = generate(
        decoder(MODEL), MODEL, teacher, context, shown, keys, max_new_tokens=4, stop=(end,)
    )
    for row in range(8):
        reasons = np.asarray(written.tokens[row])[np.asarray(written.completion[row])]
        reasons = reasons[reasons != end]
        answer = np.asarray(train["tokens"][row])[np.asarray(train["completion"][row])]
        before = [*context[row][shown[row]], *reasons, *TRANSITION]
        expected = states(teacher, [*before, *answer])[len(before) - 1 : -1]
        found = train[FEATURES][row, : len(answer)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["fixed", "ema", "live"])
@pytest.mark.parametrize("start", [PLAIN, ADAPTED], ids=["whole", "adapters"])
def test_a_run_is_deterministic_and_goes_on_where_it_was_cut(start, teacher, tmp_path):
    config = dataclasses.replace(start, teacher=teacher, ema_decay=0.5)
    mine = task(validate_every=12)
    step = stage_of(config).program
    before = jax.tree.map(np.asarray, mine.variables("student"))

    def recipe():
        outcome = yield stage_of(config)
        return outcome

    whole = run(recipe())
    assert step is stage_of(config).program  # one compilation for all runs of a config
    jax.tree.map(np.testing.assert_array_equal, mine.variables("student"), before)
    if teacher == "ema":
        student, average = (whole.variables[role]["params"] for role in ("student", "teacher"))
        apart = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), student, average)
        assert 0 < max(jax.tree.leaves(apart)) < 0.1

    def cut(stage, steps):
        if steps == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe(), workdir=tmp_path, settings=Settings(checkpoint_every=5, on_step=cut))
    again = run(recipe(), workdir=tmp_path, settings=Settings(checkpoint_every=5))
    jax.tree.map(np.testing.assert_array_equal, again.variables, whole.variables)


@pytest.mark.slow
def test_a_recipe_with_adapters_returns_a_whole_model_that_changed_where_they_are():
    mine = task(validate_every=12)
    before = mine.variables("student")["params"]
    found = run(opsd.recipe(mine, dataclasses.replace(ADAPTED, teacher="fixed")))
    for kept in (found.last, found.selected):
        apart = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), kept["params"], before)
        assert apart["embedding"] == {"embedding": 0}
        assert apart["block0"]["attention_norm"] == {"scale": 0}
        assert apart["block0"]["down"]["kernel"] > 0


SCRIPT = """
import dataclasses, json
import jax, numpy as np
import test_opsd as tests
from kdjax.methods import opsd
from kdjax.training import Settings, divide, run
from kdjax.training.gradients import gradient
from kdjax.training.sharding import Layout, make_mesh

jax.config.update("jax_disable_most_optimizations", True)
found = {}
for name, config in {
    "chunks": dataclasses.replace(tests.PLAIN, teacher="ema", max_rationale_tokens=2),
    "places": dataclasses.replace(tests.PLACES, teacher="live"),
    "adapters": dataclasses.replace(tests.ADAPTED, teacher="ema"),
}.items():
    layouts = [Layout(make_mesh(devices=jax.devices()[:1])), Layout(make_mesh())]
    task = tests.task(tests.reasoning, validate_every=12)
    one, eight = (
        run(opsd.recipe(task, config), settings=Settings(layout=x)).last for x in layouts
    )
    apart = jax.tree.map(lambda a, b: float(abs(np.asarray(a) - np.asarray(b)).max()), one, eight)
    found[name] = max(jax.tree.leaves(apart))
print(json.dumps([len(jax.devices()), found]))
"""


@pytest.mark.slow
def test_on_eight_devices_the_student_is_that_of_one():
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    devices, apart = json.loads(done.stdout.splitlines()[-1])
    assert devices == 8
    assert max(apart.values()) < 1e-4, apart
