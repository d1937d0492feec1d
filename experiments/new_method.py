"""Writes the beginning of a method: its file, a config, and tests that pass.

    python -m experiments.new_method NAME

What is written distils with cross-entropy and KL divergence, and runs as it is; put the paper's
loss in its place. `docs/add_a_method.rst` leads through the rest.
"""

from __future__ import annotations

import keyword
import pathlib
import re
import string
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[1]
REGISTRY = "kdjax/methods/__init__.py"
LONGEST = 30
# Modules, but no methods.
RESERVED = ("task", "custom", "rollouts", "prompted", "language_task", "generation_task")

METHOD = '''"""$title: one line that says what the student learns, in place of this one.

Authors, year, title, arXiv id.

Teacher and student see the same view of an example; the student minimises

    L = label_weight * CE(student, label) + distillation_weight * T^2 KL(teacher || student) at T

Replace the equation and `loss` by the paper's, and say where the paper and its code differ.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator
from typing import ClassVar

import jax
import jax.numpy as jnp

from kdjax import losses
from kdjax.methods import kd, supervised
from kdjax.methods.task import Fields, Task, Trained, inputs
from kdjax.networks import Network, logits_of
from kdjax.training import Evaluation, Program, Update, mean, traced
from kdjax.training.optimizers import Training

TASKS = ("classification",)


@dataclasses.dataclass(frozen=True)
class Config:
    """Attributes:
    temperature: > 0.
    label_weight, distillation_weight: >= 0.
    """

    temperature: float = 4.0
    label_weight: float = 0.1
    distillation_weight: float = 0.9

    # Arguments of the compiled step: configs that differ in these share it.
    traced: ClassVar[tuple[str, ...]] = ("temperature", "label_weight", "distillation_weight")

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        for name in ("label_weight", "distillation_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


def loss(student_logits: jax.Array, teacher_logits: jax.Array, config: Config) -> jax.Array:
    """What the student learns from the teacher, `[B]`; a kernel of `kdjax.losses`."""
    return losses.kd(student_logits, teacher_logits, temperature=config.temperature)


@functools.lru_cache(maxsize=64)
def program(
    student: Network,
    teacher: Network,
    training: Training,
    config: Config,
    fields: Fields = "image",
    teacher_fields: Fields = "image",
) -> Program:
    """One update of the student. Built once: its identity is the key of one compiled step."""

    def objective(variables, batch, context):
        batch, c = batch["train"], traced.bind(config, context.values)
        x = inputs(batch, fields)
        out = student.apply(variables["student"], *x, train=True, rng=context.rng)
        logits, taught, where = logits_of(out.output), batch["teacher_logits"], batch["where"]
        labelled = where & losses.valid_labels(batch["label"], logits.shape[-1])
        agree = (jnp.argmax(logits, -1) == jnp.argmax(taught, -1)).astype(jnp.float32)
        labels = supervised.label_loss(logits, batch)
        return Evaluation(
            {
                "cross_entropy": mean(labels, labelled, c.label_weight),
                "distillation": mean(loss(logits, taught, c), where, c.distillation_weight),
            },
            {"student": out.variables},
            metrics={"agreement": mean(agree, where)},
        )

    update = Update(
        objective,
        ("student",),
        training.transformation,
        microbatches=training.microbatches,
        loss_scale=training.scaling,
    )
    prepare, values = kd.teach(teacher, teacher_fields), traced.names(training, config)
    return Program((update,), prepare, training.schedules, values=values)


def recipe(task: Task, config: Config) -> Generator:
    """A teacher, given or trained, then one stage: the paper's algorithm, top to bottom."""
    teacher = yield from supervised.teacher(task)
    student, training = task.networks["student"], task.training["student"]
    reads = task.reads("student"), task.reads("teacher")
    fixed = traced.static(training), traced.static(config)
    step = program(student, task.networks["teacher"], *fixed, *reads)
    outcome = yield from task.distill(step, teacher, values=traced.values(training, config))
    return Trained.of(outcome, "student")
'''

CONFIG = '''"""$title on 8 x 8 digits, 400 labels.

    python -m experiments.run --config=configs/digits/$name.py \\
        --workdir=runs/digits-$name

Teacher 64-256-128-10, student 64-12-10; seconds on two cores.
"""

import dataclasses

from configs.digits import base
from kdjax.methods import $name


def get_config():
    config = base.get_config()
    for field in ("seeds", "vmap", "apart", "baseline"):  # of comparisons
        del config[field]
    fields = dataclasses.asdict($name.Config())
    config.method = dict(name="$name", **fields)
    return config
'''

