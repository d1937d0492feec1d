"""MST-Distill: batches without an example, and teachers that have batch statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import data, losses, networks
from kdjax.methods import mst_distill
from kdjax.methods.task import Task
from kdjax.training.optimizers import Training
from kdjax.training.stage import Context

NONE = jnp.zeros((0, 3))
CONFIG = mst_distill.Config(teacher_layers=("hidden/in",), cross_modal_layers=None, heads=2)


@pytest.mark.parametrize(
    "loss",
    [
        lambda: losses.routed_topk_distillation(
            NONE, jnp.zeros((0, 2, 3)), jnp.zeros((0, 2)), num_selected=1
        ),
        lambda: losses.mutual_cotraining_loss(jnp.zeros((0, 2, 3)), jnp.zeros(0, int)).sum(-1),
    ],
)
def test_of_no_examples_there_are_no_losses(loss):
    assert loss().shape == (0,)


def test_a_balance_of_no_examples_is_refused_or_nothing_and_a_batch_of_none_refused():
    hidden = losses.load_balancing_loss(jnp.full((4, 2), 0.5), where=jnp.zeros(4, bool))
    assert float(hidden) == 0
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Training(batch_size=0)


@pytest.mark.parametrize("stage", ["specialization", "distillation"])
def test_frozen_teachers_answer_with_the_statistics_they_keep(stage):
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=(16, 4)).astype(np.float32) for n in ("left", "right")}
    splits = {
        name: data.Split.of({**arrays, "label": np.arange(16) % 3}, f"halves/{name}")
        for name in ("train", "validation", "test")
    }
    encoder = {"name": "mlp", "widths": (6,), "norm": True}
    nets = {
        "teacher": networks.build("fusion", 3, encoders=(encoder, encoder), hidden=8),
        "cross_modal_teacher": networks.build("mlp", 3, widths=(8,), norm=True),
        "student": networks.build("mlp", 3, widths=(5,), norm=True),
    }
    reads = {"teacher": ("left", "right"), "cross_modal_teacher": "right", "student": "left"}
    task = Task(
        data.Dataset("halves", splits, ("a", "b", "c")),
        nets,
        {"student": Training(steps=1, batch_size=16)},
        input=reads,
        validate_every=1,
    )
    cast = mst_distill.cast_of(task, CONFIG)
    variables = {role: task.variables(role) for role in mst_distill.PEERS}
    variables["mask0"] = dict(mst_distill.start(cast, task, "mask0"))
    assert "batch_stats" in variables["teacher"]
    batch = {**arrays, "where": np.ones(16, bool)}
    program = getattr(mst_distill, stage)(cast)
    name = {"specialization": "student_logits", "distillation": "teacher_logits"}[stage]

    def answers(rows):
        part = jax.tree.map(lambda x: x[rows], batch)
        context = Context({}, jax.random.key(0), jnp.int32(0), {})
        return program.prepare(variables, {"train": part}, context)[0]["train"][name]

    # In training mode an answer would depend on the other examples of its batch.
    np.testing.assert_allclose(answers(slice(3)), answers(slice(16))[:3], rtol=1e-5, atol=1e-6)
