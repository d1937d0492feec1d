"""The goldens of MiniLLM, of the losses between vocabularies, and of the preference losses."""

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.losses import cross_tokenizer, divergences, policy, preference, tokens
from kernels.goldens.tokens import losses_and_gradients


def minillm_results(case):
    """What is computed once from the samples."""
    where = case["mask"] > 0
    old, teacher = (
        tokens.selective_log_softmax(case[f"{name}_logits"], case["token_ids"])
        for name in ("old_student", "teacher")
    )
    rewards = policy.minillm_rewards(
        old, teacher, scaling=case["reward_scaling"], clip=case["cliprange_reward"]
    )
    returns = policy.discounted_returns(rewards, gamma=case["gamma"], where=where)
    return {
        "old_logprobs": old,
        "teacher_logprobs": teacher,
        "importance_weights": policy.teacher_mixed_weights(
            old, teacher, alpha=case["teacher_mixed_alpha"]
        ),
        "rewards": rewards,
        "advantages_unwhitened": returns,
        "advantages": policy.whiten(returns),
        "rev_kl_estimate": policy.reverse_kl_estimate(old, teacher),
    }


def policy_gradient(case):
    samples = minillm_results(case)
    losses = policy.clipped_policy_gradient(
        tokens.selective_log_softmax(case["student_logits"], case["token_ids"]),
        samples["old_logprobs"],
        samples["advantages"],
        samples["importance_weights"],
        clip=case["cliprange"],
    )
    return tokens.token_mean(losses, where=case["mask"] > 0)


def single_step(case):
    losses = divergences.reverse_kl(case["teacher_logits"], case["student_logits"])
    return tokens.token_mean(losses, where=case["mask"] > 0)


def trl_advantage(case):
    """TRL counts a masked token 1e-4 in the denominator."""
    where = case["mask"] > 0
    advantages = policy.reverse_kl_advantage(
        case["student_logprobs"],
        case["teacher_logprobs"],
        gamma=case["gamma"],
        length_normalized=case["length_normalization"],
        where=where,
    )

    def left(counts):
        return policy.discounted_returns(counts, gamma=case["gamma"], length_normalized=False)

    counts = case["mask"].astype(advantages.dtype)
    return {"advantages": advantages * left(counts) / left(jnp.where(where, counts, 1e-4))}


def spans_of(case, side):
    """Row i predicts token i of the recorded logits."""
    ends = (np.asarray(case[f"{name}_byte_offsets"])[:, 1] for name in ("student", "teacher"))
    spans = cross_tokenizer.align_spans(*ends)
    return spans[0 if side == "student" else 1], spans[2]


def merged(case, side):
    spans, number = spans_of(case, side)
    return cross_tokenizer.merge_spans(
        case[f"{side}_logits"],
        case[f"{side}_token_ids"],
        spans,
        num_spans=number,
        rule="bayesian" if case["merge_is_bayesian"] else "observed",
    )


def plain_uld(case):
    return cross_tokenizer.uld(merged(case, "student"), merged(case, "teacher")).mean()


def hybrid_arguments(case):
    ids = case["hybrid_student_ids"], case["hybrid_teacher_ids"]
    return merged(case, "student"), merged(case, "teacher"), *ids


def hybrid_uld(case):
    losses = cross_tokenizer.hybrid_uld(*hybrid_arguments(case), beta=case["hybrid_beta"])
    return losses.mean()


def uld_results(case):
    matched, unmatched = cross_tokenizer.hybrid_uld_terms(
        *hybrid_arguments(case), beta=case["hybrid_beta"]
    )
    results = {
        "hybrid_matched_jsd": matched.mean(),
        "hybrid_unmatched_l1": unmatched.mean(),
    }
    for side in ("student", "teacher"):
        results[f"{side}_group_of_token"] = spans_of(case, side)[0]
        results[f"{side}_merged"] = merged(case, side)
    return results


SIDES = ("chosen", "rejected")


PREFERENCES = {
    "sigmoid": lambda r, case: preference.dpo(
        *r, beta=case["beta"], label_smoothing=case["label_smoothing"]
    ),
    "hinge": lambda r, case: preference.dpo_hinge(*r, beta=case["beta"]),
    "ipo": lambda r, case: preference.ipo(*r, beta=case["beta"]),
    "kto_pair": lambda r, case: preference.kto_pair(
        *r, beta=case["beta"], stop_reference_point=False
    ).reshape(-1),
}


def responses(case):
    """(log-probabilities of chosen and rejected, then those of the reference)."""
    return [
        preference.sequence_logprob(case[f"{prefix}logits_{side}"], case[f"labels_{side}"])
        for prefix in ("", "ref_")
        for side in SIDES
    ]


def preference_losses(case):
    """Every loss, with its gradients in the logits of both responses, compiled together."""
    wanted = {f"logits_{side}": case[f"logits_{side}"] for side in SIDES}

    @jax.jit
    def everything(wanted):
        log_probs = responses(case)
        results = {}
        for name, kernel in PREFERENCES.items():

            def loss(wanted, kernel=kernel):
                return kernel(responses(case.with_(wanted)), case).mean()

            results[f"out_{name}_loss"], gradients = jax.value_and_grad(loss)(wanted)
            results |= {f"grad_{name}_{key}": value for key, value in gradients.items()}
            results[f"out_{name}_losses"] = kernel(log_probs, case)
        for side, own, reference in zip(SIDES, log_probs[:2], log_probs[2:]):
            results[f"out_logps_{side}"] = own
            results[f"out_ref_logps_{side}"] = reference
            results[f"out_{side}_rewards"] = case["beta"] * (own - reference)
        return results

    return everything(wanted)


ADAPTERS = {
    "00b-minillm": losses_and_gradients(
        {
            "pg_loss": ("pg_grad_student_logits", policy_gradient),
            "single_step_loss": ("single_step_grad_student_logits", single_step),
        },
        minillm_results,
    ),
    "00b-trl_minillm_advantage": trl_advantage,
    "00b-uld": losses_and_gradients(
        {
            "uld_loss": ("uld_grad_student_logits", plain_uld),
            "hybrid_loss": ("hybrid_grad_student_logits", hybrid_uld),
        },
        uld_results,
    ),
    "22-preference": preference_losses,
}
