"""MST-Distill: specialized teachers of other modalities, of which a gate picks some an example.

Li et al. 2025, "MST-Distill: Mixture of Specialized Teachers for Cross-Modal Knowledge
Distillation" (arXiv:2507.07015). A student of one modality has a teacher that reads all of them,
and a `cross_modal_teacher` that reads another one. Which of them is better differs from example to
example, and what only the other modality shows is nothing that the student could learn. Hence

1. co-training: teachers and student with the labels and with each other,

    L_1 = sum_i CE(z_i, y) + sum_i sum_{j != i} T^2 KL(p_j || p_i)

2. masks: each is trained at one layer of one frozen teacher, towards the frozen student,

    L_2 = T^2 KL(p_student || p_masked teacher)

3. distillation: the student goes on, from the k of M masked teachers that a gate picks for each
   example, with a loss that keeps the gate's choices apart,

    L_3 = w CE(s, y) + w_kl 1/k sum_{m in top-k(g)} T^2 KL(p_m || p_s) + w_lb LB(g),
    g = softmax(gate(s))

The body of the paper was not to be had: what it does not say in its abstract is as the released
code has it. There the gate has no gradient of the second term, and the last reaches the student.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.losses import checks
from kdjax.methods import supervised
from kdjax.methods.task import Fields, Task, Trained, classification_metrics, inputs
from kdjax.networks import (
    GateNet,
    MaskNet,
    Network,
    available_taps,
    from_linen,
    logits_of,
    masked_feature,
)
from kdjax.networks.quantization import TYPES
from kdjax.training import Deferred, Evaluation, Program, Stage, Update, Validation, mean
from kdjax.training.optimizers import Training

TEACHERS = ("teacher", "cross_modal_teacher")
SCORE = "negative_cross_entropy"  # of the student, on the validation split
PEERS = (*TEACHERS, "student")
ROUTING = ("gate", "random")
Specialists = tuple[tuple[str, str], ...]  # (teacher, layer); a layer "" is no mask


@dataclasses.dataclass(frozen=True)
class Config:
    """The three stages. The third has the steps of the student's training; all have its optimizer.

    Attributes:
      teacher_layers, cross_modal_layers: names of values (`networks.available_taps`), a mask each,
        before the activation that follows; (): the teacher teaches without a mask; None: it does
        not teach. The defaults fit a `fusion` and an `mlp`.
      heads, factor: of a `MaskNet`.
      cotraining_steps, mask_steps: of stages 1 and 2; >= 1.
      mutual_weight: of the KL terms of stage 1; 0: everyone learns alone.
      stop_target_gradient: in stage 1, of the target of each KL.
      temperature: > 0, of all stages.
      active_teachers: k.
      routing: "gate"; or "random", to compare with.
      gate_weighted: the picked teachers weigh as the gate says (not in the paper).
      label_weight, distillation_weight, balance_weight: >= 0, at the start of stage 3.
      balance: "kl" or "cv", see `losses.load_balancing_loss`.
      distillation_decay, distillation_epochs: after epochs 0, n, 2n, ... the weight is multiplied.
      balance_decay, balance_epochs: likewise.
    """

    teacher_layers: tuple[str, ...] | None = ("hidden/in", "hidden/out")
    cross_modal_layers: tuple[str, ...] | None = ("dense0/out", "dense1/out")
    heads: int = 3
    factor: int = 2
    cotraining_steps: int = 100
    mask_steps: int = 100
    mutual_weight: float = 1.0
    stop_target_gradient: bool = False
    temperature: float = 4.0
    active_teachers: int = 1
    routing: str = "gate"
    gate_weighted: bool = False
    label_weight: float = 1.0
    distillation_weight: float = 1.0
    balance_weight: float = 1.0
    balance: str = "kl"
    distillation_decay: float = 0.5
    distillation_epochs: int = 30
    balance_decay: float = 0.9
    balance_epochs: int = 10

    def __post_init__(self):
        checks.positive(temperature=self.temperature)
        for name in ("mutual", "label", "distillation", "balance"):
            checks.not_negative(**{f"{name}_weight": getattr(self, f"{name}_weight")})
        for name in ("distillation", "balance"):
            checks.fraction(**{f"{name}_decay": getattr(self, f"{name}_decay")})
            checks.count(1, **{f"{name}_epochs": getattr(self, f"{name}_epochs")})
        for name in ("heads", "factor", "cotraining_steps", "mask_steps"):
            checks.count(1, **{name: getattr(self, name)})
        checks.choice("routing", self.routing, ROUTING)
        checks.choice("balance", self.balance, ("kl", "cv"))
        for name in ("teacher_layers", "cross_modal_layers"):
            layers = getattr(self, name)
            if isinstance(layers, str) or not all(layers or ("all",)):
                raise ValueError(f"{name} must be a tuple of names of values, got {layers!r}")
        if not self.specialists:
            raise ValueError("teacher_layers and cross_modal_layers are both None: nobody teaches")
        checks.count(1, len(self.specialists), active_teachers=self.active_teachers)
        if self.balance == "cv" and len(self.specialists) == 1:
            raise ValueError("balance='cv' of one teacher is 0 / 0; use 'kl'")

    @property
    def specialists(self) -> Specialists:
        """The M specialized teachers, in the order of the gate."""
        layers = zip(TEACHERS, (self.teacher_layers, self.cross_modal_layers))
        return tuple((t, x) for t, names in layers if names is not None for x in names or ("",))

    @property
    def masks(self) -> dict[str, tuple[str, str]]:
        """Role of a mask -> (teacher, layer)."""
        return {f"mask{m}": one for m, one in enumerate(self.specialists) if one[1]}


def decayed(step: jax.Array, *, batch_size: int, examples: int, decay: float, epochs: int):
    """The factor of a weight that is multiplied by `decay` after epochs 0, n, 2n, ...

        decay^ceil(epoch / n),   epoch = floor(step batch_size / examples)

    >>> each = dict(batch_size=10, examples=20, decay=0.5, epochs=3)  # two steps an epoch
    >>> [float(decayed(step, **each)) for step in (0, 1, 2, 7, 8, 14)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.125]
    """
    epoch = step * batch_size // examples
    return jnp.float32(decay) ** ((epoch + epochs - 1) // epochs)


@dataclasses.dataclass(frozen=True)
class Cast:
    """The networks of the play, what they read, and the config: what programs are built of."""

    networks: tuple[Network, ...]  # as PEERS
    fields: tuple[Fields, ...]
    training: Training
    config: Config
    examples: int  # of an epoch

    def logits(self, variables, role: str, batch, **options):
        """`(logits, variables)` of a peer; with `edits`, of a peer with a mask."""
        i = PEERS.index(role)
        out = self.networks[i].apply(variables[role], *inputs(batch, self.fields[i]), **options)
        return logits_of(out.output), out.variables

    def specialist(self, variables, m: int, batch, **options):
        """`(logits, variables of its mask)` of a specialized teacher; the teacher is as in a test.

        It is run up to the layer for the mask and once more with it; the compiler merges what the
        two have in common.
        """
        role, layer = self.config.specialists[m]
        if not layer:
            return self.logits(variables, role, batch)[0], None
        i, name = PEERS.index(role), f"mask{m}"
        x = inputs(batch, self.fields[i])
        feature = self.networks[i].apply(variables[role], *x, taps=(layer,)).taps[layer]
        out = self.mask.apply(variables[name], feature, **options)
        edits = {layer: lambda value: masked_feature(value, out.output)}
        return self.logits(variables, role, batch, edits=edits)[0], out.variables

    @property
    def mask(self) -> Network:
        return _mask(self.config.heads, self.config.factor)

    @property
    def gate(self) -> Network:
        return _gate(len(self.config.specialists))

    @property
    def options(self) -> dict:
        """Of every update."""
        return {"loss_scale": self.training.scaling, "microbatches": self.training.microbatches}


@functools.lru_cache(maxsize=64)
def _mask(heads: int, factor: int) -> Network:
    return from_linen(MaskNet(heads=heads, factor=factor))


@functools.lru_cache(maxsize=64)
def _gate(num_teachers: int) -> Network:
    return from_linen(GateNet(num_teachers))


@functools.lru_cache(maxsize=64)
def cotraining(cast: Cast) -> Program:
    """Stage 1: one update of teachers and student."""
    config = cast.config

    def objective(variables, batch, context):
        batch, together, new = batch["train"], [], {}
        for role, rng in zip(PEERS, jax.random.split(context.rng, len(PEERS))):
            logits, new[role] = cast.logits(variables, role, batch, train=True, rng=rng)
            together.append(logits)
        together = jnp.stack(together, axis=-2)
        loss = losses.mutual_cotraining_loss(
            together,
            batch["label"],
            weight=config.mutual_weight,
            temperature=config.temperature,
            stop_target_gradient=config.stop_target_gradient,
        )
        where = batch["where"] & losses.valid_labels(batch["label"], together.shape[-1])
        return Evaluation({"cotraining": mean(loss.sum(-1), where)}, new)

    update = Update(objective, PEERS, cast.training.transformation, **cast.options)
    return Program((update,), schedules=cast.training.schedules)


def alignment(cast: Cast, variables, m: int, batch, target: jax.Array, **options):
    """`(loss [B], variables of the mask)`: the masked teacher is the one that learns here."""
    logits, new = cast.specialist(variables, m, batch, **options)
    return losses.kd(logits, target, temperature=cast.config.temperature), new


@functools.lru_cache(maxsize=64)
def specialization(cast: Cast) -> Program:
    """Stage 2: an update a mask, each with an optimizer of its own."""

    def prepare(variables, batch, context):
        train = batch["train"]
        target, _ = cast.logits(variables, "student", train)
        return {**batch, "train": {**train, "student_logits": target}}, context.memory

    def objective(role, variables, batch, context):
        batch, m = batch["train"], int(role.removeprefix("mask"))
        options = dict(train=True, rng=context.rng)
        loss, new = alignment(cast, variables, m, batch, batch["student_logits"], **options)
        return Evaluation({"alignment": mean(loss, batch["where"])}, {role: new})

    updates = tuple(
        Update(
            functools.partial(objective, role),
            (role,),
            cast.training.transformation,
            name=role,
            **cast.options,
        )
        for role in cast.config.masks
    )
    return Program(updates, prepare, cast.training.schedules)


@functools.lru_cache(maxsize=64)
def alignment_metrics(cast: Cast):
    """Of a validation: T^2 KL(student || teacher) with each mask, and of each teacher without.

    The score is minus the sum over the teachers of the mean over their masks.
    """
    config = cast.config

    def evaluate(variables, batch):
        target, _ = cast.logits(variables, "student", batch)
        found, each = {}, {}
        for role, (teacher, _) in config.masks.items():
            loss, _ = alignment(cast, variables, int(role.removeprefix("mask")), batch, target)
            found[f"kl/{role}"] = mean(loss, batch["where"])
            each.setdefault(teacher, []).append(loss)
        for teacher in each:
            bare, _ = cast.logits(variables, teacher, batch)
            loss = losses.kd(bare, target, temperature=config.temperature)
            found[f"kl/{teacher}"] = mean(loss, batch["where"])
        total = sum(sum(x) / len(x) for x in each.values())
        return {**found, "alignment": mean(-total, batch["where"])}

    return evaluate


def choices(cast: Cast, gate_probs: jax.Array, where: jax.Array, rng: jax.Array | None):
    """`(probabilities to choose by, {share of teacher m: Term})`."""
    config = cast.config
    if config.routing == "random" and rng is not None:
        gate_probs = jax.random.uniform(rng, gate_probs.shape, gate_probs.dtype)
    chosen = losses.route_topk(gate_probs, num_selected=config.active_teachers)
    shares = {}
    for m in range(len(config.specialists)):
        hits = jnp.mean((chosen == m).astype(jnp.float32), axis=-1)
        shares[f"share/{m}"] = mean(hits, where)
    return gate_probs, shares


@functools.lru_cache(maxsize=64)
def distillation(cast: Cast) -> Program:
    """Stage 3: one update of student and gate. Micro-batches are exact: logits first, then all."""
    config, training = cast.config, cast.training

    def prepare(variables, batch, context):
        train = batch["train"]
        number = range(len(config.specialists))
        taught = [cast.specialist(variables, m, train)[0] for m in number]
        train = {**train, "teacher_logits": jnp.stack(taught, axis=-2)}
        return {**batch, "train": train}, context.memory

    def embed(variables, batch, context):
        options = dict(train=True, rng=context.rng)
        logits, new = cast.logits(variables, "student", batch["train"], **options)
        return logits, {"student": new}

    def objective(variables, batch, context):
        rng, routing_rng = jax.random.split(context.rng)
        if "embeddings" in batch:
            logits, new = batch["embeddings"], {}
        else:
            logits, new = embed(variables, batch, context._replace(rng=rng))
        batch, values = batch["train"], context.values
        where = batch["where"]
        labelled = where & losses.valid_labels(batch["label"], logits.shape[-1])
        gate_probs = jax.nn.softmax(cast.gate.apply(variables["gate"], logits, train=True).output)
        choose_by, shares = choices(cast, gate_probs, where, routing_rng)
        routed = losses.routed_topk_distillation(
            logits,
            batch["teacher_logits"],
            choose_by,
            num_selected=config.active_teachers,
            temperature=config.temperature,
            gate_weighted=config.gate_weighted,
        )
        balance = losses.load_balancing_loss(gate_probs, mode=config.balance, where=where)
        balance = jnp.broadcast_to(balance, where.shape)
        return Evaluation(
            {
                "cross_entropy": mean(
                    supervised.label_loss(logits, batch), labelled, config.label_weight
                ),
                "routed": mean(routed, where, values["distillation_weight"]),
                "balance": mean(balance, where, values["balance_weight"]),
            },
            new,
            metrics=shares,
        )

    def weight(name: str):
        epoch = dict(batch_size=training.batch_size, examples=cast.examples)
        decay, epochs = (getattr(config, f"{name}_{what}") for what in ("decay", "epochs"))
        start = getattr(config, f"{name}_weight")
        return lambda step, steps: start * decayed(step, **epoch, decay=decay, epochs=epochs)

    update = Update(
        objective,
        ("student", "gate"),
        training.transformation,
        batchwise=True,
        embed=embed if training.microbatches > 1 else None,
        **cast.options,
    )
    schedules = {f"{name}_weight": weight(name) for name in ("distillation", "balance")}
    return Program((update,), prepare, {**training.schedules, **schedules})


@functools.lru_cache(maxsize=64)
def student_metrics(cast: Cast):
    """`classification_metrics`, and whom the gate picks on unseen examples.

    The score is minus the cross-entropy: the student with the lowest is kept, as the authors do.
    """
    scores = classification_metrics("student", cast.networks[2], cast.fields[2])

    def evaluate(variables, batch):
        logits, _ = cast.logits(variables, "student", batch)
        gate_probs = jax.nn.softmax(cast.gate.apply(variables["gate"], logits).output)
        _, shares = choices(cast, gate_probs, batch["where"], None)
        found = scores(variables, batch)
        entropy = found["cross_entropy"]
        return {**found, SCORE: entropy._replace(total=-entropy.total), **shares}

    return evaluate


def needs(config: Config) -> tuple[str, ...]:
    """Roles that a task must bring besides teacher and student."""
    return ("cross_modal_teacher",)


def cast_of(task: Task, config: Config) -> Cast:
    """The networks of a task, after a check that it has the three roles and the layers.

    Raises:
      ValueError: a role or a layer that is not there, a layer too narrow for a mask; a teacher that
        is to be cached or quantised, which masks inside of it forbid; a cross-modal one that is
        given or has a training of its own: all three learn together, as the student does.
    """
    for role in PEERS:
        if role not in task.networks:
            raise ValueError(
                f"mst_distill needs the networks {PEERS}; {role!r} is not among "
                f"{sorted(task.networks)}"
            )
    if task.cache_teacher or task.teacher_weights in TYPES:
        kept = "cached" if task.cache_teacher else f"quantize={task.teacher_weights!r}"
        raise ValueError(f"teacher.{kept}: MST-Distill trains the teacher, and runs it with masks")
    other = TEACHERS[1]
    for name, held in (("checkpoint", task.given), ("training", task.training)):
        if other in held:
            raise ValueError(
                f"{other}.{name}: MST-Distill trains both teachers itself, together with the "
                "student and as the student is trained; leave it out"
            )
    found = Cast(
        tuple(task.networks[role] for role in PEERS),
        tuple(task.reads(role) for role in PEERS),
        task.training["student"],
        config,
        len(task.dataset.splits[task.learns_from.get("student", "train")]),
    )
    for role, layer in config.masks.values():
        network, x = task.networks[role], task.examples(role)
        shapes = jax.eval_shape(network.init, jax.random.key(0), *x)
        names = available_taps(network, shapes, *x)
        if layer not in names:
            raise ValueError(f"the {role} has no value {layer!r}; it has {sorted(names)}")
        rng, feature = jax.random.key(0), names[layer]
        jax.eval_shape(found.mask.init, rng, feature)  # too few channels are refused here
    return found


def check(task: Task, config: Config) -> None:
    """Refuses a task that `cast_of` refuses."""
    cast_of(task, config)


def start(cast: Cast, task: Task, role: str) -> Deferred:
    """The initial variables of a mask, or of the gate."""
    if role == "gate":
        return Deferred(
            cast.gate.init,
            (task.key("variables of gate"), jnp.zeros((1, task.num_outputs("student")))),
        )
    teacher, layer = cast.config.masks[role]
    network, x = task.networks[teacher], task.examples(teacher)
    shape = available_taps(network, jax.eval_shape(network.init, jax.random.key(0), *x), *x)[layer]
    feature = jnp.zeros(shape.shape, shape.dtype)
    return Deferred(cast.mask.init, (task.key(f"variables of {role}"), feature))


def recipe(task: Task, config: Config) -> Generator:
    """Co-training, masks, distillation. A given teacher is not used: this one trains its own."""
    cast = cast_of(task, config)
    stream = {"train": task.stream("student")}
    together = yield Stage(
        "cotraining",
        cotraining(cast),
        {role: task.start(role) for role in PEERS},
        stream,
        config.cotraining_steps,
        validation=task.validation("student"),
    )
    peers = together.variables
    masks: Mapping = {}
    if config.masks:
        specialized = yield Stage(
            "masks",
            specialization(cast),
            {
                **{role: peers[role] for role in PEERS},
                **{r: start(cast, task, r) for r in config.masks},
            },
            stream,
            config.mask_steps,
            validation=Validation(
                alignment_metrics(cast),
                task.sequential("validation"),
                task.validate_every,
                score="alignment",
            ),
        )
        masks = specialized.selected
    outcome = yield Stage(
        "distill",
        distillation(cast),
        {**{role: peers[role] for role in PEERS}, **masks, "gate": start(cast, task, "gate")},
        stream,
        cast.training.steps,
        validation=dataclasses.replace(
            task.validation("student"), evaluate=student_metrics(cast), score=SCORE
        ),
    )
    return Trained.of(outcome, "student")
