"""Pairs of written and spoken digits: same class, same split, the same every time."""

import wave

import numpy as np
import pytest

from kdjax.data import load
from kdjax.data.spectrograms import log_mel, mel_filters

SPEAKERS, RECORDINGS, SAMPLES = 2, 12, 1024


def recordings() -> dict[str, np.ndarray]:
    """Clips whose loudness tells label and index, so that a pair shows which clip it holds."""
    label, _, index = (x.ravel() for x in np.indices((10, SPEAKERS, RECORDINGS)))
    noise = np.random.default_rng(0).standard_normal((len(label), SAMPLES))
    audio = (noise * 20 * (1 + np.arange(len(label)))[:, None]).astype(np.int16)
    small = {"label": label.astype(np.uint8), "index": index.astype(np.uint8)}
    return {"audio": audio, **small, "test": index < 5, "sample_rate": np.int32(8000)}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    place = tmp_path_factory.mktemp("sound") / "fsdd.npz"
    np.savez(place, **recordings())
    return place


@pytest.fixture(scope="module")
def pairs(path):
    return load(f"spoken_digits:{path}")


def sources(path, dataset):
    """split -> the row of the recording that each pair holds."""
    held = recordings()
    pictures = log_mel(held["audio"] / np.float32(32768), 8000)
    training = ~held["test"] & (held["index"] >= 10)
    known = pictures[training]
    pictures = ((pictures - known.mean()) / known.std()).reshape(len(pictures), -1)
    row_of = {np.float32(x).round(2).tobytes(): i for i, x in enumerate(pictures)}
    return {
        split: np.array(
            [row_of[x.round(2).tobytes()] for x in s.arrays()["audio"].reshape(len(s), -1)]
        )
        for split, s in dataset.splits.items()
    }


def test_pairs_share_their_class_and_no_recording_crosses_splits(path, pairs):
    held, rows = recordings(), sources(path, pairs)
    index = {"train": {10, 11}, "validation": set(range(5, 10)), "test": set(range(5))}
    for split, found in rows.items():
        assert (held["label"][found] == pairs.splits[split].labels()).all()
        assert set(held["index"][found]) == index[split]
        uses = np.bincount(found)[np.unique(found)]  # all are used before one is used again
        assert uses.max() - uses.min() <= 1


def test_pictures_are_those_of_mnist5k_split_by_split(pairs):
    for split, records in load("mnist5k").splits.items():
        np.testing.assert_array_equal(
            pairs.splits[split].arrays()["image"], records.arrays()["image"]
        )


def test_the_seed_alone_says_who_is_paired(path, pairs):
    again, other = load(f"spoken_digits:{path}"), load(f"spoken_digits:{path}", seed=1)
    audio = [d.splits["test"].arrays()["audio"] for d in (pairs, again, other)]
    np.testing.assert_array_equal(audio[0], audio[1])
    assert (audio[0] != audio[2]).any()


def test_what_is_missing_is_marked_and_zero(path):
    found = load(f"spoken_digits:{path}", missing=(0.3, 0.2)).splits["test"].arrays()
    present = found["present"]
    assert present.mean(0).tolist() == [0.7, 0.8]
    assert present.any(1).all()
    for i, name in enumerate(("image", "audio")):
        there = found[name].reshape(len(present), -1).any(1)
        np.testing.assert_array_equal(there, present[:, i])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": None}, "fsdd.npz cannot be used: it must be a .npz with audio, label"),
        ({"audio": np.zeros((240, 8), np.float32)}, "audio must be int16"),
        ({"test": np.zeros(240, np.uint8)}, "test boolean"),
        ({"label": np.zeros(239, np.uint8)}, r"the others \[N\]"),
        ({"label": np.zeros(240, np.uint8)}, "has no recording of 1"),
        ({"test": np.ones(240, bool)}, "no recording for training"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(change, message, tmp_path):
    held = {k: v for k, v in {**recordings(), **change}.items() if v is not None}
    np.savez(tmp_path / "fsdd.npz", **held)
    with pytest.raises(ValueError, match=message):
        load(f"spoken_digits:{tmp_path / 'fsdd.npz'}")


def test_without_the_file_it_says_where_to_get_it():
    with pytest.raises(
        FileNotFoundError, match=r"git clone https://\S+ .*, or one \.npz with audio"
    ):
        load("spoken_digits:nowhere.npz")


def publish(folder, held, **format):
    """The recordings as they are published, a file each."""
    speakers = np.tile(np.repeat(["zoe", "al_b"][::-1], RECORDINGS), 10)
    for clip, label, speaker, index in zip(held["audio"], held["label"], speakers, held["index"]):
        with wave.open(str(folder / f"{label}_{speaker}_{index}.wav"), "wb") as file:
            file.setparams(
                (format.get("channels", 1), 2, format.get("rate", 8000), 0, "NONE", "none")
            )
            file.writeframes(clip.astype("<i2").tobytes())


def test_the_published_recordings_are_the_same_pairs(path, pairs, tmp_path):
    (tmp_path / "README.md").touch()  # is no recording
    held = recordings()
    long = np.concatenate([held["audio"], np.zeros((240, 9000), np.int16)], 1)
    long[:, 8000:] = 1000  # after the first second, so not heard
    publish(tmp_path, {**held, "audio": long})
    found = load(f"spoken_digits:{tmp_path}")
    one = {**held, "audio": long[:, :8000]}
    np.savez(tmp_path / "fsdd.npz", **one)
    packed = load(f"spoken_digits:{tmp_path / 'fsdd.npz'}")
    for split, records in found.splits.items():
        for name, x in records.arrays().items():
            np.testing.assert_array_equal(x, packed.splits[split].arrays()[name])


def test_a_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"holds no DIGIT_SPEAKER_INDEX\.wav"):
        load(f"spoken_digits:{tmp_path}")
    (tmp_path / "0_zoe_0.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"0_zoe_0\.wav cannot be read"):
        load(f"spoken_digits:{tmp_path}")
    publish(tmp_path, recordings(), channels=2)
    with pytest.raises(
        ValueError, match=r"0_al_b_0\.wav cannot be read: it is not mono of 16 bits"
    ):
        load(f"spoken_digits:{tmp_path}")
    for file in tmp_path.iterdir():
        file.unlink()
    publish(tmp_path, recordings())
    publish(tmp_path, {k: x[:1] for k, x in recordings().items() if k != "sample_rate"}, rate=16000)
    with pytest.raises(ValueError, match=r"different sample rates: \[8000, 16000\]"):
        load(f"spoken_digits:{tmp_path}")


@pytest.mark.parametrize("missing", [(0.6, 0.6), (-0.1, 0.0), (0.1,)])
def test_shares_that_leave_nothing_are_refused(missing, path):
    with pytest.raises(ValueError, match="two shares that are together at most 1"):
        load(f"spoken_digits:{path}", missing=missing)


def test_each_mel_band_hears_its_own_pitch():
    filters = mel_filters(32, 512, 8000)
    centres = np.linspace(0, 4000, 257)[filters.argmax(1)]
    time = np.arange(4096) / 8000
    for band in (5, 15, 30):
        picture = log_mel(np.sin(2 * np.pi * centres[band] * time)[None], 8000)
        assert picture[0, 8, :, 0].argmax() == band


def test_more_bands_than_frequencies_are_refused():
    with pytest.raises(ValueError, match="num_mels=64 is too many for windows of 64 samples"):
        mel_filters(64, 64, 8000)
    with pytest.raises(ValueError, match=r"audio must be \[batch, samples\]"):
        log_mel(np.zeros(8), 8000)
