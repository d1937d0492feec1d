"""A language task: rows of tokens, the decoders that are to learn them, and their tokenizer.

Decoders are read up to their last hidden states; the losses apply the heads themselves, a chunk of
tokens at a time, so that no array of tokens times vocabulary is ever made (`losses.linear_kl` and
its family).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.data.prepared import data_dir
from kdjax.data.teacher_cache import Contents, TeacherCache, fingerprint, write_cache
from kdjax.data.tokenizers import Tokenizer
from kdjax.methods.task import Task
from kdjax.networks import Network, from_linen
from kdjax.networks.generation import generate
from kdjax.networks.quantization import quantizable
from kdjax.networks.transformer import Decoder, DecoderConfig, head, project
from kdjax.training import Deferred, Term, Validation, gather, mean
from kdjax.training.optimizers import Training

PyTree = Any


class Reading(NamedTuple):
    """What a decoder makes of a batch, where it predicts a next token.

    Attributes:
      hidden: `[B, L - 1, D]`, the states that predict tokens 1 to L - 1.
      head: `losses.Head`, its weight `[V, D]`.
      variables: the variables, with mutable collections updated while training.
    """

    hidden: jax.Array
    head: losses.Head
    variables: PyTree


@functools.lru_cache(maxsize=64)
def decoder(config: DecoderConfig) -> Network:
    """The network of a config: one object, so that what is compiled for it is shared."""
    return quantizable(from_linen(Decoder(config)))


def head_of(config: DecoderConfig, variables: PyTree) -> losses.Head:
    """The output head of a decoder, as the vocabulary-sized losses take it.

    In the type of the hidden states; their product is summed in float32.
    """
    return losses.Head(head(variables).astype(config.dtype), softcap=config.logit_softcap)


def read(config: DecoderConfig, variables: PyTree, batch: Mapping[str, jax.Array], **options):
    """The `Reading` of a batch by a decoder; documents of one row do not see each other."""
    out = decoder(config).apply(
        variables, batch["tokens"], batch["positions"], batch["segments"], **options
    )
    return Reading(out.output["features"][:, :-1], head_of(config, variables), out.variables)


def targets(batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The next tokens `[B, L - 1]` and where they are to be predicted, bool `[B, L - 1]`."""
    return batch["tokens"][:, 1:], batch["completion"][:, 1:] & batch["where"][:, None]


def teach(config: DecoderConfig):
    """A program's `prepare`: the teacher's hidden states beside the tokens, under
    `teacher_hidden` `[B, L, D]`. A batch that has them already, from a cache, is left alone."""

    def prepare(variables, batch, context):
        train = batch["train"]
        if "teacher_hidden" not in train:
            out = decoder(config).apply(
                variables["teacher"], train["tokens"], train["positions"], train["segments"]
            )
            train = {**train, "teacher_hidden": out.output["features"]}
        return {**batch, "train": train}, context.memory

    return prepare


def head_only(variables: PyTree) -> PyTree:
    """The part of a decoder's variables that `transformer.head` reads."""
    name = "head" if "head" in variables["params"] else "embedding"
    return {"params": {name: variables["params"][name]}}


