"""Examples of the losses on tokens and of those from a sparse teacher."""

import numpy as np

from kdjax.losses import sparse, sparse_targets, tokens
from kernels.examples.example import Example, Refused, draw, normal

STUDENT, TEACHER, LABELS = normal(3, 6), normal(3, 6), np.array([1, 5, 0])
BOTH = ("student_logits", "teacher_logits")
MASK = np.array([[True, True, False, True], [True, False, False, False]])
IDS = np.array([[0, 2, 5], [4, 1, 3], [2, 0, -1]])
TEMPERATURE = Refused({"temperature": 0.0}, "temperature must be finite and > 0, got 0")
NO_MASK = Refused({"where": MASK.astype(int)}, "where must be boolean, got", TypeError)
OTHER_MASK = Refused({"where": MASK[:, :3]}, r"where must have the shape \(2, 4\) of losses")
OTHER_VOCABULARY = Refused(
    {"teacher_logits": np.zeros((3, 7), np.float32)}, r"must have one shape .* \(3, 7\)"
)


def log_probs(generator):
    """Of three different tokens among six, of a mass below 1."""
    values = generator.uniform(0.05, 0.3, (3, 3))
    return np.log(values).astype(np.float32)


def weights(generator):
    return generator.uniform(0.1, 1.0, (3, 3)).astype(np.float32)


def reduction(kernel):
    return Example(
        kernel,
        draw(losses=normal(2, 4), where=MASK),
        differentiated=("losses",),
        extreme=("losses",),
        batched=("losses", "where"),
        masked={"losses": (1, 2)},
        refused=(NO_MASK, OTHER_MASK),
    )


TOO_MANY = {
    "teacher_ids": np.arange(21).reshape(3, 7),
    "teacher_log_probs": np.zeros((3, 7), np.float32),
}


def from_sparse(kernel, *refused, **options):
    """A divergence from a sparse teacher, one of whose lists is padded."""
    return Example(
        kernel,
        draw(student_logits=STUDENT, teacher_ids=IDS, teacher_log_probs=log_probs),
        options,
        differentiated=("student_logits",),
        extreme=("student_logits",),
        batched=("student_logits", "teacher_ids", "teacher_log_probs"),
        refused=(
            Refused({"teacher_ids": IDS[:2]}, r"teacher_ids must be shaped \[3, 'k'\] with k >= 1"),
            Refused({"teacher_ids": IDS[:, :2]}, "teacher_ids and teacher_log_probs must have one"),
            Refused({"teacher_ids": IDS / 2}, "teacher_ids must be integers", TypeError),
            Refused(TOO_MANY, "k must be >= 1 and <= 6, got 7"),
            *refused,
        ),
    )


SPARSE = (
    TEMPERATURE,
    Refused({"generation_temperature": -1.0}, "generation_temperature must be finite and > 0"),
    Refused({"missing": "uniform"}, "missing must be one of 'zero', 'tail', got 'uniform'"),
)