TEST = '''"""$title: what the method promises, and what its paper claims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses, methods
from kdjax.methods import $name
from kdjax.training import run
from kdjax.training.gradients import gradient
from kdjax.training.stage import Context
from kdjax.training.state import pick


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"label_weight": -1.0}, "label_weight must not be negative, got -1.0"),
        ({"temprature": 1.0}, "did you mean 'temperature'"),
    ],
)
def test_a_bad_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        methods.configure("$name", **fields)


def test_the_terms_are_those_of_the_docstring(task):
    config = $name.Config()
    teacher = task.variables("teacher")
    stage = $name.recipe(task.with_teacher(teacher), config).send(None)
    stream, (update,) = stage.data["train"], stage.program.updates
    context = Context({}, jax.random.key(0), jnp.int32(0), stage.values)
    batch, _ = stage.program.prepare(
        stage.variables, {"train": stream.assemble(stream.table, next(stream.items()))}, context
    )
    terms = update.objective(stage.variables, batch, context).terms
    student = task.networks["student"].apply(stage.variables["student"], batch["train"]["image"])
    taught = task.networks["teacher"].apply(teacher, batch["train"]["image"])
    logits = student.output["logits"]
    expected = {
        "cross_entropy": losses.cross_entropy(logits, batch["train"]["label"]),
        "distillation": losses.kd(logits, taught.output["logits"], temperature=config.temperature),
    }
    assert set(terms) == set(expected)
    for term, values in expected.items():
        np.testing.assert_allclose(terms[term].total / terms[term].weight, values.mean(), rtol=1e-5)

    # Padding changes nothing: the engine divides once, by the weight of what counts.
    live = {"student": stage.variables["student"]}

    def grads(train):
        params = pick(live, update.trains)
        frozen = {"teacher": teacher}
        return gradient(update, params, live, frozen, {"train": train}, context).gradient

    padded = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch["train"])
    padded["where"] = padded["where"].at[len(logits) :].set(False)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        grads(batch["train"]),
        grads(padded),
    )


def test_it_trains_the_student_the_same_every_time_and_leaves_the_teacher_alone(task):
    teacher = task.variables("teacher")
    before = jax.tree.map(np.asarray, teacher)
    taught, config = task.with_teacher(teacher), $name.Config()
    first, again = (run($name.recipe(taught, config)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first.last, again.last)
    jax.tree.map(np.testing.assert_array_equal, teacher, before)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), first.last, task.variables("student"))
    assert any(jax.tree.leaves(moved))
'''

FILES = {
    "kdjax/methods/{}.py": METHOD,
    "configs/digits/{}.py": CONFIG,
    "tests/methods/test_{}.py": TEST,
}


def write(name: str, root: pathlib.Path = ROOT) -> list[pathlib.Path]:
    """Writes the beginning of a method, and puts its name into `NAMES`.

    Args:
      name: of the method: lower case words joined by underscores.
      root: the checkout.

    Returns:
      The files written, the registry last.

    Raises:
      ValueError: a name that is none, or is taken.
      FileExistsError: a file is there; nothing is written then.
      FileNotFoundError: `root` is no checkout.
    """
    fits = len(name) <= LONGEST and re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
    if not fits or keyword.iskeyword(name):
        raise ValueError(
            f"name must be lower case words joined by underscores, like plackett_luce, of at most "
            f"{LONGEST} characters, got {name!r}"
        )
    registry = root / REGISTRY
    if not registry.is_file() or not (root / "tests/methods").is_dir():
        raise FileNotFoundError(f"{root} is no checkout of kdjax: it has no {REGISTRY} and tests")
    text = registry.read_text(encoding="utf-8")
    names = re.search(r"^NAMES = \(\n(.*?)^\)$", text, re.DOTALL | re.MULTILINE)
    if names is None:
        raise ValueError(f"{registry} has no tuple NAMES to put {name!r} into")
    if f'"{name}"' in names[1] or name in RESERVED:
        raise ValueError(f"{name!r} is taken: choose another name")
    paths = {root / pattern.format(name): content for pattern, content in FILES.items()}
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} is there already: nothing was written")
    words = {"name": name, "title": name.replace("_", " ").capitalize()}
    for path, content in paths.items():
        path.write_text(string.Template(content).substitute(words), encoding="utf-8")
    end = names.end(1)
    registry.write_text(f'{text[:end]}    "{name}",\n{text[end:]}', encoding="utf-8")
    return [*paths, registry]


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m experiments.new_method NAME", file=sys.stderr)
        return 2
    try:
        written = write(arguments[0])
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path.relative_to(ROOT))
    print(f"run: python -m pytest -q tests/methods/test_{arguments[0]}.py")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
