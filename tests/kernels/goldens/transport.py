"""The golden of SinKD."""

import jax.numpy as jnp

from kdjax.losses import logits, transport
from kernels.goldens.logits import entropy
from kernels.goldens.support import student_loss


def sinkd(case):
    student, teacher = case["student_logits"], case["teacher_logits"]
    options = {
        "temperature": case["temperature"],
        "epsilon": case["epsilon"],
        "num_iterations": case["n_iters"],
    }

    def total(stop_plan_gradient):
        def loss(case):
            arrays = case["student_logits"], case["teacher_logits"]
            stopped = dict(stop_plan_gradient=stop_plan_gradient)
            return transport.sinkhorn_kd(*arrays, **options, **stopped).sum()

        return student_loss(loss)(case)

    through, stopped = total(False), total(True)
    probabilities = [
        jnp.exp(logits.log_space.safe_log_softmax(x / 2.0)) for x in (student, teacher)
    ]
    cost = transport.pairwise_lp_cost(*probabilities)
    ones = jnp.ones(cost.shape[0])
    plan = transport.sinkhorn_plan(
        cost, ones, ones, epsilon=case["epsilon"], num_iterations=case["n_iters"]
    )
    soft = logits.kd(student, teacher, temperature=3.0) / 9 + entropy(teacher / 3)
    return {
        **through,
        "grad_plan_stopped": stopped["grad_student_logits"],
        "cost": cost,
        "plan": plan,
        "default_forward_scaled_0p001": 0.001 * transport.sinkhorn_kd(student, teacher).sum(),
        "soft_ce_T3_mean": soft.mean(),
    }


ADAPTERS = {"40-sinkhorn_kd": sinkd}
