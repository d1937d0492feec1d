"""Problems twice: as a student is asked them, and as a teacher reads them, with the solution.

A document's prompt is the problem and its text the reference solution. Its row is that of
`text_dataset`: the student's prompt up to one place, then the solution, which only methods that
train on it, and the scores, look at. Beside it stands the prompt of the teacher, without an answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kdjax.data.corpora import Corpus, Document
from kdjax.data.text import TextDataset, TokenSplit, text_dataset, tokenize
from kdjax.data.tokenizers import Tokenizer

PROBLEM, SOLUTION = "{problem}", "{solution}"
ANSWER = "Reason step by step, then give the final answer alone on the last line.\n"


@dataclasses.dataclass(frozen=True)
class Templates:
    """How problem and solution become prompts.

    The teacher reads `teacher`, then `transition`, then the answer; where it is to reason first,
    `request` and its own reasoning come before `transition`.

    Attributes:
      student: holds {problem} once, and no {solution}.
      teacher: holds {problem} once and {solution} once.
      transition: what leads from the solution to the answer; the same for all, may be empty.
      request: what asks the teacher to explain the solution; the same for all. Empty: never asked.

    Raises:
      ValueError: a field that is missing, doubled or not allowed.
    """

    student: str = PROBLEM + "\n" + ANSWER
    teacher: str = PROBLEM + "\nA solution of this problem:\n" + SOLUTION + "\n"
    transition: str = (
        "Once you understand why it is right, solve the problem again in your own way. " + ANSWER
    )
    request: str = ""

    def __post_init__(self):
        for name, problems, solutions in (
            ("student", 1, 0),
            ("teacher", 1, 1),
            ("transition", 0, 0),
            ("request", 0, 0),
        ):
            text = getattr(self, name)
            found = text.count(PROBLEM), text.count(SOLUTION)
            if found != (problems, solutions):
                raise ValueError(
                    f"{name} must hold {PROBLEM} {problems} times and {SOLUTION} {solutions} "
                    f"times, got {text!r}"
                )


class Privileged(NamedTuple):
    """What became of the problems of a split.

    Attributes:
      problems: how many there are.
      unsolved: how many were dropped because they have no solution.
      leaking: how many were dropped because the student's prompt has the solution in it.
      too_long: how many were dropped because a prompt or a solution is longer than its places.
      cut: how many of those kept have a solution that the teacher sees only the beginning of.
    """

    problems: int
    unsolved: int
    leaking: int
    too_long: int
    cut: int

    @property
    def cut_fraction(self) -> float:
        """The part of the solutions kept that were cut."""
        return self.cut / (self.problems - self.unsolved - self.leaking - self.too_long)


class _Prompt(NamedTuple):
    before: list[int]
    solution: list[int]
    after: list[int]


def privileged_dataset(
    corpus: Corpus,
    tokenizer: Tokenizer,
    length: int,
    *,
    prompt_length: int,
    teacher_length: int,
    templates: Templates | None = None,
    drop: bool = False,
) -> TextDataset:
    r"""Rows as of `text_dataset`, and the prompts of a teacher that knows the solutions.

    Fields beside those of `text_dataset`: `teacher_prompt` int32 `[N, teacher_length]`, padded on
    the left, and `teacher_prompt_where`, bool, where it holds a token; `solution_cut` bool `[N]`;
    `transition` int32 `[N, T]` and `request` int32 `[N, R]`, the same in every row, where the
    templates have them. A teacher's prompt that is too long loses the end of its solution, never
    anything else; `record["privileged"]` counts how often, split by split.

    Args:
      corpus: documents whose prompts are problems and whose texts are their solutions.
      tokenizer: of the model.
      length: tokens a row: the student's prompt and the solution with its end.
      prompt_length: the place where answers begin.
      teacher_length: the places of the teacher's prompt, without `transition` and `request`.
      templates: by default those of `Templates`.
      drop: problems that cannot be used are dropped and counted. Default: they are refused.

    Raises:
      ValueError: a problem without a solution, which would have no teacher; one whose student's
        prompt has the solution in it, which would have nothing to learn; prompts or solutions
        longer than their places; a split of which nothing is left.

    >>> from kdjax.data.tokenizers import ByteTokenizer
    >>> sums = [Document(f"{a + 11:03}", f"{a}+11=") for a in range(40)]
    >>> dataset = privileged_dataset(
    ...     Corpus.of(sums, "sums"), ByteTokenizer(), 10, prompt_length=6, teacher_length=10,
    ...     templates=Templates("{problem}", "{solution} {problem}", ""),
    ... )
    >>> bytes(dataset.splits["train"][0]["teacher_prompt"].tolist()).strip(b"\0").decode()
    '012 1+11='
    """
    templates = Templates() if templates is None else templates
    if teacher_length < 1:
        raise ValueError(f"teacher_length must be at least 1, got {teacher_length}")
    kept, fields, summaries = {}, {}, {}
    for split, documents in corpus.splits.items():
        where = f"{corpus.name}/{split}"
        usable = _Usable(documents, where, drop)
        usable.leave_out("unsolved", [not d.text.strip() for d in documents], "has no solution")
        asked = [templates.student.replace(PROBLEM, d.prompt) for d in documents]
        leaks = [d.text.strip() in text for d, text in zip(documents, asked)]
        usable.leave_out("leaking", leaks, "has its solution in the student's prompt")
        prompts = [_teacher_prompt(d, templates, tokenizer) for d in documents]
        sizes = [len(p.before) + len(p.after) for p in prompts]
        usable.leave_out(
            "too_long",
            [size >= teacher_length for size in sizes],
            f"leaves no room for its solution in the teacher's {teacher_length} tokens",
        )
        documents = tuple(d._replace(prompt=text) for d, text in zip(documents, asked))
        whole = tokenize(dataclasses.replace(corpus, splits={split: documents}), tokenizer)[split]
        answers = whole.lengths - whole.prompt
        usable.leave_out(
            "too_long",
            (whole.prompt > prompt_length) | (answers > length - prompt_length),
            f"is longer than {prompt_length} tokens of prompt and {length - prompt_length} after",
        )
        rows = usable.rows()
        kept[split] = tuple(documents[i] for i in rows)
        fields[split] = _teacher_fields([prompts[i] for i in rows], teacher_length)
        for name in ("transition", "request"):
            if tokens := tokenizer.encode(getattr(templates, name)):
                fields[split][name] = np.tile(np.array(tokens, np.int32), (len(rows), 1))
        cut = int(fields[split]["solution_cut"].sum())
        summaries[split] = Privileged(len(documents), **usable.counts, cut=cut)
    asked = dataclasses.replace(corpus, splits=kept)
    found = text_dataset(asked, tokenizer, length, packed=False, prompt_length=prompt_length)
    splits = {
        split: TokenSplit.of({**rows.arrays(), **fields[split]}, rows.where)
        for split, rows in found.splits.items()
    }
    about = {
        "templates": dataclasses.asdict(templates),
        "teacher_length": teacher_length,
        "splits": {split: summary._asdict() for split, summary in summaries.items()},
    }
    record = {**found.record, "privileged": about}
    return dataclasses.replace(found, splits=splits, record=record)


class _Usable:
    """Which problems of a split can be used, and why the others cannot."""

    def __init__(self, documents: Sequence[Document], where: str, drop: bool):
        self.documents, self.where, self.drop = documents, where, drop
        self.kept = np.ones(len(documents), bool)
        self.counts = {"unsolved": 0, "leaking": 0, "too_long": 0}

    def leave_out(self, reason: str, bad: Sequence[bool], problem: str) -> None:
        """Refuses or drops problems that were not dropped before."""
        bad = np.asarray(bad, bool) & self.kept
        if bad.any() and not self.drop:
            first = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{self.where}: {bad.sum()} of {len(bad)} problems cannot be used, the first, "
                f"document {first}, {problem}: {self.documents[first].prompt[:60]!r}; drop=True "
                "leaves them out and counts them"
            )
        self.kept &= ~bad
        self.counts[reason] += int(bad.sum())

    def rows(self) -> np.ndarray:
        if not self.kept.any():
            raise ValueError(
                f"{self.where}: none of {len(self.kept)} problems can be used: {self.counts}"
            )
        return np.flatnonzero(self.kept)


def _teacher_prompt(document: Document, templates: Templates, tokenizer: Tokenizer) -> _Prompt:
    """What is before, in and after the place of the solution; encoded apart, to be cut apart."""
    start = [] if tokenizer.start is None else [tokenizer.start]
    before, after = templates.teacher.split(SOLUTION)
    before, after = (text.replace(PROBLEM, document.prompt) for text in (before, after))
    encoded = (tokenizer.encode(text) for text in (before, document.text, after))
    prompt = _Prompt(*encoded)
    return prompt._replace(before=[*start, *prompt.before])


def _teacher_fields(prompts: Sequence[_Prompt], length: int) -> dict[str, np.ndarray]:
    tokens = np.zeros((len(prompts), length), np.int32)
    where, cut = np.zeros(tokens.shape, bool), np.zeros(len(prompts), bool)
    for row, (before, solution, after) in enumerate(prompts):
        room = length - len(before) - len(after)
        cut[row] = len(solution) > room
        prompt = [*before, *solution[:room], *after]
        tokens[row, length - len(prompt) :] = prompt
        where[row, length - len(prompt) :] = True
    return {"teacher_prompt": tokens, "teacher_prompt_where": where, "solution_cut": cut}
