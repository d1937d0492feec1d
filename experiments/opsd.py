"""OPSD on the products of 0 to 23: a small decoder teaches itself what it can copy but not compute.

    python -m experiments.opsd --workdir=runs/opsd --results=results/opsd

Three seeds in some minutes of one core. The decoder is first trained to give the three digits of
a product with a hint, which is the product, on all pairs, and without it on a quarter of them; it
learns to copy hints and by heart the quarter. Then OPSD on the other pairs: the student sees no
hint, the teacher does; the whole model is trained, or, in one arm, low-rank adapters. What counts
is the accuracy of the student's greedy answer without a hint.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Generator, Mapping, Sequence

import jax
import numpy as np
from absl import app, flags

from kdjax import evaluation
from kdjax.data.corpora import Corpus, Document
from kdjax.data.privileged import Templates, privileged_dataset
from kdjax.data.source import Dataset
from kdjax.data.text import TokenSplit, text_dataset
from kdjax.data.tokenizers import CharacterTokenizer
from kdjax.methods import language_model, opsd
from kdjax.methods.language_task import LanguageTask
from kdjax.networks.transformer import DecoderConfig
from kdjax.training import Display, prefixed, read_metrics, run
from kdjax.training.optimizers import Training

WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lies.", required=True)
RESULTS = flags.DEFINE_string("results", None, "Where records and table go.", required=True)
SEEDS = flags.DEFINE_integer("seeds", 3, "How many.")

NAME = "products-opsd"
TOKENIZER = CharacterTokenizer("0123456789*=:")
LARGEST = 23
PROMPT, HINTED, ANSWER = len("00*00="), len("000:00*00="), len("000") + 1
TEMPLATES = Templates("{problem}", "{solution}:{problem}", "")
MODEL = DecoderConfig(
    vocabulary=TOKENIZER.vocabulary,
    width=48,
    num_layers=2,
    num_heads=4,
    hidden=96,
    max_length=HINTED + ANSWER,
)
PRETRAINING = Training(steps=500, batch_size=128, optimizer="adam", learning_rate=2e-3)
TRAINING = Training(steps=400, batch_size=128, optimizer="adam", learning_rate=5e-4)
PLAIN = opsd.Config(
    temperature=1.0,
    sampling_temperature=1.0,
    sampling_top_k=None,
    sampling_top_p=None,
    lora_rank=0,
)

# Arm -> the method's config, and the hints that its teacher sees.
ARMS = {
    "jsd-fixed": (PLAIN, "true"),
    "sampled_token": (dataclasses.replace(PLAIN, loss="sampled_token"), "true"),
    "control": (PLAIN, "none"),
    "live": (dataclasses.replace(PLAIN, teacher="live"), "true"),
    "ema": (dataclasses.replace(PLAIN, teacher="ema"), "true"),
    "corrupted": (PLAIN, "half wrong"),
    # The authors' alpha / rank, at a rank that is below the model's width.
    "lora-16": (dataclasses.replace(PLAIN, lora_rank=16, lora_alpha=32.0), "true"),
}


def problem(a: int, b: int) -> Document:
    """A pair and its product.

    >>> problem(3, 21).prompt, problem(3, 21).text
    ('03*21=', '063')
    """
    return Document(f"{a * b:03}", f"{a:02}*{b:02}=")


def pairs(seed: int) -> tuple[list[Document], list[Document]]:
    """The quarter that is known, and the others."""
    every = [problem(a, b) for a, b in itertools.product(range(LARGEST + 1), repeat=2)]
    order = np.random.default_rng([seed, 0]).permutation(len(every))
    known = len(every) // 4
    return [every[i] for i in order[:known]], [every[i] for i in order[known:]]


def pretraining(seed: int) -> Dataset:
    """Every pair with its hint, and as many rows of known pairs without."""
    known, others = pairs(seed)
    hinted = [d._replace(prompt=f"{d.text}:{d.prompt}") for d in (*known, *others)]
    repeated = known * (len(hinted) // len(known))
    corpus = Corpus(
        "products",
        {"train": (*hinted, *repeated), "validation": tuple(known), "test": tuple(known)},
        ("products",),
    )
    length = HINTED + ANSWER
    return text_dataset(corpus, TOKENIZER, length, packed=False, prompt_length=HINTED)


@functools.cache
def hints(seed: int, which: str) -> list[str]:
    """What the teacher is told of every pair that is not known; half of it may be wrong."""
    _, others = pairs(seed)
    told = [d.text for d in others]
    products = sorted(set(told))
    if which == "half wrong":
        rng = np.random.default_rng([seed, 1])
        for i in rng.permutation(len(told))[: len(told) // 2]:
            told[i] = str(rng.choice([product for product in products if product != told[i]]))
    return told


def dataset(seed: int, which: str) -> Dataset:
    """The pairs that are to be learnt; the known ones validate."""
    known, others = pairs(seed)
    told = tuple(d._replace(text=hint) for d, hint in zip(others, hints(seed, which)))
    corpus = Corpus(
        "products",
        {"train": told, "validation": tuple(known), "test": tuple(others)},
        ("products",),
    )
    found = privileged_dataset(
        corpus,
        TOKENIZER,
        PROMPT + ANSWER,
        prompt_length=PROMPT,
        teacher_length=HINTED,
        templates=TEMPLATES,
    )
    if which != "none":
        return found
    # The control: the teacher reads what the student does.
    arrays = found.splits["train"].arrays()
    arrays = {**arrays, "teacher_prompt": arrays["tokens"][:, :PROMPT]}
    arrays["teacher_prompt_where"] = arrays["segments"][:, :PROMPT] > 0
    train = TokenSplit.of(arrays, found.splits["train"].where)
    return dataclasses.replace(found, splits={**found.splits, "train": train})


def task(found: Dataset, training: Training, seed: int, **options) -> LanguageTask:
    """A task of one decoder."""
    return LanguageTask(
        found,
        training={"student": training},
        decoders={"student": MODEL},
        tokenizer=TOKENIZER,
        seed=seed,
        validate_every=200,
        **options,
    )


def recipe(seed: int) -> Generator:
    """One model, pre-trained, then every arm from there."""
    begun = task(pretraining(seed), PRETRAINING, seed)
    start = yield from prefixed(language_model.recipe(begun, language_model.Config()), "pretrain")
    trained = {}
    for name, (config, which) in ARMS.items():
        arm = task(dataset(seed, which), TRAINING, seed, initial={"student": start.last})
        trained[name] = yield from prefixed(opsd.recipe(arm, config), name)
    return start, trained


def scores(seed: int, variables, which: str) -> dict[str, float]:
    """Accuracies of greedy answers: of the pairs to be learnt without and with their true hint, of
    the known pairs, and how often the answer without a hint is what the arm's teacher was told."""
    known, others = pairs(seed)
    asked = task(dataset(seed, "true"), TRAINING, seed)

    def answers(prompts: Sequence[str]) -> np.ndarray:
        encoded = [TOKENIZER.encode(prompt) for prompt in prompts]
        options = dict(max_new_tokens=ANSWER)
        return np.array(asked.sample("student", variables, encoded, **options))

    found = answers([d.prompt for d in others])
    told = np.array(hints(seed, which))
    true = np.array([d.text for d in others])
    with_hint = answers([f"{d.text}:{d.prompt}" for d in others])
    out = {
        "accuracy": np.mean(found == true),
        "accuracy_with_hint": np.mean(with_hint == true),
        "accuracy_of_known": np.mean(answers([d.prompt for d in known]) == [d.text for d in known]),
        "told": np.mean(found == told),
    }
    if (told != true).any():
        out["told_where_wrong"] = np.mean((found == told)[told != true])
        out["accuracy_where_wrong"] = np.mean((found == true)[told != true])
    return {name: float(value) for name, value in out.items()}


