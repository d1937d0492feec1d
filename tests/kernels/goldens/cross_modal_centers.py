"""The goldens of objects as points."""

import jax
import jax.numpy as jnp

from kdjax.losses import centers
from kernels.goldens.support import loss_and_gradients


def gaussian_heatmap(case):
    """The first centre with the radius, the second with one more."""
    sizes = (jnp.asarray(case[key], jnp.result_type(float)) for key in ("box_w", "box_h"))
    radius = centers.gaussian_radius(*sizes, min_overlap=case["min_overlap"])
    whole = max(0, int(radius))
    heatmap = centers.draw_gaussian(
        jnp.array([[case["cx"], case["cy"]], [case["cx2"], case["cy2"]]]),
        jnp.array([whole, whole + 1]),
        height=case["H"],
        width=case["W"],
    )
    return {"out_radius": radius, "out_radius_int": whole, "out_heatmap": heatmap}


def heatmap_focal(case):
    logits, targets = case["logits"], case["target"]
    positives = targets == 1
    count = jnp.maximum(jnp.sum(positives), 1)
    if case["kind"] == "centernet":
        return jnp.sum(centers.centernet_focal(logits, targets)) / count
    # The reference has no loss between 0 and 1, and log(1 - p + 1e-4) where the target is 0.
    losses = centers.binary_focal(logits, positives, where=positives | (targets == 0))
    p, not_p = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    losses -= jnp.where(targets == 0, 0.75 * p**2 * jnp.log1p(1e-4 / not_p), 0.0)
    return jnp.sum(losses) / count


ADAPTERS = {
    "30-gaussian_heatmap": gaussian_heatmap,
    "30-heatmap_focal_loss": loss_and_gradients(heatmap_focal, "logits", value="out_loss"),
}
