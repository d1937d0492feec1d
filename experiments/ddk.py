"""DDK on four Markov chains of increasing sharpness, against fixed mixtures of the same domains.

    python -m experiments.ddk                 # six seeds
    python -m experiments.ddk results 2       # two seeds

A row is the name of its domain and a walk of that chain over 24 symbols; the corpus has 70, 20, 8
and 2 percent of the domains, the sharpest is the rarest. The teacher is a decoder trained on equal
shares of the domains, the student a small one trained on the corpus first. Writes one record a seed
and arm, and a page that says which claims hold, to `results/ddk`.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from collections.abc import Generator
from typing import Any

import numpy as np

from kdjax import evaluation
from kdjax.data import Split, TextDataset, mixture, resident
from kdjax.data.tokenizers import CharacterTokenizer
from kdjax.methods import ddk, language_model
from kdjax.methods.language_task import LanguageTask
from kdjax.networks.transformer import DecoderConfig
from kdjax.training import run
from kdjax.training.optimizers import Training

SEEDS = 6
SYMBOLS, LENGTH = 24, 16
DOMAINS = ("scale_1", "scale_2", "scale_3", "scale_4")
NATURAL = np.array([0.7, 0.2, 0.08, 0.02])
TRAIN, VALIDATION, TEST = 40_000, 64, 256  # rows in all; rows a domain
TOKENIZER = CharacterTokenizer("0123" + "abcdefghijklmnopqrstuvwx")

TEACHER = DecoderConfig(
    vocabulary=TOKENIZER.vocabulary,
    width=48,
    num_layers=1,
    num_heads=2,
    hidden=96,
    max_length=LENGTH,
)
STUDENT = dataclasses.replace(TEACHER, width=12, hidden=24)
TRAINING = {
    "teacher": Training(steps=1000, batch_size=64, learning_rate=3e-3, schedule="cosine"),
    "student": Training(steps=600, batch_size=16, learning_rate=3e-3, schedule="cosine"),
}
WARM_UP, INTERVAL = 150, 20


def _arms() -> dict[str, ddk.Config]:
    arms = {}
    for gamma in (0.2, 1.0):
        shared = dict(interval=INTERVAL, distillation_weight=gamma)
        arms |= {
            f"natural-{gamma:g}": ddk.Config(mixture="natural", **shared),
            f"equal-{gamma:g}": ddk.Config(mixture="equal", **shared),
            f"ddk-{gamma:g}": ddk.Config(**shared),
            f"unsmoothed-{gamma:g}": ddk.Config(smoothing=False, **shared),
        }
    return arms | {"cpt": ddk.Config(interval=INTERVAL, distillation_weight=0.0)}


ARMS = _arms()


def chains(seed: int) -> LanguageTask:
    """The task of a seed: four random chains, and rows of them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(4, SYMBOLS, SYMBOLS)) * np.arange(1, 5)[:, None, None]
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    steps = chances.cumsum(-1)
    sizes = {
        "train": mixture.domain_quota(NATURAL, TRAIN),
        "validation": np.full(4, VALIDATION),
        "test": np.full(4, TEST),
    }
    splits = {}
    for name, counts in sizes.items():
        domain = rng.permutation(np.repeat(np.arange(4), counts)).astype(np.int32)
        tokens = np.zeros((len(domain), LENGTH), np.int32)
        tokens[:, 1] = rng.integers(SYMBOLS, size=len(domain))
        for place in range(2, LENGTH):
            bounds = steps[domain, tokens[:, place - 1]][:, :-1]
            tokens[:, place] = (rng.random((len(domain), 1)) > bounds).sum(-1)
        drawn = chances[domain[:, None], tokens[:, 1:-1], tokens[:, 2:]]
        nll = -np.log(drawn).mean(1)
        tokens += 4  # the names of the domains are tokens 0 to 3
        tokens[:, 0] = domain
        there = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
        arrays = {
            "tokens": tokens,
            "completion": there >= 2,
            "segments": np.ones_like(tokens),
            "positions": there,
            "domain": domain,
        }
        splits[name] = Split.of(arrays, f"chains/{name}")
    # Of the test rows, which come last: no model can have less on average.
    lowest = [float(np.exp(nll[domain == i].mean())) for i in range(4)]
    return LanguageTask(
        dataset=TextDataset("chains", splits, (), DOMAINS, {}, {"perplexity": lowest}),
        training=TRAINING,
        decoders={"teacher": TEACHER, "student": STUDENT},
        tokenizer=TOKENIZER,
        seed=seed,
        validate_every=INTERVAL,
        warm_up=WARM_UP,
    )


