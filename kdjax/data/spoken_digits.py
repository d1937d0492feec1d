"""Digits seen and heard: a written and a spoken digit of the same class, two modalities a record.

Written digits are those of `mnist5k`, spoken ones the Free Spoken Digit Dataset (Jackson et al.
2018), as it is published or in one `.npz`: the pairing of AV-MNIST (Vielzeuf et al. 2018,
arXiv:1808.07275), small.
"""

from __future__ import annotations

import pathlib
import re
import wave
import zipfile

import numpy as np

from kdjax.data.source import Dataset, Split
from kdjax.data.spectrograms import log_mel

MODALITIES = ("image", "audio")
NEEDED = ("audio", "label", "index", "test", "sample_rate")
REPOSITORY = "https://github.com/Jakobovski/free-spoken-digit-dataset"


def spoken_digits(
    path: str, *, seed: int = 0, missing: tuple[float, float] = (0.0, 0.0)
) -> Dataset:
    """Pairs of a written and a spoken digit: 3,500 / 500 / 1,000, one a picture of `mnist5k`.

    A record has `image` uint8 `[28, 28, 1]`, `audio` float32 `[frames, 32, 1]` (a log-mel
    spectrogram, 32 frames a second of sound, standardised by the mean and deviation of the
    training recordings), `label` and `present` bool `[2]`: whether image and audio are there.
    What is absent is zero.

    The official test recordings (0 to 4 of each speaker and digit) are heard in `test` alone,
    recordings 5 to 9 in `validation` alone. There are fewer recordings than pictures, so a
    recording may be in several pairs of its split: 3 or 4 in `test`.

    Args:
      path: the folder `recordings` of the published data set, of which the first second is heard;
        or a `.npz` of `audio` int16 `[N, S]`, `label`, `index` (of the recording among those of its
        speaker and digit), `test`, `sample_rate`.
      seed: of who is paired with whom, and of what is missing.
      missing: the shares of pairs, in each split, without image and without audio; none lacks both.

    Raises:
      FileNotFoundError: there is nothing at `path`; says where the data set is.
      ValueError: a folder or a file that does not hold this, a digit without recordings, shares
        outside [0, 1] or above 1 together.
    """
    from kdjax.data.registry import load  # which knows this module

    shares = np.asarray(missing, np.float64)
    if shares.shape != (2,) or (shares < 0).any() or shares.sum() > 1:
        raise ValueError(
            f"missing must be two shares that are together at most 1, got {tuple(missing)}"
        )
    audio, labels, parts = _recordings(path)
    written, splits = load("mnist5k"), {}
    for number, (split, records) in enumerate(written.splits.items()):
        rng = np.random.default_rng([seed, number])
        heard = np.flatnonzero(parts == split)
        arrays = records.arrays()
        rows = _partners(arrays["label"], heard, labels, rng, f"{pathlib.Path(path).name}/{split}")
        present = np.ones((len(rows), 2), bool)
        counts = np.round(shares * len(rows)).astype(int)
        order = rng.permutation(len(rows))
        present[order[: counts[0]], 0] = False
        present[order[counts[0] : counts.sum()], 1] = False
        fields = {
            "image": np.where(present[:, 0, None, None, None], arrays["image"], 0).astype(np.uint8),
            "audio": np.where(present[:, 1, None, None, None], audio[rows], 0).astype(np.float32),
            "label": arrays["label"].astype(np.int32),
            "present": present,
        }
        splits[split] = Split.of(fields, f"spoken_digits/{split}")
    return Dataset("spoken_digits", splits, written.class_names)


def _recordings(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spectrograms, labels, and the split of each recording."""
    place = pathlib.Path(path)
    if not place.exists():
        raise FileNotFoundError(
            f"there is no {path}: spoken_digits needs the Free Spoken Digit Dataset: git clone "
            f"{REPOSITORY}, and the path of its folder recordings, or one .npz with "
            f"{', '.join(NEEDED)}"
        )
    held = _published(place) if place.is_dir() else _packed(place)
    sound, labels, index, test = (held[name] for name in NEEDED[:4])
    fits = sound.ndim == 2 and sound.dtype == np.int16 and test.dtype == bool
    if not fits or any(x.shape != sound.shape[:1] for x in (labels, index, test)):
        shapes = {name: f"{held[name].dtype}{list(held[name].shape)}" for name in NEEDED[:4]}
        raise ValueError(
            f"{place.name}: audio must be int16 [N, samples], the others [N] and test boolean, "
            f"got {shapes}"
        )
    pictures = log_mel(sound / np.float32(32768), int(held["sample_rate"]))
    chosen = ~test & (index >= 5) & (index < 10)
    parts = np.where(test, "test", np.where(chosen, "validation", "train"))
    known = pictures[parts == "train"]
    if not known.size:
        raise ValueError(f"{place.name} has no recording for training: all are test or 5 to 9")
    return (pictures - known.mean()) / max(known.std(), 1e-6), labels.astype(np.int32), parts


def _packed(place: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays `NEEDED` of one file."""
    try:
        with np.load(place, allow_pickle=False) as file:
            return {name: file[name] for name in NEEDED}
    except (ValueError, OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{place.name} cannot be used: it must be a .npz with {', '.join(NEEDED)} ({error})"
        ) from error


def _published(place: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays `NEEDED` of a folder of DIGIT_SPEAKER_INDEX.wav, in this order."""
    found = (re.fullmatch(r"([0-9])_(\w+)_(\d+)\.wav", path.name) for path in place.iterdir())
    clips = sorted((int(name[1]), name[2], int(name[3]), name[0]) for name in found if name)
    if not clips:
        raise ValueError(f"{place} holds no DIGIT_SPEAKER_INDEX.wav, such as 7_jackson_32.wav")
    sounds, rates = [], set()
    for *_, name in clips:
        try:
            with wave.open(str(place / name)) as file:
                if (file.getsampwidth(), file.getnchannels()) != (2, 1):
                    raise wave.Error("it is not mono of 16 bits")
                rates.add(file.getframerate())
                second = np.frombuffer(file.readframes(file.getframerate()), "<i2")
        except (wave.Error, EOFError) as error:
            raise ValueError(f"{place / name} cannot be read: {error}") from error
        sounds.append(second)
    if len(rates) > 1:
        raise ValueError(f"{place} has recordings of different sample rates: {sorted(rates)}")
    (rate,) = rates
    audio = np.zeros((len(sounds), rate), np.int16)
    for row, sound in zip(audio, sounds):
        row[: len(sound)] = sound
    label, index = (np.array([clip[i] for clip in clips]) for i in (0, 2))
    return dict(zip(NEEDED, (audio, label, index, index < 5, np.int64(rate))))


def _partners(wanted, heard, labels, rng: np.random.Generator, where: str) -> np.ndarray:
    """A recording of the class for each label wanted; all are used before one is used again."""
    rows = np.empty(len(wanted), np.int64)
    for c in np.unique(wanted):
        mine, own = np.flatnonzero(wanted == c), heard[labels[heard] == c]
        if not len(own):
            raise ValueError(f"{where} has no recording of {c}")
        rounds = -(-len(mine) // len(own))
        rows[mine] = np.concatenate([rng.permutation(own) for _ in range(rounds)])[: len(mine)]
    return rows
