"""The ranking experiment: its ground truth, its measures, its baselines."""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import architecture_rankings, diswot, diswot_nasbench201
from experiments.architecture_rankings import agreement
from experiments.diswot_nasbench201 import PROXIES, STARTS
from kdjax import evaluation
from kdjax.data.source import Split
from kdjax.methods.architecture_scores import cost
from kdjax.networks.nasbench201 import OPERATIONS, edges_of

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


HEAD = "cell,cifar10_val,cifar10_test,cifar100_test,imagenet16_120_test\n"
CELL = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"


def rows(count, accuracy=50):
    spaces = itertools.product(OPERATIONS, repeat=6)
    form = "|{}~0|+|{}~0|{}~1|+|{}~0|{}~1|{}~2|"
    cells = [form.format(*edges) for edges in itertools.islice(spaces, count)]
    return HEAD + "".join(f"{cell},{i},{accuracy},50,50\n" for i, cell in enumerate(cells))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must have the columns cell, cifar10_test"),
        (HEAD.replace("cifar100_test", "acc") + f"{CELL},1,1,1,1\n", r"not \['cifar100_test'\]"),
        (rows(63), "64 cells or more, each once, got 63 rows of 63 cells"),
        (rows(100) + f"{CELL},1,1,1,1\n", "got 101 rows of 100 cells"),
        (rows(100).replace("none~0|none~1|none~2", "none~0|conv~1|none~2"), "cell must be"),
        (rows(100, accuracy=101), r"cifar10_test must be in \[0, 100\]"),
        (rows(100, accuracy="nan"), r"cifar10_test must be in \[0, 100\]"),
    ],
)
def test_another_table_of_nas_bench_201_is_refused(tmp_path, text, message):
    path = tmp_path / "truth.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        diswot_nasbench201.ground_truth(path)


def test_accuracies_of_nas_bench_201_stand_with_their_cells(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text(rows(101))
    cells, accuracies = diswot_nasbench201.ground_truth(path)
    assert edges_of(cells[7]) == ("none",) * 4 + (OPERATIONS[1], OPERATIONS[2])
    assert accuracies["cifar10_val"][7] == 7


@pytest.mark.parametrize(
    ("cell", "convolutions"), [(CELL, 0), (CELL.replace("none", "nor_conv_3x3", 2), 2)]
)
def test_every_relu_of_a_network_of_nas_bench_201_is_read(cell, convolutions):
    network, images = diswot_nasbench201.student(cell), np.zeros((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    names = diswot_nasbench201.rectified(cell)
    found = jax.eval_shape(
        lambda v, x: network.apply(v, x, train=True, taps=names), variables, images
    )
    assert len(found.taps) == 15 * convolutions + 2 * 2 + 1


@pytest.mark.parametrize(("side", "label"), [(28, 9), (32, 10)])
def test_other_images_are_refused_for_nas_bench_201(side, label):
    arrays = {
        "image": np.zeros((70, side, side, 3), np.uint8),
        "label": np.arange(70) % (label + 1),
    }
    split = Split.of(arrays, "other/train")
    with pytest.raises(ValueError, match=rf"other/train must have .*\({side}, .* up to {label}"):
        diswot_nasbench201.batch_of(split, 0)


def test_a_seed_scores_nas_bench_201_on_images_in_the_units_of_cifar_10():
    levels = np.arange(70, dtype=np.uint8)
    images = np.tile(levels[:, None, None, None], (32, 32, 3))
    split = Split.of({"image": images, "label": levels % 10}, "some")
    x, labels = diswot_nasbench201.batch_of(split, 0)
    assert x.shape == (64, 32, 32, 3)
    found = (x * jnp.array([0.247, 0.2435, 0.2616]) + jnp.array([0.4914, 0.4822, 0.4465])) * 255
    assert len(np.unique(np.round(found))) == 64
    np.testing.assert_array_equal(np.round(found)[:, 3, 4, 1] % 10, labels)


def test_the_table_of_nas_bench_201_is_of_the_records_that_there_are(tmp_path):
    names = [f"{name}, {start}" for name in ("relation", "semantic", "sum") for start in STARTS]
    scores = dict.fromkeys((*names, "parameters"), np.arange(4.0))
    for seed, more in ((1, {}), (0, dict.fromkeys(PROXIES, np.arange(4.0)[::-1]))):
        found = {n: agreement(np.arange(4.0), x) for n, x in {**scores, **more}.items()}
        metrics = dict.fromkeys(("last", "selected"), architecture_rankings.named(found))
        record = evaluation.Record("scores", "x", seed, {}, metrics, {}, "", {}, 1.0)
        evaluation.write_record(tmp_path / f"scores-seed{seed}.json", record)
    said = diswot_nasbench201.report(tmp_path)
    assert (tmp_path / "table.md").read_text() == said
    assert "seeds 0, 1 (zero-cost proxies: 0)" in said
    assert "| relation, default | 1.000 | 1.000, 1.000 | 1.000 |" in said
    assert "| nwot | -1.000 | -1.000 | -1.000 |" in said
    assert "- relation, gaussian init: tau > 0.35 in every seed: holds" in said
    assert "default init: above the number of parameters in every seed: FAILS" in said
    assert "above every zero-cost proxy (the best is snip): holds" in said
