"""Examples of the policy gradients, the losses between vocabularies, and the preference losses."""

import numpy as np

from kdjax.losses import cross_tokenizer, policy, preference
from kernels.examples.example import Example, Refused, draw, normal

MASK = np.array([[True, True, True, False], [True, False, True, True]])
PER_TOKEN = normal(2, 4)
CONSTANTS = ("old_log_probs", "teacher_log_probs")
OTHER_TEACHER = Refused(
    {"teacher_log_probs": np.zeros((2, 5), np.float32)}, "teacher_log_probs must be shaped"
)
GAMMA = Refused({"gamma": 1.5}, r"gamma must lie in \[0, 1\], got 1.5")
BETA = Refused({"beta": 0.0}, "beta must be finite and > 0, got 0")
SIDES = ("chosen_log_probs", "rejected_log_probs")
REFERENCES = tuple(f"reference_{side}" for side in SIDES)


def constants(kernel, options, *refused, **more):
    """A kernel of constants: the log-probabilities when the tokens were sampled."""
    return Example(
        kernel,
        draw(old_log_probs=PER_TOKEN, teacher_log_probs=PER_TOKEN, **more.pop("arrays", {})),
        options,
        stopped=CONSTANTS,
        extreme=CONSTANTS,
        batched=CONSTANTS,
        refused=(OTHER_TEACHER, *refused),
        **more,
    )


def probabilities(*shape):
    def arrays(generator):
        return generator.dirichlet(np.ones(shape[-1]), shape[:-1]).astype(np.float32)

    return arrays


OTHER_POSITIONS = Refused(
    {"teacher_probs": np.ones((2, 5), np.float32)},
    r"teacher_probs must be shaped \[..., teacher_vocabulary\] with ... = \(3,\)",
)
PROBS = ("student_probs", "teacher_probs")
MATCHES = {"student_ids": np.array([4, 0]), "teacher_ids": np.array([1, 6])}


def hybrid(kernel, *refused, **options):
    return Example(
        kernel,
        draw(student_probs=probabilities(3, 5), teacher_probs=probabilities(3, 7), **MATCHES),
        options,
        differentiated=("student_probs",),
        batched=PROBS,
        refused=(
            OTHER_POSITIONS,
            Refused({"beta": -0.1}, r"beta must lie in \[0, 1\], got -0.1"),
            Refused({"teacher_ids": np.array([1])}, r"teacher_ids must have the shape \(2,\)"),
            Refused({"student_ids": np.array(1)}, r"student_ids must be shaped \[matches\]"),
            *refused,
        ),
    )


def preferences(kernel, *refused, arrays=None, **options):
    return Example(
        kernel,
        draw(**{name: normal(3, scale=3.0) for name in SIDES + REFERENCES}, **(arrays or {})),
        options,
        differentiated=SIDES,
        stopped=REFERENCES,
        extreme=SIDES + REFERENCES,
        batched=(*SIDES, *REFERENCES, *(arrays or {})),
        refused=(
            BETA,
            Refused(
                {"rejected_log_probs": np.zeros(2, np.float32)}, "rejected_log_probs must be shaped"
            ),
            *refused,
        ),
    )


def kto_pair(**options):
    where = np.array([True, False, True])
    return preferences(preference.kto_pair, arrays={"where": where}, **options)._replace(
        masked=dict.fromkeys(SIDES + REFERENCES, 1)
    )