@dataclasses.dataclass(frozen=True)
class LanguageTask(Task):
    """Texts and the decoders that are to learn them; what is not told here is as for `Task`.

    Attributes:
      decoders: role -> config; `networks` follows from it.
      tokenizer: of all roles: one vocabulary.
      cache_teacher: the teacher's hidden states are kept on disk, and its head beside the student,
        instead of running it in every step.
      initial: role -> variables that it starts from, instead of random ones.
      warm_up: steps that `prepared` trains the student on the text alone, before any method begins.
    """

    networks: Mapping[str, Network] = dataclasses.field(default_factory=dict)
    training: Mapping[str, Training] = dataclasses.field(default_factory=dict)
    decoders: Mapping[str, DecoderConfig] = dataclasses.field(default_factory=dict)
    tokenizer: Tokenizer | None = None
    initial: Mapping[str, PyTree] = dataclasses.field(default_factory=dict)
    warm_up: int = 0
    input: str = "tokens"

    kind: ClassVar[str] = "language"
    baseline: ClassVar[str] = "language_model"
    score: ClassVar[str] = "log_likelihood"
    shown: ClassVar[tuple[str, ...]] = ("perplexity", "kl_to_teacher", "agreement", "entropy")

    def __post_init__(self):
        nets = {role: decoder(config) for role, config in self.decoders.items()}
        object.__setattr__(self, "networks", nets)
        if self.warm_up < 0:
            raise ValueError(f"warm_up must not be negative, got {self.warm_up}")
        super().__post_init__()

    def check_outputs(self) -> None:
        """Refuses decoders of another vocabulary, and rows longer than their context."""
        length = self.dataset.splits["train"].fields["tokens"][0]
        for role, config in self.decoders.items():
            if config.vocabulary != self.tokenizer.vocabulary:
                raise ValueError(
                    f"the {role} has a vocabulary of {config.vocabulary}, the tokenizer of "
                    f"{self.tokenizer.vocabulary}: all roles share the tokenizer"
                )
            if length > config.max_length:
                raise ValueError(
                    f"rows of {length} tokens are longer than the {role}'s max_length of "
                    f"{config.max_length}"
                )

    def examples(self, role: str) -> tuple[np.ndarray, ...]:
        """One row of tokens, for shapes."""
        return (np.zeros((1, 2), np.int32),)

    def start(self, role: str) -> PyTree | Deferred:
        """Given ones, or random ones: the same for every method of a seed."""
        return self.initial[role] if role in self.initial else super().start(role)

    def prepared(self) -> Generator:
        """This task with a student that has been trained on the text for `warm_up` steps."""
        if not self.warm_up:
            return self
        from kdjax.methods import language_model  # which is built on this module

        stage = language_model.stage(self, "student", "warm_up")
        outcome = yield dataclasses.replace(stage, steps=self.warm_up, validation=None)
        initial = {**self.initial, "student": outcome.variables["student"]}
        return dataclasses.replace(self, initial=initial, warm_up=0)

    def taught(self, teacher: PyTree) -> Generator:
        """`(roles, fields)`: the whole teacher, or its head and its hidden states `[N, L, D]`."""
        if not self.cache_teacher:
            return {"teacher": self.kept("teacher", teacher)}, {}
        yield from ()
        teacher = self.kept("teacher", teacher)
        return {"teacher": head_only(teacher)}, {"teacher_hidden": self.cached(teacher)}

    def cached(self, teacher: PyTree, rows: int = 8) -> np.ndarray:
        """The teacher's hidden states on the training split `[N, L, D]`, from the disk.

        They lie under `KDJAX_DATA_DIR`, by the teacher's weights and the rows' content, and are
        computed where they are missing, `rows` rows at a time. Where the recipe is only traced, for
        a plan, they are zeros that take no memory.
        """
        arrays, config = self.dataset.splits["train"].arrays(), self.decoders["teacher"]
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(teacher)):
            return np.broadcast_to(np.float32(0), (*arrays["tokens"].shape, config.width))
        teacher = gather(self.kept("teacher", teacher))
        read_by_teacher = ("tokens", "positions", "segments")
        contents = Contents(
            "hidden",
            config.width,
            fingerprint({"config": str(config), "variables": teacher}),
            read_by_teacher,
            preprocessing={"tokenizer": self.tokenizer.fingerprint},
        )
        examples = {name: arrays[name] for name in read_by_teacher}
        folder = data_dir() / "teacher_cache" / fingerprint([contents.to_json(), examples])[:32]
        variables = jax.device_put(teacher)

        def forward(batch):
            missing = rows - len(batch["tokens"])  # one shape, one compilation
            padded = {n: np.pad(batch[n], ((0, missing), (0, 0))) for n in read_by_teacher}
            return np.asarray(_features(config)(variables, padded))[: rows - missing]

        processes = jax.process_count()  # each writes the batches that are its own
        starts = range(0, len(arrays["tokens"]), rows)[jax.process_index() :: processes]
        named = {**examples, "id": np.arange(len(arrays["tokens"]))}  # for what is said of one
        batches = ({n: x[i : i + rows] for n, x in named.items()} for i in starts)
        write_cache(folder, batches, forward, contents)
        return TeacherCache(folder, contents).fields(self.dataset.splits["train"])["teacher_hidden"]

    def validation(self, role: str) -> Validation:
        """Scores a role by its log-likelihood of the validation split, and keeps the best."""
        return Validation(
            language_metrics(role, self.decoders[role]),
            self.sequential("validation"),
            self.validate_every,
            score=self.score,
        )

    def reference(self, teacher: PyTree) -> PyTree:
        """What `scores` compares with: the teacher's variables, on this process's device."""
        return jax.device_put(gather(self.kept("teacher", teacher)))

    def scores(self, role: str, variables: PyTree, reference: PyTree | None) -> dict:
        """Metric -> number a predicted token of the test split.

        `perplexity`, `cross_entropy` and `entropy` (nats); against the teacher `kl_to_teacher`,
        KL(teacher || student), `reverse_kl` and `agreement` of the likeliest token.
        """
        stream, teacher = self.sequential("test"), None
        if reference is not None:
            teacher = self.decoders["teacher"]
        function = _scores(self.decoders[role], teacher, stream.assemble)
        variables, total = gather(self.kept(role, variables)), None
        for item in stream.items(whole=True):
            found = function(variables, reference, stream.table, item)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        count = float(total.pop("count"))
        if not count:
            raise ValueError("the test split has no token to predict")
        out = {name: float(value) / count for name, value in total.items()}
        return {"perplexity": float(np.exp(out["cross_entropy"])), **out}

    def sample(
        self,
        role: str,
        variables: PyTree,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """How a role goes on after each prompt (token ids), as text without the prompt.

        On several hosts each computes all of them; all must call it.
        """
        longest = max(map(len, prompts))
        tokens = np.zeros((len(prompts), longest), np.int32)
        where = np.zeros(tokens.shape, bool)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = prompt
            where[row, longest - len(prompt) :] = True
        found = generate(
            self.networks[role],
            self.decoders[role],
            gather(self.kept(role, variables)),
            tokens,
            where,
            jax.random.key(seed),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            stop=(self.tokenizer.end,),
        )
        new = np.asarray(found.tokens)[:, longest:]
        kept = np.asarray(found.completion)[:, longest:] & (new != self.tokenizer.end)
        return [self.tokenizer.decode(row[mask].tolist()) for row, mask in zip(new, kept)]

    def prompts(self, count: int, length: int, split: str = "test") -> list[list[int]]:
        """The first `length` tokens of the first documents of a split that are longer."""
        arrays, found = self.dataset.splits[split].arrays(), []
        for tokens, segments in zip(arrays["tokens"], arrays["segments"]):
            first = tokens[segments == 1]
            if len(first) > length and len(found) < count:
                found.append(first[:length].tolist())
        if not found:
            raise ValueError(f"no document of {split} is longer than {length} tokens")
        return found


@functools.lru_cache(maxsize=8)
def _features(config: DecoderConfig):
    def features(variables, batch):
        names = ("tokens", "positions", "segments")
        return decoder(config).apply(variables, *(batch[n] for n in names)).output["features"]

    return jax.jit(features)


@functools.lru_cache(maxsize=64)
def language_metrics(role: str, config: DecoderConfig):
    """`(variables, batch) -> {log_likelihood}` a predicted token of a role, for a `Validation`."""

    def evaluate(variables, batch) -> dict[str, Term]:
        reading, (labels, where) = read(config, variables[role], batch), targets(batch)
        total, weight = losses.linear_cross_entropy(
            reading.hidden, reading.head, labels, where=where
        )
        return {"log_likelihood": Term(-total, weight)}

    return evaluate


@functools.lru_cache(maxsize=64)
def _scores(student: DecoderConfig, teacher: DecoderConfig | None, assemble):
    """`(variables, teacher variables, table, item) -> sums over predicted tokens`, compiled."""

    def score(variables, taught, table, item):
        batch = assemble(table, item)
        labels, where = targets(batch)
        mine = read(student, variables, batch)
        other = None if teacher is None else read(teacher, taught, batch)

        def logits(hidden, head):
            return project(hidden, head.weight, head.softcap)

        def row(parts):  # one row of tokens at a time: [L, V] and no more
            hidden, features, labels, where = parts
            ls = jax.nn.log_softmax(logits(hidden, mine.head))
            sums = {
                "cross_entropy": losses.cross_entropy(ls, labels),
                "entropy": -jnp.sum(jnp.exp(ls) * ls, -1),
            }
            if other is not None:
                lt = logits(features, other.head)
                sums |= {
                    "kl_to_teacher": losses.kl_divergence(lt, ls),
                    "reverse_kl": losses.kl_divergence(ls, lt),
                    "agreement": (jnp.argmax(ls, -1) == jnp.argmax(lt, -1)).astype(jnp.float32),
                }
            return {n: mean(x, where).total for n, x in sums.items()}

        features = mine.hidden if other is None else other.hidden
        rows = jax.lax.map(row, (mine.hidden, features, labels, where))
        return {"count": where.sum(), **{name: x.sum() for name, x in rows.items()}}

    return jax.jit(score)
