"""Examples of survival analysis."""

import numpy as np

from kdjax.losses import survival
from kernels.examples.example import Example, Refused, draw, normal

TIME = np.array([3.0, 1.0, 2.0, 1.0, 1.0, 2.0], np.float32)
EVENT = np.array([False, True, True, True, True, True])
WHERE = np.array([True, True, True, True, False, True])
COHORT = draw(log_hazard=normal(6), time=TIME, event=EVENT, where=WHERE)
REFUSED = (
    Refused({"time": TIME[:5]}, "time must be shaped .*batch = 6 as in log_hazard"),
    Refused({"event": EVENT * 1}, "event must be boolean", TypeError),
    Refused({"ties": "exact"}, "ties must be one of 'efron', 'breslow', got 'exact'"),
    Refused(
        {"log_hazard": np.zeros(1, np.float32), "time": TIME[:1]},
        "log_hazard must be shaped .*batch >= 2",
    ),
)


def cox(ties):
    return Example(
        survival.cox_partial_likelihood,
        COHORT,
        {"ties": ties},
        differentiated=("log_hazard",),
        stopped=("time",),
        extreme=("log_hazard",),
        batched=("log_hazard", "time", "event", "where"),
        masked={"log_hazard": 4, "time": 4},
        refused=REFUSED,
    )


def discrete(kernel):
    return Example(
        kernel,
        draw(
            logits=normal(4, 3),
            labels=np.array([0, 2, 1, -100]),
            censored=np.array([False, True, False, True]),
        ),
        {"alpha": 0.3},
        differentiated=("logits",),
        extreme=("logits",),
        batched=("logits", "labels", "censored"),
        refused=(
            Refused({"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
            Refused({"labels": np.zeros(3, int)}, "labels must have the shape"),
            Refused({"labels": np.zeros(4)}, "labels must be integers", TypeError),
            Refused({"censored": np.zeros(4, int)}, "censored must be boolean", TypeError),
        ),
    )


EXAMPLES = {
    "cox_partial_likelihood": cox("efron"),
    "cox_partial_likelihood: breslow": cox("breslow"),
    "num_event_times": Example(
        survival.num_event_times,
        draw(time=TIME, event=EVENT, where=WHERE),
        batched=("time", "event", "where"),
        masked={"time": 4},
        refused=(Refused({"time": TIME[:1]}, "time must be shaped .*batch >= 2"),),
    ),
    "log_hazard_mse": Example(
        survival.log_hazard_mse,
        draw(student_log_hazard=normal(6), teacher_log_hazard=normal(6), where=WHERE),
        differentiated=("student_log_hazard",),
        extreme=("student_log_hazard", "teacher_log_hazard"),
        batched=("student_log_hazard", "teacher_log_hazard", "where"),
        masked={"student_log_hazard": 4, "teacher_log_hazard": 4},
        refused=(Refused({"teacher_log_hazard": TIME[:5]}, "teacher_log_hazard must be shaped"),),
    ),
    "hazards_to_survival": Example(
        survival.hazards_to_survival,
        draw(logits=normal(4, 3)),
        differentiated=("logits",),
        extreme=("logits",),
        batched=("logits",),
        refused=(Refused({"logits": np.float32(1)}, r"logits must be shaped \[..., classes\]"),),
    ),
    "survival_risk": Example(
        survival.survival_risk,
        draw(logits=normal(4, 3)),
        differentiated=("logits",),
        extreme=("logits",),
        batched=("logits",),
        refused=(Refused({"logits": np.float32(1)}, r"logits must be shaped \[..., classes\]"),),
    ),
    "discrete_survival_nll": discrete(survival.discrete_survival_nll),
    "discrete_survival_ce": discrete(survival.discrete_survival_ce),
    "hazard_kd": Example(
        survival.hazard_kd,
        draw(
            student_logits=normal(2, 3),
            teacher_logits=normal(2, 3),
            where=np.array([[True, True, False], [True, True, True]]),
        ),
        differentiated=("student_logits",),
        extreme=("student_logits", "teacher_logits"),
        batched=("student_logits", "teacher_logits", "where"),
        masked={"student_logits": (0, 2), "teacher_logits": (0, 2)},
        refused=(Refused({"where": np.ones(2, bool)}, "where must have the shape"),),
    ),
    "discretise_survival": Example(
        survival.discretise_survival,
        draw(time=np.arange(6, dtype=np.float32), event=EVENT),
        {"num_bins": 3},
        jitted=False,
        refused=(
            Refused({"event": np.zeros(6, bool)}, "event must be True somewhere"),
            Refused({"event": EVENT * 1}, "event must be boolean", TypeError),
            Refused({"event": EVENT[:5]}, "time and event must have one shape"),
            Refused({"time": np.full(6, np.nan)}, "time must be finite"),
            Refused({"time": np.arange(6)}, "time must be a floating-point array", TypeError),
            Refused({"time": TIME, "num_bins": 5}, "num_bins must be smaller: the edges .* coinc"),
            Refused({"num_bins": 0}, "num_bins must be >= 1, got 0"),
        ),
    ),
}
