"""Streams: a fixed order, reproducible views, exact resumption."""

import itertools

import grain
import jax
import numpy as np
import pytest

from kdjax import data
from kdjax.data import augmentation
from kdjax.data.source import Split
from kdjax.data.streams import Order

ALL = (("pad_crop", {"padding": 1}), "flip", ("cutout", {"size": 3}), "gaussian_noise", "mixup")


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 6, 6, 1), np.uint8)
    return Split.of({"image": images, "label": (np.arange(50) % 5).astype(np.int32)}, "toy")


def take(stream, n, start=0, **options):
    return list(itertools.islice(stream.items(start, **options), n))


def batches(stream, n, start=0):
    assemble = jax.jit(stream.assemble)
    return [assemble(stream.table, item) for item in take(stream, n, start)]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("processes", [2, 4])
def test_the_order_does_not_depend_on_the_number_of_processes(split, processes):
    whole = take(data.resident(split, 16, seed=3), 7)
    parts = [
        take(data.resident(split, 16, seed=3, process=k, processes=processes), 7)
        for k in range(processes)
    ]
    for t in range(7):
        rows = np.concatenate([part[t]["row"] for part in parts])
        np.testing.assert_array_equal(rows, whole[t]["row"])


def test_every_epoch_is_a_permutation_and_batches_straddle_epochs(split):
    items = take(data.resident(split, 16, seed=3), 25)
    rows = np.concatenate([i["row"] for i in items]).reshape(8, 50)
    epochs = np.concatenate([i["epoch"] for i in items]).reshape(8, 50)
    assert (np.sort(rows, axis=1) == np.arange(50)).all()
    assert (epochs == np.arange(8)[:, None]).all()
    assert (rows[0] != rows[1]).any()
    other = np.concatenate([i["row"] for i in take(data.resident(split, 16, seed=4), 3)])
    assert (other != rows.reshape(-1)[:48]).any()


def test_another_attempt_is_another_order_of_the_same_views(split):
    options = dict(seed=3, augment=("flip",))
    first, host = data.resident(split, 10, **options), data.host(split, 10, **options)
    orders = [first, first.reordered(1), first.reordered(2)]
    rows = [np.concatenate([item["row"] for item in take(s, 10)]).reshape(2, 50) for s in orders]
    for one in rows:
        assert (np.sort(one, axis=1) == np.arange(50)).all()
    # Nor is the order of one attempt that of another epoch of another.
    assert len({epoch.tobytes() for one in rows for epoch in one}) == 6
    same(batches(first.reordered(1), 4), batches(host.reordered(1), 4))
    same(take(first.reordered(1), 9)[5:], take(first.reordered(1), 4, start=5))
    views = [{}, {}]
    for seen, stream in zip(views, orders):
        for batch in batches(stream, 5):
            seen |= zip(np.asarray(batch["id"]).tolist(), np.asarray(batch["image"]))
    for row in range(50):
        np.testing.assert_array_equal(views[0][row], views[1][row])


def test_starting_late_is_skipping(split):
    for stream in (data.resident(split, 16, seed=3), data.host(split, 16, seed=3, augment=ALL)):
        same(take(stream, 9)[5:], take(stream, 4, start=5))


def test_host_and_resident_give_the_same_batches(split):
    options = dict(seed=3, augment=ALL, mean=(0.5,), std=(0.25,))
    same(
        batches(data.resident(split, 16, **options), 8),
        batches(data.host(split, 16, **options), 8),
    )


