"""What a stream owes to its records, its seed and its options."""

import io
import itertools
import json
import zipfile

import grain
import jax
import numpy as np
import pytest
from PIL import Image

from kdjax import data
from kdjax.data import augmentation
from kdjax.data.source import Split

VIEW = (("pad_crop", {"padding": 1}), "flip")
SHAPE = (6, 6, 3)


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, *SHAPE), np.uint8)
    return Split.of({"image": images, "label": (np.arange(40) % 4).astype(np.int32)}, "toy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, split):
    """The same kind of images as files: records that are read when they are asked for."""
    place = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDJAX_DATA_DIR", str(place / "prepared"))
        with zipfile.ZipFile(place / "x.zip", "w") as archive:
            for i, record in enumerate(split):
                out = io.BytesIO()
                Image.fromarray(record["image"]).save(out, "PNG")
                archive.writestr(f"{record['label']}/{i:02}.png", out.getvalue())
        return data.load(f"folder:{place / 'x.zip'}").splits["train"]


def take(stream, n, start=0):
    return list(itertools.islice(stream.items(start), n))


def batches(stream, n, start=0):
    assemble = jax.jit(stream.assemble)
    return [assemble(stream.table, item) for item in take(stream, n, start)]


def test_records_that_are_read_while_it_runs_give_the_batches_of_the_resident_table(folder):
    options = dict(seed=5, augment=(*VIEW, "mixup"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    host = batches(data.host(folder, 8, **options), 6)
    assert folder._arrays is None  # they have been read one by one
    jax.tree.map(
        np.testing.assert_array_equal, host, batches(data.resident(folder, 8, **options), 6)
    )


def test_mixup_takes_partners_among_the_rows_that_take_part(split):
    part = list(range(0, 40, 4))  # the ten examples of class 0
    stream = data.resident(split, 10, seed=1, indices=part, augment=("mixup",))
    for item, batch in zip(take(stream, 20), batches(stream, 20)):
        assert set(item["partner"]) <= set(part)
        assert (np.asarray(batch["partner_label"]) == 0).all()


def test_a_mixed_view_is_made_again_in_another_batch_size_and_from_another_step(split):
    def mixed(batch_size, start=0):
        stream = data.resident(split, batch_size, seed=2, augment=(*VIEW, "mixup"))
        count = 80 // batch_size - start
        items, made = take(stream, count, start), batches(stream, count, start)
        return {
            (int(e), int(i)): np.asarray(x)
            for item, batch in zip(items, made)
            for e, i, x in zip(item["epoch"], batch["id"], batch["image"])
        }

    whole, other, late = mixed(8), mixed(20), mixed(8, start=6)
    assert whole.keys() == other.keys()
    assert len(late) == 32
    for key, image in whole.items():
        np.testing.assert_array_equal(other[key], image)
        np.testing.assert_array_equal(late.get(key, image), image)


def test_the_seed_is_an_argument_of_the_compiled_step(split):
    streams = [data.resident(split, 8, seed=s, augment=VIEW) for s in (0, 1)]
    assert streams[0].assemble is streams[1].assemble
    traces = []

    @jax.jit
    def step(table, item):
        traces.append(1)
        return streams[0].assemble(table, item)["image"]

    item = take(streams[0], 1)[0]
    other = item | {"seed": take(streams[1], 1)[0]["seed"]}
    assert (step(streams[0].table, item) != step(streams[0].table, other)).any()
    assert len(traces) == 1


def test_every_process_gets_its_part_of_the_same_views(split):
    whole = batches(data.resident(split, 8, seed=3, augment=(*VIEW, "mixup")), 8)
    for k in range(2):
        options = dict(seed=3, augment=(*VIEW, "mixup"), process=k, processes=2)
        for one, part in zip(whole, batches(data.resident(split, 8, **options), 8)):
            assert len(part["where"]) == 4
            for name, x in part.items():
                np.testing.assert_array_equal(x, one[name][4 * k : 4 * k + 4])


def test_a_batch_has_numbers_in_the_kinds_that_networks_expect(split):
    (batch,) = batches(data.resident(split, 8, seed=0), 1)
    kinds = {name: (x.dtype.name, x.shape) for name, x in batch.items()}
    assert kinds == {
        "image": ("float32", (8, *SHAPE)),
        "label": ("int32", (8,)),
        "id": ("int32", (8,)),
        "where": ("bool", (8,)),
    }
    assert float(batch["image"].max()) <= 1


def test_images_are_normalised_channel_by_channel(split):
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    stream = data.sequential(split, 40, mean=mean, std=std)
    batch = stream.assemble(stream.table, next(stream.items()))
    expected = (split.arrays()["image"] / 255 - mean) / std
    np.testing.assert_allclose(batch["image"], expected, rtol=1e-5, atol=1e-6)


def test_cutout_leaves_zero_in_a_normalised_image(split):
    stream = data.resident(
        split, 40, seed=0, augment=(("cutout", {"size": 40}),), mean=(0.1, 0.2, 0.3), std=(1, 1, 1)
    )
    np.testing.assert_array_equal(batches(stream, 1)[0]["image"], 0)


def test_images_of_one_and_of_half_precision_are_float32_in_a_batch():
    images = np.linspace(0, 1, 10 * 4, dtype=np.float16).reshape(10, 2, 2, 1)
    half = Split.of({"image": images, "label": np.zeros(10, np.int32)}, "half")
    (batch,) = batches(data.resident(half, 4, seed=0), 1)
    assert batch["image"].dtype == np.float32


def test_a_value_that_is_not_finite_is_named_when_the_host_reads_it():
    images = np.zeros((10, 2, 2, 1), np.float32)
    images[7] = np.nan
    bad = Split.of({"image": images, "label": np.zeros(10, np.int32)}, "toy")
    with pytest.raises(ValueError, match="toy, field image, example 7: not a finite number"):
        take(data.host(bad, 5, seed=0), 2)


@pytest.mark.parametrize("prefetch", [0, 4])
def test_the_state_of_an_iterator_belongs_to_the_item_last_returned(prefetch):
    def fresh():
        steps = grain.MapDataset.range(30).shuffle(seed=1).repeat().batch(4)
        options = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch or 1)
        return data.iterator(steps.map(lambda x: {"label": x}).to_iter_dataset(options), 4)

    expected = [next(item) for item in [fresh().items()] for _ in range(20)]
    running = fresh().items()
    for k in range(12):
        state = json.loads(json.dumps(running.state() if k else None))
        if k in (1, 7, 11):  # 7 and 8: the epoch of 30 examples ends within a batch of 4
            resumed = fresh().items(k, state)
            for item in expected[k : k + 3]:
                np.testing.assert_array_equal(next(resumed)["label"], item["label"])
        np.testing.assert_array_equal(next(running)["label"], expected[k]["label"])


def test_every_example_of_an_iterator_counts_unless_it_says_otherwise():
    stream = data.iterator(grain.MapDataset.range(8).batch(4).to_iter_dataset(), 4)
    batch = stream.assemble({}, {"label": np.arange(4)})
    assert batch["where"].tolist() == [True] * 4
    where = np.array([True, False])
    padded = stream.assemble({}, {"label": np.arange(2), "where": where})
    assert padded["where"] is where


def test_an_iterator_whose_items_have_another_size_is_refused():
    steps = grain.MapDataset.range(8).batch(4).map(lambda x: {"label": x})
    with pytest.raises(ValueError, match=r"gave 4 examples of 'label', its batch size .* is 8"):
        next(data.iterator(steps.to_iter_dataset(), 8).items())


def test_sequential_pads_a_split_that_is_smaller_than_the_batch(split):
    stream = data.sequential(split.take(np.arange(3)), 8)
    (item,) = stream.items()
    assert stream.batches == 1
    assert item["where"].tolist() == [True] * 3 + [False] * 5


def test_a_part_of_records_that_are_read_late_is_read_late(folder):
    part = folder.take(np.array([4, 2]), "part")
    assert len(part) == 2
    np.testing.assert_array_equal(part[1]["image"], folder[2]["image"])
    assert part.labels().tolist() == folder.labels()[[4, 2]].tolist()


REFUSED = {
    "no batch": (lambda s: data.resident(s, 0, seed=0), "batch_size must be at least 1, got 0"),
    "seed": (lambda s: data.resident(s, 4, seed=-1), r"seed must be in \[0, 2\^32\), got -1"),
    "rows": (lambda s: data.host(s, 1, seed=0, indices=[-1]), "indices must be rows of toy"),
    "a mask": (
        lambda s: data.resident(s, 1, seed=0, indices=np.arange(40) < 9),
        "indices must be rows of toy",
    ),
    "no integers": (
        lambda s: data.host(s, 1, seed=0, indices=[1.5]),
        "indices must be rows of toy",
    ),
    "a table": (lambda s: data.host(s, 1, seed=0, indices=[[1, 2]]), "indices must be rows of toy"),
    "wrapped": (
        lambda s: data.host(s, 1, seed=0, indices=[2**32 + 3]),
        "indices must be rows of toy",
    ),
    "process": (
        lambda s: data.resident(s, 8, seed=0, process=2, processes=2),
        "process=2 is none of the 2 processes",
    ),
    "subset": (
        lambda s: data.resident(s, 5, seed=0, indices=[1, 2, 3]),
        "batch_size=5 is larger than toy, which has 3 examples",
    ),
    "processes": (
        lambda s: data.resident(s, 9, seed=0, processes=2, process=0),
        "multiple of the 2",
    ),
    "sequential": (lambda s: data.sequential(s, 0), "batch_size=0 is not a multiple"),
    "iterator": (
        lambda s: data.iterator(grain.MapDataset.range(4).to_iter_dataset(), 0),
        "=0 is not",
    ),
    "channels": (
        lambda s: batches(data.resident(s, 4, seed=0, mean=(0.1, 0.2)), 1),
        "mean has 2 numbers, the images have 3 channels",
    ),
    "std": (
        lambda s: batches(data.resident(s, 4, seed=0, std=(0.0,)), 1),
        r"std must be positive, got \(0.0,\)",
    ),
    "a word": (lambda s: data.resident(s, 4, seed=0, augment="flip"), "must be a list, got 'flip'"),
    "nothing": (lambda s: Split([], "toy/test"), "toy/test is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_cannot_be_meant_are_refused(case, split):
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make(split)


@pytest.mark.parametrize("options", [{"augment": ("flip",)}, {"mean": (0.5,)}, {"std": (0.5,)}])
@pytest.mark.parametrize("make", [data.resident, data.host])
def test_what_is_for_images_is_refused_where_there_are_none(make, options):
    vectors = Split.of({"input": np.zeros((8, 3), np.float32), "label": np.zeros(8, int)}, "toy")
    message = r"augment, mean and std are for images, but the fields are \['input', 'label'\]"
    with pytest.raises(ValueError, match=message):
        batches(make(vectors, 4, seed=0, **options), 1)


def test_noise_has_the_standard_deviation_that_is_asked_for():
    image = np.zeros((100, 100, 1), np.float32)
    noisy = augmentation.gaussian_noise(jax.random.key(0), image, std=0.25)
    assert abs(float(noisy.std()) - 0.25) < 0.01


def test_a_numbered_stream_is_its_parts_and_begins_anywhere():
    whole = take(data.numbered(8, seed=3), 4)
    parts = [take(data.numbered(8, seed=3, process=i, processes=2), 4) for i in range(2)]
    for step, item in enumerate(whole):
        assert set(item) == {"seed", "step", "row"}
        assert {x.dtype for x in item.values()} == {np.dtype("uint32")}
        for name, x in item.items():
            np.testing.assert_array_equal(x, np.concatenate([part[step][name] for part in parts]))
    jax.tree.map(np.testing.assert_array_equal, take(data.numbered(8, seed=3), 2, 2), whole[2:])


def test_the_examples_of_a_numbered_stream_are_all_different():
    streams = [data.numbered(4, seed=3), data.numbered(4, seed=4)]
    streams.append(streams[0].reordered(1))
    found = [data.example_keys(item) for stream in streams for item in take(stream, 2)]
    keys = np.concatenate([jax.random.key_data(x) for x in found])
    assert len(np.unique(keys, axis=0)) == 24
    again = data.example_keys(take(streams[0].reordered(1), 1)[0])
    np.testing.assert_array_equal(jax.random.key_data(again), keys[16:20])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 is not a positive multiple of the 1 processes"),
        (
            {"batch_size": 3, "process": 0, "processes": 2},
            "batch_size=3 is not a positive multiple",
        ),
        ({"process": 2, "processes": 2}, "process=2 is none of the 2 processes"),
        ({"seed": -1}, "seed must be in"),
    ],
)
def test_a_bad_numbered_stream_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data.numbered(**{"batch_size": 4, "seed": 0, **options})
