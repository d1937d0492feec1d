"""Four small worlds where it can be computed which divergence, target or sequences are better.

    python -m experiments.sequence_kd capacity        # divergences of a student that is too small
    python -m experiments.sequence_kd sparse          # top-k targets against random samples (RS-KD)
    python -m experiments.sequence_kd on_policy       # GKD: the data's rows, or the student's
    python -m experiments.sequence_kd student_samples # DistiLLM, MiniLLM, speculative KD, GKD, KL

Each writes one record a seed and arm, and a page that says which claims hold, to
`results/sequence_kd-<name>`. About two minutes of one core together.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pathlib
import sys
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kdjax import evaluation, losses
from kdjax.data import Dataset, Split
from kdjax.data.tokenizers import CharacterTokenizer
from kdjax.methods import distillm, gkd, language_model, minillm, rollouts, sequence_kd
from kdjax.methods.language_task import LanguageTask, read, targets
from kdjax.networks.transformer import DecoderConfig
from kdjax.training import MetricWriter, mean, run
from kdjax.training.optimizers import Training

Metrics = Mapping[str, float]
Found = Mapping[str, list[Metrics]]  # arm -> metrics, one a seed
Claims = list[tuple[str, bool, str]]  # what is claimed, whether it holds, the numbers
SEEDS = range(5)


def fit(loss: Callable, start, steps: int, learning_rate, *inputs):
    """Parameters after `steps` steps of Adam on `loss(parameters, one of the inputs)`."""
    optimizer = optax.adam(learning_rate)

    def step(carry, x):
        parameters, state = carry
        changes, state = optimizer.update(jax.grad(loss)(parameters, *x), state)
        return (optax.apply_updates(parameters, changes), state), None

    carry = (start, optimizer.init(start))
    return jax.lax.scan(step, carry, inputs or (), length=steps)[0][0]


# A Gaussian that is to be a mixture of two.


def capacity() -> tuple[Found, Claims]:
    """A discretised Gaussian learns 0.5 N(-8, 2^2) + 0.5 N(8, 2^2) on the grid -20, ..., 20."""
    grid = jnp.arange(-20.0, 21.0)
    teacher = jnp.logaddexp(-((grid + 8) ** 2) / 8, -((grid - 8) ** 2) / 8)

    def student(parameters):
        return -((grid - parameters[0]) ** 2) / (2 * jnp.exp(2 * parameters[1]))

    arms = {
        "kl": losses.kl_divergence,
        "reverse_kl": losses.reverse_kl,
        "generalized_jsd": losses.generalized_jsd,
        "skewed_kl": functools.partial(losses.skewed_forward_kl, lam=0.1),
        "skewed_reverse_kl": functools.partial(losses.skewed_reverse_kl, lam=0.1),
    }
    found: dict[str, list[Metrics]] = {}
    for name, divergence in arms.items():
        train = jax.jit(
            lambda start, divergence=divergence: fit(
                lambda parameters: divergence(teacher, student(parameters)), start, 500, 0.1
            )
        )
        found[name] = []
        for seed in SEEDS:
            start = jnp.array([3.0 * jax.random.normal(jax.random.key(seed)), 0.0])
            mu, log_sigma = train(start)
            found[name].append({"mu": float(mu), "sigma": float(jnp.exp(log_sigma))})

    def all_of(name, key):
        return np.array([x[key] for x in found[name]])

    def span(name, key):
        return f"{key} {all_of(name, key).min():.2f} to {all_of(name, key).max():.2f}"

    forward = all_of("kl", "sigma")
    claims = [
        (
            "forward KL ends at sigma > 6 and |mu| < 2",
            bool((forward > 6).all() and (abs(all_of("kl", "mu")) < 2).all()),
            f"{span('kl', 'sigma')}, {span('kl', 'mu')}; moments: sigma {68**0.5:.2f}, mu 0",
        ),
        (
            "reverse KL ends at |mu| > 6 and sigma < 3",
            bool(
                (abs(all_of("reverse_kl", "mu")) > 6).all()
                and (all_of("reverse_kl", "sigma") < 3).all()
            ),
            f"{span('reverse_kl', 'sigma')}, {span('reverse_kl', 'mu')}",
        ),
    ]
    for name in ("generalized_jsd", "skewed_kl", "skewed_reverse_kl"):
        below = bool((all_of(name, "sigma") <= forward).all())
        claims.append((f"sigma of {name} never above forward KL's", below, span(name, "sigma")))
    return found, claims


# A table that learns from the teacher's best tokens, or from its samples.


def sparse() -> tuple[Found, Claims]:
    """Free logits over 100 tokens learn a Zipf teacher from its top 10, or from 50 samples."""
    vocabulary, k, draws = 100, 10, 2000
    p = 1 / np.arange(1, vocabulary + 1)
    p = jnp.asarray(p / p.sum(), jnp.float32)
    teacher, mass = jnp.log(p), float(p[:k].sum())
    start = jnp.zeros(vocabulary)

    def naive(logits):  # the cross-entropy with probabilities that do not sum to 1
        return -jnp.sum(p[:k] * jax.nn.log_softmax(logits)[:k])

    def sampled(logits, key):
        ids, weights = losses.random_sample_targets(key, teacher, num_samples=50)
        return -jnp.sum(weights * losses.gathered_log_softmax(logits, ids))

    def measured(logits) -> dict[str, float]:
        q = jax.nn.softmax(logits)
        best = jnp.argmax(q)
        optimum = jnp.where(jnp.arange(vocabulary) < k, p / mass, 0.0)
        return {
            "kl": float(losses.kl_divergence(teacher, logits)),
            # One context: the confidence less the chance that the most probable token is right.
            "ece": float(jnp.abs(q[best] - p[best])),
            "distance_to_renormalized": float(jnp.abs(q - optimum).max()),
        }

    top = measured(jax.jit(lambda: fit(naive, start, draws, 0.1))())
    rate = optax.cosine_decay_schedule(0.1, draws)
    train = jax.jit(lambda key: fit(sampled, start, draws, rate, jax.random.split(key, draws)))
    random = [measured(train(jax.random.key(seed))) for seed in SEEDS]
    found = {"top_k": [top] * len(SEEDS), "random_sampling": random}
    worst = max(x["kl"] for x in random)
    calibration = max(x["ece"] for x in random)
    return found, [
        (
            "the optimum of top-k cross-entropy is p / a: largest error below 1e-3",
            top["distance_to_renormalized"] < 1e-3,
            f"{top['distance_to_renormalized']:.1e}, a = {mass:.3f}",
        ),
        ("RS-KD over 2000 draws of 50 reaches a KL below 0.01", worst < 0.01, f"{worst:.4f}"),
        (
            "the calibration error of top-k is above that of RS-KD",
            top["ece"] > calibration,
            f"{top['ece']:.4f} against at most {calibration:.4f}",
        ),
    ]


# A student that sees one token learns from a teacher that sees two.

TOKENIZER = CharacterTokenizer("abcd")
PROMPT, LENGTH, ROWS = 2, 16, 1024
TEACHER = DecoderConfig(
    vocabulary=TOKENIZER.vocabulary,
    width=32,
    num_layers=1,
    num_heads=2,
    hidden=64,
    max_length=LENGTH,
    window=2,
)
STUDENT = dataclasses.replace(TEACHER, window=1)
TRAINING = {
    "teacher": Training(steps=600, batch_size=64, learning_rate=1e-2, schedule="cosine"),
    "student": Training(steps=300, batch_size=32, learning_rate=1e-2, schedule="cosine"),
}
ARMS = {
    f"{divergence}-{on_policy:g}": gkd.Config(
        divergence=divergence, on_policy=on_policy, sampling_temperature=1.0
    )
    for divergence in ("kl", "generalized_jsd")
    for on_policy in (0.0, 1.0)
}


def trigrams(seed: int) -> LanguageTask:
    """Rows of a random trigram chain over four symbols: two are the prompt."""
    rng = np.random.default_rng(seed)
    chain = rng.dirichlet(np.full(4, 0.5), (4, 4))
    splits = {}
    for name, rows in (("train", ROWS), ("validation", 256), ("test", 512)):
        tokens = np.zeros((rows, LENGTH), np.int32)
        tokens[:, :PROMPT] = rng.integers(4, size=(rows, PROMPT))
        for place in range(PROMPT, LENGTH):
            chances = chain[tokens[:, place - 2], tokens[:, place - 1]].cumsum(-1)
            tokens[:, place] = (rng.random((rows, 1)) > chances[:, :3]).sum(-1)
        there = np.broadcast_to(np.arange(LENGTH), tokens.shape).astype(np.int32)
        arrays = {
            "tokens": tokens,
            "completion": there >= PROMPT,
            "segments": np.ones_like(tokens),
            "positions": there,
        }
        splits[name] = Split.of(arrays, f"trigrams/{name}")
    return LanguageTask(
        dataset=Dataset("trigrams", splits, ("a", "b", "c", "d", "<end>")),
        training=TRAINING,
        decoders={"teacher": TEACHER, "student": STUDENT},
        tokenizer=TOKENIZER,
        seed=seed,
    )


@jax.jit
def own_rollouts(student, teacher, batch, rng):
    """KL(teacher, student) a token, on rows that the student writes to the test split's prompts."""
    options = dict(prompt_length=PROMPT, stop=(TOKENIZER.end,))
    rows = rollouts.roll_out(STUDENT, student, batch, rng, **options).batch
    own, other = read(STUDENT, student, rows), read(TEACHER, teacher, rows)
    _, where = targets(rows)
    total, weight = losses.linear_kl(own.hidden, own.head, other.hidden, other.head, where=where)
    back, _ = losses.linear_reverse_kl(own.hidden, own.head, other.hidden, other.head, where=where)
    length = mean(where.sum(1, dtype=jnp.float32), batch["where"])
    return {
        "kl_own_rollouts": total / weight,
        "reverse_kl_own_rollouts": back / weight,
        "answer_length": length.total / length.weight,
    }