def prepared(task: LanguageTask) -> LanguageTask:
    """The task with its teacher, and a student that has seen the corpus: the same for all arms."""
    split, training = task.dataset.splits["train"], TRAINING["teacher"]
    size = training.steps * training.batch_size
    rows = task.dataset.domain_rows("train")
    equal = mixture.draw(
        rows, np.zeros(4, int), np.full(4, 0.25), size, seed=task.seed, interval=0, by="quota"
    )
    stream = resident(split, training.batch_size, seed=task.seed, indices=equal.rows)

    def both() -> Generator:
        stage = language_model.stage(task, "teacher", "teacher")
        outcome = yield dataclasses.replace(stage, data={"train": stream}, validation=None)
        return (yield from task.prepared()).with_teacher(outcome.variables["teacher"])

    return run(both(), seed=task.seed)


def watched(recipe: Generator, measured: list) -> Generator:
    """The recipe; what was measured before each interval goes to `measured`."""
    value = None
    while True:
        try:
            node = recipe.send(value)
        except StopIteration as end:
            return end.value
        value = yield node
        if node.name.startswith("mixture/"):
            measured.append(value)


def scores(task: LanguageTask, student: Any, teacher: np.ndarray, taught: Any) -> dict[str, float]:
    ratios = ddk.perplexities(task, "student", student, "test") / teacher
    found = {"worst_ratio": float(ratios.max()), "mean_ratio": float(ratios.mean())}
    found |= {f"ratio_{name}": float(x) for name, x in zip(DOMAINS, ratios)}
    return found | task.scores("student", student, taught)


def one_seed(seed: int, folder: pathlib.Path, around: dict) -> dict[str, dict[str, float]]:
    """Every arm of a seed; writes the records."""
    task = prepared(chains(seed))
    taught = task.reference(task.given["teacher"])
    teacher = ddk.perplexities(task, "teacher", taught, "test")
    start = ddk.perplexities(task, "student", task.variables("student"), "test") / teacher
    print(f"seed {seed}: teacher {teacher.round(2)}, student's ratios {start.round(2)}", flush=True)
    found = {}
    for name, config in ARMS.items():
        began, measured = time.monotonic(), []
        trained = run(watched(ddk.recipe(task, config), measured), seed=seed)
        last = scores(task, trained.last, teacher, taught)
        for what, numbers in (
            ("chain_perplexity", task.dataset.record["perplexity"]),
            ("teacher_perplexity", teacher),
            ("start_ratio", start),
        ):
            last |= {f"{what}_{d}": float(x) for d, x in zip(DOMAINS, numbers)}
        factor = np.stack([x["factor"] for x in measured])
        if config.mixture == "discrepancy":
            last["movement"] = float(abs(np.diff(factor, axis=0)).sum(1)[3:].mean())
        steps = np.arange(len(measured)) * config.interval
        curves = {
            f"{what}/{domain}": (steps, np.stack([x[what] for x in measured])[:, i])
            for what in ("factor", "ratio")
            for i, domain in enumerate(DOMAINS)
        }
        chosen = scores(task, trained.selected, teacher, taught)
        record = evaluation.Record(
            method=name,
            task="ddk",
            seed=seed,
            config=dataclasses.asdict(config),
            metrics={"last": last, "selected": {**chosen, "step": float(trained.selected_step)}},
            curves={"distill": curves},
            commit=around.get("commit"),
            versions=around,
            seconds=round(time.monotonic() - began, 3),
        )
        evaluation.write_record(folder / f"{name}-seed{seed}.json", record)
        found[name] = last
        print(
            f"  {name}: worst ratio {last['worst_ratio']:.4f}, {record.seconds:.1f} s", flush=True
        )
    return found


