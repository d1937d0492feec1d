"""A cached teacher of augmented views: what a live one says, through kills, or refused by name."""

import dataclasses

import jax
import numpy as np
import pytest

from kdjax.data import augmentations, teacher_cache_format
from kdjax.data.teacher_cache import Writer
from kdjax.methods import kd, sinkd
from kdjax.methods import taught_views as views_module
from kdjax.methods.taught_views import taught_views
from kdjax.training import run

STEPS, BATCH = 13, 120  # 1,560 views, more than one epoch of the digits
VIEWS = {
    "shifted": augmentations(("flip", ("pad_crop", {"padding": 2}))),
    "mixed": augmentations(("flip", "mixup")),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path))
    return tmp_path / "teacher_cache"


def augmented(task, views="shifted", cache=True, **changes):
    student = dataclasses.replace(
        task.training["student"], steps=STEPS, batch_size=BATCH, augment=VIEWS[views], **changes
    )
    training = {**task.training, "student": student}
    made = dataclasses.replace(task, training=training, cache_teacher=cache)
    return made.with_teacher(task.variables("teacher"))


def batches(task, steps):
    stream = taught_views(task, task.given["teacher"])
    assemble = jax.jit(stream.assemble)
    return [assemble(stream.table, item) for _, item in zip(range(steps), stream.items())]


def files(folder):
    (cache,) = folder.iterdir()
    return {path.name: path.read_bytes() for path in sorted(cache.iterdir())}


@pytest.mark.parametrize("views", ["shifted", pytest.param("mixed", marks=pytest.mark.slow)])
def test_a_batch_brings_what_the_teacher_says_to_its_views(task, views):
    made = augmented(task, views)
    forward = views_module._logits(made.networks["teacher"])
    seen = []
    for batch in batches(made, STEPS):
        said = forward(made.given["teacher"], batch["image"])
        np.testing.assert_array_equal(batch["teacher_logits"], said)
        seen.append(np.asarray(batch["image"]))
    ids = np.concatenate([np.asarray(b["id"]) for b in batches(made, STEPS)])
    images = np.concatenate(seen)
    twice = np.flatnonzero(np.bincount(ids) == 2)  # seen in two epochs
    first, again = np.flatnonzero(ids == twice[0])
    assert np.abs(images[first] - images[again]).max() > 0


def test_the_teacher_is_asked_with_the_weights_that_a_live_one_is_kept_in(task):
    made = dataclasses.replace(augmented(task), teacher_weights="bfloat16")
    forward = views_module._logits(made.networks["teacher"])
    teacher = made.given["teacher"]
    (batch,) = batches(made, 1)
    kept, whole = (forward(x, batch["image"]) for x in (made.kept("teacher", teacher), teacher))
    np.testing.assert_array_equal(batch["teacher_logits"], kept)
    assert np.any(kept != whole)


@pytest.mark.parametrize(
    ("module", "config"),
    [(kd, kd.Config()), pytest.param(sinkd, sinkd.Config(), marks=pytest.mark.slow)],
    ids=["kd", "sinkd"],
)
def test_the_student_is_that_of_a_live_teacher(task, module, config):
    live, cached = (
        run(module.recipe(augmented(task, cache=cache), config)) for cache in (False, True)
    )
    # The live teacher's forward is fused into the step and may round in another way.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), live.last, cached.last
    )


def test_there_is_one_entry_a_view_and_more_steps_add_to_them(task, folder, monkeypatch):
    made = augmented(task)
    batches(made, 1)
    before, written = files(folder), []
    write = Writer.write

    def counting(self, examples, outputs):
        written.append(len(examples["id"]))
        return write(self, examples, outputs)

    monkeypatch.setattr(Writer, "write", counting)
    batches(made, 1)
    assert (written, files(folder)) == ([], before)  # it is only read
    longer = dataclasses.replace(made.training["student"], steps=STEPS + 3)
    more = dataclasses.replace(made, training={**made.training, "student": longer})
    stream = taught_views(more, more.given["teacher"])
    assert written == [BATCH] * 3
    assert len(list(folder.iterdir())) == 1
    assert len(stream._lookup.__self__) == (STEPS + 3) * BATCH


def test_killed_while_it_was_written_it_goes_on_to_the_same_files(task, folder, monkeypatch):
    made = augmented(task)
    monkeypatch.setattr(views_module, "write_stream", small_shards(views_module.write_stream))
    batches(made, 1)
    whole = files(folder)
    assert sum(name.endswith(".arrayrecord") for name in whole) > 2
    for path in next(folder.iterdir()).iterdir():
        path.unlink()
    calls, flush = [], Writer._flush

    def killed(self):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        flush(self)

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "_flush", killed)
        with pytest.raises(KeyboardInterrupt):
            batches(made, 1)
    assert 0 < len(files(folder)) < len(whole)
    batches(made, 1)
    assert files(folder) == whole


def small_shards(write_stream):
    return lambda *arguments, **options: write_stream(*arguments, **options, shard_bytes=12_000)


@pytest.mark.slow
def test_another_teacher_seed_or_view_has_a_cache_of_its_own(task, folder):
    made = augmented(task)
    doubled = jax.tree.map(lambda x: 2 * x, made.given["teacher"])
    for other in (
        made,
        made.with_teacher(doubled),
        dataclasses.replace(made, seed=5),
        augmented(task, "mixed"),
        dataclasses.replace(made, mean=(0.5,)),
    ):
        batches(other, 1)
    assert len(list(folder.iterdir())) == 5


def test_a_stale_cache_is_refused_with_what_differs(task, folder):
    made = augmented(task)
    batches(made, 1)
    (cache,) = folder.iterdir()
    path = cache / teacher_cache_format.CONTENTS
    contents, _ = teacher_cache_format.read_sealed(path)
    contents["preprocessing"]["augmentation_seed"] = 7
    teacher_cache_format.write_sealed(path, contents, 0)
    with pytest.raises(ValueError, match=r"augmentation_seed: 7 -> \d+"):
        batches(made, 1)


def test_streams_of_a_methods_own_have_no_cached_views(task):
    made = augmented(task)
    with pytest.raises(ValueError, match="but the student's views are augmented"):
        next(made.taught(made.given["teacher"]))
