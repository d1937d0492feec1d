"""Examples of the controllers of two phases, and of what an autoencoder pays."""

import numpy as np

from kdjax.losses import divergences, phases
from kernels.examples.example import Example, Refused, draw, normal


def stepping(kernel):
    """The kernel with the fields of its state as arguments."""

    def step(phase, average, steps_in_phase, n_switches, metric, **options):
        state = phases.PhaseState(phase, average, steps_in_phase, n_switches)
        return kernel(state, metric, **options)

    step.__doc__ = kernel.__doc__
    return step


STATE = dict(phase=np.int32(0), steps_in_phase=np.int32(3), n_switches=np.int32(2))

EXAMPLES = {
    "phase_controller": Example(
        stepping(phases.phase_controller),
        draw(**STATE, average=np.float32(0.8), metric=np.float32(0.5)),
        {"l_min": 0.3, "l_max": 1.0},
        stopped=("metric",),
        differentiated=("average",),
        refused=(
            Refused({"l_min": 1.0}, "l_min=1.0 must be below l_max=1.0"),
            Refused({"decay": 1.0}, "decay must be below 1, got 1.0"),
            Refused({"decay": -0.1}, r"decay must lie in \[0, 1\]"),
            Refused({"l_max": float("inf")}, "l_max must be finite"),
            Refused({"max_phase_steps": 0}, "max_phase_steps must be finite and > 0"),
        ),
    ),
    "alternating_phases": Example(
        stepping(phases.alternating_phases),
        draw(**STATE, average=np.float32(0.8), metric=np.float32(0.5)),
        {"student_steps": 9, "augmentor_steps": 2},
        stopped=("metric", "average"),
        refused=(
            Refused({"student_steps": 0}, "student_steps must be >= 1, got 0"),
            Refused({"augmentor_steps": 1.5}, "augmentor_steps must be an integer", TypeError),
        ),
    ),
    "standard_normal_kl": Example(
        divergences.standard_normal_kl,
        draw(mean=normal(4, 3), log_variance=normal(4, 3)),
        differentiated=("mean", "log_variance"),
        batched=("mean", "log_variance"),
        refused=(
            Refused({"mean": np.zeros((4, 2), np.float32)}, "log_variance must be shaped"),
            Refused({"mean": np.zeros((4, 3), np.int32)}, "floating-point", TypeError),
        ),
    ),
}
