"""MiniLLM: the reverse KL of whole sequences, by policy gradient on samples helped by the teacher.

Gu et al. 2023, "MiniLLM: Knowledge Distillation of Large Language Models", ICLR 2024
(arXiv:2306.08543).

A round begins with `rollouts` answers, each token drawn from (1 - alpha) q + alpha p, student and
teacher mixed, and goes over them `epochs` times. With q_old the student at the round's beginning,

    r_t = clip((log p(y_t) - log q_old(y_t)) / reward_scaling)      reward
    A_t = sum_{i >= t} gamma^(i - t) r_i / tokens left, whitened    advantage
    w_t = q_old(y_t) / ((1 - alpha) q_old(y_t) + alpha p(y_t))      importance weight
    L   = mean max(-A w rho, -A clip(w rho)) + mean KL(q, p)        rho = q(y_t) / q_old(y_t)
          + corpus_weight (CE + KL(p, q)) / 2   on the split `corpus`

The round lives in the program's memory, so that a stage is one compiled step: one in
`epochs * rollouts / batch_size` makes new answers, all others take a part of them.

The student starts from what it has learnt on the data: `warm_up` of the task, or `initial`.

Paper and code differ, and this follows the code where nothing is said: the paper's return begins at
t + 1, since the second term has the step's own reward exactly, the code's at t; the code's second
term has no importance weight. The code whitens over padding too, and apart on every device; here
over the tokens of the answers, and over the whole batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods import language_model, prompted, rollouts
from kdjax.methods.language_task import LanguageTask, decoder, head_of, read, targets
from kdjax.methods.task import Trained
from kdjax.methods.token_divergence import Divergence, terms
from kdjax.networks.generation import Mixture
from kdjax.networks.transformer import DecoderConfig, project
from kdjax.training import Evaluation, Program, Term, Update, mean
from kdjax.training.gradients import microbatch
from kdjax.training.optimizers import Training

TASKS = ("language",)
CORPUS = Divergence(label_weight=0.5, distillation_weight=0.5)


@dataclasses.dataclass(frozen=True)
class Config:
    """The defaults are those of the authors' code for GPT-2.

    Attributes:
      rollouts: answers of a round, a multiple of the batch size.
      epochs: how often a round goes over them.
      alpha: in [0, 1), the teacher's share of the sampler.
      sampling_temperature: >= 0, of the mixture.
      reward_scaling, reward_clip: > 0.
      gamma: in [0, 1], discount.
      length_normalized: returns are divided by the number of tokens left.
      clip: in [0, 1], of the ratio.
      single_step: the reverse KL of every step beside the policy gradient.
      corpus_weight: >= 0; the authors' runs have 1, which needs a split `corpus`.
    """

    rollouts: int = 256
    epochs: int = 4
    alpha: float = 0.2
    sampling_temperature: float = 1.0
    reward_scaling: float = 0.5
    reward_clip: float = 100.0
    gamma: float = 0.95
    length_normalized: bool = True
    clip: float = 0.2
    single_step: bool = True
    corpus_weight: float = 0.0

    def __post_init__(self):
        for name in ("rollouts", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must be in [0, 1), got {self.alpha}")
        for name in ("gamma", "clip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("reward_scaling", "reward_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("sampling_temperature", "corpus_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def token_log_probs(hidden: jax.Array, head: losses.Head, tokens: jax.Array) -> jax.Array:
    """`[B, L]`, log-probabilities of tokens `[B, L]` from hidden states `[B, L, D]`.

    Logits exist for one place of all rows at a time, in the backward pass too.

    >>> head = losses.Head(jnp.zeros((4, 2)))
    >>> print(token_log_probs(jnp.ones((1, 3, 2)), head, jnp.array([[0, 1, 3]])))
    [[-1.3862944 -1.3862944 -1.3862944]]
    """

    @jax.checkpoint
    def place(parts):
        logits = project(parts[0], head.weight, head.softcap)
        return losses.selective_log_softmax(logits, parts[1])

    return jax.lax.map(place, (hidden.swapaxes(0, 1), tokens.swapaxes(0, 1))).swapaxes(0, 1)


@functools.lru_cache(maxsize=64)
def program(
    student: DecoderConfig,
    teacher: DecoderConfig,
    training: Training,
    config: Config,
    prompt_length: int,
    stop: tuple[int, ...],
) -> Program:
    """One update of the student; memory: the answers of the round, their log-probabilities under
    the student that wrote them and under the teacher."""
    parts = config.rollouts // training.batch_size

    def collect(variables, prompts, rng):
        """The memory of a new round, `batch_size` prompts at a time."""

        def answer(batch):
            other = Mixture(decoder(teacher), teacher, variables["teacher"], config.alpha)
            found = rollouts.roll_out(
                student,
                variables["student"],
                batch,
                rng,
                prompt_length=prompt_length,
                stop=stop,
                temperature=config.sampling_temperature,
                mixture=other if config.alpha else None,
            )
            rows = {n: found.batch[n].astype(batch[n].dtype) for n in rollouts.ROW}
            rows |= {"id": batch["id"], "where": batch["where"], "truncated": found.truncated}
            labels, _ = targets(rows)
            own = read(student, variables["student"], rows)
            other = read(teacher, variables["teacher"], rows)
            rows["old_log_probs"] = token_log_probs(own.hidden, own.head, labels)
            rows["teacher_log_probs"] = token_log_probs(other.hidden, other.head, labels)
            return rows

        found = jax.lax.map(answer, microbatch(prompts, parts))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)

    def prepare(variables, batch, context):
        prompts, memory = batch["train"], context.memory
        kept = {n: prompts[n] for n in (*rollouts.ROW, "id", "where")}
        place = context.step % (config.epochs * parts)
        rng = jax.random.fold_in(context.rng, 0)
        new = {"rows": memory["rows"], "order": memory["order"]}
        new = jax.lax.cond(
            place == 0,
            lambda: {
                "rows": collect(variables, kept, rng),
                "order": jax.random.key_data(jax.random.fold_in(rng, 1)),
            },
            lambda: new,
        )
        # Each epoch has an order of its own, made from the key that the round began with.
        order = jax.random.fold_in(jax.random.wrap_key_data(new["order"]), place // parts)
        rows = jax.random.permutation(order, config.rollouts).reshape(parts, -1)[place % parts]
        train = {n: x[rows] for n, x in new["rows"].items()}
        _, where = targets(train)
        rewards = losses.minillm_rewards(
            train["old_log_probs"],
            train["teacher_log_probs"],
            scaling=config.reward_scaling,
            clip=config.reward_clip,
        )
        returns = losses.discounted_returns(
            rewards, gamma=config.gamma, length_normalized=config.length_normalized, where=where
        )
        train |= {
            "rewards": rewards,
            "advantages": losses.whiten(returns, where=where),
            "weights": losses.teacher_mixed_weights(
                train["old_log_probs"], train["teacher_log_probs"], alpha=config.alpha
            ),
        }
        texts = {"train": train}
        if "corpus" in batch:
            texts["corpus"] = batch["corpus"]
        for text in texts.values():
            out = decoder(teacher).apply(
                variables["teacher"], text["tokens"], text["positions"], text["segments"]
            )
            text["teacher_hidden"] = out.output["features"]
        return texts, new

    def objective(variables, batch, context):
        train = batch["train"]
        labels, where = targets(train)
        reading = read(student, variables["student"], train, train=True, rng=context.rng)
        head = head_of(teacher, variables["teacher"])
        log_probs = token_log_probs(reading.hidden, reading.head, labels)
        surrogate = losses.clipped_policy_gradient(
            log_probs,
            train["old_log_probs"],
            train["advantages"],
            train["weights"],
            clip=config.clip,
        )
        found = {"policy_gradient": mean(surrogate, where)}
        if config.single_step:
            single = terms(Divergence("reverse_kl"), reading, train["teacher_hidden"], head, train)
            found["single_step"] = single["reverse_kl"]
        if config.corpus_weight:
            text = batch["corpus"]
            seen = read(student, variables["student"], text, train=True, rng=context.rng)
            for name, term in terms(CORPUS, seen, text["teacher_hidden"], head, text).items():
                weight = config.corpus_weight * term.coefficient
                found[f"corpus_{name}"] = Term(term.total, term.weight, weight)
        estimate = losses.reverse_kl_estimate(log_probs, train["teacher_log_probs"])
        return Evaluation(
            found,
            {"student": reading.variables},
            metrics={
                "reward": mean(train["rewards"], where),
                "reverse_kl_estimate": mean(estimate, where),
                "importance_weight": mean(train["weights"], where),
                "answer_length": mean(where.sum(1, dtype=jnp.float32), train["where"]),
                "truncated": mean(train["truncated"].astype(jnp.float32), train["where"]),
            },
        )

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
    )
    return Program((update,), prepare=prepare, schedules=training.schedules)


def empty_round(task: LanguageTask, config: Config) -> dict:
    """The memory before the first round: places for its rows."""
    arrays, rows = task.dataset.splits["train"].arrays(), config.rollouts
    length = arrays["tokens"].shape[1]
    held = {n: jnp.zeros((rows, length), arrays[n].dtype) for n in rollouts.ROW}
    held |= {
        "id": jnp.zeros(rows, jnp.int32),
        "where": jnp.zeros(rows, bool),
        "truncated": jnp.zeros(rows, bool),
        "old_log_probs": jnp.zeros((rows, length - 1)),
        "teacher_log_probs": jnp.zeros((rows, length - 1)),
    }
    return {"rows": held, "order": jax.random.key_data(jax.random.key(0))}


def check(task: LanguageTask, config: Config) -> int:
    """The place where answers begin; refuses what the method cannot use.

    Raises:
      ValueError: a cached teacher, rows that cannot be answered, a round that does not fit.
    """
    prompted.check_live_teacher(task)
    start, training = prompted.prompt_length(task), task.training["student"]
    size = len(task.dataset.splits["train"])
    if config.rollouts % training.batch_size or config.rollouts > size:
        raise ValueError(
            f"rollouts={config.rollouts} must be a multiple of the student's batch size, "
            f"{training.batch_size}, and at most the number of training prompts, {size}"
        )
    return start


def recipe(task: LanguageTask, config: Config) -> Generator:
    """A teacher, given or trained, then one stage of distillation."""
    start, training = check(task, config), task.training["student"]
    teacher = yield from language_model.teacher(task)
    step = program(
        task.decoders["student"],
        task.decoders["teacher"],
        training,
        config,
        start,
        (task.tokenizer.end,),
    )
    many = dataclasses.replace(training, batch_size=config.rollouts, microbatches=1)
    prompts = dataclasses.replace(task, training={**task.training, "student": many})
    streams = {
        "train": prompts.stream("student"),
        **prompted.corpus(task, config.corpus_weight),
    }
    memory = empty_round(task, config)
    outcome = yield from task.distill(
        step,
        teacher,
        memory=memory,
        streams=streams,
        examples=prompted.examples(training, config.corpus_weight),
    )
    return Trained.of(outcome, "student")
