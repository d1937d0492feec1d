"""DisWOT: the student's architecture is searched for a given teacher, without training any.

DisWOT: Student Architecture Search for Distillation WithOut Training, Dong, Li and Wei 2023
(arXiv:2303.15678, CVPR 2023).

Teacher and candidate stand at random initialisation, one batch goes through both, and two
similarities are measured: of the relations between the examples in the last maps, and of the
channel correlations of the gradients in the classifiers:

    S = combine( -1/B^2 sum (R^s - R^t)^2,  -1/(K D) sum_k (E^s_k - E^t_k)^2 )

(`losses.relation_similarity`, `losses.semantic_similarity`, `losses.diswot`). An evolutionary
search maximises S within a budget of operations and parameters; the winner is then distilled with
KD (Hinton et al. 2015). The teacher's weights play no part in the search, its architecture does.

Two things are not as published. The raw sum of the similarities is decided by the semantic one,
whose range is 80 times as wide: the default adds ranks over the pool that is compared (a
tournament's sample, the population, all candidates). And the parent of a tournament is its best
member. The baselines that a score has to beat are the numbers of parameters and of operations:
both are kept beside it in the journal.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping
from typing import Any

import jax
import numpy as np

from kdjax import losses
from kdjax.methods import kd, supervised
from kdjax.methods.architecture_scores import cost, initial, observe, similarities
from kdjax.methods.architecture_search import (
    Combine,
    Genome,
    History,
    Space,
    exhaustive,
    regularized_evolution,
    steady_state_evolution,
)
from kdjax.methods.task import Task, Trained, inputs
from kdjax.training import Compute, traced
from kdjax.training.optimizers import Training

SIMILARITIES = ("relation", "semantic")
SEARCHES: Mapping[str, Mapping[str, int]] = {
    "evolution": dict(population=36, evaluations=1000),
    "steady_state": dict(population=512, evaluations=5000),
    "exhaustive": {},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The space, the score, the search and the distillation. `Config.of(search)`: its defaults.

    Attributes:
      choices: option of the student's network -> its values; `"depth/0"` is entry 0 of a tuple,
        `"name"` the network itself. Default: the 64 CIFAR ResNets of the paper, for a student
        `resnet`.
      similarities: `relation`, `semantic` or both.
      combine: of both, "rank_sum", "zscore" or "sum" (published).
      initialization: "gaussian" (N(0, 1) kernels in both networks, as published for the ResNets) or
        "default" (that of the networks).
      student_map, teacher_map: taps of the last maps before pooling.
      batch_size: of the batch that scores, at least 2.
      repeats: initialisations and batches a candidate is scored with; scores are averaged.
      search: "evolution" (regularised), "steady_state" or "exhaustive".
      population, tournament, evaluations: of the search; see `architecture_search.py`.
      max_tries: proposals for one candidate within the budget.
      finalists, final_repeats: that many of the best are scored again, with so many fresh
        initialisations, and the best of them is the student.
      max_flops, max_parameters: the budget: operations of a forward pass of one example (two for a
        multiply-add), trainable parameters; 0: none.
      temperature, label_weight, distillation_weight: of KD.
    """

    choices: Mapping[str, tuple[Any, ...]] = dataclasses.field(
        default_factory=lambda: {f"depth/{stage}": (1, 3, 5, 7) for stage in range(3)}
    )
    similarities: tuple[str, ...] = SIMILARITIES
    combine: str = "rank_sum"
    initialization: str = "gaussian"
    student_map: str = "stage3/out"
    teacher_map: str = "stage3/out"
    batch_size: int = 64
    repeats: int = 1
    search: str = "evolution"
    population: int = 36
    tournament: int = 8
    evaluations: int = 1000
    max_tries: int = 1000
    finalists: int = 5
    final_repeats: int = 3
    max_flops: int = 0
    max_parameters: int = 0
    temperature: float = 4.0
    label_weight: float = 0.1
    distillation_weight: float = 0.9

    def __post_init__(self):
        Space.of(self.choices)
        chosen = tuple(self.similarities)
        if chosen not in (SIMILARITIES, SIMILARITIES[:1], SIMILARITIES[1:]):
            raise ValueError(
                f"similarities must be one or both of {SIMILARITIES}, in that order, got {chosen}"
            )
        for name, options in (
            ("combine", ("rank_sum", "zscore", "sum")),
            ("initialization", ("gaussian", "default")),
            ("search", tuple(SEARCHES)),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be one of {options}, got {getattr(self, name)!r}")
        for name, least in (
            ("batch_size", 2),
            ("repeats", 1),
            ("population", 1),
            ("tournament", 1),
            ("evaluations", 1),
            ("max_tries", 1),
            ("finalists", 1),
            ("final_repeats", 1),
            ("max_flops", 0),
            ("max_parameters", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.search == "evolution" and self.tournament > self.population:
            raise ValueError(
                f"tournament={self.tournament} is drawn from a population of {self.population}: "
                "it cannot be larger"
            )
        self.distillation  # noqa: B018  its own checks

    @property
    def distillation(self) -> kd.Config:
        """How the student is distilled once it is found."""
        return kd.Config(
            "kd",
            temperature=self.temperature,
            label_weight=self.label_weight,
            distillation_weight=self.distillation_weight,
        )

    @staticmethod
    def of(search: str, **changes: Any) -> Config:
        """The published size of a search, with changes.

        >>> Config.of("steady_state").population
        512
        """
        return Config(**{"search": search, **SEARCHES.get(search, {}), **changes})


def combined(config: Config) -> Combine:
    """`[candidates, repeats, similarities] -> [candidates]`: the scores of a pool."""

    def score(measures: np.ndarray) -> np.ndarray:
        if len(config.similarities) == 1:
            return measures[:, :, 0].mean(axis=1)
        of_repeats = [
            losses.diswot(relation, semantic, combine=config.combine)
            for relation, semantic in np.moveaxis(measures, (1, 2), (0, 1))
        ]
        return np.mean(of_repeats, axis=0)

    return score


class Scorer:
    """Measures candidates of a task's student against the architecture of its teacher.

    Candidates of one repeat see one batch, each from a start of its own: where they shared one, its
    chance likeness to the teacher's would order them all alike. What the teacher shows is kept.
    """

    def __init__(self, task: Task, config: Config):
        self.task, self.config, self.space = task, config, Space.of(config.choices)
        training = {role: Training(batch_size=config.batch_size) for role in task.networks}
        self._stream = dataclasses.replace(task, training=training).stream("student", name="scores")
        self._seen = functools.cache(self._observed_teacher)
        self._cost = functools.cache(self._costs)
        self._read = functools.cache(self._batches)

    def batch(self, repeat: int) -> Mapping[str, jax.Array]:
        """What a repeat scores on: examples as the student's validation sees them."""
        return self._read(repeat)

    def _batches(self, repeat: int) -> Mapping[str, jax.Array]:
        item = next(iter(self._stream.items(repeat)))
        return self._stream.assemble(self._stream.table, item)

    def _observe(self, role: str, network, repeat: int, which: str = ""):
        config, batch = self.config, self.batch(repeat)
        x = inputs(batch, self.task.reads(role))
        key = self.task.key(f"scores of {role} {which}, {repeat}")
        tap = config.teacher_map if role == "teacher" else config.student_map
        variables = initial(network, key, x, config.initialization)
        try:
            return observe(network, variables, x, batch["label"], tap)
        except ValueError as error:
            raise ValueError(f"{role}: {error}") from error

    def _observed_teacher(self, repeat: int):
        return self._observe("teacher", self.task.networks["teacher"], repeat)

    def network(self, genome: Genome):
        """The candidate's network."""
        return self.task.network_with("student", self.space.options(genome))

    def check(self) -> None:
        """Refuses values of choices that are no networks, before anything is computed.

        Raises:
          ValueError: from the network that cannot be built.
        """
        for i, (_, values) in enumerate(self.space.choices):
            for value in range(len(values)):
                genome = [0] * len(self.space.choices)
                genome[i] = value
                self.network(tuple(genome))

    def _costs(self, genome: Genome) -> dict[str, int]:
        return cost(self.network(genome), inputs(self.batch(0), self.task.reads("student")))

    def costs(self, genome: Genome) -> dict[str, int]:
        """`parameters` and `flops` of a candidate."""
        return self._cost(genome)

    def allowed(self, genome: Genome) -> bool:
        """Whether a candidate is within the budget."""
        found, config = self.costs(genome), self.config
        return (not config.max_flops or found["flops"] <= config.max_flops) and (
            not config.max_parameters or found["parameters"] <= config.max_parameters
        )

    def measure(self, genome: Genome, repeats: range) -> np.ndarray:
        """`[repeats, similarities]`, larger is better.

        Raises:
          ValueError: classifiers of different widths, of which there is no semantic similarity.
        """
        network, rows = self.network(genome), []
        for repeat in repeats:
            student = self._observe("student", network, repeat, str(tuple(map(int, genome))))
            teacher = self._seen(repeat)
            found = similarities(student, teacher)
            for name in self.config.similarities:
                if name not in found:
                    shapes = [x.head_gradients.shape for x in (student, teacher)]
                    raise ValueError(
                        f"the classifier's weights [classes, features] are {shapes[0]} in the "
                        f"student {self.space.options(genome)} and {shapes[1]} in the teacher: "
                        "their semantic similarity is not defined; use similarities=('relation',)"
                    )
            rows.append([found[name] for name in self.config.similarities])
        return np.array(rows)


def search(rng: np.random.Generator, task: Task, config: Config) -> dict[str, np.ndarray]:
    """The search of a config, as the host computation of a recipe.

    Returns:
      `genomes` [candidates, choices], each measured once, in the order they came, with their
      `measures` [candidates, repeats, similarities], `scores` [candidates] as one pool,
      `parameters` and `flops`; `finalists`, their places, `final_scores`, and `best`, a place.

    Raises:
      ValueError: a candidate that cannot be built or scored, a budget that none meets.
    """
    scorer, combine = Scorer(task, config), combined(config)
    scorer.check()
    usual = range(config.repeats)
    history = History(scorer.space, lambda g: scorer.measure(g, usual), scorer.allowed)
    options = dict(
        population=config.population, evaluations=config.evaluations, max_tries=config.max_tries
    )
    if config.search == "exhaustive":
        exhaustive(history)
    elif config.search == "evolution":
        regularized_evolution(rng, history, combine, tournament=config.tournament, **options)
    else:
        steady_state_evolution(rng, history, combine, **options)
    scores = history.scores(combine, range(len(history.genomes)))
    # Of equal scores the candidate that came first.
    finalists = np.argsort(-scores, kind="stable")[: config.finalists]
    final_scores = scores[finalists]
    if len(finalists) > 1:
        fresh = range(config.repeats, config.repeats + config.final_repeats)
        final = [scorer.measure(history.genomes[i], fresh) for i in finalists]
        final_scores = np.asarray(combine(np.stack(final)))
    costs = [scorer.costs(genome) for genome in history.genomes]
    return {
        "genomes": np.array(history.genomes),
        "measures": np.stack(history.measures),
        "scores": scores,
        "parameters": np.array([found["parameters"] for found in costs]),
        "flops": np.array([found["flops"] for found in costs]),
        "finalists": finalists,
        "final_scores": final_scores,
        "best": finalists[np.argmax(final_scores)],
    }


def check(task: Task, config: Config) -> None:
    """Refuses choices that are no networks, and maps that the networks do not have.

    Teacher and first candidate are looked at once, on one batch.

    Raises:
      ValueError: a choice cannot be built, a map matches no value or several.
    """
    scorer = Scorer(task, config)
    scorer.check()
    scorer.measure((0,) * len(scorer.space.choices), range(1))


def recipe(task: Task, config: Config) -> Generator:
    """The search, a teacher, given or trained, then one stage that distils what was found."""
    found = yield Compute("search", functools.partial(search, task=task, config=config))
    changes = Space.of(config.choices).options(found["genomes"][found["best"]].tolist())
    chosen = task.with_network("student", task.network_with("student", changes))
    teacher = yield from supervised.teacher(task)
    student, training = chosen.networks["student"], task.training["student"]
    distillation = config.distillation
    step = kd.program(
        student,
        task.networks["teacher"],
        traced.static(training),
        traced.static(distillation),
        task.reads("student"),
        task.reads("teacher"),
    )
    values = traced.values(training, distillation)
    outcome = yield from chosen.distill(step, teacher, values=values)
    trained = Trained.of(outcome, "student")
    return dataclasses.replace(trained, network=student, changes=changes)
