"""Checkpoints are whole or not used; nothing damaged is loaded or deleted."""

import concurrent.futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.training import CheckpointError, load_variables, save_variables
from kdjax.training.checkpoint import Checkpoints, load, save, write_manifest


def tree(step):
    return {"a": jnp.arange(300.0) + step, "key": jax.random.key(step), "n": jnp.int32(step)}


def like():
    return abstract(tree(0))


@pytest.fixture
def kept(tmp_path):
    said = []
    checkpoints = Checkpoints(tmp_path / "c", 2, said.append)
    for step in (10, 20, 30):
        checkpoints.save(step, tree(step), {"step": step})
    checkpoints.wait()
    yield checkpoints, tmp_path / "c", said
    checkpoints.close()


def test_the_newest_few_are_kept(kept):
    checkpoints, _, said = kept
    assert checkpoints.steps() == [20, 30]
    found, extra = checkpoints.newest(like())
    assert extra["step"] == 30
    np.testing.assert_array_equal(found["a"], tree(30)["a"])
    assert (jax.random.key_data(found["key"]) == jax.random.key_data(tree(30)["key"])).all()
    assert said == []


@pytest.mark.parametrize("how", ["truncate", "flip", "unfinished"])
def test_every_file_is_watched_over(kept, how):
    checkpoints, folder, said = kept
    files = sorted(p for p in (folder / "30").rglob("*") if p.is_file())
    victims = [folder / "30.json"] if how == "unfinished" else files
    for victim in victims:
        content = victim.read_bytes()
        if not content:
            continue
        if how == "unfinished":
            victim.unlink()
        elif how == "truncate":
            victim.write_bytes(content[:-1])
        else:
            victim.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        said.clear()
        found, extra = checkpoints.newest(like())
        assert extra["step"] == 20
        np.testing.assert_array_equal(found["a"], tree(20)["a"])
        assert len(said) == 1
        assert "checkpoint at step 30 is not used" in said[0]
        (aside,) = folder.glob("damaged-30*")
        aside.rename(folder / "30")  # nothing was deleted
        victim.write_bytes(content)
    assert checkpoints.newest(like())[1]["step"] == 30


def abstract(tree):
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


MIXED = {
    "flag": jnp.array(True),
    "half": jnp.arange(5, dtype=jnp.bfloat16),
    "int": jnp.arange(7, dtype=jnp.int8),
    "none": jnp.zeros((0, 3)),
    "nested": {
        "float": jnp.linspace(0, 1, 6).reshape(2, 3),
        "keys": jax.random.split(jax.random.key(3)),
    },
    "large": jnp.arange(1 << 17, dtype=jnp.float32),
}


@pytest.mark.parametrize("names", [tuple(MIXED), ("half", "flag"), ("large",)])
def test_arrays_of_every_type_and_size_come_back_as_they_were(tmp_path, names):
    tree = {name: MIXED[name] for name in names}
    save(tmp_path / "c", tree, {"step": 3})()
    found, extra = load(tmp_path / "c", abstract(tree))
    assert extra["step"] == 3
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(tree)):
        assert (x.dtype, x.shape, x.committed) == (y.dtype, y.shape, True)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_small_arrays_are_written_together(tmp_path, monkeypatch):
    monkeypatch.setattr("kdjax.training.checkpoint._SMALL", 1 << 18)
    tree = {str(i): jnp.full(10, i) for i in range(50)}
    save(tmp_path / "c", {**tree, "large": MIXED["large"]}, {})()
    files = [p.relative_to(tmp_path / "c").parts[0] for p in (tmp_path / "c").rglob("*")]
    assert set(files) == {"small.npy", "large"}
    assert (tmp_path / "c" / "small.npy").stat().st_size == 128 + 50 * 10 * 4


def test_a_checkpoint_of_other_arrays_is_refused(tmp_path):
    save(tmp_path / "c", {"a": jnp.ones(3), "b": jnp.ones(2)}, {})()
    other = abstract({"a": jnp.ones(4), "c": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"missing: c; extra: b; of another shape: a"):
        load(tmp_path / "c", other)
    (tmp_path / "e").mkdir()
    write_manifest(tmp_path / "e", steps=3)
    with pytest.raises(ValueError, match="is of an earlier version"):
        load(tmp_path / "e", other)
    with pytest.raises(ValueError, match="two arrays have one path"):
        save(tmp_path / "d", {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, {})


def test_a_failed_save_says_what_is_left(kept, monkeypatch):
    checkpoints, folder, _ = kept

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdjax.training.checkpoint.digests", full)
    checkpoints.save(40, tree(40), {})
    concurrent.futures.wait([checkpoints._pending])
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"step 40: .*No space left.*step 30 is whole"):
        checkpoints.wait()
    assert checkpoints.newest(like())[1]["step"] == 30
    assert (folder / "damaged-40").exists()


def test_weights_of_another_network_are_refused(tmp_path):
    save_variables(tmp_path / "w", {"params": {"k": jnp.ones((2, 3)), "b": jnp.ones(3)}})
    same = {"params": {"k": jnp.zeros((2, 3)), "b": jnp.zeros(3)}}
    np.testing.assert_array_equal(load_variables(tmp_path / "w", same)["params"]["k"], 1)
    other = {"params": {"k": jnp.zeros((2, 4)), "c": jnp.zeros(3)}}
    with pytest.raises(ValueError, match=r"missing: params/c; extra: params/b; of another shape"):
        load_variables(tmp_path / "w", other)
    with pytest.raises(ValueError, match="holds no weights"):
        load_variables(tmp_path / "v", same)
    victim = max((p for p in (tmp_path / "w").rglob("*") if p.is_file()), key=lambda p: len(p.name))
    victim.write_bytes(victim.read_bytes()[:-1] if victim.stat().st_size else b"x")
    with pytest.raises(CheckpointError, match=r"weights .* damaged"):
        load_variables(tmp_path / "w", same)
