"""Teacher caches: what is read is what was written, through kills, or refused by name."""

import collections
import dataclasses
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from teacher_cache_toys import (
    PLAIN,
    ROUNDING,
    SIZE,
    TOKENS,
    WEIGHTS,
    batches,
    files,
    inputs,
    sentences,
    teacher,
    written,
)

from kdjax import data, losses
from kdjax.data.source import Split
from kdjax.data.teacher_cache import (
    Contents,
    TeacherCache,
    TeacherCacheError,
    Writer,
    fingerprint,
    write_cache,
)
from kdjax.data.teacher_cache_format import example_keys


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A cache of several shards, for tests that only read it."""
    path = tmp_path_factory.mktemp("cache")
    written(path, inputs(), shard_bytes=300)
    assert len(list(path.glob("*.arrayrecord"))) > 2
    return path


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("kind", ["dense", "hidden"])
def test_logits_and_hidden_states_come_back_up_to_the_dtype_and_cut_at_their_lengths(
    tmp_path, kind, dtype
):
    examples, outputs = sentences()
    contents = dataclasses.replace(TOKENS, kind=kind, dtype=dtype)
    cache = written(tmp_path, examples, contents, lambda batch: jnp.asarray(outputs))
    found = cache.lookup(examples)["teacher_logits" if kind == "dense" else "teacher_hidden"]
    expected = np.where(examples["segments"][..., None] > 0, outputs, 0)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.astype(jnp.dtype(dtype)).astype(np.float32))
    np.testing.assert_allclose(found, expected, rtol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ROUNDING)
def test_top_k_is_that_of_the_logits_and_the_losses_read_it(tmp_path, dtype):
    examples, logits = sentences()
    contents = dataclasses.replace(TOKENS, kind="top_k", k=3, dtype=dtype)
    found = written(tmp_path, examples, contents, lambda batch: logits).lookup(examples)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    real = examples["segments"] > 0
    ids = np.argsort(-log_p, -1)[..., :3]
    np.testing.assert_array_equal(found["teacher_ids"], np.where(real[..., None], ids, -1))
    values = np.take_along_axis(log_p, ids, -1)
    np.testing.assert_allclose(
        found["teacher_log_probs"][real], values[real], ROUNDING[dtype], 1e-6
    )
    tail = 1 - np.exp(values).sum(-1)
    np.testing.assert_allclose(found["teacher_tail"], np.where(real, tail, 0), atol=1e-6)
    student = jnp.zeros(logits.shape)
    sparse = losses.sparse_kl(student, found["teacher_ids"], found["teacher_log_probs"])
    mass = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
    expected = np.log(SIZE) + (mass * np.log(mass)).sum(-1)
    np.testing.assert_allclose(sparse[real], expected[real], rtol=0.02)
    assert np.isfinite(sparse).all()


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_samples_are_unbiased_and_a_function_of_seed_key_and_position(tmp_path, tau):
    n = 1500
    logits = np.float32([[2, 1, 0, -1, -np.inf, 1], [0, 0, 3, 0, 0, -2]])
    examples = {"x": np.arange(n)}
    contents = Contents("sampled", 6, "constant", ("x",), num_samples=8, tau=tau)

    def constant(batch):
        return np.broadcast_to(logits, (len(batch["x"]), 2, 6))

    def means(cache, order):
        found = cache.lookup({"x": examples["x"][order]})
        ids, weights = found["teacher_ids"], found["teacher_weights"]
        assert ids.shape == weights.shape
        assert ids.shape[-1] <= 6
        np.testing.assert_array_equal(weights > 0, ids >= 0)
        assert ((ids[..., 1:] > ids[..., :-1]) | (ids[..., 1:] < 0)).all()  # merged
        full = np.zeros((n, 2, 7))
        np.put_along_axis(full, ids, weights, -1)
        return full[..., :6]

    order = np.random.default_rng(0).permutation(n)
    full = means(written(tmp_path / "a", examples, contents, constant, 500), np.arange(n))
    p = np.asarray(jax.nn.softmax(logits))
    error = full.std(0) / np.sqrt(n) + 1e-7
    assert (np.abs(full.mean(0) - p) < 4 * error).all()
    assert (full[:, 0, 4] == 0).all()
    if tau == 1:
        shuffled = {"x": examples["x"][order]}
        again = means(written(tmp_path / "b", shuffled, contents, constant, 500), np.arange(n))
        np.testing.assert_array_equal(again, full)
        np.testing.assert_allclose(full.sum(-1), 1, rtol=1e-6)
        seeded = dataclasses.replace(contents, sample_seed=1)
        other = means(written(tmp_path / "c", examples, seeded, constant, 500), np.arange(n))
        assert (other != full).any(axis=(1, 2)).mean() > 0.9


def test_finished_lists_are_kept_as_given_and_absent_ids_stay_absent(tmp_path):
    given = {
        "ids": np.array([[3, 0, -7], [1, 2, 5]]),
        "log_probs": np.log([[0.5, 0.2, 0.3], [0.6, 0.3, 0.1]]),
    }
    contents = dataclasses.replace(PLAIN, kind="top_k", k=3)
    found = written(tmp_path / "k", inputs(2), contents, lambda batch: given).lookup(inputs(2))
    np.testing.assert_array_equal(found["teacher_ids"], [[3, 0, -1], [1, 2, 5]])
    np.testing.assert_allclose(np.exp(found["teacher_log_probs"][0]), [0.5, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(found["teacher_tail"], [0.3, 0], atol=1e-6)
    given = {"ids": np.array([[3, 0, 3], [1, -1, 1]]), "weights": np.float32([[0.2, 1, 0.3]] * 2)}
    contents = dataclasses.replace(PLAIN, kind="sampled", num_samples=3, tau=0.5)
    found = written(tmp_path / "n", inputs(2), contents, lambda batch: given).lookup(inputs(2))
    np.testing.assert_array_equal(found["teacher_ids"], [[0, 3], [1, -1]])
    np.testing.assert_allclose(found["teacher_weights"], [[1, 0.5], [0.5, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": fingerprint(np.nextafter(WEIGHTS, 9))}, r"teacher: \"\w+\" -> \"\w+\""),
        ({"preprocessing": {"tokenizer": "b"}}, r"preprocessing.tokenizer: \"a\" -> \"b\""),
        (
            {"preprocessing": {"tokenizer": "a", "augmentation_seed": 1}},
            "preprocessing.augmentation_seed: null -> 1",
        ),
        ({"k": 4}, "k: 3 -> 4"),
        ({"dtype": "float16"}, 'dtype: "float32" -> "float16"'),
        ({"fields": ("x", "id")}, r'fields: \["x"\] -> \["id", "x"\]'),
    ],
)
def test_a_cache_of_something_else_is_refused_with_what_differs(tmp_path, change, message):
    contents = dataclasses.replace(PLAIN, kind="top_k", k=3, preprocessing={"tokenizer": "a"})
    written(tmp_path, inputs(4), contents)
    with pytest.raises(ValueError, match=f"made of something else: {message}$"):
        TeacherCache(tmp_path, dataclasses.replace(contents, **change))
    with pytest.raises(ValueError, match=f"made of something else: {message}$"):
        Writer(tmp_path, dataclasses.replace(contents, **change))


CHILD = """
import itertools, os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
from test_teacher_cache import *
replace, calls = os.replace, itertools.count()
def killing(*arguments):
    if next(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*arguments)
