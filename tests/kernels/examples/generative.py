"""Examples of dataset distillation, quantisation and residual quantisation."""

import jax.numpy as jnp
import numpy as np

from kdjax.losses import dataset_matching, quantization, residual_quantization
from kernels.examples.example import Example, Refused, draw, normal


def ones(*shape):
    return np.ones(shape, np.float32)


def gradients(kernel, refused=()):
    return Example(
        kernel,
        draw(synthetic_gradients=normal(3, 4), real_gradients=normal(3, 4)),
        differentiated=("synthetic_gradients",),
        stopped=("real_gradients",),
        extreme=("synthetic_gradients", "real_gradients"),
        refused=(
            Refused({"real_gradients": ones(4, 3)}, "real_gradients must be shaped .* \\(3, 4\\)"),
            Refused(
                {"real_gradients": [ones(3, 4)]},
                "real_gradients must have the structure of synthetic_gradients",
            ),
            Refused({"synthetic_gradients": []}, "synthetic_gradients must hold arrays"),
            *refused,
        ),
    )


BAD_EPSILON = Refused({"epsilon": -1.0}, "epsilon must be finite and >= 0, got -1.0")


def inner_loss(parameters, batch):
    return jnp.mean(jnp.tanh(batch @ parameters) ** 2)


def unrolled(kernel, sloped):
    return Example(
        kernel,
        draw(
            batches=normal(3, 2, 4),
            teacher_start=normal(4),
            learning_rate=np.array(0.1, np.float32),
        ),
        {"inner_loss": inner_loss},
        differentiated=("batches", "learning_rate"),
        refused=(
            Refused({"batches": ones(0, 2, 4)}, "batches must be shaped .* number of steps >= 1"),
            Refused({"batches": [ones(3, 4), ones(2, 4)]}, "one number of steps >= 1, got"),
            Refused({"teacher_start": np.ones(4, int)}, "teacher_start must be a float", TypeError),
        ),
        sloped=sloped,  # the way from a batch to later parameters is left out
    )


REAL = np.array([[True, True, False], [True, True, True]])

DATASETS = {
    "gradient_matching": gradients(dataset_matching.gradient_matching, (BAD_EPSILON,)),
    "gradient_matching_mse": gradients(dataset_matching.gradient_matching_mse),
    "gradient_matching_cosine": gradients(
        dataset_matching.gradient_matching_cosine, (BAD_EPSILON,)
    ),
    "distribution_matching": Example(
        dataset_matching.distribution_matching,
        draw(
            synthetic_features=normal(2, 2, 4),
            real_features=normal(2, 3, 4),
            where=REAL,
        ),
        differentiated=("synthetic_features",),
        stopped=("real_features",),
        extreme=("synthetic_features", "real_features"),
        batched=("synthetic_features", "real_features", "where"),
        masked={"real_features": (0, 2)},
        refused=(
            Refused({"real_features": ones(2, 3, 5)}, "real_features must be .* features = 4"),
            Refused({"real_features": ones(3, 3, 4)}, "real_features must be shaped"),
            Refused({"real_features": ones(2, 0, 4)}, "with real >= 1"),
            Refused({"where": np.ones(2, bool)}, "where must have the shape \\(2, 3\\)"),
        ),
    ),
    "trajectory_matching": Example(
        dataset_matching.trajectory_matching,
        draw(student_parameters=normal(5), teacher_start=normal(5), teacher_target=normal(5)),
        differentiated=("student_parameters",),
        extreme=("student_parameters", "teacher_start", "teacher_target"),
        refused=(
            Refused(
                {"teacher_start": ones(5), "teacher_target": ones(5)},
                "teacher_start and teacher_target must differ",
            ),
            Refused({"teacher_target": ones(4)}, "teacher_target must be shaped"),
        ),
    ),
    "unrolled_sgd": unrolled(dataset_matching.unrolled_sgd, sloped=True),
    "unrolled_sgd_in_constant_memory": unrolled(
        dataset_matching.unrolled_sgd_in_constant_memory, sloped=False
    ),
    "soft_label_cross_entropy": Example(
        dataset_matching.soft_label_cross_entropy,
        draw(student_logits=normal(4, 5), label_logits=normal(4, 5)),
        differentiated=("student_logits", "label_logits"),
        extreme=("student_logits", "label_logits"),
        batched=("student_logits", "label_logits"),
        refused=(Refused({"label_logits": ones(4, 3)}, "must have one shape"),),
    ),
}


def quantizer(kernel, *refused, extreme=("values",), **options):
    return Example(
        kernel,
        draw(values=normal(4, 8)),
        options,
        differentiated=("values",),
        extreme=extreme,
        refused=(
            Refused({"values": np.ones(3, int)}, "values must be a floating", TypeError),
            *refused,
        ),
        sloped=False,  # rounding passes its gradient straight through
    )


BAD_BITS = (
    Refused({"bits": 1}, "bits must be >= 2 and <= 16, got 1"),
    Refused({"bits": 4.0}, "bits must be an integer, got 4.0", TypeError),
)
BAD_GROUPS = (
    Refused({"axis": None, "group_size": 3}, "group_size must divide the last axis .* got 3"),
    Refused({"axis": -1, "group_size": 4}, "axis and group_size exclude each other"),
)
BAD_FORMAT = Refused({"format": "e8m0"}, "format must be one of 'e2m1', 'e4m3', 'e5m2', got")

