"""A retrieval task: images with texts, and the dual encoders that are to bring pairs together.

A dual encoder is `(image, tokens, segments) -> {"image": [B, D], "text": [B, D], "scale": []}`,
unit vectors and 1 / temperature, and does without the inputs that are None (`DualEncoder`). A
teacher may be a cross-encoder instead, `(image, tokens, segments) -> {"score": [I, T]}`, which
scores every image with every text and embeds neither (`CrossEncoder`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from kdjax import evaluation
from kdjax.methods.task import Fields, Task, inputs
from kdjax.networks import Network
from kdjax.training import Compute, Term, Validation, gather, mean

PyTree = Any
FIELDS = ("image", "tokens", "segments")
OF_CAPTIONS = ("tokens", "segments", "teacher_text")  # fields `[B, K, ...]`, K texts an image


class Embeddings(NamedTuple):
    """What a dual encoder makes of N images with K texts each.

    Attributes:
      image: `[N, D]`, unit vectors.
      text: `[N, K, D]`, unit vectors.
      scale: 1 / temperature, at the end of training.
    """

    image: np.ndarray
    text: np.ndarray
    scale: float


def one_text(batch: Mapping[str, jax.Array], rng: jax.Array | None = None) -> dict[str, jax.Array]:
    """The batch with one of each image's K texts, drawn uniformly; the first where rng is None.

    >>> batch = {"image": jnp.zeros((2, 1)), "tokens": jnp.array([[[1], [2]], [[3], [4]]])}
    >>> one_text(batch)["tokens"].tolist()
    [[1], [3]]
    """
    examples, texts = batch["tokens"].shape[:2]
    chosen = jnp.zeros(examples, jnp.int32)
    if rng is not None and texts > 1:
        chosen = jax.random.randint(rng, (examples,), 0, texts)
    picked = {name: batch[name] for name in OF_CAPTIONS if name in batch}
    picked = jax.tree.map(lambda x: x[jnp.arange(examples), chosen], picked)
    return {**batch, **picked}


def similarity(output: Mapping[str, jax.Array]) -> jax.Array:
    """`[I, T]`: a cross-encoder's scores, or the cosines of a dual encoder.

    >>> similarity({"image": jnp.eye(2), "text": jnp.eye(2), "scale": 1.0}).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return output["score"] if "score" in output else output["image"] @ output["text"].T


def teach(network: Network, fields: Fields = FIELDS):
    """A program's `prepare`: one text an image, and the teacher's embeddings beside the pair.

    They are `teacher_image` and `teacher_text` `[B, D]`. A batch that has them already (a cache
    fills the same keys) keeps them. Follow it with nothing else that draws texts.
    """

    def prepare(variables, batch, context):
        train = one_text(batch["train"], context.rng)
        if "teacher_image" not in train:
            out = network.apply(variables["teacher"], *inputs(train, fields)).output
            train = {**train, "teacher_image": out["image"], "teacher_text": out["text"]}
        return {**batch, "train": train}, context.memory

    return prepare


