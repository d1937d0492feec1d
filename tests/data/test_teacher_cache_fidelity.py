"""What a cache loses is measured against the dense outputs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from teacher_cache_toys import SIZE, TOKENS, sentences, written

from kdjax.data.teacher_cache import (
    most_likely,
)
from kdjax.data.teacher_cache_fidelity import fidelity


def test_fidelity_is_the_divergence_of_what_is_kept(tmp_path):
    examples, logits = sentences()
    real = examples["segments"] > 0
    head = np.eye(SIZE, dtype=np.float32)
    reports = {}
    for name, options in {
        "exact": {},
        "half": {"dtype": "bfloat16"},
        "top_k": {"kind": "top_k", "k": 3},
        "sampled": {"kind": "sampled", "num_samples": 500},
        "hidden": {"kind": "hidden"},
    }.items():
        contents = dataclasses.replace(TOKENS, **options)
        cache = written(tmp_path / name, examples, contents, lambda batch: logits)
        reports[name] = fidelity(
            cache, [examples], lambda batch: logits, head=head if name == "hidden" else None
        )
    listed = most_likely(jnp.asarray(logits), k=3)
    mass = np.exp(listed["log_probs"]).sum(-1)[real]
    found = reports["top_k"]
    assert found.positions == real.sum() == 13
    assert found.kl_mean == pytest.approx(-np.log(mass).mean(), rel=1e-5)
    assert found.kl_quantiles["max"] == pytest.approx(-np.log(mass.min()), rel=1e-5)
    assert (found.mass_mean, found.mass_min) == pytest.approx((mass.mean(), mass.min()), rel=1e-5)
    assert found.payload_bytes == pytest.approx((4 * 8 + 13 * (3 * 2 + 3 * 4 + 4)) / 13)
    assert abs(reports["exact"].kl_mean) < 1e-6
    assert abs(reports["hidden"].kl_mean) < 1e-6
    assert 1e-7 < reports["half"].kl_mean < 1e-3
    assert 1e-3 < reports["sampled"].kl_mean < 0.05
    assert "KL(cached || dense)" in found.text()
    assert "\n" not in found.text()
    assert found.seconds_saved == found.teacher_seconds - found.cache_seconds