QUANTIZERS = {
    "straight_through_round": quantizer(quantization.straight_through_round),
    "round_to_float": quantizer(quantization.round_to_float, BAD_FORMAT, format="e4m3"),
    "symmetric_scale": Example(
        quantization.symmetric_scale,
        draw(values=normal(4, 8)),
        {"maximum": 7.0, "axis": -1},
        stopped=("values",),
        extreme=("values",),
        batched=("values",),
        refused=(
            *BAD_GROUPS,
            Refused({"maximum": 0.0}, "maximum must be finite and > 0, got 0"),
        ),
    ),
    "quantize_int": quantizer(quantization.quantize_int, *BAD_BITS, *BAD_GROUPS, bits=4),
    "quantize_int: channels": quantizer(quantization.quantize_int, bits=4, axis=-1)._replace(
        batched=("values",)
    ),
    "quantize_int_asymmetric": quantizer(
        quantization.quantize_int_asymmetric, *BAD_BITS, *BAD_GROUPS, bits=4
    ),
    "quantize_float": quantizer(
        quantization.quantize_float, BAD_FORMAT, *BAD_GROUPS, format="e2m1"
    ),
    "quantize_float: MXFP4": quantizer(
        quantization.quantize_float, format="e2m1", group_size=4, power_of_two=True
    )._replace(batched=("values",)),
    "learned_step_quantize": Example(
        quantization.learned_step_quantize,
        draw(values=normal(4, 8), step=np.array(0.4, np.float32)),
        {"bits": 3, "gradient_scale": 0.5},
        differentiated=("values", "step"),
        extreme=("values",),
        batched=("values",),
        refused=(
            *BAD_BITS,
            Refused({"step": np.array(0.0, np.float32)}, "step must be > 0, got 0"),
            Refused({"step": ones(3)}, "step must broadcast against values \\(4, 8\\)"),
            Refused({"gradient_scale": -1.0}, "gradient_scale must be finite and >= 0, got -1.0"),
        ),
        sloped=False,  # rounding passes its gradient straight through
    ),
}

BAD_COMMITMENT = Refused({"commitment": -1.0}, "commitment must be finite and >= 0, got -1.0")
OTHER_FEATURES = Refused({"codebook": ones(5, 4)}, "codebook must be .* with features = 3 as in")

RESIDUAL = {
    "codebook_distances": Example(
        residual_quantization.codebook_distances,
        draw(vectors=normal(4, 3), codebook=normal(5, 3)),
        differentiated=("vectors", "codebook"),
        extreme=("vectors", "codebook"),
        batched=("vectors",),
        refused=(OTHER_FEATURES,),
    ),
    "sinkhorn_assignment": Example(
        residual_quantization.sinkhorn_assignment,
        draw(distances=normal(6, 4)),
        {"epsilon": 0.5, "iterations": 5},
        differentiated=("distances",),
        extreme=("distances",),
        batched=("distances",),
        refused=(
            Refused({"distances": ones(4)}, "distances must be shaped \\[batch, codes\\]"),
            Refused({"epsilon": 0.0}, "epsilon must be finite and > 0, got 0"),
            Refused({"iterations": -1}, "iterations must be >= 0, got -1"),
        ),
    ),
    "vector_quantize": Example(
        residual_quantization.vector_quantize,
        draw(vectors=normal(4, 3), codebook=normal(5, 3)),
        differentiated=("vectors", "codebook"),
        extreme=("vectors", "codebook"),
        batched=("vectors",),
        refused=(
            OTHER_FEATURES,
            BAD_COMMITMENT,
            Refused({"codes": np.zeros(3, int)}, "codes must have the shape \\(4,\\)"),
        ),
        sloped=False,  # the choice of a code passes its gradient straight through
    ),
    "residual_quantize": Example(
        residual_quantization.residual_quantize,
        draw(vectors=normal(4, 3), codebooks=normal(2, 5, 3)),
        {"sinkhorn_epsilons": (0.0, 0.1), "sinkhorn_iterations": 5},
        differentiated=("vectors", "codebooks"),
        batched=("vectors",),
        refused=(
            BAD_COMMITMENT,
            Refused({"codebooks": []}, "codebooks must hold one a level, got none"),
            Refused({"sinkhorn_epsilons": (0.1,)}, "sinkhorn_epsilons must have one for each"),
            Refused({"codebooks": [ones(5, 4)] * 2}, "codebook must be .* features = 3"),
        ),
        sloped=False,  # the choice of a code passes its gradient straight through
    ),
    "update_codebook": Example(
        residual_quantization.update_codebook,
        draw(
            counts=lambda generator: generator.uniform(1, 2, 5).astype(np.float32),
            sums=normal(5, 3),
            vectors=normal(4, 3),
            codes=lambda generator: generator.integers(0, 5, 4),
        ),
        stopped=("counts", "sums", "vectors"),
        extreme=("sums", "vectors"),
        batched=("vectors", "codes"),
        refused=(
            Refused({"decay": 1.5}, "decay must lie in \\[0, 1\\], got 1.5"),
            Refused({"sums": ones(4, 3)}, "sums must be .* with codes = 5 as in counts"),
            Refused({"codes": np.zeros(3, int)}, "codes must have the shape \\(4,\\)"),
        ),
    ),
}

EXAMPLES = {**DATASETS, **QUANTIZERS, **RESIDUAL}
