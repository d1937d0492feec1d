"""The ranking experiment: its ground truth, its measures, its baselines."""

import pathlib

import numpy as np
import pytest

from experiments import architecture_rankings, diswot
from kdjax.methods.architecture_scores import cost

# 64 CIFAR ResNets by blocks a stage, with their CIFAR-100 accuracies: published by the authors.
PUBLISHED = pathlib.Path(__file__).parent / "fixtures" / "diswot_s1.csv.gz"


def test_the_baselines_rank_the_published_resnets_as_counted_elsewhere():
    found = diswot.ground_truth(PUBLISHED)
    distilled, plain = np.array(list(found.values())).T
    assert found[1, 1, 1] == (61.87, 60.2)
    assert found[5, 5, 7] == (74.86, 71.93)
    assert architecture_rankings.kendall(distilled, plain) == pytest.approx(0.836, abs=5e-4)

    def parameters(blocks):  # 3x3 convolutions and norms, shortcuts where the width changes
        count, inner = 3 * 9 * 16 + 2 * 16, 16
        for width, depth in zip((16, 32, 64), blocks):
            count += depth * (2 * 9 * width**2 + 4 * width)
            if inner != width:
                count += 9 * width * (inner - width) + inner * width + 2 * width
            inner = width
        return count + 64 * 100 + 100

    counts = [parameters(blocks) for blocks in found]
    assert architecture_rankings.kendall(distilled, counts) == pytest.approx(0.873, abs=5e-4)
    genome = (0, 2, 1)
    blocks = tuple(diswot.RESNETS.options(genome).values())
    images = (np.zeros((1, 32, 32, 3), np.float32),)
    assert cost(diswot.resnet(genome), images)["parameters"] == parameters(blocks)


def test_scores_that_do_not_rank_are_reported_as_such():
    true = np.arange(4.0)
    assert architecture_rankings.agreement(true, 3 * true)["kendall"] == 1
    assert architecture_rankings.agreement(true, -true)["rank_difference"] == 1
    below = architecture_rankings.agreement(true, np.array([-np.inf, 0.0, 1.0, 2.0]))
    assert below["spearman"] == 1
    assert "relation: pearson" not in architecture_rankings.named({"relation": below})
    for scores in (np.ones(4), np.array([0.0, np.nan, 1.0, 2.0])):
        with pytest.warns(UserWarning, match="no ranking of 4 candidates"):
            assert np.isnan(list(architecture_rankings.agreement(true, scores).values())).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "must have the columns blocks1"),
        ("blocks1,blocks2,blocks3,acc_plain,acc_distilled\n1,1,1,60,61\n", "each of 64 networks"),
    ],
)
def test_another_ground_truth_is_refused(tmp_path, text, message):
    path = tmp_path / "truth.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        diswot.ground_truth(path)
