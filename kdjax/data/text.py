"""A corpus and a tokenizer make a data set of token rows, which every stream serves as it is."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdjax.data import packing
from kdjax.data.corpora import Corpus, Document
from kdjax.data.packing import Documents, Summary
from kdjax.data.prepared import alone, data_dir
from kdjax.data.source import Dataset, Split
from kdjax.data.tokenizers import Tokenizer

KEPT = ("tokens", "bounds", "prompt")
PROBE = 2000  # characters


class TokenSplit(Split):
    """Rows of tokens; where they have no label, a `subset` keeps the proportions of domains."""

    def labels(self) -> np.ndarray:
        """The labels of all rows, or else their domains, `[N]`."""
        arrays = self.arrays()
        return arrays["label" if "label" in arrays else "domain"]

    def take(self, rows: np.ndarray, where: str = "") -> TokenSplit:
        """The split of the given rows, in their order."""
        return TokenSplit.of(self.stack(rows), where or self.where)


@dataclasses.dataclass(frozen=True, eq=False)
class TextDataset(Dataset):
    """Splits of token rows.

    Attributes:
      domains: their names, in the order of the field `domain`.
      summaries: split -> what became of its documents.
      record: where the text came from and how it was made into rows, for the record of a run.
    """

    domains: tuple[str, ...]
    summaries: Mapping[str, Summary]
    record: Mapping[str, Any]

    def domain_rows(self, split: str) -> dict[str, np.ndarray]:
        """Domain -> its rows of a split, as the `indices` of a stream.

        Raises:
          ValueError: a domain without rows.
        """
        domain = self.splits[split].arrays()["domain"]
        rows = {name: np.flatnonzero(domain == i) for i, name in enumerate(self.domains)}
        for name, found in rows.items():
            if not len(found):
                raise ValueError(f"{self.name}/{split} has no rows of the domain {name!r}")
        return rows


def text_dataset(
    corpus: Corpus,
    tokenizer: Tokenizer,
    length: int,
    *,
    packed: bool = True,
    prompt_length: int | None = None,
    drop: bool = False,
) -> TextDataset:
    """Rows of `length` tokens with the fields that decoders and their losses read.

    Args:
      corpus: documents in splits.
      tokenizer: of all networks that read the rows.
      length: tokens a row.
      packed: several documents to a row (`packing.pack`). False: one a row (`packing.pad`), for
        prompts with answers, and for texts with labels.
      prompt_length: the place of a row where every answer begins, its prompt padded on the left up
        to it; not for packed rows. None: prompts begin at the left.
      drop: documents that cannot be used are dropped and counted in `summaries`. Default: they are
        refused.

    Raises:
      ValueError: documents that are empty, or too long and not to be cut; labels and `packed`.

    >>> from kdjax.data.tokenizers import ByteTokenizer
    >>> corpus = Corpus.of([Document(f"document {i}") for i in range(40)], "tiny")
    >>> dataset = text_dataset(corpus, ByteTokenizer(), 64)
    >>> dataset.splits["train"].fields["tokens"], dataset.summaries["train"].rows
    ((64,), 7)
    """
    if packed and prompt_length is not None:
        raise ValueError(f"prompt_length={prompt_length} is for rows of one document: packed=False")
    lay = packing.pack
    if not packed:
        lay = functools.partial(packing.pad, prompt_length=prompt_length)
    splits, summaries = {}, {}
    for split, documents in tokenize(corpus, tokenizer).items():
        fields, summaries[split] = lay(documents, length, drop=drop)
        splits[split] = TokenSplit.of(fields, documents.where)
    record = {
        **corpus.record,
        "tokenizer": tokenizer.fingerprint,
        "length": length,
        "packed": packed,
        "prompt_length": prompt_length,
        "rows": {split: summary._asdict() for split, summary in summaries.items()},
    }
    names = corpus.class_names, corpus.domains
    return TextDataset(corpus.name, splits, *names, summaries, record)


def tokenize(corpus: Corpus, tokenizer: Tokenizer) -> dict[str, Documents]:
    """The documents of each split as tokens; done once and kept under `KDJAX_DATA_DIR`.

    A document is `start` where the tokenizer has one, its prompt, its text and `end`. Prompt and
    text are encoded apart, so that a prompt has the tokens that it has when it stands alone. What
    is kept is found again by a hash of the texts and by what is known of the tokenizer: its
    fingerprint, its class, its ids for start and end, and its ids for the beginning of a text.

    Raises:
      ValueError: an id outside the vocabulary, or a kept file that is broken.
    """
    found = {}
    for split, documents in corpus.splits.items():
        where = f"{corpus.name}/{split}"
        kept = data_dir() / "tokens" / f"{_key(documents, tokenizer)}.npz"
        if not kept.exists():
            with alone(kept):
                if not kept.exists():
                    _keep(kept, _encode(documents, tokenizer, where))
        try:
            with kept.open("rb") as opened:  # numpy leaves a broken file open
                file = np.load(opened, allow_pickle=False)
                arrays = {name: file[name] for name in KEPT}
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{where}: {kept} is broken ({error}): delete it") from error
        found[split] = Documents(
            **arrays,
            domain=np.array([d.domain for d in documents], np.int32),
            label=np.array([d.label for d in documents], np.int32) if corpus.class_names else None,
            where=where,
        )
    return found


def _encode(documents: Sequence[Document], tokenizer: Tokenizer, where: str) -> Documents:
    start = [] if tokenizer.start is None else [tokenizer.start]
    prompts, texts = [], []
    for number, document in enumerate(documents):
        prompt, text = tokenizer.encode(document.prompt), tokenizer.encode(document.text)
        for token in (*prompt, *text):
            if not 0 <= token < tokenizer.vocabulary:
                raise ValueError(
                    f"{where}, document {number}: token {token} is outside the vocabulary of "
                    f"{tokenizer.vocabulary}"
                )
        # An empty text stays without a start: it has nothing to predict, and is told by that.
        prompts.append([*start, *prompt] if prompt else [])
        texts.append([*(start if text and not prompt else []), *text, tokenizer.end])
    return Documents.of(texts, where, prompts=prompts)


def _keep(place: pathlib.Path, documents: Documents) -> None:
    part = place.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.savez(file, **{name: getattr(documents, name) for name in KEPT})
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)


def _key(documents: Sequence[Document], tokenizer: Tokenizer) -> str:
    """A hash of the texts and of the tokenizer."""
    hashed = hashlib.sha256()
    # Two tokenizers may have one vocabulary and cut words differently: hence the probe.
    probe = [tokenizer.encode(d.text[:PROBE]) for d in documents[:1]]
    about = type(tokenizer).__qualname__, tokenizer.fingerprint, tokenizer.vocabulary
    hashed.update(repr((1, *about, tokenizer.start, tokenizer.end, probe)).encode())
    for document in documents:
        for part in (document.prompt, document.text):
            data = part.encode("utf-8", "surrogatepass")
            hashed.update(len(data).to_bytes(8, "little"))
            hashed.update(data)
    return hashed.hexdigest()[:32]
