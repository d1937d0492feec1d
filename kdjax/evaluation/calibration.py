"""What is left of a model's miscalibration once its logits have the best scale."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

from kdjax.evaluation.metrics import Labels, Logits, Mask, labelled


class TemperatureFit(NamedTuple):
    """The best temperature of a model on some examples.

    Attributes:
      temperature: inf where constant logits would be better, 0 where every example is right.
      nll: the mean negative log-likelihood of softmax(logits / temperature), in nats.
    """

    temperature: float
    nll: float


def fit_temperature(logits: Logits, labels: Labels, where: Mask | None = None) -> TemperatureFit:
    """The temperature with the smallest negative log-likelihood, and that likelihood.

        min_T  mean -log softmax(z / T)_y

    Convex in 1 / T, hence the minimum. It separates how well a student ranks from how it is scaled:
    distillation changes both. To calibrate a model, fit on other examples than those reported.

    Args:
      logits: `[..., C]`, finite.
      labels: `[...]`, integers in [0, C).
      where: `[...]`, bool; the examples that count. None: all.

    Returns:
      A `TemperatureFit`; its nll is at most `nll` and at most log C.

    Raises:
      ValueError: as `kdjax.evaluation.accuracy`.

    Source: Guo et al. 2017 (arXiv:1706.04599), section 4.2.

    >>> best = fit_temperature(np.array([[4.0, 0.0]] * 4), np.array([0, 0, 0, 1]))
    >>> round(best.temperature, 4), round(best.nll, 4)  # 3/4 for the first class
    (3.641, 0.5623)
    """
    values, classes = labelled(logits, labels, where)
    rows = np.arange(len(classes))
    values = values - values.max(-1, keepdims=True)
    of_label = values[rows, classes]
    scale = np.abs(values).max()

    def slope(inverse: float) -> float:
        return float(((softmax(inverse * values, -1) * values).sum(-1) - of_label).mean())

    def nll(inverse: float) -> float:
        return float(-log_softmax(inverse * values, -1)[rows, classes].mean())

    if scale == 0 or slope(0.0) >= 0:
        return TemperatureFit(np.inf, float(np.log(values.shape[-1])))
    # Where every label has the largest logit, the slope is negative for every temperature.
    wrong = of_label < 0
    if not wrong.any():
        ties = (values == 0).sum(-1)
        return TemperatureFit(0.0, float(np.log(ties).mean()))
    upper = 1 / scale
    while slope(upper) <= 0:
        upper *= 2
    inverse = brentq(slope, 0.0, upper, xtol=1e-14 / scale, rtol=1e-14)
    return TemperatureFit(1 / inverse, nll(inverse))