@dataclasses.dataclass(frozen=True)
class RetrievalTask(Task):
    """Images with texts and dual encoders; what is not told here is as for `Task`.

    Attributes:
      dataset: of `kdjax.data.load_captions`.
      cache_teacher: the teacher's embeddings of the training split are computed once, before the
        first step, and stand in its batches as `teacher_image` and `teacher_text`.
    """

    input: Fields | Mapping[str, Fields] = FIELDS

    kind: ClassVar[str] = "retrieval"
    baseline: ClassVar[str] = "contrastive"
    score: ClassVar[str] = "recall_at_1"
    shown: ClassVar[tuple[str, ...]] = ("recall_at_1", "recall_at_5", "median_rank", "agreement")

    def __post_init__(self):
        super().__post_init__()
        if self.cache_teacher and self.training["student"].augment:
            raise ValueError(
                "cache_teacher keeps one embedding an image, but the student's views are "
                "augmented: take the augmentation away, or the cache"
            )
        if self.cache_teacher and self.crosses("teacher"):
            raise ValueError("cache_teacher keeps embeddings, and a cross-encoder has none")

    def check_outputs(self) -> None:
        """Refuses networks that are no dual encoders, nor a cross-encoder that teaches."""
        for role in self.networks:
            if role == "teacher" and self.crosses(role):
                continue
            found = self.outputs(role)
            if not isinstance(found, Mapping) or not {"image", "text", "scale"} <= set(found):
                raise ValueError(
                    f"the {role} must be a dual encoder, whose output has image, text and scale"
                )

    def crosses(self, role: str) -> bool:
        """Whether a role's network is a cross-encoder."""
        found = self.outputs(role)
        return isinstance(found, Mapping) and "score" in found

    def outputs(self, role: str) -> PyTree:
        """The shapes of what a role's network makes of one pair."""
        network = self.networks[role]

        def outputs(rng, *x):
            return network.apply(network.init(rng, *x), *x).output

        return jax.eval_shape(outputs, jax.random.key(0), *self.examples(role))

    def examples(self, role: str) -> tuple[np.ndarray, ...]:
        """One image and one text, for shapes."""
        found = super().examples(role)
        return tuple(
            x[:, 0] if name in OF_CAPTIONS else x for name, x in zip(self.reads(role), found)
        )

    def validation(self, role: str) -> Validation:
        """Scores a role by its recall of pairs within batches of the validation split."""
        return Validation(
            retrieval_metrics(role, self.networks[role], self.reads(role)),
            self.sequential("validation"),
            self.validate_every,
            score=self.score,
        )

    def taught(self, teacher: PyTree) -> Generator:
        """`(roles, fields)`: the teacher as a frozen role, or its embeddings as fields."""
        if not self.cache_teacher:
            return {"teacher": self.kept("teacher", teacher)}, {}

        def compute(rng):
            found = self.embeddings("teacher", teacher, "train")
            return {"teacher_image": found.image, "teacher_text": found.text}

        examples, texts = self.dataset.splits["train"].arrays()["tokens"].shape[:2]
        sizes = {"teacher_image": (examples,), "teacher_text": (examples, texts)}
        width = self.outputs("teacher")["image"].shape[-1:]
        shapes = {name: jax.ShapeDtypeStruct(n + width, jnp.float32) for name, n in sizes.items()}
        found = yield Compute("teacher_embeddings", compute, shapes=shapes)
        return {}, {name: found[name] for name in ("teacher_image", "teacher_text")}

    def embeddings(self, role: str, variables: PyTree, split: str = "test") -> Embeddings:
        """What a role makes of every image and every text of a split, in evaluation mode."""
        stream = self.sequential(split)
        forward = _embed(self.networks[role], stream.assemble)
        variables, images, texts, scale = gather(self.kept(role, variables)), [], [], None
        for item in stream.items(whole=True):
            image, text, scale, where = forward(variables, stream.table, item)
            images.append(np.asarray(image)[np.asarray(where)])
            texts.append(np.asarray(text)[np.asarray(where)])
        return Embeddings(np.concatenate(images), np.concatenate(texts), float(scale))

    def predict(self, role: str, variables: PyTree, split: str = "test") -> np.ndarray:
        """The cosine, or the score, of every image with every text, `[N, N K]`; the K texts of an
        image lie next to each other, in the order of the images."""
        if self.crosses(role):
            return self._crossed(role, variables, split)
        found = self.embeddings(role, variables, split)
        return found.image @ found.text.reshape(-1, found.text.shape[-1]).T

    def _crossed(self, role: str, variables: PyTree, split: str) -> np.ndarray:
        stream = self.sequential(split)
        assemble, score = _pairwise(self.networks[role], stream.assemble)
        variables = gather(self.kept(role, variables))
        batches = [assemble(stream.table, item) for item in stream.items(whole=True)]
        real = [np.asarray(batch["where"]) for batch in batches]
        rows = []
        for a, rows_of in zip(batches, real):
            columns = []
            for b, columns_of in zip(batches, real):
                found = np.asarray(score(variables, a["image"], b["tokens"], b["segments"]))
                columns.append(found[rows_of][:, columns_of].reshape(rows_of.sum(), -1))
            rows.append(np.concatenate(columns, 1))
        return np.concatenate(rows)

    def scores(self, role: str, variables: PyTree, reference: np.ndarray | None) -> dict:
        """Metric -> number on the test split.

        `recall_at_1`, `_5`, `_10` and `median_rank` are means of both directions, of which `text_`
        and `image_` tell apart what is searched for; `rsum` is the sum of the six recalls in per
        cent. Against the teacher: `agreement`, the share of queries with the same first answer,
        and `spearman`, the mean rank correlation of a query's answers.
        """
        similarity = self.predict(role, variables)
        owner = np.repeat(np.arange(len(similarity)), similarity.shape[1] // len(similarity))
        recalls = evaluation.recall_at_k(similarity, owner)
        ranks = evaluation.retrieval_ranks(similarity, owner)
        out = {}
        for k in recalls.text:
            out[f"recall_at_{k}"] = (recalls.text[k] + recalls.image[k]) / 2
            out[f"text_recall_at_{k}"] = recalls.text[k]
            out[f"image_recall_at_{k}"] = recalls.image[k]
        medians = evaluation.median_rank(ranks.text), evaluation.median_rank(ranks.image)
        out |= {"text_median_rank": medians[0], "image_median_rank": medians[1]}
        out |= {"median_rank": sum(medians) / 2, "rsum": evaluation.rsum(recalls)}
        if reference is None:
            return out
        pairs = (similarity, reference), (similarity.T, reference.T)
        same = [(a.argmax(1) == b.argmax(1)).mean() for a, b in pairs]
        correlation = [_spearman(a, b) for a, b in pairs]
        return {
            **out,
            "agreement": float(np.mean(same)),
            "spearman": float(np.mean(correlation)),
        }


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The mean over the rows of Spearman's rank correlation."""
    ranks = [stats.rankdata(x, axis=1) for x in (a, b)]
    x, y = (r - r.mean(1, keepdims=True) for r in ranks)
    norm = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return float(np.mean((x * y).sum(1) / np.where(norm > 0, norm, 1)))


@functools.lru_cache(maxsize=64)
def _embed(network: Network, assemble):
    def forward(variables, table, item):
        batch = assemble(table, item)
        tokens, segments = batch["tokens"], batch["segments"]
        flat = [x.reshape(-1, x.shape[-1]) for x in (tokens, segments)]
        image = network.apply(variables, batch["image"], None, None).output
        text = network.apply(variables, None, *flat).output["text"]
        text = text.reshape(*tokens.shape[:2], -1)
        return image["image"], text, image["scale"], batch["where"]

    return jax.jit(forward)


@functools.lru_cache(maxsize=64)
def _pairwise(network: Network, assemble):
    def score(variables, image, tokens, segments):
        flat = [x.reshape(-1, x.shape[-1]) for x in (tokens, segments)]
        found = network.apply(variables, image, *flat).output["score"]
        return found.reshape(len(image), *tokens.shape[:2])

    return jax.jit(assemble), jax.jit(score)


@functools.lru_cache(maxsize=64)
def retrieval_metrics(role: str, network: Network, fields: Fields = FIELDS):
    """`(variables, batch) -> {recall_at_1, text_recall_at_1, image_recall_at_1}` of a role.

    Each image is compared with the first text of each image of the batch (of up to 256 here), so
    these are larger than the recalls of a whole split that is larger than a batch.
    """

    def evaluate(variables, batch) -> dict[str, Term]:
        batch = one_text(batch)
        out = network.apply(variables[role], *inputs(batch, fields)).output
        where, own = batch["where"], jnp.arange(len(batch["where"]))
        cosine = similarity(out)
        text = jnp.argmax(jnp.where(where[None, :], cosine, -jnp.inf), 1) == own
        image = jnp.argmax(jnp.where(where[:, None], cosine, -jnp.inf), 0) == own
        found = {"text": text.astype(jnp.float32), "image": image.astype(jnp.float32)}
        both = (found["text"] + found["image"]) / 2
        apart = {f"{name}_recall_at_1": mean(x, where) for name, x in found.items()}
        return {"recall_at_1": mean(both, where), **apart}

    return evaluate
