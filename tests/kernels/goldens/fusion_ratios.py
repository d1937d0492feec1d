"""The golden of TGeo-KD: features, the controller's ratios, and the loss mixed by them."""

import jax
import jax.numpy as jnp

from kdjax import losses, networks
from kernels.goldens.support import student_loss


def controller(case):
    """The ratios of the recorded weights, which are PyTorch's: [out, in]."""
    names = {"fc1": "dense0", "fc2": "dense1", "fc3": "head"}
    params = {
        ours: {"kernel": case[f"ctl_{theirs}_weight"].T, "bias": case[f"ctl_{theirs}_bias"]}
        for theirs, ours in names.items()
    }
    network = networks.build("mlp", 1, widths=(32, 16), negative_slope=0.01)
    output = network.apply({"params": params}, case["state_option3"]).output
    return jax.nn.sigmoid(output["logits"][:, 0])


def of_logits(case):
    """The loss under the recorded ratios."""
    return losses.fused_kd(
        case["student_logits"],
        case["teacher_logits"],
        case["labels"],
        case["fusion_ratio"],
        temperature=case["temperature"],
    ).mean()


def double_softmax(case):
    """What the authors' code computes: the cross-entropy of the probabilities, as if of logits."""
    student, labels, alpha = case["student_logits"], case["labels"], case["fusion_ratio"]
    plain = losses.cross_entropy(student, labels)
    twice = losses.cross_entropy(jax.nn.softmax(student), labels)
    return of_logits(case) + jnp.mean((1 - alpha) * (twice - plain))


def trilateral_fusion(case):
    student, teacher, labels = case["student_logits"], case["teacher_logits"], case["labels"]
    temperature = case["temperature"]
    probs = jax.nn.softmax(teacher)
    twice = student_loss(double_softmax)(case)
    means = losses.class_mean_predictions(probs, labels)
    soft = losses.kd(student, teacher, temperature=temperature)
    return {
        "state_option3": losses.trilateral_features(jax.nn.softmax(student), probs, labels, means),
        "fusion_ratio": controller(case),
        "kd_per_sample": soft / temperature**2,
        "ce_per_sample": losses.cross_entropy(student, labels),
        "ce_per_sample_official_double_softmax": losses.cross_entropy(
            jax.nn.softmax(student), labels
        ),
        **student_loss(of_logits)(case),
        "loss_official_double_softmax": twice["loss"],
        "grad_student_logits_official_double_softmax": twice["grad_student_logits"],
    }


ADAPTERS = {"32-trilateral_fusion": trilateral_fusion}
