"""Images with texts that tell what is on them, read together: what a dual encoder learns from."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data.files import archive_or_folder, decode
from kdjax.data.source import Dataset, Split
from kdjax.data.tokenizers import ByteTokenizer, CharacterTokenizer, Tokenizer, load_tokenizer

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionDataset(Dataset):
    """Images, each with K texts. A record has `image` uint8 `[H, W, 3]`, `tokens` int32 `[K, L]`
    and `segments` int32 `[K, L]`: 1 where there is a token, 0 where there is padding.

    Attributes:
      tokenizer: of the texts.
      texts: split -> the K texts of each image.
    """

    tokenizer: Tokenizer = dataclasses.field(default_factory=ByteTokenizer)
    texts: Mapping[str, Sequence[Sequence[str]]] = dataclasses.field(default_factory=dict)


def load_captions(
    name: str, *, tokenizer: str = "bytes", length: int = 0, **options: Any
) -> CaptionDataset:
    """Images and their texts by name.

    | name | what it is | options |
    | --- | --- | --- |
    | `openmoji` | 1,518 / 200 / 200 signs with their names, from pip packages | `languages` |
    | `captions:PATH` | a folder or a zip of images with `captions.jsonl` | `size` |

    Args:
      name: as in the table.
      tokenizer: "bytes", "characters" (of all texts), or the folder of a `tokenizer.json`.
      length: L, tokens of a row; 0: as many as the longest text has.
      **options: `languages`: one text a language, default `("en",)`; `size`: side of the square
        that images are scaled to, default 64.

    Raises:
      ValueError: an unknown name or option, a text that is empty or longer than `length`, images
        with different numbers of texts.
      FileNotFoundError: nothing at PATH, or a package that is not installed (its pip command).
    """
    kind, _, place = name.partition(":")
    readers = {"openmoji": openmoji, "captions": captioned}
    if kind not in readers or bool(place) != (kind == "captions"):
        raise ValueError(f"captions {name!r} must be 'openmoji' or 'captions:PATH'")
    known = {"openmoji": ("languages",), "captions": ("size",)}[kind]
    wrong = [option for option in options if option not in known]
    if wrong:
        raise ValueError(f"{name} has no option {wrong[0]!r}; it has {known}")
    images, texts = readers[kind](place, **options) if place else readers[kind](**options)
    every = [text for rows in texts.values() for row in rows for text in row]
    if tokenizer == "bytes":
        chosen: Tokenizer = ByteTokenizer()
    elif tokenizer == "characters":
        chosen = CharacterTokenizer("".join(every))
    else:
        chosen = load_tokenizer(tokenizer)
    title = name if not place else pathlib.Path(place).name
    return caption_dataset(images, texts, chosen, length=length, name=title)


def caption_dataset(
    images: Mapping[str, np.ndarray],
    texts: Mapping[str, Sequence[Sequence[str]]],
    tokenizer: Tokenizer,
    *,
    length: int = 0,
    name: str = "captions",
) -> CaptionDataset:
    """A data set of images and texts that are there already.

    Args:
      images: split -> uint8 `[N, H, W, 3]`.
      texts: split -> K texts for each image; K is the same for all.
      tokenizer: of the texts.
      length: L, tokens of a row; 0: as many as the longest text has.
      name: what it is called in reports and errors.

    Raises:
      ValueError: as `load_captions`.

    >>> image = np.zeros((1, 4, 4, 3), np.uint8)
    >>> splits = ("train", "validation", "test")
    >>> data = caption_dataset({s: image for s in splits}, {s: [["cat"]] for s in splits},
    ...                        ByteTokenizer(), length=4)
    >>> data.splits["test"][0]["tokens"].tolist(), data.splits["test"][0]["segments"].tolist()
    ([[99, 97, 116, 256]], [[1, 1, 1, 0]])
    """
    tokens = {s: [[tokenizer.encode(t) for t in row] for row in texts[s]] for s in SPLITS}
    counts = {len(row) for rows in tokens.values() for row in rows}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"{name}: every image needs as many texts, got {sorted(counts)} of them")
    sizes = {
        (s, i): [len(ids) for ids in row]
        for s, rows in tokens.items()
        for i, row in enumerate(rows)
    }
    longest = max(max(found) for found in sizes.values())
    for (split, i), found in sizes.items():
        if 0 in found or (length and max(found) > length):
            what = "empty" if 0 in found else f"{max(found)} tokens long, more than length={length}"
            raise ValueError(f"{name}/{split}, image {i}: a text is {what}")
    splits = {}
    for split in SPLITS:
        rows = tokens[split]
        if len(rows) != len(images[split]):
            raise ValueError(f"{name}/{split}: {len(images[split])} images, texts of {len(rows)}")
        shape = (len(rows), counts.copy().pop(), length or longest)
        ids, segments = np.full(shape, tokenizer.pad, np.int32), np.zeros(shape, np.int32)
        for i, row in enumerate(rows):
            for k, found in enumerate(row):
                ids[i, k, : len(found)], segments[i, k, : len(found)] = found, 1
        fields = {"image": images[split], "tokens": ids, "segments": segments}
        splits[split] = Split.of(fields, f"{name}/{split}")
    return CaptionDataset(name, splits, (), tokenizer, texts)


def openmoji(languages: Sequence[str] = ("en",)) -> tuple[dict, dict]:
    """The signs of OpenMoji and their names, one a language."""
    from kdjax.data.builders.openmoji import LANGUAGES, Openmoji
    from kdjax.data.builders.packaged import prepare

    languages = tuple(languages)
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown or not languages:
        raise ValueError(f"languages must be some of {LANGUAGES}, got {languages}")
    builder, images, texts = prepare(Openmoji), {}, {}
    for split in SPLITS:
        source = builder.as_data_source(split=split)
        records = source.__getitems__(list(range(len(source))))
        images[split] = np.stack([record["image"] for record in records])
        texts[split] = [
            tuple(record["names"][language].decode("utf-8") for language in languages)
            for record in records
        ]
    return images, texts


def captioned(path: str, size: int = 64) -> tuple[dict, dict]:
    """A folder or a zip of images with `captions.jsonl`: {"image": PATH, "captions": [texts]}.

    A line may say its `split`. Where none does, images are sorted by name; the first tenth is
    `test`, the second `validation`. Images are scaled to squares.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    place = pathlib.Path(path)
    if not place.exists():
        raise FileNotFoundError(f"there is no folder or zip of images with captions at {path}")
    files = archive_or_folder(place)
    if "captions.jsonl" not in files.stamps:
        raise ValueError(f"{place.name} has no captions.jsonl")
    rows = []
    for number, line in enumerate(files.read("captions.jsonl").decode("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{place.name}, captions.jsonl line {number}"
        try:
            row = json.loads(line)
            rows.append((str(row["image"]), tuple(map(str, row["captions"])), row.get("split")))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: image and captions are needed ({error})") from error
        if rows[-1][0] not in files.stamps:
            raise ValueError(f"{where}: there is no {rows[-1][0]}")
    rows.sort(key=lambda row: row[0])
    if len({row[0] for row in rows}) != len(rows):
        raise ValueError(f"{place.name}: captions.jsonl names an image twice")
    given = {row[2] for row in rows}
    if given == {None}:
        tenth = max(1, len(rows) // 10)
        names = ["test"] * tenth + ["validation"] * tenth
        rows = [
            (image, texts, split)
            for (image, texts, _), split in zip(rows, names + ["train"] * len(rows))
        ]
    elif given != set(SPLITS):
        raise ValueError(
            f"{place.name}: the splits must be {SPLITS}, got {sorted(map(str, given))}"
        )
    if len(rows) < 3:
        raise ValueError(f"{place.name} has {len(rows)} images: too few for three splits")
    images, texts = {}, {}
    for split in SPLITS:
        mine = [row for row in rows if row[2] == split]
        pictures = [decode(files.read(name), name, place.name) for name, _, _ in mine]
        images[split] = np.stack(
            [np.asarray(picture.convert("RGB").resize((size, size))) for picture in pictures]
        )
        texts[split] = [row[1] for row in mine]
    return images, texts
