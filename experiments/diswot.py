"""How well scores without training rank students: published networks, 12 students on digits.

    python -m experiments.diswot resnets --ground_truth=s1.csv.gz --results=results/diswot-resnets
    python -m experiments.diswot nasbench201 --ground_truth=nasbench201.csv.gz \\
        --images=folder:cifar10.zip --results=results/diswot-nasbench201
    python -m experiments.diswot digits --workdir=runs/diswot-digits --results=results/diswot-digits

`resnets` (minutes of one core) scores the CIFAR ResNets of the paper's space S1 against ResNet-110
on noise, as the authors' code computes it, and correlates the scores with the accuracies that they
publish; the file has a row a network: `blocks1,blocks2,blocks3,acc_plain,acc_distilled`.
`nasbench201` (ten minutes of one core) does so for samples of the networks of NAS-Bench-201,
against ResNet-56 on CIFAR-10; the file has a row a cell: `cell`, as the benchmark writes it, and
accuracies in per cent, `cifar10_val,cifar10_test,cifar100_test,imagenet16_120_test`. `digits`
(minutes) trains a teacher and twelve students by KD, three seeds together, correlates every score
with their accuracies on the test split, and searches the twelve with five evaluations. Numbers of
parameters and of operations stand beside every score.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
import pathlib
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from experiments.architecture_rankings import agreement, claim, named, pools, recorded, table
from experiments.diswot_nasbench201 import nasbench201
from kdjax import data, evaluation, networks
from kdjax.methods import diswot, kd, supervised
from kdjax.methods.architecture_scores import cost, initial, observe, proxies, similarities
from kdjax.methods.architecture_search import Space
from kdjax.methods.task import Task
from kdjax.training import Display, prefixed, run, together
from kdjax.training.optimizers import Training

SEEDS = (0, 1, 2)
BATCH = 32
RESNETS = Space.of({f"depth/{stage}": (1, 3, 5, 7) for stage in range(3)})
RESNET_RELUS = ("norm/out", "**/norm1/out", "**/preact")
# The others differentiate the networks in their inputs or twice: longer than all the rest.
RESNET_PROXIES = ("snip", "plain", "grad_norm", "l2_norm", "synflow", "nwot", "zen")

STUDENTS = Space.of({"width": (4, 8, 16), "depth": (1, 2, 3, 4)})
DIGITS_RELUS = ("norm*/out", "last/norm/out")
STEPS = 200  # ten epochs of 1,257 digits in batches of 64
SEARCHES = 5
SEARCH = diswot.Config(
    choices=dict(STUDENTS.choices),
    student_map="last/out",
    teacher_map="last/out",
    population=3,
    tournament=2,
    evaluations=5,
    finalists=2,
)


def ground_truth(path: pathlib.Path) -> dict[tuple[int, ...], tuple[float, float]]:
    """Blocks of the three stages -> accuracies of the distilled and of the plain network (%).

    Raises:
      ValueError: the file does not hold the 64 networks.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        found = {
            tuple(int(row[f"blocks{i}"]) for i in (1, 2, 3)): (
                float(row["acc_distilled"]),
                float(row["acc_plain"]),
            )
            for row in rows
        }
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must have the columns blocks1, blocks2, blocks3, acc_plain and acc_distilled"
        ) from error
    wanted = {tuple(RESNETS.options(genome).values()) for genome in RESNETS.every()}
    if set(found) != wanted:
        raise ValueError(f"{path} must have a row for each of {len(wanted)} networks of S1")
    return found


def resnet(genome: Sequence[int]) -> networks.Network:
    """A student of S1, for 100 classes."""
    return networks.build("resnet", 100, depth=tuple(RESNETS.options(genome).values()))


def resnet_scores(seed: int, with_proxies: bool) -> dict[str, np.ndarray]:
    """The scores of the 64 ResNets on one batch of noise with random labels, both inits."""
    keys = jax.random.split(jax.random.key(seed), 4)
    inputs = (jax.random.normal(keys[0], (BATCH, 32, 32, 3)),)
    labels = jax.random.randint(keys[1], (BATCH,), 0, 100)
    genomes, scores = RESNETS.every(), {}
    for start in ("default", "gaussian"):
        teacher = networks.build("resnet110", 100)
        variables = initial(teacher, keys[2], inputs, start)
        shown, found = observe(teacher, variables, inputs, labels, "stage3/out"), []
        for key, genome in zip(jax.random.split(keys[3], len(genomes)), genomes):
            student = resnet(genome)
            variables = initial(student, key, inputs, start)
            found.append(
                similarities(observe(student, variables, inputs, labels, "stage3/out"), shown)
            )
        measured = [np.array([x[name] for x in found]) for name in ("relation", "semantic")]
        scores |= {f"{name}, {start}": values for name, values in pools(*measured).items()}
    if with_proxies:
        options = dict(tap="stage3/out", rectified=RESNET_RELUS, names=RESNET_PROXIES)
        rows = [proxies(resnet(g), keys[3], inputs, labels, **options) for g in genomes]
        scores |= {name: np.array([row[name] for row in rows]) for name in RESNET_PROXIES}
    return scores


