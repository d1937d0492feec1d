"""CPRD on synthetic pairs whose relevance is graded, against other ways to teach a dual encoder.

    python -m experiments.cprd                # three seeds
    python -m experiments.cprd results 1      # one of them

An example has 6 attributes of 6 values. Its image is tanh of a random linear map of all of them,
its caption of 4 of them, 48 numbers each with Gaussian noise of 0.15: what shares 3 of a caption's
attributes is a harder negative than what shares none. The teacher is a cross-encoder, an MLP on
[a, b, a b], trained on 4,000 pairs; students are two MLPs 48-64-16, trained on 600, with tau 0.07
held. `random` is ListMLE on random negatives, `all` and `quarter` are CPRD with so many of the 16
valid; both directions are summed. Scored on 300 pairs after the last step; `hard_spearman` is the
rank correlation with the teacher on its 16 hardest negatives of each query. Writes a record a seed
and arm, and a page that says which claims hold, to `results/cprd-attributes`.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from scipy import stats

from kdjax import evaluation
from kdjax.data import Dataset, Split
from kdjax.methods import contrastive, cprd
from kdjax.methods.retrieval_task import RetrievalTask
from kdjax.networks import from_linen
from kdjax.networks.cross_encoder import CrossEncoder
from kdjax.training import run
from kdjax.training.optimizers import Training

SEEDS, CANDIDATES, TEMPERATURE = 3, 16, 0.07
ATTRIBUTES, VALUES, TOLD, WIDTH, NOISE = 6, 6, 4, 48, 0.15
SIZES = {"pretraining": 4000, "train": 600, "validation": 300, "test": 300}
BATCH, EPOCHS = 100, {"teacher": 12, "student": 60}
LITTLE = 0.02  # of recall at 1: what brings less brings nothing
CPRD = cprd.Config(candidates=CANDIDATES, distillation_weight=2.0)
ARMS = {
    "infonce": None,
    "mse": dataclasses.replace(CPRD, transfer="score_mse"),
    "kl": dataclasses.replace(CPRD, transfer="listwise_kl"),
    "ranknet": dataclasses.replace(CPRD, transfer="ranknet"),
    "random": dataclasses.replace(CPRD, negatives="random", valid_fraction=1.0),
    "cprd": CPRD,
    "all": dataclasses.replace(CPRD, valid_fraction=1.0),
    "quarter": dataclasses.replace(CPRD, valid_fraction=0.25),
}
SHOWN = ("recall_at_1", "recall_at_5", "hard_spearman")


def pairs(seed: int) -> Dataset:
    """The data set of a seed: `image` `[48]`, `tokens` and `segments` `[1, 48]`, one caption each.

    The numbers of a caption stand where the tokens of other texts do. `attributes` `[6]` and
    `told`, bool `[6]`, are what they were made of; no network reads these.
    """
    rng = np.random.default_rng(seed)
    width = WIDTH // ATTRIBUTES
    embedding = rng.normal(size=(ATTRIBUTES, VALUES, width))
    maps = rng.normal(size=(2, WIDTH, WIDTH)) / np.sqrt(WIDTH)
    splits = {}
    for name, size in SIZES.items():
        attributes = rng.integers(0, VALUES, (size, ATTRIBUTES))
        told = rng.permuted(np.tile(np.arange(ATTRIBUTES) < TOLD, (size, 1)), axis=1)
        codes = embedding[np.arange(ATTRIBUTES), attributes]
        image, text = (
            np.tanh((codes * known[..., None]).reshape(size, WIDTH) @ by)
            + rng.normal(0, NOISE, (size, WIDTH))
            for known, by in zip((np.ones_like(told), told), maps)
        )
        arrays = {"image": image.astype(np.float32), "tokens": text.astype(np.float32)[:, None]}
        arrays |= {"segments": np.ones_like(arrays["tokens"]), "attributes": attributes}
        splits[name] = Split.of({**arrays, "told": told}, f"attributes/{name}")
    return Dataset("attributes", splits, ())


class Numbers(nn.Module):
    """A tower whose features are an MLP of the given widths, which may be none: its input."""

    widths: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self, x: jax.Array, segments: jax.Array | None = None, train: bool = False
    ) -> dict[str, jax.Array]:
        for i, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, name=f"dense{i}")(x))
        return {"features": x}


class Towers(nn.Module):
    """A dual encoder of two MLPs 48-64-16 at a temperature that is held."""

    @nn.compact
    def __call__(
        self,
        image: jax.Array | None,
        tokens: jax.Array | None,
        segments: jax.Array | None,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        out = {"scale": jnp.float32(1 / TEMPERATURE)}
        for name, x in (("image", image), ("text", tokens)):
            if x is not None:
                x = nn.Dense(16, name=f"{name}_out")(Numbers((64,), name=name)(x)["features"])
                out[name] = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, -1, keepdims=True), 1e-12))
        return out


TEACHER = from_linen(CrossEncoder(Numbers(), Numbers(), embedding=64, hidden=128))
STUDENT = from_linen(Towers())


def task_of(seed: int) -> RetrievalTask:
    """The task of a seed."""
    splits = {"teacher": "pretraining", "student": "train"}
    return RetrievalTask(
        pairs(seed),
        {"teacher": TEACHER, "student": STUDENT},
        {
            role: Training(EPOCHS[role] * SIZES[split] // BATCH, BATCH, "adam", 1e-3)
            for role, split in splits.items()
        },
        seed=seed,
        learns_from=splits,
        validate_every=120,
    )


def hard_spearman(scores: np.ndarray, teacher: np.ndarray, hardest: int = CANDIDATES) -> float:
    """The mean over both directions and all queries of the rank correlation on hard negatives.

    `scores` and `teacher` `[N, N]`, pairs on the diagonal. A query's are the `hardest` other items
    that the teacher scores highest.
    """
    found = []
    for one, other in ((scores, teacher), (scores.T, teacher.T)):
        others = np.where(np.eye(len(other), dtype=bool), -np.inf, other)
        mined = np.argsort(-others, axis=1, kind="stable")[:, :hardest]
        a, b = (np.take_along_axis(x, mined, 1) for x in (one, other))
        found += [stats.spearmanr(x, y).statistic for x, y in zip(a, b)]
    return float(np.mean(found))


def claims(found: dict[str, list[dict[str, float]]]) -> list[tuple[str, bool, str]]:
    """What is claimed, whether it holds, the numbers."""

    def values(arm):
        return np.array([x["recall_at_1"] for x in found[arm]])

    def told(*arms):
        return ", ".join(f"{arm} {values(arm).mean():.3f}" for arm in arms)

    def p(one, other):
        value = evaluation.paired_test(values(one), values(other)).p
        return f"p = {'none' if value is None else f'{value:.2g}'}"

    rows = []
    for one, other in (("cprd", "kl"), ("kl", "infonce")):
        gain = values(one) - values(other)
        text = f"{told(one, other)}, least gain {gain.min():+.3f}, {p(one, other)}"
        claim = f"{one} finds more at 1 than {other}, in every seed"
        rows.append((claim, bool((gain > 0).all()), text))
    gain = (values("mse") - values("infonce")).mean()
    claim = f"mse brings nothing: its mean recall at 1 is within {LITTLE} of that of infonce"
    text = f"{told('mse', 'infonce')}, {p('mse', 'infonce')}"
    rows.append((claim, bool(abs(gain) <= LITTLE), text))
    held = bool(values("cprd").mean() >= values("random").mean())
    text = f"{told('cprd', 'random')}, {p('cprd', 'random')}"
    rows.append(("mean recall at 1 of cprd not below that of random", held, text))
    return rows


def page(found: dict[str, list[dict[str, float]]], seconds: float) -> str:
    """Claims and table."""
    lines = ["# cprd-attributes", "", *(__doc__ or "").split("\n\n")[2].splitlines(), ""]
    told = [x["teacher_recall_at_1"] for x in found["infonce"]]
    lines += [
        f"{len(told)} seeds, {seconds / 60:.1f} minutes. The teacher's recall at 1: "
        f"{', '.join(f'{x:.3f}' for x in told)}.",
        "",
        evaluation.claims_table(claims(found)),
        "",
        evaluation.arms_table(found, SHOWN, digits=3),
    ]
    return "\n".join([*lines, "", "Mean ± standard deviation over the seeds.", ""])


def scores(task: RetrievalTask, student, reference: np.ndarray) -> dict[str, float]:
    """Metric -> number of a student on the test split."""
    found = task.scores("student", student, reference)
    predicted = task.predict("student", student)
    return {**found, "hard_spearman": hard_spearman(predicted, reference)}


def main(results: str = "results", seeds: str = str(SEEDS)) -> None:
    """Runs all arms, and writes records and page."""
    folder, began = pathlib.Path(results) / "cprd-attributes", time.monotonic()
    around, found = evaluation.environment(), {name: [] for name in ARMS}
    for seed in range(int(seeds)):
        task = task_of(seed)
        teacher = run(contrastive.teacher(task), seed=seed)
        task, recall = task.with_teacher(teacher), task.scores("teacher", teacher, None)
        reference = task.reference(teacher)
        print(f"seed {seed}: teacher {recall['recall_at_1']:.3f}", flush=True)
        for name, config in ARMS.items():
            start = time.monotonic()
            if config is None:
                recipe = contrastive.recipe(task, contrastive.Config())
            else:
                recipe = cprd.recipe(task, config)
            trained = run(recipe, seed=seed)
            scored = {x: scores(task, getattr(trained, x), reference) for x in ("last", "selected")}
            scored["selected"]["step"] = float(trained.selected_step)
            scored["last"]["teacher_recall_at_1"] = recall["recall_at_1"]
            found[name].append(scored["last"])
            record = evaluation.Record(
                method=name,
                task="cprd-attributes",
                seed=seed,
                config={} if config is None else dataclasses.asdict(config),
                metrics=scored,
                curves={},
                commit=around.get("commit"),
                versions=around,
                seconds=round(time.monotonic() - start, 3),
            )
            evaluation.write_record(folder / f"{name}-seed{seed}.json", record)
            told = ", ".join(f"{scored['last'][metric]:.3f}" for metric in SHOWN)
            print(f"  {name}: {told}", flush=True)
    text = page(found, time.monotonic() - began)
    (folder / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
