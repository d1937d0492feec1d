"""Examples of the terms that stand in for data."""

import numpy as np

from kdjax.losses import data_free
from kernels.examples.example import Example, Refused, draw, normal

EXAMPLES = {
    "activation_loss": Example(
        data_free.activation_loss,
        draw(features=normal(3, 2, 4)),
        differentiated=("features",),
        extreme=("features",),
        batched=("features",),
        refused=(
            Refused({"features": np.ones(3)}, r"features must be shaped \[batch, ...\], got"),
            Refused({"features": np.ones((3, 2), int)}, "floating-point", TypeError),
        ),
    ),
    "bn_statistics": Example(
        data_free.bn_statistics,
        draw(
            inputs=normal(3, 2, 2, 4),
            running_mean=normal(4),
            running_var=np.array([0.5, 1.0, 2.0, 4.0], np.float32),
        ),
        differentiated=("inputs",),
        stopped=("running_mean", "running_var"),
        extreme=("inputs", "running_mean"),
        batched=("inputs",),
        refused=(
            Refused({"running_mean": np.ones(3)}, "channels = 4 as in inputs"),
            Refused({"running_var": np.ones((1, 4))}, r"running_var must be shaped \[channels\]"),
            Refused({"running_var": np.array([1.0, 2, 0, 1])}, "running_var must be > 0, got 0"),
            Refused({"inputs": np.ones(4)}, r"inputs must be shaped \[batch, ..., channels\]"),
        ),
    ),
    "clamped_jsd": Example(
        data_free.clamped_jsd,
        draw(p_logits=normal(3, 5), q_logits=normal(3, 5)),
        {"temperature": 2.0},
        differentiated=("p_logits", "q_logits"),
        extreme=("p_logits", "q_logits"),
        batched=("p_logits", "q_logits"),
        refused=(
            Refused({"temperature": 0.0}, "temperature must be finite and > 0, got 0"),
            Refused({"floor": 0.0}, "floor must be finite and > 0, got 0"),
            Refused({"floor": 0.5}, "1/2 - floor must be finite and > 0, got 0"),
            Refused({"q_logits": np.ones((3, 4))}, "must have one shape"),
        ),
    ),
    "class_balance": Example(
        data_free.class_balance,
        draw(logits=normal(4, 5), where=np.array([True, False, True, True])),
        differentiated=("logits",),
        extreme=("logits",),
        batched=("logits", "where"),
        masked={"logits": 1},
        refused=(
            Refused({"logits": np.ones((4, 5, 2))}, r"logits must be shaped \[batch, classes\]"),
            Refused({"where": np.ones(3, bool)}, r"where must have the shape \(4,\) of the batch"),
        ),
    ),
    "image_tv_prior": Example(
        data_free.image_tv_prior,
        draw(images=normal(2, 3, 4, 2)),
        differentiated=("images",),
        extreme=("images",),
        batched=("images",),
        refused=(
            Refused({"images": np.ones((2, 1, 4, 2))}, r"height >= 2, got shape \(2, 1, 4, 2\)"),
            Refused({"images": np.ones((3, 4, 2))}, r"images must be shaped \[batch, height"),
        ),
    ),
    "one_hot_loss": Example(
        data_free.one_hot_loss,
        draw(logits=normal(3, 5)),
        differentiated=("logits",),
        extreme=("logits",),
        batched=("logits",),
        refused=(Refused({"logits": np.ones((3, 5), int)}, "floating-point", TypeError),),
    ),
}