EXAMPLES = {
    "completion_mask": Example(
        tokens.completion_mask,
        draw(tokens=np.array([[2, 7, 2, 2], [3, 4, 5, 6]]), where=MASK),
        {"eos_token": (2, 5)},
        batched=("tokens", "where"),
        refused=(
            Refused({"eos_token": ()}, "eos_token must be a token id or a tuple of at least one"),
            Refused({"tokens": np.zeros((2, 4))}, "tokens must be integers", TypeError),
            Refused({"tokens": np.array(1)}, r"tokens must be shaped \[..., length\]"),
            Refused({"where": MASK[0]}, r"where must have the shape \(2, 4\) of tokens"),
        ),
    ),
    "next_token_labels": Example(
        tokens.next_token_labels,
        draw(labels=np.array([[-100, 7, 2, 3], [3, 4, 5, -100]])),
        batched=("labels",),
        refused=(
            Refused({"labels": np.array(1)}, r"labels must be shaped \[..., length\]"),
            Refused({"labels": np.zeros((2, 4))}, "labels must be integers", TypeError),
        ),
    ),
    "token_total": reduction(tokens.token_total),
    "token_mean": reduction(tokens.token_mean),
    "sequence_total": reduction(tokens.sequence_total),
    "sequence_mean": reduction(tokens.sequence_mean),
    "selective_log_softmax": Example(
        tokens.selective_log_softmax,
        draw(logits=STUDENT, tokens=np.array([1, -100, 5])),
        differentiated=("logits",),
        extreme=("logits",),
        batched=("logits", "tokens"),
        refused=(
            Refused({"tokens": np.array([1, 2])}, r"tokens must have the shape \(3,\)"),
            Refused({"tokens": np.ones(3)}, "tokens must be integers", TypeError),
        ),
    ),
    "soft_cross_entropy": Example(
        tokens.soft_cross_entropy,
        draw(student_logits=STUDENT, teacher_logits=TEACHER),
        {"temperature": 2.0, "scale_by_t2": True},
        differentiated=("student_logits",),
        extreme=BOTH,
        batched=BOTH,
        refused=(TEMPERATURE, OTHER_VOCABULARY),
    ),
    "engine": Example(
        tokens.engine,
        draw(student_logits=STUDENT, teacher_logits=TEACHER),
        {"temperature": 2.0},
        differentiated=("student_logits",),
        extreme=BOTH,
        batched=BOTH,
        refused=(TEMPERATURE, OTHER_VOCABULARY),
    ),
    "sampled_token_reverse_kl": Example(
        tokens.sampled_token_reverse_kl,
        draw(student_logits=STUDENT, teacher_logits=TEACHER, tokens=LABELS),
        {"temperature": 0.9},
        differentiated=("student_logits",),
        extreme=BOTH,
        batched=(*BOTH, "tokens"),
        refused=(
            TEMPERATURE,
            OTHER_VOCABULARY,
            Refused({"tokens": LABELS[:2]}, r"tokens must have the shape \(3,\)"),
        ),
        sloped=False,
    ),
    "sparse_kl": from_sparse(sparse.sparse_kl, *SPARSE, missing="zero", temperature=2.0),
    "sparse_kl: tail": from_sparse(sparse.sparse_kl, missing="tail"),
    "sparse_js": from_sparse(sparse.sparse_js, *SPARSE, missing="zero"),
    "sparse_js: tail": from_sparse(sparse.sparse_js, missing="tail", temperature=0.5),
    "sparse_tvd": from_sparse(sparse.sparse_tvd, *SPARSE, missing="zero"),
    "sparse_tvd: tail": from_sparse(sparse.sparse_tvd, missing="tail"),
    "sparse_buckets": from_sparse(sparse.sparse_buckets, *SPARSE, missing="tail"),
    "hinge_ranking": from_sparse(sparse.hinge_ranking),
    "logistic_ranking": from_sparse(sparse.logistic_ranking),
    "sparse_cross_entropy": Example(
        sparse.sparse_cross_entropy,
        draw(student_logits=STUDENT, teacher_ids=IDS, teacher_weights=weights),
        {"temperature": 2.0},
        differentiated=("student_logits",),
        extreme=("student_logits",),
        batched=("student_logits", "teacher_ids", "teacher_weights"),
        refused=(
            TEMPERATURE,
            Refused({"teacher_ids": IDS[:, :2]}, "teacher_ids and teacher_weights must have one"),
        ),
    ),
    "gathered_log_softmax": Example(
        sparse_targets.gathered_log_softmax,
        draw(logits=STUDENT, token_ids=IDS),
        differentiated=("logits",),
        extreme=("logits",),
        batched=("logits", "token_ids"),
        refused=(
            Refused({"token_ids": IDS[0]}, r"token_ids must be shaped \[3, 'k'\] with k >= 1"),
            Refused({"token_ids": IDS[:, :0]}, r"token_ids must be shaped \[3, 'k'\] with k >= 1"),
        ),
    ),
    "sparse_target_log_probs": Example(
        sparse_targets.sparse_target_log_probs,
        draw(teacher_log_probs=log_probs),
        {"missing": "tail", "temperature": 2.0, "generation_temperature": 0.8},
        batched=("teacher_log_probs",),
        refused=SPARSE,
    ),
    "random_sample_targets": Example(
        sparse_targets.random_sample_targets,
        draw(key=np.array([0, 7], np.uint32), teacher_logits=TEACHER),
        {"num_samples": 4, "tau": 0.7},
        extreme=("teacher_logits",),
        batched=("teacher_logits",),
        refused=(
            Refused({"num_samples": 0}, "num_samples must be >= 1, got 0"),
            Refused({"tau": -1.0}, "tau must be finite and >= 0, got -1"),
        ),
    ),
    "merge_duplicates": Example(
        sparse_targets.merge_duplicates,
        draw(token_ids=np.array([[5, 2, 5], [1, 1, 1], [4, -1, 0]]), weights=weights),
        differentiated=("weights",),
        batched=("token_ids", "weights"),
        refused=(
            Refused({"token_ids": IDS[:2]}, r"token_ids must have the shape \(3, 3\) of weights"),
        ),
    ),
    "topk_student_support": Example(
        sparse_targets.topk_student_support,
        draw(student_logits=STUDENT, teacher_logits=TEACHER),
        {"k": 2, "temperature": 2.0},
        differentiated=("student_logits",),
        extreme=BOTH,
        batched=BOTH,
        refused=(
            TEMPERATURE,
            OTHER_VOCABULARY,
            Refused({"k": 0}, "k must be >= 1 and <= 6, got 0"),
            Refused({"k": 7}, "k must be >= 1 and <= 6, got 7"),
        ),
    ),
    "topk_student_support: renormalised": Example(
        sparse_targets.topk_student_support,
        draw(student_logits=STUDENT, teacher_logits=TEACHER),
        {"k": 3, "add_tail": False},
        differentiated=("student_logits",),
        extreme=BOTH,
        batched=BOTH,
    ),
}
