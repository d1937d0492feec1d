"""Dual-head optimization: few labels teach one head, a vision-language model's logits another.

Kang et al. 2025, "Simple yet Effective Semi-supervised Knowledge Distillation from Vision-Language
Models via Dual-Head Optimization" (arXiv:2505.07675).

    L = lam CE(ce(z_l), label) + (1 - lam) [ KD(kd(z_l), t_l) + KD(kd(z_u), t_u) ],   z = g(x)
    p = alpha softmax(ce(z)) + (1 - alpha) softmax(kd(z) / beta)                  at inference

Each term is a mean over its own batch: labelled (l) and unlabelled (u) images are two streams of
one stage. On one head the two signals pull features and classifier in opposite directions; each
head here gets one of them, and both reach the backbone. alpha and beta are searched on the
validation split, and kept with the student's variables. Baselines: one head with both losses
(`heads="single"`, lam = 1: labels alone, lam = 0: the teacher alone), with PCGrad
(`alignment="pcgrad"`), or with the teacher's features in the place of its answers
(`signal="features"`).

Batch statistics are taken over both batches together. The teacher is given (zero-shot, see
`zero_shot.py`; with the few labels, `tip_adapter.py`) or trained on all labels, which is another
experiment.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Generator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from kdjax import losses
from kdjax.data.selection import few_shot
from kdjax.methods import supervised
from kdjax.methods.task import Fields, Task, Trained, inputs
from kdjax.networks import Applied, LinearEmbedding, Network, from_linen, logits_of
from kdjax.networks.heads import ClassifierHead
from kdjax.training import (
    Combined,
    Compute,
    Deferred,
    Evaluation,
    Program,
    Stage,
    Term,
    Update,
    Validation,
    gather,
    mean,
    traced,
)
from kdjax.training.optimizers import Training
from kdjax.training.stage import abstract

PyTree = Any
HEAD = "kd_head"
ROLES = ("projector",)  # besides teacher and student


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    temperature: of the distillation terms, > 0.
    lam: weight of the labels, in [0, 1]; the teacher's terms weigh 1 - lam.
    labels_per_class: labelled images of each class, drawn from `train` by the task's seed; 0: all.
    labeled_batch_size: of the labelled stream; the unlabelled one has the student's batch size.
    unlabeled: "all": of the whole of `train` (the paper), or "rest": without the labelled images.
    heads: "dual"; "single": both losses on the student's own head.
    head: of the teacher's signal: "linear", or "aligned": 100 times the cosine of features and
      class embeddings. With `task.given["class_embeddings"]`, `[C, D]` of the student's own text
      encoder, both heads begin there.
    signal: "logits"; or "features", on one head only: each of the teacher's terms is the mean
      square difference of its features and a linear map of the student's.
    alignment: "none", or "pcgrad".
    interpolation: "search" on the validation split; "fixed"; or "entropy": alpha of every image by
      the entropies of the heads.
    alpha, beta: where nothing is searched: in [0, 1], and > 0.
    class_order: the column of the teacher's logits for each class; (): they are in label order.
    main_head: regex over the student's parameter paths that finds its own head.
    report_conflict: reports the cosine of the two gradients in the backbone.
    """

    temperature: float = 2.0
    lam: float = 0.5
    labels_per_class: int = 4
    labeled_batch_size: int = 64
    unlabeled: str = "all"
    heads: str = "dual"
    head: str = "linear"
    signal: str = "logits"
    alignment: str = "none"
    interpolation: str = "search"
    alpha: float = 0.5
    beta: float = 1.0
    class_order: tuple[int, ...] = ()
    main_head: str = "^head/"
    report_conflict: bool = False

    traced: ClassVar[tuple[str, ...]] = ("temperature", "lam")

    def __post_init__(self):
        options = {
            "unlabeled": ("all", "rest"),
            "heads": ("dual", "single"),
            "head": ("linear", "aligned"),
            "signal": ("logits", "features"),
            "alignment": ("none", "pcgrad"),
            "interpolation": ("search", "fixed", "entropy"),
        }
        for name, allowed in options.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.signal == "features" and self.heads != "single":
            raise ValueError(
                f'signal="features" needs heads="single", got {self.heads!r}: features have no '
                "classes for a second head"
            )
        for name in ("temperature", "beta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("lam", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.labels_per_class < 0:
            raise ValueError(f"labels_per_class must not be negative, got {self.labels_per_class}")
        if self.labeled_batch_size < 1:
            raise ValueError(
                f"labeled_batch_size must be at least 1, got {self.labeled_batch_size}"
            )
        if sorted(self.class_order) != list(range(len(self.class_order))):
            raise ValueError(f"class_order must be a permutation, got {self.class_order}")


@functools.lru_cache(maxsize=64)
def two_heads(
    student: Network,
    num_classes: int,
    head: str = "linear",
    alpha: float = 0.5,
    beta: float = 1.0,
    adaptive: bool = False,
) -> Network:
    """A student with a second head on its features, whose logits are those of the mixture.

    `params` have one more entry, `kd_head`; the collection `interpolation` holds alpha and beta,
    so that they are kept, saved and restored with the weights. The output has `logits` (the log of
    the mixture), `ce_logits`, `kd_logits` and `features`. `adaptive`: alpha is
    `losses.entropy_adaptive_alpha` instead.

    Raises:
      ValueError (from `init`): the student's output has no `features`.
    """
    linear = from_linen(ClassifierHead(num_classes))

    def own(variables: Mapping[str, PyTree]) -> dict[str, PyTree]:
        kept = {name: x for name, x in variables.items() if name != "interpolation"}
        return {**kept, "params": {n: x for n, x in kept["params"].items() if n != HEAD}}

    def init(rng, *x):
        variables = student.init(rng, *x)
        features = jax.eval_shape(lambda v: _features(student.apply(v, *x).output), variables)
        key = jax.random.fold_in(rng, 2)
        if head == "aligned":
            second = {"class_embeddings": jax.random.normal(key, (num_classes, features.shape[1]))}
        else:
            second = linear.init(key, jnp.zeros(features.shape))["params"]
        return {
            **variables,
            "params": {**variables["params"], HEAD: second},
            "interpolation": {"alpha": jnp.float32(alpha), "beta": jnp.float32(beta)},
        }

    def apply(variables, *x, train=False, rng=None, taps=(), edits=None):
        options = dict(train=train, rng=rng, taps=taps, edits=edits)
        out = student.apply(own(variables), *x, **options)
        ce, features = logits_of(out.output), _features(out.output)
        second, mixture = variables["params"][HEAD], variables["interpolation"]
        if head == "aligned":
            kd = losses.clip_zero_shot_logits(features, second["class_embeddings"])
        else:
            kd = logits_of(linear.apply({"params": second}, features).output)
        weight = losses.entropy_adaptive_alpha(ce, kd) if adaptive else mixture["alpha"]
        logits = losses.dual_head_log_probs(ce, kd, alpha=weight, beta=mixture["beta"])
        output = {"logits": logits, "ce_logits": ce, "kd_logits": kd, "features": features}
        new = {**variables, **{n: v for n, v in out.variables.items() if n != "params"}}
        return Applied(output, new, out.taps)

    return Network(init, apply)


def _features(output: Any, role: str = "student") -> jax.Array:
    if not isinstance(output, Mapping) or "features" not in output:
        raise ValueError(f"the {role}'s output has no 'features'")
    features = output["features"]
    return features.reshape(features.shape[0], -1)


@functools.lru_cache(maxsize=64)
def _from_language(network: Network):
    """`init` of a student whose heads begin at class embeddings, without a bias."""

    def init(rng, embeddings, *x):
        variables = network.init(rng, *x)
        params = dict(variables["params"])
        if "head" not in params or params["head"]["kernel"].shape != embeddings.T.shape:
            raise ValueError(
                f"class_embeddings of shape {embeddings.shape} do not fit the student's own head"
            )
        linear = {"kernel": embeddings.T, "bias": jnp.zeros(len(embeddings))}
        params["head"] = linear
        aligned = "class_embeddings" in params[HEAD]
        params[HEAD] = {"class_embeddings": embeddings} if aligned else {"logits": linear}
        return {**variables, "params": params}

    return init


def dual_task(task: Task, config: Config) -> Task:
    """The task whose student has two heads."""
    alpha, beta = config.alpha, config.beta
    if config.heads == "single":
        alpha, beta = 1.0, 1.0
    network = two_heads(
        task.networks["student"],
        task.dataset.num_classes,
        config.head,
        alpha,
        beta,
        config.heads == "dual" and config.interpolation == "entropy",
    )
    return dataclasses.replace(task, networks={**task.networks, "student": network})


def start(task: Task) -> Deferred:
    """The initial variables of a student with two heads."""
    if "class_embeddings" not in task.given:
        return task.start("student")
    key, embeddings = task.key("variables of student"), jnp.asarray(task.given["class_embeddings"])
    function = _from_language(task.networks["student"])
    return Deferred(function, (key, embeddings, *task.examples("student")))


def teach(network: Network, fields: Fields = "image", class_order: tuple[int, ...] = ()):
    """A program's `prepare`: the teacher's logits in both streams, in the order of the labels.

    And its features, where it has them and its logits are not cached.
    """

    def prepare(variables, batch, context):
        out = {}
        for name, part in batch.items():
            if "teacher_logits" not in part:
                applied = network.apply(variables["teacher"], *inputs(part, fields))
                part = {**part, "teacher_logits": logits_of(applied.output)}
                if isinstance(applied.output, Mapping) and "features" in applied.output:
                    part["teacher_features"] = _features(applied.output)
            logits = part["teacher_logits"]
            if class_order and len(class_order) != logits.shape[-1]:
                raise ValueError(
                    f"class_order has {len(class_order)} classes, the teacher {logits.shape[-1]}"
                )
            if class_order:
                part = {**part, "teacher_logits": logits[..., np.array(class_order)]}
            out[name] = part
        return out, context.memory

    return prepare


def combine(config: Config, gradients: Mapping[str, PyTree]) -> Combined:
    """The gradients of labels and of teacher, as `alignment` adds them, and their cosine."""
    labels = gradients["cross_entropy"]
    teacher = jax.tree.map(jnp.add, gradients["kd_labeled"], gradients["kd_unlabeled"])
    metrics = {}
    if config.report_conflict:

        def backbone(gradient):
            heads = re.compile(f"{config.main_head}|^{HEAD}/")
            return {p: x for p, x in gradient["student"].items() if not heads.search(p)}

        if f"{HEAD}/" not in "".join(labels["student"]) or not backbone(labels):
            raise ValueError(f"main_head={config.main_head!r} leaves no backbone")
        cosine = losses.gradient_cosine(backbone(labels), backbone(teacher))
        metrics["cosine/backbone"] = Term(cosine, jnp.float32(1))
    if config.alignment == "pcgrad":
        return Combined(losses.pcgrad(labels, teacher), metrics)
    return Combined(jax.tree.map(jnp.add, labels, teacher), metrics)


@functools.lru_cache(maxsize=64)
def projector(width: int) -> Network:
    """Features [B, D] to the teacher's width."""
    return from_linen(LinearEmbedding(width, normalized=False))


def projected(task: Task) -> Deferred:
    """The initial variables of the map from the student's features to the teacher's.

    Raises:
      ValueError: teacher or student without features; answers of the teacher that are cached.
    """
    if task.cache_teacher:
        raise ValueError('signal="features": cache_teacher keeps logits, and no features')

    def width(role: str) -> int:
        def read(v):
            return _features(task.networks[role].apply(v, *task.examples(role)).output, role)

        variables = task.given[role] if role in task.given else task.start(role)
        return jax.eval_shape(read, abstract(variables)).shape[1]

    key = task.key("variables of projector")
    return Deferred(projector(width("teacher")).init, (key, jnp.zeros((1, width("student")))))


@functools.lru_cache(maxsize=64)
def program(
    student: Network,
    teacher: Network,
    training: Training,
    config: Config,
    fields: Fields = "image",
    teacher_fields: Fields = "image",
) -> Program:
    """One update of a student with two heads, on the streams `labeled` and `unlabeled`."""
    single, by_features = config.heads == "single", config.signal == "features"

    def objective(variables, batch, context):
        labeled, unlabeled = batch["labeled"], batch["unlabeled"]
        c = traced.bind(config, context.values)
        if "mix" in labeled:
            raise ValueError("dho reads one label an image: it cannot train on mixup")
        pairs = zip(inputs(labeled, fields), inputs(unlabeled, fields))
        x = [jnp.concatenate(pair) for pair in pairs]
        out = student.apply(variables["student"], *x, train=True, rng=context.rng)
        ce = out.output["ce_logits"]
        kd = ce if single else out.output["kd_logits"]
        rows = len(labeled["where"])
        parts = losses.dho(
            ce[:rows],
            kd[:rows],
            kd[rows:],
            labeled["teacher_logits"],
            unlabeled["teacher_logits"],
            labeled["label"],
            temperature=c.temperature,
        )
        if by_features:
            there = jnp.concatenate([x["teacher_features"] for x in (labeled, unlabeled)])
            project = projector(there.shape[1]).apply
            here = project(variables["projector"], _features(out.output)).output
            apart = losses.hint(here, there)
            parts = parts._replace(kd_labeled=apart[:rows], kd_unlabeled=apart[rows:])
        known = labeled["where"] & losses.valid_labels(labeled["label"], ce.shape[-1])
        return Evaluation(
            {
                "cross_entropy": mean(parts.cross_entropy, known, c.lam),
                "kd_labeled": mean(parts.kd_labeled, labeled["where"], 1 - c.lam),
                "kd_unlabeled": mean(parts.kd_unlabeled, unlabeled["where"], 1 - c.lam),
            },
            {"student": out.variables},
        )

    apart = config.alignment != "none" or config.report_conflict
    update = Update(
        objective,
        ("student", *(ROLES if by_features else ())),
        training.transformation,
        combine=functools.partial(combine, config) if apart else None,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
    )
    prepare = teach(teacher, teacher_fields, config.class_order)
    values = traced.names(training, config)
    return Program((update,), prepare, training.schedules, values=values)


@functools.lru_cache(maxsize=64)
def grid_metrics(network: Network, fields: Fields = "image"):
    """`(variables, batch) -> {grid}`: what every alpha and beta gets right, for a `Validation`."""

    def evaluate(variables, batch) -> dict[str, Term]:
        out = network.apply(variables["student"], *inputs(batch, fields)).output
        correct = losses.dual_head_correct(out["ce_logits"], out["kd_logits"], batch["label"])
        where = batch["where"].astype(jnp.float32)
        return {"grid": Term(jnp.sum(correct * where, -1), jnp.sum(where))}

    return evaluate


def conclude(means: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The best of the grid, and each head alone."""
    grid = means["grid"]
    best = losses.best_interpolation(grid)
    return {
        "accuracy": best.accuracy,
        "alpha": best.alpha,
        "beta": best.beta,
        "ce_accuracy": grid[0, -1],
        "kd_accuracy": grid[losses.dual_head.BETAS.index(1.0), 0],
    }


def validation(task: Task, config: Config) -> Validation:
    """Scores the mixture, its alpha and beta searched anew each time where the config says so."""
    plain = task.validation("student")
    if config.heads == "single" or config.interpolation != "search":
        return plain
    evaluate = grid_metrics(task.networks["student"], task.reads("student"))
    return dataclasses.replace(plain, evaluate=evaluate, conclude=conclude)


@functools.lru_cache(maxsize=64)
def _answers(network: Network, assemble, fields: Fields):
    def answer(variables, table, item):
        batch = assemble(table, item)
        return network.apply(variables, *inputs(batch, fields)).output, batch["where"]

    return jax.jit(answer)


def answers(
    task: Task, variables: PyTree, split: str, role: str = "student"
) -> dict[str, np.ndarray]:
    """What a network with several outputs says of every example of a split, in evaluation mode.

    Returns:
      Of a student with two heads: `logits`, `ce_logits` and `kd_logits`, `[N, C]`, and `features`,
      `[N, D]`.
    """
    stream = task.sequential(split)
    function = _answers(task.networks[role], stream.assemble, task.reads(role))
    variables, parts = gather(variables), []
    for item in stream.items(whole=True):
        out, where = function(variables, stream.table, item)
        parts.append({name: np.asarray(x)[np.asarray(where)] for name, x in out.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def searched(task: Task, variables: PyTree) -> np.ndarray:
    """alpha and beta that are best on the validation split."""
    found = answers(task, variables, "validation")
    labels = task.dataset.splits["validation"].arrays()["label"]
    best = losses.search_alpha_beta(found["ce_logits"], found["kd_logits"], labels)
    return np.asarray(best[:2], np.float32)


def mixed(variables: PyTree, interpolation: np.ndarray) -> PyTree:
    """A student's variables with another alpha and beta."""
    alpha, beta = map(jnp.asarray, interpolation)
    return {**variables, "interpolation": {"alpha": alpha, "beta": beta}}


def labeled_rows(task: Task, shots: int) -> np.ndarray:
    """Which images of `train` are labelled: the same for every method of a seed; 0 shots: all."""
    labels = task.dataset.splits["train"].labels()
    if not shots:
        return np.arange(len(labels))
    return few_shot(labels, shots, np.random.default_rng([task.seed, shots]))


def streams(task: Task, config: Config, rows: np.ndarray, fields: Any) -> dict[str, Any]:
    """Batches of labelled and of unlabelled images, whose labels nothing reads."""
    rest = None
    if config.unlabeled == "rest":
        rest = np.setdiff1d(np.arange(len(task.dataset.splits["train"])), rows)
        if not len(rest):
            raise ValueError('unlabeled="rest", but all images of train are labelled')
    options = dict(split="train", fields=fields)
    size = config.labeled_batch_size
    return {
        "labeled": task.stream("student", name="labeled", indices=rows, batch_size=size, **options),
        "unlabeled": task.stream("student", name="unlabeled", indices=rest, **options),
    }


def check(task: Task, config: Config) -> None:
    """Refuses networks without features where these are compared; see `projected`."""
    if config.signal == "features":
        projected(dual_task(task, config))


def recipe(task: Task, config: Config) -> Generator:
    """A teacher, given or trained; one stage on two streams; then alpha and beta."""
    rows = labeled_rows(task, config.labels_per_class)
    teacher = yield from supervised.teacher(task)
    task, training = dual_task(task, config), task.training["student"]
    taught, fields = yield from task.taught(teacher)
    nets = task.networks["student"], task.networks["teacher"]
    fixed = traced.static(training), traced.static(config)
    extra = {"projector": projected(task)} if config.signal == "features" else {}
    outcome = yield Stage(
        "distill",
        program(*nets, *fixed, task.reads("student"), task.reads("teacher")),
        {"student": start(task), **taught, **extra},
        streams(task, config, rows, fields),
        training.steps,
        validation=validation(task, config),
        values=traced.values(training, config),
    )
    trained = dataclasses.replace(Trained.of(outcome, "student"), network=nets[0])
    if config.heads == "single" or config.interpolation != "search":
        return trained
    found = yield Compute(
        "interpolation",
        lambda rng: {
            "last": searched(task, trained.last),
            "selected": searched(task, trained.selected),
        },
        shapes=dict.fromkeys(("last", "selected"), jax.ShapeDtypeStruct((2,), jnp.float32)),
    )
    return dataclasses.replace(
        trained,
        last=mixed(trained.last, found["last"]),
        selected=mixed(trained.selected, found["selected"]),
    )