def test_a_view_depends_on_seed_epoch_and_example_only(split):
    def views(batch_size, indices=None):
        stream = data.resident(split, batch_size, seed=3, augment=ALL[:4], indices=indices)
        out = {}
        for item, batch in zip(take(stream, 200 // batch_size), batches(stream, 200 // batch_size)):
            for e, i, x in zip(item["epoch"], batch["id"], batch["image"]):
                out[int(e), int(i)] = np.asarray(x)
        return out

    a, b = views(10), views(25)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert any(not np.array_equal(a[0, i], a[1, i]) for i in range(50))
    part = views(10, indices=range(20))
    assert {i for _, i in part} == set(range(20))
    assert all(np.array_equal(part[k], a[k]) for k in part if k in a)


def test_mixup_mixes_the_view_with_its_partners_view(split):
    plain = data.resident(split, 50, seed=3, augment=ALL[:1])
    mixed = data.resident(split, 50, seed=3, augment=(ALL[0], ("mixup", {"alpha": 0.4})))
    (item,), (batch,), (reference,) = take(mixed, 1), batches(mixed, 1), batches(plain, 1)
    view = {int(i): np.asarray(x) for i, x in zip(reference["id"], reference["image"])}
    for i, j, m, x in zip(batch["id"], item["partner"], batch["mix"], batch["image"]):
        expected = float(m) * view[int(i)] + (1 - float(m)) * view[int(j)]
        np.testing.assert_allclose(x, expected, atol=1e-6)
    labels = split.arrays()["label"]
    np.testing.assert_array_equal(batch["partner_label"], labels[item["partner"]])
    assert ((batch["mix"] >= 0) & (batch["mix"] <= 1)).all()


def test_partners_are_spread_evenly():
    rows = augmentation.partners(7, np.zeros(20000, np.int32), np.arange(20000), 10)
    counts = np.bincount(rows, minlength=10)
    assert counts.min() > 1800
    assert counts.max() < 2200


def test_streams_that_process_alike_share_assemble_and_table(split):
    a, b = (
        data.resident(split, 10, seed=0, augment=ALL),
        data.resident(split, 20, seed=1, augment=ALL),
    )
    c = data.resident(split, 10, seed=0)
    assert a.assemble is b.assemble
    assert a.assemble is not c.assemble
    assert a.table is b.table is c.table


def test_sequential_gives_each_example_once(split):
    stream = data.sequential(split, 16)
    items = list(stream.items())
    assert len(items) == stream.batches == 4
    rows = np.concatenate([i["row"][i["where"]] for i in items])
    np.testing.assert_array_equal(rows, np.arange(50))
    batch = jax.jit(stream.assemble)(stream.table, items[0])
    np.testing.assert_allclose(batch["image"], split.arrays()["image"][:16] / 255, rtol=1e-6)


def test_an_iterator_resumes_after_the_item_last_returned():
    def fresh():
        order = grain.MapDataset.range(30).shuffle(seed=1).repeat().batch(4)
        return data.iterator(order.map(lambda x: {"x": x}).to_iter_dataset(), 4)

    running = fresh().items()
    for _ in range(5):
        next(running)
    state = running.state()
    expected = [next(running) for _ in range(5)]
    resumed = fresh().items(5, state)
    same([next(resumed) for _ in range(5)], expected)
    with pytest.raises(ValueError, match="without its state"):
        fresh().items(5)


REFUSED = {
    "batch": (lambda s: data.resident(s, 51, seed=0), "larger than toy"),
    "indices": (lambda s: data.resident(s, 1, seed=0, indices=[]), "at least one"),
    "rows": (lambda s: data.resident(s, 1, seed=0, indices=[50]), "rows of toy"),
    "processes": (lambda s: Order(np.arange(9), 9, 0, 0, 2), "multiple of the 2 processes"),
    "name": (lambda s: data.augmentations(["flop"]), "no augmentation 'flop'"),
    "option": (lambda s: data.augmentations([("flip", {"p": 1})]), "no option 'p'"),
    "value": (lambda s: data.augmentations([("cutout", {"size": 0})]), "must be positive"),
    "order": (lambda s: data.augmentations(["mixup", "flip"]), "last"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_streams_are_refused(case, split):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make(split)


def test_a_value_that_is_not_finite_is_named():
    images = np.zeros((10, 2, 2, 1), np.float32)
    images[7, 0, 0, 0] = np.inf
    bad = Split.of({"image": images, "label": np.zeros(10, np.int32)}, "toy")
    with pytest.raises(ValueError, match="toy, field image, example 7"):
        data.resident(bad, 4, seed=0)


def test_few_rows_fill_a_batch_by_several_epochs_each_with_views_of_its_own(split):
    options = dict(seed=3, indices=[4, 9, 30], augment=[("gaussian_noise", {"std": 0.1})])
    with pytest.raises(ValueError, match="batch_size=7 is larger than toy"):
        data.resident(split, 7, **options)
    items = take(data.resident(split, 7, **options, repeats=True), 3)
    rows, epochs = (np.concatenate([item[n] for item in items]) for n in ("row", "epoch"))
    for epoch in range(7):
        assert sorted(rows[epochs == epoch]) == [4, 9, 30]
    (batch, *_) = batches(data.resident(split, 7, **options, repeats=True), 1)
    views = [x.tobytes() for x in np.asarray(batch["image"])]
    assert len(set(views)) == 7
    same(take(data.host(split, 7, **options, repeats=True), 3)[2]["row"], items[2]["row"])
