"""DDK: the data are drawn from the domains in which the student lags behind its teacher most.

Liu et al. 2024, "DDK: Distilling Domain Knowledge for Efficient Large Language Models",
NeurIPS 2024 (arXiv:2407.16154).

    L    = CE(student, next token) + gamma KL(teacher, student)          (`Divergence`)
    r_0  = softmax(l_S / l_T)                                            at the start
    r_t  = alpha normalised(r_{t-1} exp(l_S / l_T)) + (1 - alpha) / N    at the start of interval t

l_S and l_T are the perplexities of a domain's validation rows, which must not be training rows
too. The first interval is drawn from the whole corpus, every later one by r_t.

An interval is a stage that continues the one before, all on one compiled step, and between them a
`Compute` node measures the student and draws the next rows. So a finished measurement lies in the
journal with its rows, and a run that was killed continues with the same bits; and the rows may
be read by any stream. A controller inside the step would need the whole corpus, and the validation
rows, in it. The price is a saved state an interval. The optimizer counts its own steps, so that
the learning rate's schedule is that of all intervals together.

There is no code of the authors. The paper writes its KL with the student first, but calls it the
standard one: forward is the default here, `divergence="reverse_kl"` the other. Exponentials of
ratios are unbounded: a student whose ratio in one domain is some ten above the others draws that
domain alone, up to alpha; `max_ratio` bounds it.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Generator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import losses
from kdjax.data import Split, TextDataset, mixture, resident
from kdjax.losses import domain_mixture
from kdjax.methods import language_model
from kdjax.methods.language_task import LanguageTask, head_of, read, targets, teach
from kdjax.methods.task import Trained
from kdjax.methods.token_divergence import Divergence, terms
from kdjax.networks.transformer import DecoderConfig
from kdjax.training import Compute, Evaluation, Program, Stage, Term, Update, gather
from kdjax.training.optimizers import Training

TASKS = ("language",)
MIXTURES = ("discrepancy", "equal", "natural")
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Config(Divergence):
    """The loss, with the fields of `Divergence`, and how domains are mixed.

    Attributes:
      distillation_weight: gamma; 0 is continued pre-training on the same mixture.
      interval: steps between two measurements.
      mixture: "discrepancy"; or, to compare with, "equal" shares, or the "natural" ones of the
        corpus, always.
      smoothing: False: r is Eq. 1 anew in every interval.
      alpha: in [0, 1], of the smooth update.
      draw: "categorical", or "quota": the same shares without their sampling noise.
      max_ratio: ratios of perplexities above it count as it; None: no bound.
    """

    label_weight: float = 1.0
    distillation_weight: float = 0.2
    interval: int = 1000
    mixture: str = "discrepancy"
    smoothing: bool = True
    alpha: float = 0.5
    draw: str = "categorical"
    max_ratio: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1, got {self.interval}")
        for name, options in (("mixture", MIXTURES), ("draw", mixture.DRAWS)):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be one of {options}, got {getattr(self, name)!r}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1], got {self.alpha}")
        if self.max_ratio is not None and not self.max_ratio > 0:
            raise ValueError(f"max_ratio must be positive, got {self.max_ratio}")

    @property
    def loss(self) -> Divergence:
        """What the compiled step depends on."""
        names = [field.name for field in dataclasses.fields(Divergence)]
        return Divergence(**{name: getattr(self, name) for name in names})


@functools.lru_cache(maxsize=64)
def program(
    student: DecoderConfig,
    teacher: DecoderConfig,
    training: Training,
    loss: Divergence,
    domains: tuple[str, ...],
) -> Program:
    """One update of the student; the frozen role `mixture` is only reported."""

    def objective(variables, batch, context):
        batch, mixed = batch["train"], variables["mixture"]
        reading = read(student, variables["student"], batch, train=True, rng=context.rng)
        head = head_of(teacher, variables["teacher"])
        found = terms(loss, reading, batch.get("teacher_hidden"), head, batch)
        metrics = {}
        for i, name in enumerate(domains):
            mine = batch["where"] & (batch["domain"] == i)
            metrics[f"share/{name}"] = Term(
                mine.sum(dtype=jnp.float32), batch["where"].sum(dtype=jnp.float32)
            )
            metrics[f"factor/{name}"] = Term(mixed["factor"][i], 1.0)
            metrics[f"ratio/{name}"] = Term(mixed["ratio"][i], 1.0)
        return Evaluation(found, {"student": reading.variables}, metrics=metrics)

    def optimizer(values):
        # A stage counts its steps from 0; the state of this one is kept over all stages.
        return optax.chain(
            training.transformation({"learning_rate": 1.0}),
            optax.scale_by_schedule(lambda count: training.rate(count, training.steps)),
        )

    update = Update(
        objective,
        ("student",),
        optimizer,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
    )
    return Program((update,), prepare=teach(teacher) if loss.distillation_weight else None)


@functools.lru_cache(maxsize=16)
def _sums(config: DecoderConfig, num_domains: int, assemble):
    """`(variables, table, item) -> (nll_sum, token_count)`, each `[domains]`, compiled."""

    def sums(variables, table, item):
        batch = assemble(table, item)
        reading, (labels, where) = read(config, variables, batch), targets(batch)

        def row(parts):
            hidden, labels, where = parts
            return losses.linear_cross_entropy(hidden, reading.head, labels, where=where)

        totals = jax.lax.map(row, (reading.hidden, labels, where))
        return tuple(jax.ops.segment_sum(x, batch["domain"], num_domains) for x in totals)

    return jax.jit(sums)


def perplexities(
    task: LanguageTask, role: str, variables: PyTree, split: str = "validation"
) -> np.ndarray:
    """A role's perplexity in every domain of a split, `[domains]`.

    On several hosts each computes all of it; all must call it.

    Raises:
      ValueError: a domain without rows, or in which the perplexity is not finite.
    """
    domains = tuple(_dataset(task).domain_rows(split))
    stream = task.sequential(split)
    function = _sums(task.decoders[role], len(domains), stream.assemble)
    variables, total = gather(variables), np.zeros((2, len(domains)))
    for item in stream.items(whole=True):
        total += np.asarray(function(variables, stream.table, item))
    found = np.asarray(domain_mixture.domain_perplexity(*total.astype(np.float32)))
    for name, perplexity in zip(domains, found):
        if not np.isfinite(perplexity):
            raise ValueError(
                f"the {role}'s perplexity in the domain {name!r} of {split} is {perplexity}"
            )
    return found


def _dataset(task: LanguageTask) -> TextDataset:
    if not isinstance(task.dataset, TextDataset):
        raise ValueError(
            f"ddk needs rows that know their domain, a TextDataset; {task.dataset.name!r} is a "
            f"{type(task.dataset).__name__}"
        )
    return task.dataset


def _measured(
    config: Config, student: np.ndarray, teacher: np.ndarray, before: np.ndarray | None
) -> np.ndarray:
    """The factor r of an interval, from the one before."""
    if before is None or not config.smoothing:
        return domain_mixture.domain_discrepancy_init(student, teacher, max_ratio=config.max_ratio)
    return domain_mixture.domain_discrepancy_update(
        before, student, teacher, alpha=config.alpha, max_ratio=config.max_ratio
    )


def recipe(task: LanguageTask, config: Config) -> Generator:
    """A teacher, given or trained; then measurement, draw and stage, interval by interval."""
    rows, training = _dataset(task).domain_rows("train"), task.training["student"]
    task.dataset.domain_rows("validation")  # refused now, not after a teacher's training
    domains, sizes = tuple(rows), np.array([len(found) for found in rows.values()])
    natural, equal = sizes / sizes.sum(), np.full(len(rows), 1 / len(rows))
    number = zlib.crc32(b"mixture")
    seed = int(np.random.SeedSequence([task.seed, number]).generate_state(1)[0] >> 1)

    teacher = yield from language_model.teacher(task)
    reference = yield Compute(
        "teacher_perplexity", lambda rng: {"teacher": perplexities(task, "teacher", teacher)}
    )
    taught, fields = yield from task.taught(teacher)
    student = task.variables("student")
    split = task.dataset.splits["train"]
    if fields:
        split = Split.of({**split.arrays(), **fields}, split.where)
    step = program(
        task.decoders["student"], task.decoders["teacher"], training, config.loss, domains
    )

    def control(number: int, outcome, before: Mapping[str, np.ndarray] | None, size: int):
        """What a `Compute` does before interval `number`."""

        def function(rng):
            variables = student if outcome is None else outcome.variables["student"]
            found = perplexities(task, "student", variables)
            share = {"natural": natural, "equal": equal}.get(config.mixture)
            if share is None:
                last = None if before is None else before["factor"]
                factor = _measured(config, found, reference["teacher"], last)
                share = natural if before is None else factor
            else:
                factor = share
            cursors = np.zeros(len(rows), np.int64) if before is None else before["cursors"]
            drawn = mixture.draw(
                rows, cursors, share, size, seed=seed, interval=number, by=config.draw
            )
            return {
                "ratio": found / reference["teacher"],
                "factor": np.asarray(factor, np.float32),
                **drawn._asdict(),
            }

        return function

    best, outcome, found = None, None, None
    for number, done in enumerate(range(0, training.steps, config.interval)):
        steps = min(config.interval, training.steps - done)
        size = steps * training.batch_size
        found = yield Compute(f"mixture/{number:04d}", control(number, outcome, found, size))
        outcome = yield Stage(
            f"distill/{number:04d}",
            step,
            {
                "student": student,
                "mixture": {name: found[name] for name in ("factor", "ratio")},
                **taught,
            },
            {"train": resident(split, training.batch_size, seed=seed, indices=found["rows"])},
            steps,
            validation=task.validation("student"),
            continues=outcome,
        )
        score = float(outcome.load().selected["score"])
        if best is None or score > best[0]:
            selected_step = done + int(outcome.selected_step)
            best = score, outcome.selected["student"], selected_step
    return Trained(outcome.variables["student"], *best[1:])