SHOWN = ("accuracy", "accuracy_with_hint", "accuracy_of_known", "told")


def claims(accuracy: Mapping[str, np.ndarray]) -> list[str]:
    """What the paper says of the arms, what was looked for, and whether it holds in the mean."""
    mean = {name: float(np.mean(values)) for name, values in accuracy.items()}
    seeds = len(accuracy["before"])

    def line(larger: str, smaller: str, by: float = 0.0) -> str:
        gap = accuracy[larger] - accuracy[smaller]
        holds = "holds" if gap.mean() > by else "FAILS"
        said = f"{larger} - {smaller} > {by:g}"
        return (
            f"- {said}: {holds} ({mean[larger]:.3f} against {mean[smaller]:.3f}; in "
            f"{int((gap > by).sum())} of {seeds} seeds)"
        )

    return [
        line("jsd-fixed", "before", 0.3),
        line("jsd-fixed", "sampled_token"),
        line("sampled_token", "control"),
        line("jsd-fixed", "live"),
        line("jsd-fixed", "corrupted"),
        line("lora-16", "before", 0.3),
    ]


def publish(results: pathlib.Path) -> str:
    """The table of a folder of records."""
    records = evaluation.read_records(results)
    last = evaluation.arms(records, "last")
    last = {name: last[name] for name in ("before", *ARMS)}
    wrong = {n: np.mean(last["corrupted"][n]) for n in ("told_where_wrong", "accuracy_where_wrong")}
    lines = [
        f"# {NAME}",
        "",
        "After the last step; `before` is the pre-trained model that every arm starts from.",
        "",
        evaluation.comparison_table(last, baseline="before", metrics=SHOWN),
        "",
        "`told`: the answer without a hint is what the arm's teacher was told. In `corrupted` half "
        "of that is wrong: of those pairs the student answers "
        f"{wrong['told_where_wrong']:.3f} with what was told and "
        f"{wrong['accuracy_where_wrong']:.3f} with the product.",
        "",
        *claims({name: np.asarray(values["accuracy"]) for name, values in last.items()}),
        "",
    ]
    text = "\n".join(lines)
    (results / "table.md").write_text(text)
    return text


