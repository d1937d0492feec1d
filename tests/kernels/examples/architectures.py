"""Examples of scores of architectures and of the agreement of rankings."""

import jax.numpy as jnp
import numpy as np

from kdjax.losses import student_search, zero_cost
from kernels.examples.example import Example, Refused, draw, normal

NOT_ALIKE = Refused(
    {"gradients": np.ones((2, 3))}, r"gradients must be shaped \(3, 2\) as parameters, got \(2, 3\)"
)
NO_FLOATS = Refused(
    {"parameters": np.ones((3, 2), int)}, "parameters must be a floating", TypeError
)
COUNTS = (
    Refused({"k": 0}, "k must be >= 1 and <= 6, got 0"),
    Refused({"k": 7}, "k must be >= 1 and <= 6, got 7"),
    Refused({"predicted_scores": np.ones(5)}, "candidates = 6 as in true_scores"),
)
ONE_ROW = Refused({"jacobian": np.ones((1, 6))}, r"batch >= 2, got shape \(1, 6\)")
EPSILON = Refused({"epsilon": 0.0}, "epsilon must be finite and > 0, got 0")


def quartic(parameters):
    return jnp.sum(parameters**4) + jnp.sum(parameters[0] * parameters[1]) ** 2


def two_layers(parameters):
    return jnp.maximum(jnp.ones(3) @ parameters, 0) ** 2


def of_parameters(kernel, **options):
    return Example(
        kernel,
        draw(parameters=normal(3, 2), gradients=normal(3, 2)),
        options,
        differentiated=("parameters", "gradients"),
        extreme=("parameters", "gradients"),
        refused=(NOT_ALIKE, NO_FLOATS),
    )


def of_rankings(kernel, *refused, **options):
    return Example(
        kernel,
        draw(true_scores=normal(6), predicted_scores=normal(6)),
        options,
        stopped=("true_scores", "predicted_scores"),
        extreme=("true_scores", "predicted_scores"),
        refused=refused,
    )


