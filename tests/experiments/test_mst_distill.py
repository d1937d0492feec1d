"""The claims of MST-Distill hold where the records say so, and fail where they do not."""

import dataclasses

import numpy as np
import pytest

from configs.digits.compare_mst_distill import get_config
from experiments import mst_distill
from experiments.configuration import plain
from kdjax import evaluation

CONFIG = plain(get_config())
ACCURACY = {"mst": 0.9}  # the others 0.8
KL = {"teacher": 0.3, "cross_modal_teacher": 0.5, **{f"mask{m}": 0.2 for m in range(4)}}


def curve(first, last):
    return np.array([10, 20]), np.array([first, last])


@pytest.fixture
def claims(tmp_path):
    """Claim -> `(holds or fails, what was measured)`, of records that differ in what is given."""

    def of(accuracy=(), kl=(), shares=(), without=()):
        for name in CONFIG["arms"]:
            for seed in (0, 1):
                mine = {**ACCURACY, **dict(accuracy)}.get(name, 0.8) + 0.01 * seed
                found = dict(enumerate([0.4, 0.3, 0.2, 0.1])) | dict(shares)
                if name == "mst-no_balance":
                    found = dict(enumerate([0.7, 0.1, 0.1, 0.1])) | dict(without)
                kls = {**KL, **dict(kl)}
                curves = {
                    f"{name}/masks": {
                        f"validation/kl/{role}": curve(9.0, x) for role, x in kls.items()
                    },
                    f"{name}/distill": {
                        f"validation/share/{m}": curve(1.0, x) for m, x in found.items()
                    },
                }
                metrics = {"last": {"accuracy": 0.0}, "selected": {"accuracy": mine}}
                record = evaluation.Record(
                    name, "halves", seed, CONFIG, metrics, curves, None, {}, 1.0
                )
                evaluation.write_record(tmp_path / f"{name}-seed{seed}.json", record)
        mst_distill.main(str(tmp_path))
        lines = (tmp_path / "claims.md").read_text().splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
        return {claim: (verdict, text) for claim, verdict, text in rows[2:]}

    return of


def test_all_claims_can_hold(claims):
    found = claims()
    assert len(found) == 8
    assert {verdict for verdict, _ in found.values()} == {"holds"}
    assert "0.9050 against 0.8050, better in 2 of 2 seeds" in found["better than labels alone"][1]
    text = found["every mask lowers the KL to the student, in every seed"][1]
    assert text.startswith("teacher, dense0/out: 0.300 to 0.200; teacher, dense1/out: 0.300")
    assert text.endswith("cross_modal_teacher, dense1/out: 0.500 to 0.200")
    assert found["largest share below 0.5 with balance"][1] == "0.400, 0.400"


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        (dict(accuracy={"labels": 0.95}), "better than labels alone"),
        (dict(accuracy={"kd_cross_modal": 0.9}), "better than KD of the cross-modal teacher"),
        (dict(accuracy={"kd_multimodal": 0.91}), "better than KD of the teacher of both"),
        (dict(accuracy={"mst-no_masks": 0.91}), "better than without masks"),
        (dict(accuracy={"mst-random": 0.91}), "better than with teachers picked at random"),
        (dict(kl={"mask3": 0.6}), "every mask lowers the KL to the student, in every seed"),
        (dict(kl={"mask0": 0.4}), "every mask lowers the KL to the student, in every seed"),
        (dict(shares={0: 0.55}), "largest share below 0.5 with balance"),
        (dict(without={0: 0.35}), "larger without balance, on average"),
    ],
)
def test_each_claim_can_fail_and_alone(claims, change, claim):
    assert [name for name, (verdict, _) in claims(**change).items() if verdict == "fails"] == [
        claim
    ]


def test_records_without_an_arm_are_refused(claims, tmp_path):
    claims()
    for path in tmp_path.glob("mst-random-*.json"):
        path.unlink()
    with pytest.raises(ValueError, match="no records of the arm 'mst-random', but of"):
        mst_distill.main(str(tmp_path))


def test_every_arm_trains_its_student_as_long(claims):
    kept = {"name", "cotraining_steps", "temperature", "label_weight"}
    arms = CONFIG["arms"].values()
    assert len({tuple((k, v) for k, v in arm.items() if k in kept) for arm in arms}) == 1
    assert set(mst_distill.NEEDED) | {"mst-all"} == set(CONFIG["arms"])
    fields = {f.name for f in dataclasses.fields(mst_distill.mst_distill.Config)}
    assert all(set(arm) == {"name", *fields} for arm in arms)
