"""Token-level relationship graphs (TRG): the neighbourhoods of image patches are what is taught.

Knowledge Distillation via Token-level Relationship Graph, Zhang, Liu and He 2023, arXiv:2306.12442.

Relational distillation takes an image for a node; on long-tailed data the graph of a batch then is
a graph of its common classes. Here the tokens of all images of a batch (patches of a CNN's last
map, a ViT's own tokens) are pooled, sampled and linked to their nearest neighbours, each network in
its own space:

    L = label_weight CE + distillation_weight T^2 KL + alpha inner + beta local + gamma global

    inner    mean squared gap between the softmax self-similarities of the tokens of an image
    local    KL between the neighbourhoods of a token in the teacher's and the student's graph
    global   InfoNCE between a student's and a teacher's token, both projected to one width, at a
             temperature that falls from the first step to the last (coarse to fine)

The paper's text fixes neither sizes nor weights nor these choices, which are options: the direction
of the KL, self-edges, whose neighbours span the student's graph, mean or sum over the tokens. Both
projections are trained and left behind; no gradient passes through the teacher's into the teacher.
With alpha = beta = gamma = 0 it is `kd`, and the graphs are measured only.

The objective compares the tokens of a batch. Micro-batches are exact (tokens first, then one graph
of the whole batch).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Generator, Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from kdjax import losses
from kdjax.losses import checks
from kdjax.methods import supervised
from kdjax.methods.task import Fields, Task, Trained, classification_metrics, inputs
from kdjax.networks import LinearEmbedding, Network, from_linen, logits_of
from kdjax.training import Evaluation, Program, Stage, Term, Update, mean, traced
from kdjax.training.optimizers import Training
from kdjax.training.stage import abstract

SIDES = ("student", "teacher")
ROLES = ("student_projector", "teacher_projector")  # besides these

Tokens = Float[Array, "batch tokens width"]
Grid = Float[Array, "batch height width channels"] | Tokens
Mask = Bool[Array, " batch"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    label_weight, distillation_weight: of the cross-entropy and of T^2 KL, >= 0.
    temperature: T, > 0.
    inner_weight, local_weight, global_weight: alpha, beta and gamma, >= 0. 0: measured only.
    student_map, teacher_map: the tap that the tokens come from, one value: a map
      [batch, height, width, channels], or tokens [batch, tokens, width]. `stage3/out` of a ResNet,
      `block<last>/out` of a ConvNet, `norm/out` of a ViT.
    student_prefix, teacher_prefix: how many leading tokens are no patches: 1 for a ViT with a
      class token.
    patch: side of the patches that a map is cut into. 0: 1 for maps of up to 8 x 8, else 2.
    tokens_per_image: sampled in each step without replacement, the same for both networks; all
      where an image has fewer.
    num_neighbors: k, >= 1.
    sigma: of the Gaussian on squared distances, > 0; 0: each graph's mean squared length of edges.
    local_temperature: of the softmax over a neighbourhood, > 0; 1 is the formula.
    direction: "forward": KL(teacher || student); "reverse": KL(student || teacher).
    self_edges: a token is its own neighbour.
    neighbors: "own": each network's graph has its own edges; "teacher": both the teacher's.
    reduction: of local and global over the tokens: "mean", or "sum" as the formulas are written.
    temperature_start, temperature_end: of the global loss, > 0, start >= end; by a cosine between.
    embedding_width: that tokens are projected to, >= 1.
    max_tokens: the most in a graph, which takes memory for their square.
    """

    label_weight: float = 1.0
    distillation_weight: float = 1.0
    temperature: float = 4.0
    inner_weight: float = 5.0
    local_weight: float = 0.3
    global_weight: float = 0.1
    student_map: str = "stage3/out"
    teacher_map: str = "stage3/out"
    student_prefix: int = 0
    teacher_prefix: int = 0
    patch: int = 0
    tokens_per_image: int = 4
    num_neighbors: int = 8
    sigma: float = 0.0
    local_temperature: float = 0.1
    direction: str = "forward"
    self_edges: bool = False
    neighbors: str = "own"
    reduction: str = "mean"
    temperature_start: float = 0.5
    temperature_end: float = 0.07
    embedding_width: int = 128
    max_tokens: int = 1024

    traced: ClassVar[tuple[str, ...]] = (
        "label_weight",
        "distillation_weight",
        "temperature",
        "inner_weight",
        "local_weight",
        "global_weight",
    )

    def __post_init__(self):
        for name in ("temperature", "local_temperature", "temperature_start", "temperature_end"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        weights = ("label", "distillation", "inner", "local", "global")
        for name in (*(f"{w}_weight" for w in weights), "sigma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.temperature_start < self.temperature_end:
            raise ValueError(
                f"temperature_start must be at least temperature_end, got {self.temperature_start} "
                f"and {self.temperature_end}"
            )
        checks.count(1, tokens_per_image=self.tokens_per_image, num_neighbors=self.num_neighbors)
        checks.count(1, embedding_width=self.embedding_width)
        checks.count(2, max_tokens=self.max_tokens)
        checks.count(0, patch=self.patch)
        checks.count(0, student_prefix=self.student_prefix, teacher_prefix=self.teacher_prefix)
        checks.choice("direction", self.direction, ("forward", "reverse"))
        checks.choice("neighbors", self.neighbors, ("own", "teacher"))
        checks.choice("reduction", self.reduction, ("mean", "sum"))


def global_temperature(
    step: jax.Array, steps: jax.Array, temperature_start: float, temperature_end: float
) -> jax.Array:
    """The temperature of the global loss: from start in the first step to end in the last.

        end + (start - end) (1 + cos(pi step / (steps - 1))) / 2

    >>> [round(float(global_temperature(step, 3, 0.5, 0.1)), 3) for step in range(3)]
    [0.5, 0.3, 0.1]
    """
    share = step / jnp.maximum(steps - 1, 1)
    fall = (1 + jnp.cos(jnp.pi * share)) / 2
    return temperature_end + (temperature_start - temperature_end) * fall


def sample_tokens(
    rng: PRNGKeyArray, batch: int, tokens: int, tokens_per_image: int
) -> Int[Array, " sampled"]:
    """Which tokens of a batch are in its graph: so many of each image, without replacement.

    Args:
      rng: the draw.
      batch, tokens: images, and tokens an image.
      tokens_per_image: m, 1 <= m <= tokens.

    Returns:
      Indices [batch * m] into [batch * tokens], in order.

    >>> sample_tokens(jax.random.key(0), 2, 3, 3).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    checks.count(1, tokens, tokens_per_image=tokens_per_image)
    draw = jax.random.uniform(rng, (batch, tokens))
    # In order: which of several duplicates is a neighbour does not depend on the draw.
    chosen = jnp.sort(jax.lax.top_k(draw, tokens_per_image)[1])
    return (chosen + tokens * jnp.arange(batch)[:, None]).reshape(-1)


def token_grid(value: Grid, patch: int, prefix: int) -> Grid:
    """A tapped value as tokens: `[B, h, w, D]` where they lie on a grid, else `[B, N, D]`.

    Args:
      value: a map [B, H, W, C], which is cut into patches, or tokens [B, N, D], on a grid where N
        is a square number.
      patch: side of a patch of a map; 0: 1 up to 8 x 8 positions, else 2.
      prefix: of [B, N, D], how many leading tokens are left out.

    Raises:
      ValueError: another rank, no token left, a patch that does not divide the map, a prefix of
        a map.
    """
    if value.ndim == 4:
        if prefix:
            raise ValueError(f"a map has no leading tokens to leave out, but prefix={prefix}")
        batch, height, width, _ = value.shape
        patch = patch or (1 if max(height, width) <= 8 else 2)
        cut = losses.tokenize_feature_map(value, patch=patch)
        return cut.reshape(batch, height // patch, width // patch, -1)
    if value.ndim != 3 or value.shape[1] <= prefix:
        raise ValueError(
            f"tokens must be a map [batch, height, width, channels] or [batch, tokens, width] with "
            f"more than {prefix} tokens, got shape {value.shape}"
        )
    value = value[:, prefix:]
    batch, tokens, width = value.shape
    side = math.isqrt(tokens)
    return value.reshape(batch, side, side, width) if side**2 == tokens else value


def match_tokens(student: Grid, teacher: Grid) -> tuple[Tokens, Tokens]:
    """Both `[B, N, D]` with one N: the finer grid is average-pooled to the coarser.

    Raises:
      ValueError: numbers of tokens that differ where one of them lies on no grid.
    """
    if student.ndim == teacher.ndim == 4:
        student, teacher = losses.match_spatial(student, teacher)
    student, teacher = (x.reshape(len(x), -1, x.shape[-1]) for x in (student, teacher))
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"the student has {student.shape[1]} tokens an image, the teacher {teacher.shape[1]}, "
            "and not both lie on a square grid: choose other maps, or prefixes"
        )
    return student, teacher


class Graph(NamedTuple):
    """What is compared of a batch.

    Attributes:
      student, teacher: the sampled tokens, [M, D_s] and [M, D_t].
      where: bool [M].
      local: the local loss, [M].
      inner: the contextual loss of all tokens, [B].
      overlap: [M], the share of a token's neighbours that both graphs have.
    """

    student: jax.Array
    teacher: jax.Array
    where: jax.Array
    local: jax.Array
    inner: jax.Array
    overlap: jax.Array


def compare(student: Tokens, teacher: Tokens, where: Mask, rng: PRNGKeyArray, config: Config):
    """The graphs of a batch, of tokens that `rng` samples: a `Graph`.

    Args:
      student: floats [B, N, D_s]. Differentiated.
      teacher: floats [B, N, D_t]. Stopped.
      where: bool [B]; False images have no token in either graph.
      rng: of the sample.
      config: of the graphs.

    Raises:
      ValueError: more tokens than `max_tokens`, or no more than `num_neighbors`.
    """
    batch, tokens, _ = student.shape
    per_image = min(config.tokens_per_image, tokens)
    chosen = sample_tokens(rng, batch, tokens, per_image)
    teacher = jax.lax.stop_gradient(teacher)
    shown = where[:, None, None]
    inner = losses.inner_context_loss(*(jnp.where(shown, x, 0.0) for x in (student, teacher)))
    student, teacher = (x.reshape(-1, x.shape[-1])[chosen] for x in (student, teacher))
    there = jnp.repeat(where, per_image)
    options = dict(
        k=config.num_neighbors,
        self_edges=config.self_edges,
        where=there,
        max_tokens=config.max_tokens,
    )
    own, taught = (losses.token_neighbors(x, **options) for x in (student, teacher))
    options["sigma"] = config.sigma or None
    edges = taught if config.neighbors == "teacher" else own
    local = losses.token_local_loss(
        losses.token_knn_adjacency(student, neighbors=edges, **options),
        losses.token_knn_adjacency(teacher, neighbors=taught, **options),
        local_temperature=config.local_temperature,
        direction=config.direction,
        where=there,
    )
    shared = jnp.any(own[:, :, None] == taught[:, None, :], axis=-1)
    overlap = jnp.mean(shared.astype(jnp.float32), axis=-1)
    return Graph(student, teacher, there, local, inner, overlap)


def over_tokens(values: jax.Array, where: jax.Array, weight, config: Config) -> Term:
    """The mean of a loss over the tokens, or their sum, as `config.reduction` says."""
    term = mean(values, where, weight)
    return term if config.reduction == "mean" else term._replace(weight=jnp.ones(()))


@functools.lru_cache(maxsize=64)
def projector(width: int) -> Network:
    """Tokens [M, D] to unit vectors [M, width]: linear, without a bias."""
    return from_linen(LinearEmbedding(width, use_bias=False))


def read(network: Network, variables, x: tuple, side: str, config: Config, **options):
    """A network applied, and its tokens: `(Applied, grid)`; `side` is "student" or "teacher"."""
    tap = getattr(config, f"{side}_map")
    out = network.apply(variables, *x, taps=(tap,), **options)
    if len(out.taps) != 1:
        raise ValueError(f"{side}_map={tap!r} must match one value, it matches {list(out.taps)}")
    (value,) = out.taps.values()
    return out, token_grid(value, config.patch, getattr(config, f"{side}_prefix"))


@functools.lru_cache(maxsize=64)
def program(
    student: Network,
    teacher: Network,
    training: Training,
    config: Config,
    fields: Fields = "image",
    teacher_fields: Fields = "image",
) -> Program:
    """One update of the student and of both projections."""
    project = projector(config.embedding_width).apply

    def prepare(variables, batch, context):
        train = batch["train"]
        out, grid = read(
            teacher, variables["teacher"], inputs(train, teacher_fields), "teacher", config
        )
        logits = train.get("teacher_logits", logits_of(out.output))
        train = {**train, "teacher_logits": logits, "teacher_grid": grid}
        return {**batch, "train": train}, context.memory

    def embed(variables, batch, context):
        x = inputs(batch["train"], fields)
        options = dict(train=True, rng=context.rng)
        out, grid = read(student, variables["student"], x, "student", config, **options)
        return (logits_of(out.output), grid), {"student": out.variables}

    def objective(variables, batch, context):
        rng, sample_rng = jax.random.split(context.rng)
        c = traced.bind(config, context.values)
        if "embeddings" in batch:
            (logits, grid), new = batch["embeddings"], {}
        else:
            (logits, grid), new = embed(variables, batch, context._replace(rng=rng))
        batch = batch["train"]
        taught, where = jax.lax.stop_gradient(batch["teacher_logits"]), batch["where"]
        labelled = where & losses.valid_labels(batch["label"], logits.shape[-1])
        found = compare(*match_tokens(grid, batch["teacher_grid"]), where, sample_rng, c)
        there = found.where[:, None]
        queries, keys = (
            project(variables[role], jnp.where(there, x, 0.0)).output
            for role, x in zip(ROLES, (found.student, found.teacher))
        )
        contrast = losses.info_nce(
            queries,
            keys,
            temperature=context.values["global_temperature"],
            where=there & found.where[None, :],
        )
        soft = losses.kd(logits, taught, temperature=c.temperature)
        agree = (jnp.argmax(logits, -1) == jnp.argmax(taught, -1)).astype(jnp.float32)
        return Evaluation(
            {
                "cross_entropy": mean(
                    supervised.label_loss(logits, batch), labelled, c.label_weight
                ),
                "kd": mean(soft, where, c.distillation_weight),
                "inner": mean(found.inner, where, c.inner_weight),
                "local": over_tokens(found.local, found.where, c.local_weight, c),
                "global": over_tokens(contrast, found.where, c.global_weight, c),
            },
            new,
            metrics={
                "agreement": mean(agree, where),
                "neighbor_overlap": mean(found.overlap, found.where),
            },
        )

    def temperature(step: jax.Array, steps: jax.Array) -> jax.Array:
        return global_temperature(step, steps, config.temperature_start, config.temperature_end)

    update = Update(
        objective,
        ("student", *ROLES),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
        batchwise=True,
        embed=embed if training.microbatches > 1 else None,
    )
    schedules = {**training.schedules, "global_temperature": temperature}
    return Program((update,), prepare, schedules, values=traced.names(training, config))


@functools.lru_cache(maxsize=64)
def validation_metrics(
    student: Network,
    teacher: Network,
    batch_size: int,
    config: Config,
    fields: Fields = "image",
    teacher_fields: Fields = "image",
):
    """`classification_metrics`, and `inner`, `local` and `neighbor_overlap` of unseen tokens.

    In batches as large as in training, and at the same tokens whenever it is called.
    """
    scores = classification_metrics("student", student, fields)

    def batches(x: jax.Array) -> jax.Array:
        padding = [(0, -len(x) % batch_size), *[(0, 0)] * (x.ndim - 1)]
        return jnp.pad(x, padding).reshape(-1, batch_size, *x.shape[1:])

    def evaluate(variables, batch) -> Mapping[str, Term]:
        grids = (
            read(network, variables[side], inputs(batch, names), side, config)[1]
            for side, network, names in zip(SIDES, (student, teacher), (fields, teacher_fields))
        )
        tokens = match_tokens(*grids)
        arrays = [batches(x) for x in (*tokens, batch["where"])]

        def measure(s: jax.Array, t: jax.Array, where: jax.Array, i: jax.Array) -> dict[str, Term]:
            found = compare(s, t, where, jax.random.fold_in(jax.random.key(0), i), config)
            return {
                "inner": mean(found.inner, where),
                "local": mean(found.local, found.where),
                "neighbor_overlap": mean(found.overlap, found.where),
            }

        found = jax.vmap(measure)(*arrays, jnp.arange(len(arrays[0])))
        graph = {name: Term(jnp.sum(m.total), jnp.sum(m.weight)) for name, m in found.items()}
        return {**scores(variables, batch), **graph}

    return evaluate


def token_shapes(task: Task, config: Config) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shapes `[1, N, D]` of an image's tokens in both networks; nothing is computed.

    Raises:
      ValueError: no such maps, tokens that do not match, a graph too large, or too small for its
        neighbours.
    """

    def tokens(variables):
        found = []
        for side in SIDES:
            network, x = task.networks[side], task.examples(side)
            try:
                found.append(read(network, variables[side], x, side, config)[1])
            except ValueError as error:
                raise ValueError(f"the {side}: {error}") from error
        return match_tokens(*found)

    found = jax.eval_shape(tokens, {side: abstract(task.start(side)) for side in SIDES})
    images = task.training["student"].batch_size
    size = images * min(config.tokens_per_image, found[0].shape[1])
    if size > config.max_tokens:
        raise ValueError(
            f"a batch of {images} images has a graph of {size} tokens, at most max_tokens="
            f"{config.max_tokens}: it takes memory for {size}^2 floats; lower tokens_per_image, "
            "or raise max_tokens"
        )
    if config.num_neighbors >= size:
        raise ValueError(f"num_neighbors={config.num_neighbors} of {size} tokens in a batch")
    return found


def check(task: Task, config: Config) -> None:
    """Refuses networks without such tokens; see `token_shapes`."""
    token_shapes(task, config)


def recipe(task: Task, config: Config) -> Generator:
    """A teacher, given or trained, then one stage that measures its graphs on unseen images too.

    Logits of a teacher that are cached are used, but it is run all the same, for its tokens.
    """
    training = task.training["student"]
    fixed = traced.static(training), traced.static(config)
    project, shapes = projector(config.embedding_width), token_shapes(task, config)
    extra = {
        role: project.init(task.key(f"variables of {role}"), jnp.zeros((1, shape.shape[-1])))
        for role, shape in zip(ROLES, shapes)
    }
    teacher = yield from supervised.teacher(task)
    networks = task.networks["student"], task.networks["teacher"]
    reads = task.reads("student"), task.reads("teacher")
    evaluate = validation_metrics(*networks, training.batch_size, fixed[1], *reads)
    _, train = yield from task.taught_stream(teacher)
    outcome = yield Stage(
        "distill",
        program(*networks, *fixed, *reads),
        {"student": task.start("student"), "teacher": task.kept("teacher", teacher), **extra},
        {"train": train},
        training.steps,
        validation=dataclasses.replace(task.validation("student"), evaluate=evaluate),
        values=traced.values(training, config),
    )
    return Trained.of(outcome, "student")