def resnets(results: pathlib.Path, path: pathlib.Path, with_proxies: bool) -> str:
    """The records and the table of S1."""
    published, environment = ground_truth(path), evaluation.environment()
    blocks = [tuple(RESNETS.options(genome).values()) for genome in RESNETS.every()]
    distilled, plain = np.array([published[x] for x in blocks]).T
    costs = [cost(resnet(g), (np.zeros((1, 32, 32, 3), "f4"),)) for g in RESNETS.every()]
    beside = {name: np.array([x[name] for x in costs], float) for name in ("parameters", "flops")}
    beside["accuracy without distillation"] = plain
    taus: dict[str, list[float]] = {}
    for seed in SEEDS:
        began = time.monotonic()
        scores = beside | resnet_scores(seed, with_proxies and seed == SEEDS[0])
        found = {name: agreement(distilled, values) for name, values in scores.items()}
        for name, values in found.items():
            taus.setdefault(name, []).append(values["kendall"])
        record = evaluation.Record(
            method="scores",
            task="diswot-resnets",
            seed=seed,
            config={
                "networks": ["-".join(map(str, x)) for x in blocks],
                "distilled": distilled.tolist(),
                "scores": recorded(scores),
                "batch": BATCH,
            },
            metrics={"last": named(found), "selected": named(found)},  # published: the same
            curves={},
            commit=environment["commit"],
            versions=environment,
            seconds=time.monotonic() - began,
        )
        evaluation.write_record(results / f"scores-seed{seed}.json", record)
    claims = [
        claim(
            "relation, default init: tau > 0.35 in every seed",
            min(taus["relation, default"]) > 0.35,
        ),
        claim(
            "relation, Gaussian init: tau > 0.35 in every seed",
            min(taus["relation, gaussian"]) > 0.35,
        ),
        claim(
            "semantic, Gaussian init: tau > 0.3 in every seed",
            min(taus["semantic, gaussian"]) > 0.3,
        ),
        claim(
            "semantic, default init: tau < 0.2 in every seed", max(taus["semantic, default"]) < 0.2
        ),
    ]
    head = (
        f"64 CIFAR ResNets, teacher ResNet-110, {BATCH} images of noise with random labels, "
        f"{len(SEEDS)} seeds (zero-cost proxies: one). Kendall's tau with the published accuracies "
        "after KD on CIFAR-100."
    )
    return table("diswot-resnets", head, taus, claims, results)


def student(changes: Mapping[str, Any]) -> networks.Network:
    return networks.build("normalized_convnet", 10, **{"width": 4, "depth": 1, **changes})


def digits_task(seed: int) -> Task:
    """All training digits, a teacher of width 32 and depth 4."""
    training = Training(steps=STEPS, batch_size=64, learning_rate=3e-3, schedule="cosine")
    return Task(
        data.load("digits"),
        {"teacher": networks.build("normalized_convnet", 10), "student": student({})},
        {"teacher": training, "student": training},
        seed=seed,
        validate_every=STEPS,
        cache_teacher=True,
        variants={"student": student},
    )


def every_student(seed: int) -> Generator:
    """A teacher, then each of the twelve by KD; `(teacher, variables)`."""
    task, trained = digits_task(seed), []
    teacher = yield from supervised.teacher(task)
    task = yield from task.with_teacher(teacher).prepared()
    for genome in STUDENTS.every():
        options = STUDENTS.options(genome)
        own = task.with_network("student", task.network_with("student", options))
        name = "-".join(map(str, options.values()))
        trained.append((yield from prefixed(kd.recipe(own, SEARCH.distillation), name)))
    return teacher, trained


def digits_scores(seed: int) -> dict[str, np.ndarray]:
    """All scores of the twelve on one batch of digits."""
    task, genomes, scores = digits_task(seed), STUDENTS.every(), {}
    for start in ("default", "gaussian"):
        scorer = diswot.Scorer(task, dataclasses.replace(SEARCH, initialization=start))
        measures = np.stack([scorer.measure(genome, range(1)) for genome in genomes])[:, 0]
        scores |= {f"{name}, {start}": x for name, x in pools(*measures.T).items()}
    batch = scorer.batch(0)
    options = dict(tap="last/out", rectified=DIGITS_RELUS)
    rows = [
        proxies(
            scorer.network(genome),
            task.key("proxies"),
            (batch["image"],),
            batch["label"],
            **options,
        )
        for genome in genomes
    ]
    scores |= {name: np.array([row[name] for row in rows]) for name in rows[0]}
    costs = [scorer.costs(genome) for genome in genomes]
    return scores | {name: np.array([x[name] for x in costs], float) for name in costs[0]}


