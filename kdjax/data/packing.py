"""Rows of one length from documents of any: packed several to a row, or padded one by one.

A row is `tokens`, `completion`, `segments` and `positions`, each `[L]`. A document that is longer
than a row goes on in another one, which begins with the last token of the one before: so every
token but a document's first is predicted exactly once, from what precedes it in its row.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

PADDING = 0  # any token would do: nothing attends to it and nothing predicts it


@dataclasses.dataclass(frozen=True, eq=False)
class Documents:
    """Documents as tokens, one after the other: document i is `tokens[bounds[i]:bounds[i + 1]]`.

    Attributes:
      tokens: `[T]`, each document with its end token.
      bounds: `[N + 1]`, where documents begin and end.
      prompt: `[N]`, how many tokens of each come before what is to be predicted.
      domain: `[N]`, which domain each belongs to.
      label: `[N]`, the class of each; None: they have none.
      where: what to call them in errors.
    """

    tokens: Int32[np.ndarray, " T"]
    bounds: Int64[np.ndarray, " N+1"]
    prompt: Int32[np.ndarray, " N"]
    domain: Int32[np.ndarray, " N"]
    label: Int32[np.ndarray, " N"] | None
    where: str

    @classmethod
    def of(
        cls,
        texts: Sequence[Sequence[int]],
        where: str,
        *,
        prompts: Sequence[Sequence[int]] | None = None,
        domain: Sequence[int] | None = None,
        label: Sequence[int] | None = None,
    ) -> Documents:
        """Documents of lists of tokens; a text comes with its end token, a prompt without.

        >>> documents = Documents.of([[5, 6, 0], [7, 0]], "tiny", prompts=[[1], [2, 3]])
        >>> documents.tokens.tolist(), documents.bounds.tolist(), documents.prompt.tolist()
        ([1, 5, 6, 0, 2, 3, 7, 0], [0, 4, 8], [1, 2])
        """
        before = [()] * len(texts) if prompts is None else prompts
        whole = [[*p, *t] for p, t in zip(before, texts, strict=True)]
        lengths = np.array([len(w) for w in whole], np.int64)
        return cls(
            np.array([token for w in whole for token in w], np.int32),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.array([len(p) for p in before], np.int32),
            np.zeros(len(texts), np.int32) if domain is None else np.array(domain, np.int32),
            None if label is None else np.array(label, np.int32),
            where,
        )

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        """The number of tokens of each, with prompt and end."""
        return np.diff(self.bounds)


class Summary(NamedTuple):
    """What became of the documents.

    Attributes:
      documents: how many are in the rows.
      empty: how many were dropped because nothing but an end token was to be predicted.
      too_long: how many were dropped because they must not be cut and are longer than a row.
      rows: how many rows there are.
      tokens: how many tokens they hold, padding left out.
      predicted: how many of them are to be predicted.
      fill: the part of all places that holds a token.
    """

    documents: int
    empty: int
    too_long: int
    rows: int
    tokens: int
    predicted: int
    fill: float


class _Piece(NamedTuple):
    document: int
    first: int  # in the document
    last: int

    @property
    def size(self) -> int:
        return self.last - self.first


def pack(
    documents: Documents, length: int, *, drop: bool = False
) -> tuple[dict[str, np.ndarray], Summary]:
    """Documents in rows of `length` tokens, as many to a row as fit.

    Best fit, longest first: a piece goes into the row that it leaves the least room in, or into a
    new one. Rows are in the order of their first documents; a row holds documents of one domain.
    Documents without a prompt that are longer than a row are cut, see the module.

    Args:
      documents: without labels.
      length: tokens a row.
      drop: documents that cannot be used, because they are empty, or longer than a row and have a
        prompt that the rest of them would lose, are dropped and counted. Default: they are refused.

    Returns:
      fields, summary: `tokens` int32 `[R, L]`; `completion` bool `[R, L]`, the token is to be
      predicted: no prompt, no padding, not the first of a document, and not the first of a row;
      `segments` int32 `[R, L]`, 0 for padding and 1, 2, ... for the documents of a row;
      `positions` int32 `[R, L]`, from 0 in every segment; `domain` int32 `[R]`.

    Raises:
      ValueError: `length` below 2, labels, documents that cannot be used, or no others.

    >>> fields, summary = pack(Documents.of([[5, 6, 7, 0], [8, 0]], "tiny"), 3)
    >>> fields["tokens"].tolist()
    [[5, 6, 7], [7, 0, 0], [8, 0, 0]]
    >>> fields["completion"].astype(int).tolist()
    [[0, 1, 1], [0, 1, 0], [0, 1, 0]]
    >>> summary.predicted, round(summary.fill, 2)
    (4, 0.78)
    """
    if documents.label is not None:
        raise ValueError(f"{documents.where}: documents with labels need a row each (packed=False)")
    kept, empty, too_long = _usable(documents, length, drop)
    pieces = _pieces(documents, kept, length)
    rows: list[list[_Piece]] = []
    for domain in np.unique(documents.domain):
        of_domain = [p for p in pieces if documents.domain[p.document] == domain]
        rows += _best_fit(of_domain, length)
    rows = sorted([sorted(row) for row in rows])
    return _fields(documents, rows, length, len(kept), empty, too_long)


def pad(
    documents: Documents, length: int, *, prompt_length: int | None = None, drop: bool = False
) -> tuple[dict[str, np.ndarray], Summary]:
    """Documents in rows of `length` tokens, one a row, padded on the right.

    As `pack`, but for documents with labels too, which must not be cut either; for those `label`
    int32 `[R]` takes the place of `completion`. With `prompt_length` every answer begins at that
    place of its row, its prompt padded on the left up to it, as rows are that a model completes;
    every document needs a prompt then, and one with a longer prompt or answer is too long.

    >>> fields, _ = pad(Documents.of([[6, 7, 0], [8, 0]], "tiny", prompts=[[5], [5]]), 4)
    >>> fields["tokens"].tolist(), fields["completion"].astype(int).tolist()
    ([[5, 6, 7, 0], [5, 8, 0, 0]], [[0, 1, 1, 1], [0, 1, 1, 0]])
    """
    if prompt_length is not None:
        if not 1 <= prompt_length < length:
            raise ValueError(
                f"prompt_length must be in [1, {length}), the rows' length, got {prompt_length}"
            )
        if documents.label is not None or not documents.prompt.all():
            raise ValueError(f"{documents.where}: prompt_length is for documents with prompts")
    kept, empty, too_long = _usable(documents, length, drop, prompt_length)
    rows = [[piece] for piece in _pieces(documents, kept, length)]
    return _fields(documents, rows, length, len(kept), empty, too_long, prompt_length)


def prompts(
    documents: Documents, length: int | None = None
) -> tuple[Int32[np.ndarray, "N P"], Bool[np.ndarray, "N P"]]:
    """The prompts of all documents, padded on the left, as generation reads them.

    Args:
      documents: each with a prompt.
      length: tokens a prompt; default: of the longest.

    Returns:
      tokens, where: int32 `[N, P]` and whether a place holds a token, bool `[N, P]`.

    Raises:
      ValueError: no documents, one without a prompt, or with one longer than `length`.

    >>> tokens, where = prompts(Documents.of([[7, 0], [8, 0]], "tiny", prompts=[[1], [2, 3]]))
    >>> tokens.tolist(), where.astype(int).tolist()
    ([[0, 1], [2, 3]], [[0, 1], [1, 1]])
    """
    sizes = documents.prompt
    if not len(sizes):
        raise ValueError(f"{documents.where} has no documents")
    length = int(sizes.max()) if length is None else length
    for bad, problem in ((sizes == 0, "no prompt"), (sizes > length, "a prompt longer than")):
        if bad.any():
            which = np.flatnonzero(bad)
            limit = f" {length} tokens" if problem.endswith("than") else ""
            raise ValueError(
                f"{documents.where}: {len(which)} of {len(sizes)} documents have {problem}{limit}, "
                f"the first is document {which[0]} with {sizes[which[0]]} tokens"
            )
    tokens = np.full((len(sizes), length), PADDING, np.int32)
    for row, (first, size) in enumerate(zip(documents.bounds, sizes)):
        tokens[row, length - size :] = documents.tokens[first : first + size]
    return tokens, np.arange(length) >= length - sizes[:, None]


def _usable(
    documents: Documents, length: int, drop: bool, prompt_length: int | None = None
) -> tuple[Int[np.ndarray, " K"], int, int]:
    """The documents that can be used, and how many are empty and too long."""
    if length < 2:
        raise ValueError(f"length must be at least 2 tokens, got {length}")
    empty = documents.lengths - documents.prompt < 2  # an end token alone is no answer
    whole = documents.prompt > 0 if documents.label is None else np.ones(len(documents), bool)
    longer = documents.lengths > length
    limit = f"a row of {length} tokens"
    if prompt_length is not None:
        answers = documents.lengths - documents.prompt
        longer = (documents.prompt > prompt_length) | (answers > length - prompt_length)
        limit = f"{prompt_length} tokens of prompt and {length - prompt_length} after it"
    too_long = ~empty & whole & longer
    for bad, problem in (
        (empty, "have nothing to predict before their end"),
        (too_long, f"must not be cut and are longer than {limit}"),
    ):
        if bad.any() and not drop:
            first = np.flatnonzero(bad)[0]
            raise ValueError(
                f"{documents.where}: {bad.sum()} of {len(documents)} documents {problem}, the "
                f"first is document {first} with {documents.prompt[first]} tokens of prompt and "
                f"{documents.lengths[first] - documents.prompt[first]} after it; drop=True leaves "
                "them out and counts them"
            )
    kept = np.flatnonzero(~(empty | too_long))
    if not len(kept):
        raise ValueError(
            f"{documents.where}: none of {len(documents)} documents can be used: {empty.sum()} "
            f"are empty, {too_long.sum()} are longer than {limit}"
        )
    return kept, int(empty.sum()), int(too_long.sum())


def _pieces(documents: Documents, kept: np.ndarray, length: int) -> list[_Piece]:
    """Documents cut to the length; a piece begins with the last token of the one before."""
    lengths = documents.lengths
    return [
        _Piece(int(i), first, min(first + length, int(lengths[i])))
        for i in kept
        for first in range(0, int(lengths[i]) - 1, length - 1)
    ]


def _best_fit(pieces: Sequence[_Piece], length: int) -> list[list[_Piece]]:
    rows: list[list[_Piece]] = []
    with_room: dict[int, list[int]] = collections.defaultdict(list)  # room -> rows that have it
    rooms: list[int] = []  # the keys of `with_room`, sorted
    for piece in sorted(pieces, key=lambda p: (-p.size, p)):
        at = bisect.bisect_left(rooms, piece.size)
        if at == len(rooms):
            row, room = len(rows), length
            rows.append([])
        else:
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        rows[row].append(piece)
        room -= piece.size
        if room >= 2:  # nothing shorter is a piece
            if room not in with_room:
                bisect.insort(rooms, room)
            with_room[room].append(row)
    return rows


def _fields(documents, rows, length, kept, empty, too_long, prompt_length=None):
    """The arrays of the rows, and the summary."""
    shape = (len(rows), length)
    tokens = np.full(shape, PADDING, np.int32)
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    completion = np.zeros(shape, bool)
    for row, pieces in enumerate(rows):
        at = 0
        if prompt_length is not None:
            at = prompt_length - int(documents.prompt[pieces[0].document])
        for segment, piece in enumerate(pieces, 1):
            start = int(documents.bounds[piece.document])
            place = slice(at, at + piece.size)
            tokens[row, place] = documents.tokens[start + piece.first : start + piece.last]
            segments[row, place] = segment
            positions[row, place] = np.arange(piece.size)
            # The first token of a piece is a document's first, or was predicted before.
            known = max(int(documents.prompt[piece.document]) - piece.first, 1)
            completion[row, at + known : at + piece.size] = True
            at += piece.size
    first = [pieces[0].document for pieces in rows]
    fields = {"tokens": tokens, "segments": segments, "positions": positions}
    fields["domain"] = documents.domain[first]
    if documents.label is None:
        fields["completion"] = completion
    else:
        fields["label"] = documents.label[first]
    filled = int((segments > 0).sum())
    predicted = int(completion.sum()) if documents.label is None else 0
    summary = Summary(
        kept, empty, too_long, len(rows), filled, predicted, filled / (len(rows) * length)
    )
    return fields, summary