def measured(task: LanguageTask, student) -> dict[str, float]:
    """`own_rollouts` of a student, and its scores on the test split."""
    teacher = task.reference(task.given["teacher"])
    arrays = task.dataset.splits["test"].arrays()
    count = len(arrays["tokens"])
    batch = {**arrays, "id": np.arange(count), "where": np.ones(count, bool)}
    scores = own_rollouts(student, teacher, batch, jax.random.key(task.seed))
    held = task.scores("student", student, teacher)
    return {n: float(x) for n, x in scores.items()} | {
        n: held[n] for n in ("kl_to_teacher", "reverse_kl", "cross_entropy", "entropy")
    }


def on_policy() -> tuple[Found, Claims]:
    """A bigram decoder learns from a trigram one (windows of 1 and 2 tokens), by GKD."""
    found: dict[str, list[Metrics]] = {name: [] for name in ARMS}
    for seed in SEEDS:
        task = trigrams(seed)
        task = task.with_teacher(run(language_model.teacher(task), seed=seed))
        for name, config in ARMS.items():
            student = run(gkd.recipe(task, config), seed=seed).last
            found[name].append(measured(task, student))
    claims = []
    for divergence in ("kl", "generalized_jsd"):
        one, zero = (
            [x["kl_own_rollouts"] for x in found[f"{divergence}-{on_policy}"]]
            for on_policy in (1, 0)
        )
        test = evaluation.paired_test(one, zero)
        claims.append(
            (
                f"GKD with {divergence}: lambda 1 has a lower KL on its own rollouts than lambda 0",
                bool(test.difference < 0 and test.p is not None and test.p < 0.05),
                f"{np.mean(one):.4f} against {np.mean(zero):.4f}, difference "
                f"{test.difference:+.4f} ± {test.sd:.4f}, paired p = {test.p:.2g}",
            )
        )
    return found, claims


