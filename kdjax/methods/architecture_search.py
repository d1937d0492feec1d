"""Spaces of architectures, and evolutionary searches of them by scores that cost no training.

A candidate is a genome: for each choice of the space the index of a value. Candidates are measured
once; their measures are combined into scores over the pool that is compared, since a rank means
nothing outside of one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Genome = tuple[int, ...]
Measure = Callable[[Genome], np.ndarray]  # measures of a candidate, an array of any shape
Combine = Callable[[np.ndarray], np.ndarray]  # [candidates, ...] -> scores [candidates]


@dataclasses.dataclass(frozen=True)
class Space:
    """What of a network is to be chosen.

    Attributes:
      choices: (option of the network, its values); `"depth/0"` is entry 0 of a tuple.

    >>> space = Space.of({"depth/0": (1, 3), "depth/1": (1, 3, 5)})
    >>> space.size, space.options((1, 2))
    (6, {'depth/0': 3, 'depth/1': 5})
    """

    choices: tuple[tuple[str, tuple[Any, ...]], ...]

    def __post_init__(self):
        if not self.choices:
            raise ValueError("choices must name at least one option and its values, got none")
        for name, values in self.choices:
            if not values or len(set(values)) < len(values):
                raise ValueError(f"choices[{name!r}] must be distinct values, got {values}")

    @staticmethod
    def of(choices: Mapping[str, Sequence[Any]]) -> Space:
        return Space(tuple((name, tuple(values)) for name, values in choices.items()))

    @property
    def size(self) -> int:
        return math.prod(len(values) for _, values in self.choices)

    def options(self, genome: Sequence[int]) -> dict[str, Any]:
        """The options that a genome stands for."""
        return {name: values[i] for (name, values), i in zip(self.choices, genome, strict=True)}

    def every(self) -> list[Genome]:
        """All genomes, in order."""
        return list(itertools.product(*(range(len(values)) for _, values in self.choices)))

    def random(self, rng: np.random.Generator) -> Genome:
        return tuple(int(rng.integers(len(values))) for _, values in self.choices)

    def mutate(self, rng: np.random.Generator, genome: Genome, count: int) -> Genome:
        """A genome with other values for `count` of the choices, or for all that have another."""
        free = [i for i, (_, values) in enumerate(self.choices) if len(values) > 1]
        changed = list(genome)
        for i in rng.choice(free, min(count, len(free)), replace=False) if free else ():
            step = rng.integers(1, len(self.choices[i][1]))
            changed[i] = int((genome[i] + step) % len(self.choices[i][1]))
        return tuple(changed)


class History:
    """The candidates that were measured, each once, in the order they came.

    Attributes:
      genomes: of all.
      measures: of all, arrays of one shape.
      allowed: whether a candidate is within the budget.

    Raises (from whatever measures):
      ValueError: a measure is NaN.
    """

    def __init__(self, space: Space, measure: Measure, allowed: Callable[[Genome], bool]):
        self.space, self._measure, self.allowed = space, measure, allowed
        self.genomes: list[Genome] = []
        self.measures: list[np.ndarray] = []
        self._places: dict[Genome, int] = {}

    def add(self, genome: Genome) -> int:
        """The place of a candidate, which is measured if it is new."""
        if genome not in self._places:
            values = np.asarray(self._measure(genome), np.float64)
            if np.isnan(values).any():
                raise ValueError(
                    f"the candidate {self.space.options(genome)} cannot be scored: its measures "
                    f"are {values.tolist()}"
                )
            self._places[genome] = len(self.genomes)
            self.genomes.append(genome)
            self.measures.append(values)
        return self._places[genome]

    def draw(
        self, propose: Callable[[], Genome], max_tries: int, otherwise: int | None = None
    ) -> int:
        """The place of a proposed candidate that is allowed, and new if one can be found.

        Args:
          propose: returns another genome each time.
          max_tries: how often.
          otherwise: the place to return where no proposal is allowed: the parent's.

        Raises:
          ValueError: none of `max_tries` proposals is allowed, and there is no `otherwise`.
        """
        seen = None if otherwise is None else self.genomes[otherwise]
        for _ in range(max_tries):
            genome = propose()
            if genome in self._places:
                seen = genome
            elif self.allowed(genome):
                return self.add(genome)
        if seen is None:
            raise ValueError(
                f"none of max_tries={max_tries} candidates is within the budget (max_flops, "
                "max_parameters): raise it, or offer smaller choices"
            )
        return self._places[seen]

    def scores(self, combine: Combine, places: Sequence[int]) -> np.ndarray:
        """Scores of the candidates at `places`, as one pool."""
        return np.asarray(combine(np.stack([self.measures[i] for i in places])))


def exhaustive(history: History) -> None:
    """Measures every candidate that is allowed.

    Raises:
      ValueError: none is.
    """
    for genome in history.space.every():
        if history.allowed(genome):
            history.add(genome)
    if not history.genomes:
        raise ValueError("no candidate of the space is within the budget")


def regularized_evolution(
    rng: np.random.Generator,
    history: History,
    combine: Combine,
    *,
    population: int,
    tournament: int,
    evaluations: int,
    max_tries: int,
) -> None:
    """Regularised evolution: the best of a random sample has a mutated child, the oldest dies.

    Real et al. 2019 (arXiv:1802.01548). The published search of DisWOT sorts its sample in
    ascending order and draws the parent among the first five of eight, which prefers the worse
    ones; here the parent is the best of the sample.

    Args:
      rng: of the first population, samples and mutations.
      history: measures candidates, and holds them afterwards.
      combine: measures of a pool -> scores.
      population: members at any time.
      tournament: size of a sample; at most `population`.
      evaluations: candidates drawn in all, the first population included.
      max_tries: proposals for one candidate that is new and allowed; an old one, or the parent
        itself, then takes its place.
    """
    space = history.space
    alive = [
        history.draw(lambda: space.random(rng), max_tries)
        for _ in range(min(population, evaluations))
    ]
    for _ in range(evaluations - len(alive)):
        sample = [alive[i] for i in rng.choice(len(alive), tournament, replace=False)]
        parent = sample[int(np.argmax(history.scores(combine, sample)))]
        genome = history.genomes[parent]
        alive.append(history.draw(lambda g=genome: space.mutate(rng, g, 1), max_tries, parent))
        alive.pop(0)


def steady_state_evolution(
    rng: np.random.Generator,
    history: History,
    combine: Combine,
    *,
    population: int,
    evaluations: int,
    max_tries: int,
) -> None:
    """A random member has a child with two mutations, and the worst of all dies.

    DisWOT's search of ImageNet networks, after Lin et al. 2021 (arXiv:2102.01063).

    Args:
      rng, history, combine, population, evaluations, max_tries: as in `regularized_evolution`.
    """
    space = history.space
    alive = [
        history.draw(lambda: space.random(rng), max_tries)
        for _ in range(min(population, evaluations))
    ]
    for _ in range(evaluations - len(alive)):
        parent = alive[int(rng.integers(len(alive)))]
        genome = history.genomes[parent]
        alive.append(history.draw(lambda g=genome: space.mutate(rng, g, 2), max_tries, parent))
        alive.pop(int(np.argmin(history.scores(combine, alive))))