os.replace = killing
written(pathlib.Path(sys.argv[2]), inputs(), shard_bytes=300)
"""


def test_a_cache_that_was_killed_ends_with_the_bytes_of_one_that_was_not(tmp_path, finished):
    folder = os.path.dirname(os.path.abspath(__file__))
    child = subprocess.run([sys.executable, "-c", CHILD, folder, str(tmp_path)], check=False)
    assert child.returncode == -signal.SIGKILL
    left = files(tmp_path)
    assert "manifest.json" not in left
    assert any(name.endswith(".part") for name in left)
    with pytest.raises(TeacherCacheError, match="is not finished"):
        TeacherCache(tmp_path, PLAIN)
    (tmp_path / ".shard-00000-000099.arrayrecord.00000.part").touch()
    called = []

    def counting(batch):
        called.append(len(batch["x"]))
        return teacher(batch)

    written(tmp_path, inputs(), function=counting, shard_bytes=300)
    assert files(tmp_path) == files(finished)
    assert 0 < sum(called) < 20
    written(tmp_path, inputs(), function=None, shard_bytes=300)  # nothing is left to do
    assert files(tmp_path) == files(finished)


class Killed(BaseException):
    pass


def test_wherever_it_is_interrupted_nothing_is_lost_or_doubled(tmp_path, finished, monkeypatch):
    replace = os.replace
    names = [name for name in files(finished) if not name.startswith("contents")]
    for point, after in itertools.product(range(len(names) + 1), [False, True]):
        path, calls = tmp_path / f"{point}{after}", itertools.count()

        def interrupted(*arguments, calls=calls, point=point, after=after):
            now = next(calls) == point
            if now and not after:
                raise Killed
            replace(*arguments)
            if now:
                raise Killed

        monkeypatch.setattr(os, "replace", interrupted)
        with pytest.raises(Killed):
            written(path, inputs(), shard_bytes=300)
        monkeypatch.setattr(os, "replace", replace)
        written(path, inputs(), shard_bytes=300)
        assert files(path) == files(finished), (point, after)


def test_every_truncated_flipped_or_missing_file_is_refused_by_name(tmp_path, finished):
    rng = np.random.default_rng(0)
    expected = teacher(inputs())

    def spoil(name, change):
        path = tmp_path / "spoilt"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(finished, path)
        content = bytearray((path / name).read_bytes())
        change(path / name, content)
        return path

    def truncate(file, content):
        file.write_bytes(content[: rng.integers(len(content))])

    def flip(file, content):
        used = np.flatnonzero(np.frombuffer(content, np.uint8))  # a shard is mostly padding
        content[used[rng.integers(len(used))]] ^= 1 << rng.integers(8)
        file.write_bytes(content)

    def flip_padding(file, content):
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)

    caught = collections.Counter()
    for name in files(finished):
        changes = [truncate, flip, flip, flip, flip_padding]
        if not name.startswith("finished"):
            changes.append(lambda file, content: file.unlink())
        for change in changes:
            path = spoil(name, change)
            # Either it is refused, or what is read is right; `verify` refuses it in any case.
            said = read_or_refused(path, expected)
            caught[said is None] += 1
            assert said is None or name in said or name == "manifest.json", said
            with pytest.raises(TeacherCacheError):
                TeacherCache(path, PLAIN).verify()
    assert caught[False] > 4 * caught[True]


def read_or_refused(path, expected):
    try:
        found = TeacherCache(path, PLAIN).lookup(inputs())["teacher_logits"]
    except TeacherCacheError as error:
        return str(error)
    np.testing.assert_array_equal(found, expected)
    return None


def test_a_truncated_shard_is_refused_when_the_cache_is_opened(tmp_path, finished):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    shard = sorted(tmp_path.glob("*.arrayrecord"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(TeacherCacheError, match=rf"{shard.name} is damaged: 131071 bytes instead"):
        TeacherCache(tmp_path, PLAIN)


def test_a_key_depends_on_every_byte_type_shape_and_name():
    x = np.arange(6, dtype=np.int32).reshape(1, 2, 3)
    changed = [x]
    for i in range(6):
        one = x.copy()
        one.reshape(-1)[i] ^= 1 << 30
        changed.append(one)
    changed += [x.astype(np.int64), x.view(np.float32), x.reshape(1, 3, 2), x[:, :, :2]]
    keys = [example_keys({"x": one}, ("x",))[0][0] for one in changed]
    keys += example_keys({"y": x}, ("y",))[0] + example_keys({"x": x, "y": x}, ("x", "y"))[0]
    assert len({*keys}) == len(changed) + 2
    assert example_keys({"x": jnp.asarray(x), "y": x}, ("x",))[0][0] == keys[0]


def test_a_record_of_another_cache_is_refused(tmp_path, finished):
    other = dataclasses.replace(PLAIN, teacher="another")
    written(tmp_path, inputs(), other, lambda batch: -teacher(batch), shard_bytes=300)
    for index in tmp_path.glob("shard-*.json"):
        shutil.copy(finished / index.name, index)
        shard = index.with_suffix(".arrayrecord")
        assert shard.stat().st_size == (finished / shard.name).stat().st_size
    with pytest.raises(TeacherCacheError, match=r"is not the one of manifest\.json"):
        TeacherCache(tmp_path, other)
    mixed = tmp_path / "mixed"
    shutil.copytree(finished, mixed)
    for shard in tmp_path.glob("*.arrayrecord"):
        shutil.copy(shard, mixed)
    with pytest.raises(TeacherCacheError, match=r"shard-00000-00000.* is damaged: record 0"):
        TeacherCache(mixed, PLAIN).lookup(inputs())


def test_a_full_disk_is_said_and_leaves_what_can_be_gone_on_from(tmp_path, finished):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = Writer(tmp_path, PLAIN, shard_bytes=300)
    first, rest = batches(inputs(), 4)[0], inputs()
    writer.write(first, teacher(first))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(TeacherCacheError, match=r"could not write .*shard-00000-0000"):
            writer.write(rest, teacher(rest))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob("manifest*"))
    written(tmp_path, inputs(), shard_bytes=300)
    assert files(tmp_path) == files(finished)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_shards_of_several_processes_are_together_one_cache(tmp_path, finished, order):
    parts = batches(inputs(), 4)
    for k in order:
        with pytest.raises(TeacherCacheError, match=r"no teacher cache|not finished"):
            TeacherCache(tmp_path, PLAIN)
        write_cache(tmp_path, parts[k::3], teacher, PLAIN, process=k, processes=3)
    cache = TeacherCache(tmp_path, PLAIN)
    alone = TeacherCache(finished, PLAIN)
    assert len(cache) == len(alone) == 20
    for name, x in cache.lookup(inputs()).items():
        np.testing.assert_array_equal(x, alone.lookup(inputs())[name])


def test_entries_are_found_in_any_order_and_written_once(tmp_path):
    examples = {"x": np.concatenate([inputs()["x"], inputs()["x"][:5]])}
    order = np.random.default_rng(3).permutation(25)
    cache = written(tmp_path, {"x": examples["x"][order]}, size=7)
    assert len(cache) == cache.positions == 20
    # A product of one row may be rounded in another way than the same row of seven.
    np.testing.assert_allclose(
        cache.lookup(examples)["teacher_logits"],
        np.stack([teacher({"x": x}) for x in examples["x"]]),
        rtol=1e-5,
        atol=1e-5,
    )


def test_padding_changes_no_key_and_is_not_kept(tmp_path):
    examples, logits = sentences()
    logits[0, 4:], logits[1, 3:] = 1.0, np.nan  # after the end of a document anything may be
    cache = written(tmp_path, examples, TOKENS, lambda batch: logits)
    wider = {name: np.pad(x, ((0, 0), (0, 2))) for name, x in examples.items()}
    found = cache.lookup(wider)["teacher_logits"]
    assert found.shape == (4, 7, SIZE)
    np.testing.assert_array_equal(found[:, :5], cache.lookup(examples)["teacher_logits"])
    narrow = {name: x[1:3, :3] for name, x in examples.items()}
    np.testing.assert_array_equal(cache.lookup(narrow)["teacher_logits"], found[1:3, :3])


def test_rows_that_do_not_count_are_not_kept(tmp_path):
    examples = {**inputs(8), "where": np.arange(8) < 6}
    outputs = np.full((8, SIZE), np.nan, np.float32)
    outputs[:6] = teacher(inputs(8))[:6]
    assert len(written(tmp_path, examples, function=lambda batch: outputs, size=8)) == 6


def top_k(**changes):
    return dataclasses.replace(PLAIN, kind="top_k", k=2), {
        "ids": np.array([[0, 1]] * 4),
        "log_probs": np.log(np.array([[0.5, 0.4]] * 4)),
        **changes,
    }


def spoilt(value, contents=PLAIN):
    outputs = np.zeros((4, SIZE), np.float32)
    outputs[2, 3] = value
    return contents, outputs


SAMPLED = dataclasses.replace(PLAIN, kind="sampled", num_samples=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (spoilt(np.nan), r"example 2 of the batch \(id 42\): the teacher's logits are not a num"),
        (spoilt(np.nan, top_k()[0]), r"example 2 of .*\(id 42\)|example 0"),
        (spoilt(np.nan, SAMPLED), r"example 2 of the batch \(id 42\): the teacher's weights"),
        (spoilt(np.inf), "example 2 .*: the teacher's logits are infinite"),
        (spoilt(1e5, dataclasses.replace(PLAIN, dtype="float16")), "do not fit float16"),
        ((PLAIN, np.zeros((4, 3), np.float32)), r"floats \[batch, ..., 12\], got float32\[4, 3\]"),
        ((PLAIN, np.zeros((3, SIZE), np.float32)), r"\[3, 12\] do not fit 4 examples"),
        ((PLAIN, {"ids": 0}), "must be one array"),
        (top_k(ids=np.array([[0, 1], [2, 2], [0, 1], [0, 1]])), "1 .*: the id 2 is listed twice"),
        (top_k(ids=np.array([[0, 1], [2, 12], [0, 1], [0, 1]])), "the id 12 is outside the 12"),
        (top_k(log_probs=np.log(np.full((4, 2), 0.6))), "0 .* sum to 1.2, more than 1"),
        (top_k(tail=np.full(4, 0.5)), "the tail 0.5 is no mass beside the top k"),
        (top_k(ids=np.zeros((4, 3), int), log_probs=np.zeros((4, 3))), "3 ids a position, k is 2"),
        ((SAMPLED, {"ids": np.zeros((4, 2), int), "weights": np.full((4, 2), 0.3)}), "multiples"),
    ],
)
def test_outputs_that_no_teacher_can_mean_are_refused(tmp_path, given, message):
    contents, outputs = given
    writer = Writer(tmp_path, contents)
    with pytest.raises((ValueError, TypeError), match=message):
        writer.write({**inputs(4), "id": np.arange(40, 44)}, outputs)
    assert not list(tmp_path.glob("shard*"))


def test_contents_that_cannot_be_are_refused():
    for change, message in [
        ({"kind": "top_k", "k": SIZE + 1}, "k must be >= 1 and <= 12, got 13"),
        ({"kind": "top_k"}, "k belongs to kind 'top_k': got None"),
        ({"num_samples": 3}, "num_samples belongs to kind 'sampled'"),
        ({"kind": "best"}, "kind must be one of"),
        ({"fields": "x"}, "fields must be names"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(PLAIN, **change)


def test_an_example_without_an_entry_is_named(tmp_path):
    split = Split.of({**inputs(), "label": np.zeros(20, np.int32)}, "toy/train")
    cache = written(tmp_path, inputs(13))
    with pytest.raises(LookupError, match="has no entry of example 13 of toy/train"):
        cache.fields(split)
    with pytest.raises(ValueError, match="'x' is not among the fields"):
        cache.lookup({"y": np.zeros(3)})


def test_a_stateful_stream_is_taught_by_content_and_resumes(tmp_path):
    def stream():
        rows = grain.MapDataset.source(inputs(12)["x"]).shuffle(seed=0).repeat()
        items = rows.map(lambda x: {"x": x}).to_iter_dataset().batch(4)
        return data.iterator(items, 4)

    cache = written(tmp_path, inputs(12))
    items = cache.stream(stream()).items()
    batch = next(items)
    state = items.state()
    np.testing.assert_array_equal(batch["teacher"]["teacher_logits"], teacher(batch))
    following = next(items)
    again = next(cache.stream(stream()).items(1, state))
    np.testing.assert_array_equal(again["x"], following["x"])
    assembled = stream().assemble({}, {"x": again["x"]})
    reading = cache.stream(stream()).assemble({}, again)
    assert {*reading} == {*assembled, "teacher_logits"}


def test_a_cache_can_be_added_to(tmp_path):
    cache = written(tmp_path, inputs(10))
    writer = Writer(tmp_path, PLAIN, shard_bytes=1)
    writer.write(inputs(1, seed=8), teacher(inputs(1, seed=8)))
    with pytest.raises(TeacherCacheError, match="is not finished"):
        TeacherCache(tmp_path, PLAIN)
    more = {"x": np.concatenate([inputs(10)["x"], inputs(5, seed=9)["x"]])}
    grown = written(tmp_path, more)
    assert (len(cache), len(grown)) == (10, 16)
    np.testing.assert_allclose(grown.lookup(more)["teacher_logits"], teacher(more), rtol=1e-6)
