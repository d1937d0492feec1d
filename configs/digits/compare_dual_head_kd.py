"""Dual-head distillation against one head that carries both losses, on 8 x 8 digits, six seeds.

    python -m experiments.compare --config=configs/digits/compare_dual_head_kd.py \
        --workdir=runs/digits-dual-head

`-tenth`: the logit loss weighs 0.1 instead of 1. All arms with both losses report the cosine
between the two gradients in the student's own head and in the backbone.
"""

from configs.digits import base


def get_config():
    config = base.get_config()
    config.name = "digits-dual_head_kd"
    single = dict(name="dual_head_kd", heads="single", report_conflict=True)
    dual = dict(name="dual_head_kd", report_conflict=True)
    config.arms = {
        "supervised": dict(name="supervised"),
        "binary_kl_norm": dict(name="dual_head_kd", heads="single", label_weight=0.0),
        "single": dict(**single, distillation_weight=1.0),
        "single-tenth": dict(**single, distillation_weight=0.1),
        "dual": dict(**dual, distillation_weight=1.0),
        "dual-tenth": dict(**dual, distillation_weight=0.1),
        "dual-aligned": dict(**dual, distillation_weight=1.0, alignment="all"),
        "dual-aligned-shared": dict(**dual, distillation_weight=1.0, alignment="shared"),
        "dual-nonlinear": dict(**dual, distillation_weight=1.0, auxiliary="nonlinear"),
    }
    return config