# The same two, and a student that has been trained on the data before.

WARM_UP = 100
SAMPLING = {
    "kl": (sequence_kd, sequence_kd.Config()),
    "sequence_kd": (sequence_kd, sequence_kd.Config(**sequence_kd.SEQUENCE_LEVEL)),
    "gkd": (gkd, gkd.Config(on_policy=1.0, sampling_temperature=1.0)),
    "speculative": (
        gkd,
        gkd.Config(
            on_policy=1.0, sampling_temperature=1.0, accept_top_k=2, correction_temperature=1.0
        ),
    ),
    "distillm": (distillm, distillm.Config(capacity=256)),
    "distillm-half": (distillm, distillm.Config(capacity=256, threshold=0.5)),
    "minillm": (minillm, minillm.Config(rollouts=128)),
}
# The policy gradient wants a smaller rate than the divergences, as its authors' scripts have it.
MINILLM = Training(steps=300, batch_size=32, learning_rate=2e-3, schedule="cosine")


def student_samples() -> tuple[Found, Claims]:
    """The bigram decoder after 100 steps on the data, by KL, SeqKD, GKD, speculative KD, DistiLLM
    and MiniLLM.

    300 steps each. `distillm` has the paper's threshold of 0 at the start, `distillm-half` one of
    0.5, so that rows of the student are certain to come; `generated` is the share of steps in which
    a model had to write. `speculative` is GKD with the tokens that are not among the teacher's best
    two of five replaced by the teacher's.
    """
    found: dict[str, list[Metrics]] = {name: [] for name in SAMPLING}
    for seed in SEEDS:
        task = dataclasses.replace(trigrams(seed), warm_up=WARM_UP, validate_every=25)
        task = task.with_teacher(run(language_model.teacher(task), seed=seed))
        task = run(task.prepared(), seed=seed)
        for name, (module, config) in SAMPLING.items():
            training = {**task.training, "student": MINILLM} if module is minillm else task.training
            writer = MetricWriter(None)
            recipe = module.recipe(dataclasses.replace(task, training=training), config)
            student = run(recipe, seed=seed, metrics=writer).last
            shares = [row["generated"] for row in writer.rows if "generated" in row]
            share = float(np.mean(shares)) if shares else GENERATED.get(name, 0.0)
            found[name].append(measured(task, student) | {"generated": share})

    def claim(text: str, key: str, lower: str, higher: str):
        one, other = ([x[key] for x in found[name]] for name in (lower, higher))
        test = evaluation.paired_test(one, other)
        holds = bool(test.difference < 0 and test.p is not None and test.p < 0.05)
        return (
            text,
            holds,
            f"{np.mean(one):.4f} against {np.mean(other):.4f}, difference "
            f"{test.difference:+.4f} ± {test.sd:.4f}, paired p = {test.p:.2g}",
        )

    own, back = "kl_own_rollouts", "reverse_kl_own_rollouts"
    shares = {name: np.mean([x["generated"] for x in found[name]]) for name in SAMPLING}
    worst = evaluation.paired_test(*([x[own] for x in found[n]] for n in ("distillm-half", "gkd")))
    claims = [
        claim("DistiLLM below forward KL: KL on its own rollouts", own, "distillm", "kl"),
        claim("the same from a threshold of 0.5", own, "distillm-half", "kl"),
        (
            "DistiLLM from 0.5 is not worse than GKD there (p >= 0.05), and writes less often",
            bool(
                (worst.difference <= 0 or worst.p >= 0.05)
                and shares["distillm-half"] < shares["gkd"]
            ),
            f"difference {worst.difference:+.4f} ± {worst.sd:.4f}, paired p = {worst.p:.2g}; "
            f"{shares['distillm-half']:.3f} of the steps against {shares['gkd']:.0f}",
        ),
        claim("Speculative KD below GKD: KL on its own rollouts", own, "speculative", "gkd"),
        claim("Speculative KD below forward KL: the same", own, "speculative", "kl"),
        claim("MiniLLM below forward KL: reverse KL on its own rollouts", back, "minillm", "kl"),
        claim("MiniLLM below SeqKD: the same", back, "minillm", "sequence_kd"),
        claim("MiniLLM below forward KL: entropy (it seeks modes)", "entropy", "minillm", "kl"),
    ]
    return found, claims