def claims(found: dict[str, list[dict[str, float]]]) -> list[tuple[str, bool, str]]:
    """What is claimed, whether it holds, the numbers."""

    def values(arm, key):
        return np.array([x[key] for x in found[arm]])

    def compared(one, other, key):
        a, b = values(one, key), values(other, key)
        test = evaluation.paired_test(a, b)
        p = "none" if test.p is None else f"{test.p:.2g}"
        text = f"{a.mean():.4f} against {b.mean():.4f}, lower in {(a < b).sum()} of {len(a)}"
        return a < b, f"{text}; paired difference {test.difference:+.4f}, p = {p}"

    out = []
    for gamma in ("0.2", "1"):
        below, text = compared(f"ddk-{gamma}", f"natural-{gamma}", "worst_ratio")
        out.append(
            (
                f"1, gamma {gamma}: the worst ratio is lower for DDK than for the natural mixture, "
                "in every seed",
                bool(below.all()),
                text,
            )
        )
    for gamma in ("0.2", "1"):
        _, text = compared(f"ddk-{gamma}", f"unsmoothed-{gamma}", "movement")
        lower = values(f"ddk-{gamma}", "movement") - values(f"unsmoothed-{gamma}", "movement")
        out.append(
            (
                f"2, gamma {gamma}: the factor moves less an interval with smoothing than without",
                bool(lower.mean() < 0),
                text,
            )
        )
    for gamma in ("0.2", "1"):
        for key, name in (("mean_ratio", "mean"), ("worst_ratio", "worst")):
            _, text = compared(f"ddk-{gamma}", "cpt", key)
            lower = values(f"ddk-{gamma}", key).mean() < values("cpt", key).mean()
            claim = f"3, gamma {gamma}: DDK's {name} ratio is lower than without its teacher (CPT)"
            out.append((claim, bool(lower), text))
    for gamma in ("0.2", "1"):
        _, text = compared(f"ddk-{gamma}", f"equal-{gamma}", "worst_ratio")
        lower = values(f"ddk-{gamma}", "worst_ratio") - values(f"equal-{gamma}", "worst_ratio")
        claim = f"(for comparison, not claimed) gamma {gamma}: the worst ratio is lower for DDK"
        out.append((f"{claim} than for equal shares", bool(lower.mean() < 0), text))
    return out


def page(found: dict[str, list[dict[str, float]]], seeds: int, seconds: float) -> str:
    lines = ["# ddk", "", *(__doc__ or "").split("\n\n")[2].splitlines(), ""]
    student = TRAINING["student"]
    lines += [
        f"{seeds} seeds; {student.steps} steps of {student.batch_size} rows of {LENGTH} tokens, "
        f"intervals of {INTERVAL}, alpha 0.5; test rows, after the last step, none selected; "
        f"{seconds / 60:.1f} minutes in all. A ratio is the student's perplexity over the "
        "teacher's; the movement is the mean L1 change of the factor after the third interval.",
        "",
        evaluation.claims_table(claims(found)),
        "",
    ]
    keys = ["worst_ratio", "mean_ratio", *(f"ratio_{d}" for d in DOMAINS)]
    keys += ["kl_to_teacher", "movement"]
    lines.append(evaluation.arms_table(found, keys))
    first = next(iter(found.values()))
    for what in ("chain_perplexity", "teacher_perplexity", "start_ratio"):
        text = ", ".join(f"{np.mean([x[f'{what}_{d}'] for x in first]):.3f}" for d in DOMAINS)
        lines += ["", f"Mean {what.replace('_', ' ')} of the domains: {text}."]
    return "\n".join([*lines, "", "Mean ± standard deviation over the seeds.", ""])


def main(results: str = "results", seeds: str = str(SEEDS)) -> None:
    """Runs all arms, and writes records and page."""
    folder, began = pathlib.Path(results) / "ddk", time.monotonic()
    around, found = evaluation.environment(), {name: [] for name in ARMS}
    for seed in range(int(seeds)):
        for name, metrics in one_seed(seed, folder, around).items():
            found[name].append(metrics)
    text = page(found, int(seeds), time.monotonic() - began)
    (folder / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
