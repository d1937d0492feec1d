"""Text in one local file: plain, or in the fields of JSON lines."""

from __future__ import annotations

import gzip
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdjax.data.corpora import Corpus, Document, select

BLANK_LINES = r"\n[^\S\n]*\n(?:[^\S\n]*\n)*"


def plain_text(
    path: str,
    *,
    separator: str | None = BLANK_LINES,
    parts: Mapping[str, Sequence[int]] | str | None = None,
    splits: Mapping[str, str | Sequence[str]] | None = None,
) -> Corpus:
    r"""A text file (UTF-8, `.gz` or not), cut into documents.

    Args:
      path: the file.
      separator: a regular expression; documents are what lies between its matches, as it is.
        Pieces of white space alone are no documents. Default: blank lines. None: every part is
        one document.
      parts: name -> (from, to), in characters; or the path of a JSON file that has them, as
        `{STEM: {"parts": {...}}}` with the stem of the text's file name. None: one part, `train`.
      splits: ours -> their part or parts. Default: by the usual names (train, valid, dev, ...).

    What is missing of validation and test is carved out of train by a hash of each document.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: text that is not UTF-8, a range outside the text or two that overlap in
        different splits, an unknown part, no documents.
    """
    place = existing(path)
    text = "".join(_lines(place))
    stem = place.name.split(".")[0]
    if isinstance(parts, str):
        index = json.loads(existing(parts).read_text(encoding="utf-8"))
        if stem not in index or not index[stem].get("parts"):
            raise ValueError(f"{parts} names no parts of {stem!r}")
        parts = index[stem]["parts"]
    ranges = {"train": (0, len(text))} if parts is None else dict(parts)
    for name, (first, last) in ranges.items():
        if not 0 <= first < last <= len(text):
            raise ValueError(
                f"{place.name}: part {name!r} is [{first}, {last}], the text has {len(text)} "
                "characters"
            )
    chosen = sorted((*ranges[name], split, name) for split, name in select(ranges, splits, stem))
    for (_, last, one, a), (first, _, other, b) in itertools.pairwise(chosen):
        if first < last:
            raise ValueError(f"{place.name}: {a!r} of {one} and {b!r} of {other} overlap")
    found: dict[str, list[Document]] = {split: [] for _, _, split, _ in chosen}
    for first, last, split, _ in chosen:
        piece = text[first:last]
        cut = [piece] if separator is None else _cut(piece, separator)
        found[split] += [Document(p) for p in cut if p.strip()]
    record = {"separator": separator, "parts": ranges}
    return Corpus.of(found, stem, record=record)


def _cut(text: str, separator: str) -> Iterator[str]:
    """What lies between the matches, without the groups that `re.split` would mix in."""
    at = 0
    for match in re.finditer(separator, text):
        yield text[at : match.start()]
        at = match.end()
    yield text[at:]


def json_lines(
    path: str,
    *,
    text: str = "text",
    prompt: str | Sequence[str] = (),
    label: str | None = None,
    domain: str | None = None,
    split: str = "split",
    splits: Mapping[str, str | Sequence[str]] | None = None,
) -> Corpus:
    """An object a line (UTF-8, `.gz` or not): prompts and answers, or texts with labels.

    Args:
      path: the file.
      text: the field of the text: the answer, where there is a prompt. A dot goes inside:
        `instances.0.output`.
      prompt: its field; of several, those that are not empty are joined with a line feed. A line
        feed parts it from the answer.
      label: the field of the class: an integer from 0, or a word (numbered in sorted order).
      domain: the field of the domain, a word; domains are numbered in sorted order.
      split: the field that says train, validation or test; where no row has it, validation and
        test are carved out by a hash of each document.
      splits: ours -> theirs, where they are called otherwise.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: a line that is no JSON object, a field that is missing or no text, an unknown
        split, a class that train lacks.
    """
    place = existing(path)
    fields = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    rows = list(_objects(place))
    if not rows:
        raise ValueError(f"{place.name} has no rows")

    def words(field: str) -> list[str]:
        return sorted({str(_get(row, field, where)) for where, row in rows})

    domains = words(domain) if domain else [place.name.split(".")[0]]
    classes = words(label) if label else []
    if all(c.isdigit() for c in classes):
        classes = sorted(classes, key=int)
        if [int(c) for c in classes] != list(range(len(classes))):
            raise ValueError(f"{place.name}: {label} must be 0, 1, ..., got {classes}")
    by_part: dict[str, list[Document]] = {}
    for where, row in rows:
        asked = [_string(row, field, where) for field in fields]
        before = "\n".join(p for p in asked if p)
        document = Document(
            _string(row, text, where),
            prompt=before + "\n" if fields else "",
            domain=domains.index(str(_get(row, domain, where))) if domain else 0,
            label=classes.index(str(_get(row, label, where))) if label else None,
        )
        by_part.setdefault(str(row.get(split, "train")), []).append(document)
    found: dict[str, list[Document]] = {}
    for ours, theirs in select(by_part, splits, place.name):
        found.setdefault(ours, []).extend(by_part[theirs])
    corpus = Corpus.of(
        found,
        place.name.split(".")[0],
        domains=domains,
        class_names=classes,
        record={"text": text, "prompt": list(fields), "label": label, "domain": domain},
    )
    trained = {document.label for document in corpus.splits["train"]}
    lacking = set(range(len(classes))) - trained
    if lacking:
        raise ValueError(f"{place.name}/train has none of class {classes[min(lacking)]!r}")
    return corpus


def _get(row: Mapping[str, Any], field: str, where: str) -> Any:
    found: Any = row
    for key in field.split("."):
        try:
            found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, IndexError, TypeError, ValueError):
            raise ValueError(f"{where}: no {field!r}; it has {sorted(row)}") from None
    return found


def _string(row: Mapping[str, Any], field: str, where: str) -> str:
    found = _get(row, field, where)
    if not isinstance(found, str):
        raise ValueError(f"{where}: {field}={found!r} is no text")
    return found


def _objects(place: pathlib.Path) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(_lines(place), 1):
        if not line.strip():
            continue
        where = f"{place.name}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: no JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: no JSON object, but {line[:40]!r}")
        yield where, row


def _lines(place: pathlib.Path) -> Iterator[str]:
    opened = gzip.open if place.suffix == ".gz" else open
    try:
        with opened(place, "rt", encoding="utf-8", newline="\n") as file:
            yield from file
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{place.name} cannot be read: {error}") from error


def existing(path: str) -> pathlib.Path:
    """The file at `path`, which must be there."""
    place = pathlib.Path(path)
    if not place.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return place
