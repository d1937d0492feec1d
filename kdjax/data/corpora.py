"""Text corpora: documents in splits, from files or from what an installed Python brings along."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

SPLITS = ("train", "validation", "test")


class Document(NamedTuple):
    """One text.

    Attributes:
      text: what is to be predicted, or, with a label, what is to be classified.
      prompt: what comes before it and is read but not predicted.
      name: what splits are drawn by: documents of one name are in one split.
      domain: which of the corpus's `domains` it belongs to.
      label: which of its `class_names`; None: it has none.
    """

    text: str
    prompt: str = ""
    name: str = ""
    domain: int = 0
    label: int | None = None


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents in the splits `train`, `validation` and `test`.

    Attributes:
      name: what it is called in reports.
      splits: the documents of each split, in a fixed order.
      domains: their names; a corpus of one kind of text has one.
      class_names: in label order; empty where documents have no labels.
      record: where the text came from, for the record of a run.
    """

    name: str
    splits: Mapping[str, tuple[Document, ...]]
    domains: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Split -> documents and characters.

        >>> corpus = Corpus.of([Document(f"{i:03}") for i in range(50)], "numbers")
        >>> corpus.sizes()
        {'train': (42, 126), 'validation': (4, 12), 'test': (4, 12)}
        """
        return {
            split: (len(found), sum(len(d.prompt) + len(d.text) for d in found))
            for split, found in self.splits.items()
        }

    @classmethod
    def of(
        cls,
        documents: Sequence[Document] | Mapping[str, Sequence[Document]],
        name: str,
        *,
        domains: Sequence[str] = (),
        class_names: Sequence[str] = (),
        record: Mapping[str, Any] | None = None,
    ) -> Corpus:
        """A corpus of documents, all of them or split by split.

        What is missing of validation and test is carved out of `train`, about a tenth each, by a
        hash of a document's name (of its prompt and text where it has no name): so the split of a
        document depends on nothing but itself, and repeated ones stay together.

        Raises:
          ValueError: a split without documents, a split of another name.
        """
        given = documents if isinstance(documents, Mapping) else {"train": documents}
        splits = _carve({split: tuple(found) for split, found in given.items()}, name)
        hashed = hashlib.sha256()
        for split, found in splits.items():
            hashed.update(repr((split, found)).encode())
        record = {"name": name, **(record or {}), "sha256": hashed.hexdigest()[:32]}
        return cls(name, splits, tuple(domains) or (name,), tuple(class_names), record)


def load_text(name: str, **options: Any) -> Corpus:
    """The corpus of that name.

    | name | what it is | options |
    | --- | --- | --- |
    | `python_stdlib` | the modules of Python's own library, a document each | |
    | `python_reference` | the language reference that `help()` shows, a topic each | |
    | `text:PATH` | a plain text, also gzipped, cut into documents | `separator`, `parts`, `splits` |
    | `jsonl:PATH` | an object a line, also gzipped | `text`, `prompt`, `label`, `domain`, `split`, `splits` |

    The options are those of `plain_text` and `json_lines`.

    Raises:
      ValueError: unknown name (the nearest valid one is named), or text that cannot be used.
      FileNotFoundError: nothing at PATH, or a Python that comes without its sources.
    """  # noqa: E501
    from kdjax.data import python_text, text_files

    readers: dict[str, Callable[..., Corpus]] = {
        "text": text_files.plain_text,
        "jsonl": text_files.json_lines,
    }
    packaged: dict[str, Callable[[], Corpus]] = {
        "python_stdlib": python_text.python_stdlib,
        "python_reference": python_text.python_reference,
    }
    kind, _, place = name.partition(":")
    if place and kind in readers:
        return readers[kind](place, **options)
    if name not in packaged:
        valid = [*packaged, *(f"{kind}:PATH" for kind in readers)]
        close = difflib.get_close_matches(name if not place else kind, valid, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"valid are {valid}"
        raise ValueError(f"there is no text corpus {name!r}; {hint}")
    if options:
        raise ValueError(f"{name} takes no options, got {sorted(options)}")
    return packaged[name]()


def join(corpora: Mapping[str, Corpus], name: str) -> Corpus:
    """One corpus of several, each a domain under its key; splits are kept.

    Raises:
      ValueError: fewer than two corpora, or one that has labels or domains already.

    >>> prose = Corpus.of([Document(f"word {i}") for i in range(60)], "prose")
    >>> code = Corpus.of([Document(f"x = {i}") for i in range(60)], "code")
    >>> both = join({"prose": prose, "code": code}, "both")
    >>> both.domains, [len(found) for found in both.splits.values()]
    (('prose', 'code'), [100, 9, 11])
    """
    if len(corpora) < 2:
        raise ValueError(f"{name}: at least two corpora are joined, got {list(corpora)}")
    for key, corpus in corpora.items():
        if len(corpus.domains) > 1 or corpus.class_names:
            raise ValueError(
                f"{name}: {key} cannot be one domain: it has domains {list(corpus.domains)} and "
                f"classes {list(corpus.class_names)}"
            )
    splits = {
        split: [
            document._replace(domain=domain)
            for domain, corpus in enumerate(corpora.values())
            for document in corpus.splits[split]
        ]
        for split in SPLITS
    }
    record = {"domains": {key: dict(corpus.record) for key, corpus in corpora.items()}}
    return Corpus.of(splits, name, domains=tuple(corpora), record=record)


def _carve(splits: dict[str, tuple[Document, ...]], name: str) -> dict[str, tuple[Document, ...]]:
    unknown = splits.keys() - set(SPLITS)
    if unknown:
        raise ValueError(f"{name}: splits are {list(SPLITS)}, got {sorted(unknown)}")
    missing = {split: [] for split in ("validation", "test") if split not in splits}
    rest: list[Document] = []
    for document in splits.get("train", ()):
        place = {0: "validation", 1: "test"}.get(_tenth(document), "train")
        missing.get(place, rest).append(document)
    cut = {"train": rest, **missing}
    out = {split: tuple(cut.get(split, splits.get(split, ()))) for split in SPLITS}
    for split, found in out.items():
        if not found:
            carved = " after carving" if missing else ""
            raise ValueError(
                f"{name}/{split} has no documents{carved}: the splits that were given hold "
                f"{ {s: len(d) for s, d in splits.items()} } documents"
            )
    return out


def _tenth(document: Document) -> int:
    """Which tenth of all documents it belongs to, whatever the others are."""
    key = document.name or json.dumps([document.prompt, document.text])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10


def select(
    parts: Mapping[str, Any], splits: Mapping[str, str | Sequence[str]] | None, where: str
) -> Iterator[tuple[str, str]]:
    """Pairs (our split, their part), from what a file calls its parts.

    Args:
      parts: what there is; only the names count.
      splits: our split -> their name or names. Default: by their usual names.
      where: the file, for errors.

    >>> list(select({"train": ..., "dev": ...}, None, "a.jsonl"))
    [('train', 'train'), ('validation', 'dev')]
    """
    if splits is None:
        usual = {"train": "train", "test": "test"}
        usual |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
        for part in parts:
            if part not in usual:
                raise ValueError(
                    f"{where}: {part!r} is none of {sorted(usual)}: give splits, from ours to "
                    f"theirs; there are {sorted(parts)}"
                )
            yield usual[part], part
        return
    for split, theirs in splits.items():
        for part in (theirs,) if isinstance(theirs, str) else theirs:
            if part not in parts:
                raise ValueError(f"{where} has no part {part!r}; it has {sorted(parts)}")
            yield split, part
