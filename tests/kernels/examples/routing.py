"""Examples of balance among experts, and of gates."""

import numpy as np

from kdjax.losses import routing
from kernels.examples.example import Example, Refused, draw, normal

WHERE = np.array([[True, True, False, True, True], [True, False, False, True, True]])
HIDDEN = {"router_logits": ~WHERE}
NUM_SELECTED = (
    Refused({"num_selected": 4}, "num_selected must be >= 1 and <= 3, got 4"),
    Refused({"num_selected": 0}, "num_selected must be >= 1 and <= 3, got 0"),
)
BAD_WHERE = (
    Refused({"where": np.ones((2, 5))}, "where must be boolean", TypeError),
    Refused({"where": np.ones(5, bool)}, r"where must have the shape \(2, 5\) of the tokens"),
)
INTEGERS = Refused({"router_logits": np.ones((2, 5, 3), int)}, "floating-point", TypeError)


def probabilities(*shape):
    def arrays(generator):
        values = generator.random(shape) + 0.1
        return (values / values.sum(-1, keepdims=True)).astype(np.float32)

    return arrays


EXAMPLES = {
    "switch_balance": Example(
        routing.switch_balance,
        draw(router_logits=normal(2, 5, 3), where=WHERE),
        {"num_selected": 2},
        differentiated=("router_logits",),
        extreme=("router_logits",),
        batched=("router_logits", "where"),
        masked=HIDDEN,
        refused=(
            *NUM_SELECTED,
            *BAD_WHERE,
            INTEGERS,
            Refused({"router_logits": np.ones(3, np.float32)}, r"\[\.\.\., tokens, experts\], got"),
        ),
    ),
    "mixtral_balance": Example(
        routing.mixtral_balance,
        draw(router_logits=normal(2, 5, 3), where=WHERE),
        {"num_selected": 2},
        differentiated=("router_logits",),
        extreme=("router_logits",),
        batched=("router_logits", "where"),
        masked=HIDDEN,
        refused=(*NUM_SELECTED, *BAD_WHERE, INTEGERS),
    ),
    "router_z_loss": Example(
        routing.router_z_loss,
        draw(router_logits=normal(2, 5, 3), where=WHERE),
        differentiated=("router_logits",),
        extreme=("router_logits",),
        batched=("router_logits", "where"),
        masked=HIDDEN,
        refused=(*BAD_WHERE, INTEGERS),
    ),
    "importance_loss": Example(
        routing.importance_loss,
        draw(router_logits=normal(2, 5, 3), where=WHERE),
        differentiated=("router_logits",),
        extreme=("router_logits",),
        batched=("router_logits", "where"),
        masked=HIDDEN,
        refused=(*BAD_WHERE, INTEGERS),
    ),
    "load_loss": Example(
        routing.load_loss,
        draw(router_logits=normal(2, 5, 3), noise=normal(2, 5, 3), where=WHERE),
        {"noise_scale": 0.7, "num_selected": 2},
        differentiated=("router_logits",),
        stopped=("noise",),
        extreme=("router_logits",),
        batched=("router_logits", "noise", "where"),
        masked={"router_logits": ~WHERE, "noise": ~WHERE},
        refused=(
            *NUM_SELECTED,
            *BAD_WHERE,
            Refused({"noise_scale": 0.0}, "noise_scale must be finite and > 0, got 0"),
            Refused({"noise": np.ones((2, 5, 4), np.float32)}, "noise must be shaped"),
        ),
    ),
    **{
        f"load_balancing_loss: {mode}": Example(
            routing.load_balancing_loss,
            draw(gate_probs=probabilities(2, 5, 3), where=WHERE),
            {"mode": mode},
            differentiated=("gate_probs",),
            batched=("gate_probs", "where"),
            masked={"gate_probs": ~WHERE},
            refused=(
                Refused({"mode": "KL"}, "mode must be one of 'kl', 'cv', got 'KL'"),
                Refused({"gate_probs": np.ones(3, np.float32)}, "gate_probs must be shaped"),
            ),
        )
        for mode in ("kl", "cv")
    },
    "l0_gate": Example(
        routing.l0_gate,
        draw(
            log_alpha=normal(6, scale=0.3),
            uniform=lambda generator: generator.uniform(0.4, 0.6, 6).astype(np.float32),
        ),
        differentiated=("log_alpha",),
        stopped=("uniform",),
        extreme=("log_alpha",),
        refused=(Refused({"uniform": np.ones(5, np.float32)}, "uniform must be shaped"),),
    ),
    "l0_open_probability": Example(
        routing.l0_open_probability,
        draw(log_alpha=normal(6)),
        differentiated=("log_alpha",),
        extreme=("log_alpha",),
        refused=(Refused({"log_alpha": np.ones(3, int)}, "floating-point", TypeError),),
    ),
    "l0_expected_sparsity": Example(
        routing.l0_expected_sparsity,
        draw(log_alpha=normal(6), sizes=np.arange(1, 7, dtype=np.float32)),
        differentiated=("log_alpha",),
        stopped=("sizes",),
        extreme=("log_alpha",),
        refused=(Refused({"sizes": np.ones(5, np.float32)}, "sizes must be shaped"),),
    ),
    "sparsity_penalty": Example(
        routing.sparsity_penalty,
        draw(expected_sparsity=np.float32(0.1), multipliers=np.array([10.0, 8.0], np.float32)),
        {"target": 0.25},
        differentiated=("expected_sparsity", "multipliers"),
        extreme=("multipliers",),
        refused=(
            Refused({"target": 1.5}, r"target must lie in \[0, 1\], got 1.5"),
            Refused({"multipliers": np.ones(3, np.float32)}, "multipliers must be two numbers"),
        ),
    ),
}