# Of methods that do not report it: in every step, and in one round of 4 epochs of 4 batches.
GENERATED = {"gkd": 1.0, "speculative": 1.0, "minillm": 1 / 16}
WORLDS = {
    "capacity": capacity,
    "sparse": sparse,
    "on_policy": on_policy,
    "student_samples": student_samples,
}


CONFIGS = {arm: dataclasses.asdict(config) for arm, config in ARMS.items()} | {
    arm: dataclasses.asdict(config) for arm, (_, config) in SAMPLING.items()
}


def main(name: str, results: str = "results") -> None:
    """Runs one of the worlds, and writes its records and page."""
    if name not in WORLDS:
        raise ValueError(f"there are {sorted(WORLDS)}, got {name!r}")
    began = time.monotonic()
    found, claims = WORLDS[name]()
    seconds = time.monotonic() - began
    folder = pathlib.Path(results) / f"sequence_kd-{name}"
    runs = sum(map(len, found.values()))
    around = evaluation.environment()
    for arm, metrics in found.items():
        for seed, values in zip(SEEDS, metrics):
            record = evaluation.Record(
                method=arm,
                task=f"sequence_kd-{name}",
                seed=seed,
                config=CONFIGS.get(arm, {"arm": arm}),
                metrics={"last": values, "selected": values},
                curves={},
                commit=around.get("commit"),
                versions=around,
                seconds=round(seconds / runs, 3),
            )
            evaluation.write_record(folder / f"{arm}-seed{seed}.json", record)
    lines = [f"# sequence_kd-{name}", "", inspect.cleandoc(WORLDS[name].__doc__), ""]
    lines += [f"{len(SEEDS)} seeds; students after the last step, none selected.", ""]
    keys = list(next(iter(found.values()))[0])
    lines += [evaluation.claims_table(claims), "", evaluation.arms_table(found, keys)]
    lines += ["", "Mean ± standard deviation over the seeds."]
    page = "\n".join(lines) + "\n"
    (folder / "table.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main(*sys.argv[1:])