EXAMPLES = {
    "best_rank_at_k": of_rankings(student_search.best_rank_at_k, *COUNTS, k=2),
    "channel_correlation": Example(
        student_search.channel_correlation,
        draw(student_features=normal(3, 2, 2, 4), teacher_features=normal(3, 3, 1, 4)),
        differentiated=("student_features",),
        extreme=("student_features", "teacher_features"),
        batched=("student_features", "teacher_features"),
        refused=(
            Refused({"teacher_features": np.ones((3, 2, 2, 5))}, "channels = 4 as in student_fea"),
            Refused({"student_features": np.ones((3, 2, 4))}, "student_features must be shaped"),
        ),
    ),
    "diswot": Example(
        student_search.diswot,
        draw(relation_scores=normal(5), semantic_scores=normal(5)),
        stopped=("relation_scores", "semantic_scores"),
        extreme=("relation_scores", "semantic_scores"),
        refused=(
            Refused({"combine": "mean"}, "combine must be one of 'sum', 'rank_sum', 'zscore'"),
            Refused({"semantic_scores": np.ones(4)}, "candidates = 5 as in relation_scores"),
        ),
    ),
    "diswot: zscore": Example(
        student_search.diswot,
        draw(relation_scores=normal(5), semantic_scores=normal(5)),
        {"combine": "zscore"},
        differentiated=("relation_scores", "semantic_scores"),
        extreme=("relation_scores", "semantic_scores"),
    ),
    "epe_nas": Example(
        zero_cost.epe_nas,
        draw(jacobian=normal(5, 3, 2), labels=np.array([0, 1, 0, 1, 2])),
        {"num_classes": 3},
        differentiated=("jacobian",),
        batched=("jacobian", "labels"),
        refused=(
            ONE_ROW,
            EPSILON,
            Refused({"labels": np.zeros(4, int)}, r"labels must have the shape \(5,\)"),
            Refused({"num_classes": 0}, "num_classes must be >= 1, got 0"),
        ),
    ),
    "epe_nas: many classes": Example(
        zero_cost.epe_nas,
        draw(jacobian=normal(5, 6), labels=np.array([0, 7, 0, 7, 120])),
        {"num_classes": 121},
        differentiated=("jacobian",),
    ),
    "fisher": Example(
        zero_cost.fisher,
        draw(activations=normal(3, 2, 2, 4), gradients=normal(3, 2, 2, 4)),
        {"weights_per_channel": 9},
        differentiated=("activations", "gradients"),
        extreme=("activations", "gradients"),
        batched=("activations", "gradients"),
        refused=(
            Refused({"weights_per_channel": 0}, "weights_per_channel must be >= 1, got 0"),
            Refused({"gradients": np.ones((3, 2, 2, 5))}, "channels = 4 as in activations"),
            Refused({"activations": np.ones(4)}, r"activations must be shaped \[batch, ..., cha"),
        ),
    ),
    "grad_norm": Example(
        zero_cost.grad_norm,
        draw(gradients=normal(3, 2)),
        differentiated=("gradients",),
        extreme=("gradients",),
        refused=(Refused({"gradients": [np.ones(2, int)]}, r"gradients\[0\] must be", TypeError),),
    ),
    "grasp": Example(
        zero_cost.grasp,
        draw(parameters=normal(3, 2)),
        {"loss": quartic},
        differentiated=("parameters",),
        refused=(NO_FLOATS, Refused({"loss": jnp.sin}, "scalar-output", TypeError)),
    ),
    "jacobian_covariance": Example(
        zero_cost.jacobian_covariance,
        draw(jacobian=normal(4, 3, 4)),
        differentiated=("jacobian",),
        refused=(ONE_ROW, EPSILON, Refused({"jacobian": np.ones(4)}, r"shaped \[batch, ...\]")),
    ),
    "l2_norm": Example(
        zero_cost.l2_norm,
        draw(parameters=normal(3, 2)),
        differentiated=("parameters",),
        extreme=("parameters",),
        refused=(NO_FLOATS,),
    ),
    "nwot": Example(
        zero_cost.nwot,
        draw(pre_activations=normal(4, 3, 8)),
        stopped=("pre_activations",),
        extreme=("pre_activations",),
        refused=(Refused({"pre_activations": np.ones(4)}, r"shaped \[batch, ...\], got shape"),),
    ),
    "plain_saliency": of_parameters(zero_cost.plain_saliency),
    "precision_at_top_k": of_rankings(student_search.precision_at_top_k, *COUNTS, k=3),
    "rank_difference": of_rankings(student_search.rank_difference, COUNTS[-1]),
    "relation_similarity": Example(
        student_search.relation_similarity,
        draw(student_features=normal(4, 2, 2, 3), teacher_features=normal(4, 2, 2, 2)),
        differentiated=("student_features",),
        extreme=("student_features", "teacher_features"),
        batched=("student_features", "teacher_features"),
        refused=(
            Refused(
                {"student_features": np.ones((1, 4)), "teacher_features": np.ones((1, 3))},
                "batch >= 2, got shape",
            ),
        ),
    ),
    "semantic_similarity": Example(
        student_search.semantic_similarity,
        draw(student_gradients=normal(3, 5), teacher_gradients=normal(3, 5)),
        differentiated=("student_gradients",),
        extreme=("student_gradients", "teacher_gradients"),
        refused=(
            Refused({"teacher_gradients": np.ones((3, 4))}, "features = 5 as in student_gradients"),
            Refused({"teacher_gradients": np.ones((4, 5))}, "classes = 3 as in student_gradients"),
        ),
    ),
    "snip": of_parameters(zero_cost.snip),
    "synflow": Example(
        zero_cost.synflow,
        draw(parameters=normal(3, 2)),
        {"outputs": two_layers},
        differentiated=("parameters",),
        extreme=("parameters",),
        refused=(NO_FLOATS,),
    ),
    "zen": Example(
        zero_cost.zen,
        draw(
            outputs=normal(3, 2, 4),
            perturbed_outputs=normal(3, 2, 4),
            variances=lambda generator: generator.uniform(0.5, 2.0, 4).astype(np.float32),
        ),
        differentiated=("outputs", "perturbed_outputs", "variances"),
        extreme=("outputs", "perturbed_outputs"),
        batched=("outputs", "perturbed_outputs"),
        refused=(
            Refused({"perturbed_outputs": np.ones((3, 2, 5))}, "as in outputs, got shape"),
            Refused({"variances": [np.ones(4, int)]}, r"variances\[0\] must be", TypeError),
        ),
    ),
}