EXAMPLES = {
    "minillm_rewards": constants(
        policy.minillm_rewards,
        {"scaling": 0.5, "clip": 2.0},
        Refused({"scaling": 0.0}, "scaling must be finite and > 0"),
        Refused({"clip": -1.0}, "clip must be finite and > 0"),
    ),
    "discounted_returns": Example(
        policy.discounted_returns,
        draw(rewards=PER_TOKEN, where=MASK),
        {"gamma": 0.9},
        differentiated=("rewards",),
        extreme=("rewards",),
        batched=("rewards", "where"),
        masked={"rewards": (0, 3)},
        refused=(
            GAMMA,
            Refused({"rewards": np.float32(1)}, r"rewards must be shaped \[..., length\]"),
            Refused({"where": MASK[0]}, r"where must have the shape \(2, 4\) of rewards"),
        ),
    ),
    "reverse_kl_advantage": constants(
        policy.reverse_kl_advantage,
        {"gamma": 0.9},
        GAMMA,
        Refused({"where": MASK[0]}, r"where must have the shape \(2, 4\) of old_log_probs"),
        arrays={"where": MASK},
        masked=dict.fromkeys(CONSTANTS, (0, 3)),
    )._replace(batched=(*CONSTANTS, "where")),
    "whiten": Example(
        policy.whiten,
        draw(values=PER_TOKEN, where=MASK),
        differentiated=("values",),
        extreme=("values",),
        batched=("values", "where"),
        masked={"values": (1, 1)},
        refused=(
            Refused({"epsilon": 0.0}, "epsilon must be finite and > 0"),
            Refused({"where": MASK[0]}, r"where must have the shape \(2, 4\) of values"),
        ),
    ),
    "teacher_mixed_weights": constants(
        policy.teacher_mixed_weights,
        {"alpha": 0.2},
        Refused({"alpha": 2.0}, r"alpha must lie in \[0, 1\], got 2"),
    ),
    "clipped_policy_gradient": Example(
        policy.clipped_policy_gradient,
        draw(
            log_probs=normal(2, 4, scale=0.2),
            old_log_probs=normal(2, 4, scale=0.2),
            advantages=PER_TOKEN,
            weights=lambda generator: generator.uniform(0.8, 1.2, (2, 4)).astype(np.float32),
        ),
        {"clip": 0.2},
        differentiated=("log_probs",),
        stopped=("old_log_probs", "advantages", "weights"),
        extreme=("log_probs", "old_log_probs", "advantages"),
        batched=("log_probs", "old_log_probs", "advantages", "weights"),
        refused=(
            Refused({"clip": -0.2}, r"clip must lie in \[0, 1\], got -0.2"),
            Refused({"advantages": np.zeros(2, np.float32)}, "advantages must be shaped"),
        ),
    ),
    "reverse_kl_estimate": Example(
        policy.reverse_kl_estimate,
        draw(log_probs=PER_TOKEN, teacher_log_probs=PER_TOKEN),
        differentiated=("log_probs",),
        extreme=("log_probs", "teacher_log_probs"),
        batched=("log_probs", "teacher_log_probs"),
        refused=(OTHER_TEACHER,),
    ),
    "align_spans": Example(
        cross_tokenizer.align_spans,
        draw(student_ends=np.array([1, 4, 6]), teacher_ends=np.array([2, 4, 5, 6])),
        refused=(
            Refused({"student_ends": [3, 1]}, r"student_ends must not decrease, got \[3, 1\]"),
            Refused({"teacher_ends": [[1]]}, r"teacher_ends must be shaped \[length\]"),
            Refused({"teacher_ends": [1.5]}, "teacher_ends must be integers", TypeError),
        ),
        jitted=False,
    ),
    "matched_tokens": Example(
        cross_tokenizer.matched_tokens,
        draw(student_vocabulary=np.array(["a", "b"]), teacher_vocabulary=np.array(["b", "c"])),
        refused=(
            Refused(
                {"teacher_vocabulary": [7, 8]},
                "teacher_vocabulary must hold strings, got 7 at 0",
                TypeError,
            ),
        ),
        jitted=False,
    ),
    **{
        f"merge_spans: {rule}": Example(
            cross_tokenizer.merge_spans,
            draw(
                logits=normal(2, 4, 5),
                tokens=np.array([[0, 3, 1, 2], [4, 4, 0, 1]]),
                spans=np.array([[0, 0, 0, 1], [0, 2, 2, -1]]),
            ),
            {"num_spans": 3, "rule": rule},
            differentiated=("logits",),
            extreme=("logits",),
            batched=("logits", "tokens", "spans"),
            refused=(
                Refused({"num_spans": 0}, "num_spans must be >= 1, got 0"),
                Refused({"rule": "mean"}, "rule must be one of 'bayesian', 'observed', got 'mean'"),
                Refused({"spans": np.zeros((2, 3), int)}, r"spans must have the shape \(2, 4\)"),
                Refused({"tokens": np.zeros((2, 4))}, "tokens must be integers", TypeError),
            ),
        )
        for rule in ("bayesian", "observed")
    },
    "uld": Example(
        cross_tokenizer.uld,
        draw(student_probs=probabilities(3, 5), teacher_probs=probabilities(3, 7)),
        differentiated=("student_probs",),
        batched=PROBS,
        refused=(OTHER_POSITIONS,),
    ),
    "hybrid_uld_terms": hybrid(cross_tokenizer.hybrid_uld_terms, beta=0.3),
    "hybrid_uld": hybrid(
        cross_tokenizer.hybrid_uld,
        Refused({"matched_weight": 1.2}, r"matched_weight must lie in \[0, 1\], got 1.2"),
        beta=1.0,
    ),
    "sequence_logprob": Example(
        preference.sequence_logprob,
        draw(logits=normal(2, 4, 5), labels=np.array([[-100, -100, 3, 1], [-100, 0, 4, -100]])),
        differentiated=("logits",),
        extreme=("logits",),
        batched=("logits", "labels"),
        refused=(
            Refused({"labels": np.zeros((2, 3), int)}, r"labels must have the shape \(2, 4\)"),
            Refused({"logits": np.zeros(5, np.float32)}, "logits must be shaped"),
        ),
    ),
    "dpo": preferences(
        preference.dpo,
        Refused({"label_smoothing": 0.5}, "label_smoothing must be < 0.5, got 0.5"),
        Refused({"label_smoothing": -0.1}, r"label_smoothing must lie in \[0, 1\], got -0.1"),
        label_smoothing=0.1,
    ),
    "dpo_hinge": preferences(preference.dpo_hinge, beta=0.1),
    "ipo": preferences(preference.ipo, beta=0.3),
    "kto_reference_point": Example(
        preference.kto_reference_point,
        draw(
            log_probs=normal(3), reference_log_probs=normal(3), where=np.array([True, False, True])
        ),
        stopped=("log_probs", "reference_log_probs"),
        extreme=("log_probs", "reference_log_probs"),
        batched=("log_probs", "reference_log_probs", "where"),
        masked={"log_probs": 1, "reference_log_probs": 1},
        refused=(
            Refused({"where": np.ones(2, bool)}, r"where must have the shape \(3,\) of log-prob"),
        ),
    ),
    "kto": Example(
        preference.kto,
        draw(
            log_probs=normal(3),
            reference_log_probs=normal(3),
            desirable=np.array([True, False, True]),
            reference_point=np.float32(0.4),
        ),
        {"desirable_weight": 1.5, "undesirable_weight": 0.5},
        differentiated=("log_probs",),
        stopped=("reference_log_probs", "reference_point"),
        extreme=("log_probs", "reference_log_probs"),
        batched=("log_probs", "reference_log_probs", "desirable"),
        refused=(
            BETA,
            Refused({"desirable_weight": -1.0}, "desirable_weight must be finite and >= 0"),
            Refused({"desirable": np.ones(3)}, "desirable must be boolean", TypeError),
        ),
    ),
    "kto_pair": kto_pair(beta=0.3)._replace(sloped=False),
    "kto_pair: flowing": kto_pair(beta=0.3, stop_reference_point=False),
}
