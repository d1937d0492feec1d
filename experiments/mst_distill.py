"""Which claims of MST-Distill the records of a comparison bear out.

    python -m experiments.mst_distill results/digits-mst_distill

The records are those that `experiments.compare` writes with `configs/digits/compare_mst_distill.py`
or `configs/spoken_digits/compare_mst_distill.py`. Accuracies are those on the test split, of the
students that the validation split selects; what a mask does and whom the gate picks was measured on
the validation split after the last step of its stage. Writes `claims.md` beside the records.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from kdjax import evaluation
from kdjax.methods import mst_distill

Records = Sequence[evaluation.Record]  # of an arm, by seed
NEEDED = (
    "mst",
    "labels",
    "kd_cross_modal",
    "kd_multimodal",
    "mst-no_masks",
    "mst-random",
    "mst-no_balance",
)


def last(record: evaluation.Record, stage: str, metric: str) -> float:
    """A curve's value after the last step of a stage of the record's arm."""
    _, values = record.curves[f"{record.method}/{stage}"][f"validation/{metric}"]
    return float(values[-1])


def better(arms: Mapping[str, Records], other: str, claim: str) -> tuple[str, bool, str]:
    """The claim that MST-Distill's students are better than those of another arm."""
    mine, theirs = (
        np.array([r.metrics["selected"]["accuracy"] for r in arms[name]]) for name in ("mst", other)
    )
    p = evaluation.paired_test(mine, theirs).p
    text = (
        f"{mine.mean():.4f} against {theirs.mean():.4f}, better in {int((mine > theirs).sum())} of "
        f"{len(mine)} seeds, p = {'none' if p is None else f'{p:.2g}'}"
    )
    return claim, bool(mine.mean() > theirs.mean()), text


def masks(records: Records) -> tuple[str, bool, str]:
    """The claim that each mask brings its teacher closer to the student."""
    fields = records[0].config["arms"]["mst"]
    fields = {k: tuple(x) if isinstance(x, list) else x for k, x in fields.items() if k != "name"}
    held, texts = True, []
    for role, (teacher, layer) in mst_distill.Config(**fields).masks.items():
        masked, bare = (
            np.array([last(r, "masks", f"kl/{which}") for r in records])
            for which in (role, teacher)
        )
        held &= bool((masked < bare).all())
        texts.append(f"{teacher}, {layer}: {bare.mean():.3f} to {masked.mean():.3f}")
    return "every mask lowers the KL to the student, in every seed", held, "; ".join(texts)


def largest_shares(records: Records) -> np.ndarray:
    """The largest part of the examples that a teacher gets, a seed."""
    stage = records[0].curves[f"{records[0].method}/distill"]
    number = len([name for name in stage if name.startswith("validation/share/")])
    return np.array([max(last(r, "distill", f"share/{m}") for m in range(number)) for r in records])


def main(folder: str) -> None:
    """Writes the claims of a folder of records.

    Raises:
      ValueError: an arm has no records there.
    """
    records = evaluation.read_records(folder)
    names = dict.fromkeys(r.method for r in records)
    arms = {n: sorted((r for r in records if r.method == n), key=lambda r: r.seed) for n in names}
    for name in NEEDED:
        if name not in arms:
            raise ValueError(f"{folder} has no records of the arm {name!r}, but of {sorted(arms)}")
    balanced, free = (largest_shares(arms[name]) for name in ("mst", "mst-no_balance"))
    rows = [
        better(arms, "labels", "better than labels alone"),
        better(arms, "kd_cross_modal", "better than KD of the cross-modal teacher"),
        better(arms, "kd_multimodal", "better than KD of the teacher of both"),
        better(arms, "mst-no_masks", "better than without masks"),
        better(arms, "mst-random", "better than with teachers picked at random"),
        masks(arms["mst"]),
        ("largest share below 0.5 with balance", bool((balanced < 0.5).all()), shown(balanced)),
        (
            "larger without balance, on average",
            bool(free.mean() > balanced.mean()),
            f"{free.mean():.3f} against {balanced.mean():.3f}: {shown(free)}",
        ),
    ]
    note = "Of accuracies a claim holds where the mean is higher; p: paired t-test over the seeds."
    text = f"# {records[0].task}: claims\n\n{evaluation.claims_table(rows)}\n\n{note}\n"
    (pathlib.Path(folder) / "claims.md").write_text(text)
    print(text)


def shown(values: np.ndarray) -> str:
    """One number a seed."""
    return ", ".join(f"{x:.3f}" for x in values)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.mst_distill FOLDER")
    try:
        main(sys.argv[1])
    except (ValueError, OSError) as problem:
        sys.exit(f"error: {problem}")
