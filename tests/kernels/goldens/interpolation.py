"""Goldens of the interpolated target and of its controller."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import interpolation
from kernels.goldens.support import student_loss


def taid(case):
    where = case["mask"] > 0

    def mean(values):
        return jnp.sum(jnp.where(where, values, 0.0)) / jnp.sum(where)

    def loss(case, form="cross_entropy"):
        arrays = case["student_logits"], case["teacher_logits"]
        return mean(interpolation.taid(*arrays, t=case["t"], form=form))

    target = interpolation.interpolated_teacher_logits(
        case["student_logits"], case["teacher_logits"], t=case["t"]
    )
    result = {**student_loss(loss)(case), "kl_value": loss(case, form="kl")}
    if case["t"] == 0:  # the KL and the gradient are 0; what was recorded is rounding
        for name in ("kl_value", "grad_student_logits"):
            np.testing.assert_allclose(result[name], 0, atol=5e-8)
            result[name] = jnp.asarray(case[name], result[name].dtype)
    return {
        **result,
        "intermediate_teacher_probs": jax.nn.softmax(target),
    }


def schedule(case):
    options = {name: case[name] for name in ("t_start", "t_end", "alpha", "beta")}
    options |= {"num_steps": case["num_train_steps"], "adaptive": not case["disable_adaptive"]}
    state, states = interpolation.TaidState.start(case["t_start"]), []
    for step, loss in enumerate(case["losses"]):
        state = interpolation.taid_update(state, loss, step=step, **options)
        states.append(state)
    return {
        "t_after_each_call": jnp.stack([state.t for state in states]),
        "momentum_after_each_call": jnp.stack([state.momentum for state in states]),
    }


ADAPTERS = {"06-taid_loss": taid, "06-taid_schedule": schedule}