def main(argv: Sequence[str]) -> None:
    workdir, results = pathlib.Path(WORKDIR.value), pathlib.Path(RESULTS.value)
    environment = evaluation.environment()
    about = {
        "model": dataclasses.asdict(MODEL),
        "parameters": int(sum(x.size for x in jax.tree.leaves(parameters()))),
        "pretraining": dataclasses.asdict(PRETRAINING),
        "training": dataclasses.asdict(TRAINING),
    }
    for seed in range(SEEDS.value):
        began, folder = time.monotonic(), workdir / f"seed-{seed}"
        start, trained = run(recipe(seed), seed=seed, workdir=folder, display=Display())
        curves = evaluation.curves(read_metrics(folder))
        seconds = (time.monotonic() - began) / (1 + len(ARMS))
        for name in ("before", *ARMS):
            found = start if name == "before" else trained[name]
            config, which = ARMS.get(name, (None, "true"))
            stage = "pretrain/" if name == "before" else f"{name}/"
            record = evaluation.Record(
                method=name,
                task=NAME,
                seed=seed,
                config={**about, "method": config and dataclasses.asdict(config), "hints": which},
                metrics={
                    kind: scores(seed, getattr(found, kind), which) for kind in ("last", "selected")
                },
                curves={s: c for s, c in curves.items() if s.startswith(stage)},
                commit=environment["commit"],
                versions=environment,
                seconds=seconds,
            )
            evaluation.write_record(results / f"{name}-seed{seed}.json", record)
    print(publish(results))


@functools.cache
def parameters():
    """Random ones, for their number."""
    return task(dataset(0, "true"), TRAINING, 0).variables("student")["params"]


if __name__ == "__main__":
    app.run(main)
