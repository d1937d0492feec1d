"""Problems for two contexts: what either is shown, and what is refused."""

import numpy as np
import pytest

from kdjax.data.corpora import Corpus, Document
from kdjax.data.privileged import Privileged, Templates, privileged_dataset
from kdjax.data.tokenizers import ByteTokenizer

TOKENIZER = ByteTokenizer()
TEMPLATES = Templates("{problem}?", "{problem}: {solution};", "so", "why")
SUMS = tuple(Document(f"={a + 11}", f"{a}+11") for a in range(6))


class Started(ByteTokenizer):
    """Bytes, and a first token of every document."""

    vocabulary = 258
    start = 257


def dataset(documents=SUMS, *, tokenizer=TOKENIZER, length=12, **options):
    corpus = Corpus(
        "sums", {"train": tuple(documents), "validation": SUMS, "test": SUMS}, ("sums",)
    )
    given = dict(prompt_length=6, teacher_length=12, templates=TEMPLATES)
    return privileged_dataset(corpus, tokenizer, length, **{**given, **options})


def text(tokens, where):
    return bytes(np.asarray(tokens)[np.asarray(where)].tolist()).decode()


def test_student_and_teacher_are_shown_the_same_problem_and_only_one_its_solution():
    found = dataset()
    for split in ("train", "test"):
        arrays = found.splits[split].arrays()
        for row, document in enumerate(SUMS):
            prompt = slice(0, 6)
            shown = text(arrays["tokens"][row, prompt], arrays["segments"][row, prompt] > 0)
            assert shown == f"{document.prompt}?"
            assert document.text not in shown
            taught = text(arrays["teacher_prompt"][row], arrays["teacher_prompt_where"][row])
            assert taught == f"{document.prompt}: {document.text};"
            assert arrays["teacher_prompt_where"][row, -1]
        assert (arrays["completion"].argmax(1) == 6).all()
        assert not arrays["solution_cut"].any()
        assert {bytes(x.tolist()) for x in arrays["transition"]} == {b"so"}
        assert {bytes(x.tolist()) for x in arrays["request"]} == {b"why"}


def test_a_context_that_is_too_long_loses_the_end_of_its_solution():
    documents = [*SUMS[:3], Document("=a long way", "7+11")]
    found = dataset(documents, length=20)
    arrays = found.splits["train"].arrays()
    assert arrays["solution_cut"].tolist() == [False] * 3 + [True]
    assert text(arrays["teacher_prompt"][3], arrays["teacher_prompt_where"][3]) == "7+11: =a lo;"
    about = found.record["privileged"]
    assert about["splits"]["train"] == Privileged(4, 0, 0, 0, 1)._asdict()
    assert Privileged(6, 1, 1, 0, 1).cut_fraction == 0.25


def test_the_first_token_of_a_document_begins_both_contexts():
    found = dataset(tokenizer=Started()).splits["train"].arrays()
    first = found["teacher_prompt_where"].argmax(1)
    assert (found["teacher_prompt"][np.arange(6), first] == 257).all()
    assert (found["tokens"][np.arange(6), found["segments"].argmax(1)] == 257).all()


@pytest.mark.parametrize(
    ("document", "reason", "message"),
    [
        (Document(" ", "1+11"), "unsolved", "has no solution"),
        (Document("1", "1+11"), "leaking", "has its solution in the student's prompt"),
        (Document("=12", "111+111+"), "too_long", "is longer than 6 tokens of prompt"),
        (Document("=12345", "1+11"), "too_long", "is longer than 6 tokens of prompt and 6 after"),
        (Document("=12", "1+11+1+11"), "too_long", "no room for its solution in the teacher's 12"),
    ],
)
def test_a_problem_that_cannot_be_used_is_refused_or_dropped(document, reason, message):
    documents = [SUMS[0], document, *SUMS[1:]]
    with pytest.raises(ValueError, match=message):
        dataset(documents)
    found = dataset(documents, drop=True)
    arrays = found.splits["train"].arrays()
    for name, expected in dataset().splits["train"].arrays().items():
        np.testing.assert_array_equal(arrays[name], expected)
    counts = {"unsolved": 0, "leaking": 0, "too_long": 0, reason: 1}
    assert found.record["privileged"]["splits"]["train"] == {"problems": 7, "cut": 0, **counts}


def test_what_is_left_of_nothing_is_refused():
    with pytest.raises(ValueError, match="none of 1 problems can be used"):
        dataset([Document("", "1+1")], drop=True)
    with pytest.raises(ValueError, match="teacher_length must be at least 1"):
        dataset(teacher_length=0)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"student": "{problem} {solution}"}, "student"),
        ({"student": "solve it"}, "student"),
        ({"teacher": "{problem}"}, "teacher"),
        ({"teacher": "{problem} {problem} {solution}"}, "teacher"),
        ({"transition": "{solution}"}, "transition"),
        ({"request": "{problem}"}, "request"),
    ],
)
def test_templates_that_hide_or_tell_the_wrong_thing_are_refused(fields, name):
    with pytest.raises(ValueError, match=f"{name} must hold"):
        Templates(**fields)


def test_problems_may_hold_braces():
    found = dataset([Document("=q", "{problem")], length=19, prompt_length=9, teacher_length=20)
    arrays = found.splits["train"].arrays()
    taught = text(arrays["teacher_prompt"][0], arrays["teacher_prompt_where"][0])
    assert taught == "{problem: =q;"