def digits(results: pathlib.Path, workdir: pathlib.Path) -> str:
    """The records and the table of the twelve students on digits, and of the searches."""
    environment, genomes = evaluation.environment(), STUDENTS.every()
    began = time.monotonic()
    found = run(
        together([every_student(s) for s in SEEDS], SEEDS), workdir=workdir, display=Display()
    )
    seconds = (time.monotonic() - began) / len(SEEDS)
    accuracies: dict[str, list] = {"last": [], "selected": []}
    taus: dict[str, list[float]] = {}
    for seed, (_, trained) in zip(SEEDS, found):
        task = digits_task(seed)
        nets = [task.network_with("student", STUDENTS.options(genome)) for genome in genomes]
        tasks = [task.with_network("student", network) for network in nets]
        for which, of in accuracies.items():
            of.append(
                [
                    own.scores("student", getattr(result, which), None)["accuracy"]
                    for own, result in zip(tasks, trained)
                ]
            )
    means = {which: np.mean(of, axis=0) for which, of in accuracies.items()}
    mean = means["last"]
    for i, seed in enumerate(SEEDS):
        scores, metrics = digits_scores(seed), {}
        for which, true in means.items():
            metrics[which] = {name: agreement(true, values) for name, values in scores.items()}
            own = np.array(accuracies[which][i])
            metrics[which]["accuracy of this seed"] = agreement(true, own)
        for name, values in metrics["last"].items():
            taus.setdefault(name, []).append(values["kendall"])
        record = evaluation.Record(
            method="scores",
            task="diswot-digits",
            seed=seed,
            config={
                "networks": ["-".join(map(str, STUDENTS.options(g).values())) for g in genomes],
                "distilled": {which: of[i] for which, of in accuracies.items()},
                "scores": recorded(scores),
                "training": dataclasses.asdict(digits_task(seed).training["student"]),
            },
            metrics={which: named(of) for which, of in metrics.items()},
            curves={},
            commit=environment["commit"],
            versions=environment,
            seconds=seconds,
        )
        evaluation.write_record(results / f"scores-seed{seed}.json", record)
    ranks = searches(mean)
    half = len(genomes) // 2
    shown = ", ".join(f"{name} {values}" for name, values in ranks.items())
    claims = [
        claim(
            f"rank_sum finds a student of the upper half in at least 4 of {SEARCHES} searches",
            sum(rank <= half for rank in ranks["rank_sum"]) >= 4,
        ),
        f"- true ranks (of {len(genomes)}) of the students that {SEARCHES} searches found with 5 "
        f"evaluations: {shown}",
        f"- accuracies after KD, mean of the seeds: {mean.min():.3f} to {mean.max():.3f}",
    ]
    head = (
        "Twelve students (width 4, 8, 16; depth 1 to 4), a teacher of width 32 and depth 4, KD "
        f"for {STEPS} steps. Kendall's tau with the test accuracy after KD, {len(SEEDS)} seeds."
    )
    return table("diswot-digits", head, taus, claims, results)


def searches(accuracy: np.ndarray) -> dict[str, list[int]]:
    """Score -> the true rank of what each search found, 1 for the best."""
    places = {genome: i for i, genome in enumerate(STUDENTS.every())}
    ranks: dict[str, list[int]] = {}
    for name in ("rank_sum", "zscore", "sum"):
        config = dataclasses.replace(SEARCH, combine=name)
        for seed in range(SEARCHES):
            found = diswot.search(np.random.default_rng(seed), digits_task(seed), config)
            best = tuple(found["genomes"][found["best"]].tolist())
            rank = int(np.sum(accuracy > accuracy[places[best]])) + 1
            ranks.setdefault(name, []).append(rank)
    return ranks


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    parser = argparse.ArgumentParser(prog="experiments.diswot")
    parts = parser.add_subparsers(dest="part", required=True)
    ranked, sampled, taught = (
        parts.add_parser(name) for name in ("resnets", "nasbench201", "digits")
    )
    for part in (ranked, sampled, taught):
        part.add_argument(
            "--results", type=pathlib.Path, required=True, help="for records and table"
        )
    for part in (ranked, sampled):
        part.add_argument("--ground_truth", type=pathlib.Path, required=True, help="CSV, CSV.gz")
        part.add_argument("--no-proxies", dest="proxies", action="store_false")
    sampled.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    sampled.add_argument("--images", required=True, help="32x32, ten classes: folder:cifar10.zip")
    taught.add_argument("--workdir", type=pathlib.Path, required=True, help="where the run lies")
    given = parser.parse_args()
    if given.part == "resnets":
        print(resnets(given.results, given.ground_truth, given.proxies))
    elif given.part == "nasbench201":
        options = (given.ground_truth, given.images, given.proxies, given.seeds)
        print(nasbench201(given.results, *options))
    else:
        print(digits(given.results, given.workdir))


if __name__ == "__main__":
    main()
