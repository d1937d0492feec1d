"""What rows owe to the documents they are made of."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdjax.data.packing import Documents, pack, pad, prompts

END = 0
TOKENS = st.lists(st.integers(1, 9), min_size=1, max_size=25)


@st.composite
def plain(draw):
    """Documents without prompts, in two domains; every token of all of them is another one."""
    sizes = draw(st.lists(st.integers(2, 25), min_size=1, max_size=12))
    domain = draw(st.lists(st.integers(0, 1), min_size=len(sizes), max_size=len(sizes)))
    count = itertools.count(1)
    texts = [[next(count) for _ in range(size)] for size in sizes]
    return Documents.of(texts, "plain", domain=domain)


def answered(texts, before, **options):
    return Documents.of([[*t, END] for t in texts], "pairs", prompts=before, **options)


@settings(max_examples=60, deadline=None)
@given(plain(), st.integers(2, 12))
def test_every_token_but_a_documents_first_is_predicted_exactly_once(documents, length):
    fields, summary = pack(documents, length)
    predicted = fields["tokens"][fields["completion"]]
    first = documents.tokens[documents.bounds[:-1]]
    assert sorted(predicted) == sorted(set(documents.tokens.tolist()) - set(first.tolist()))
    held = set(fields["tokens"][fields["segments"] > 0].tolist())
    assert held == set(documents.tokens.tolist())
    assert summary.predicted == len(predicted)


@settings(max_examples=60, deadline=None)
@given(plain(), st.integers(2, 12))
def test_a_predicted_token_follows_the_one_it_follows_in_its_document(documents, length):
    fields, _ = pack(documents, length)
    rows, places = np.nonzero(fields["completion"])
    tokens, segments = fields["tokens"], fields["segments"]
    np.testing.assert_array_equal(tokens[rows, places - 1] + 1, tokens[rows, places])
    np.testing.assert_array_equal(segments[rows, places - 1], segments[rows, places])


@settings(max_examples=60, deadline=None)
@given(plain(), st.integers(2, 12))
def test_segments_are_contiguous_and_positions_restart_in_each(documents, length):
    fields, _ = pack(documents, length)
    for tokens, segments, positions, completion in zip(
        *(fields[n] for n in ("tokens", "segments", "positions", "completion"))
    ):
        runs = [(s, len(list(run))) for s, run in itertools.groupby(segments)]
        numbers = [s for s, _ in runs if s]
        assert numbers == list(range(1, len(numbers) + 1))
        assert [s for s, _ in runs][: len(numbers)] == numbers  # padding is at the end
        expected = [p for s, size in runs for p in (range(size) if s else [0] * size)]
        assert positions.tolist() == expected
        assert not completion[(positions == 0) | (segments == 0)].any()
        assert (completion | (positions == 0)).all()
        assert (tokens[segments == 0] == 0).all()


@settings(max_examples=40, deadline=None)
@given(plain(), st.integers(2, 12))
def test_packing_is_deterministic_keeps_domains_apart_and_never_needs_more_rows(documents, length):
    fields, summary = pack(documents, length)
    again, _ = pack(documents, length)
    for name, x in fields.items():
        np.testing.assert_array_equal(x, again[name])
    domain_of = np.repeat(documents.domain, documents.lengths)
    for tokens, segments, domain in zip(fields["tokens"], fields["segments"], fields["domain"]):
        assert set(domain_of[tokens[segments > 0] - 1].tolist()) == {domain}
    assert summary.rows == len(fields["tokens"]) <= pad(documents, length)[1].rows
    assert summary.fill == (fields["segments"] > 0).mean()
    assert summary.tokens == (fields["segments"] > 0).sum()


def test_two_documents_that_fit_share_a_row():
    documents = Documents.of([[1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11, 12]], "four")
    fields, summary = pack(documents, 6)
    assert fields["tokens"].tolist() == [[1, 2, 3, 10, 11, 12], [4, 5, 6, 7, 8, 9]]
    assert fields["segments"].tolist() == [[1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 2, 2]]
    assert summary.fill == 1.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=8), st.booleans())
def test_of_a_pair_exactly_the_answer_and_its_end_are_predicted(pairs, packed):
    documents = answered([a for _, a in pairs], [p for p, _ in pairs])
    fields, _ = (pack if packed else pad)(documents, 51)
    found = []
    for tokens, segments, completion in zip(
        fields["tokens"], fields["segments"], fields["completion"]
    ):
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            where = completion[here]
            assert (np.diff(where.astype(int)) >= 0).all()  # prompt first, then the answer
            row = tokens[here]
            found.append((row[~where].tolist(), row[where].tolist()))
    assert sorted(found) == sorted((p, [*a, END]) for p, a in pairs)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=8))
def test_answers_begin_at_one_place_behind_their_prompts(pairs):
    documents = answered([a for _, a in pairs], [p for p, _ in pairs])
    fields, _ = pad(documents, 51, prompt_length=25)
    tokens, where = prompts(documents, 25)
    np.testing.assert_array_equal(fields["tokens"][:, :25], tokens)
    np.testing.assert_array_equal(fields["segments"][:, :25] > 0, where)
    assert not fields["completion"][:, :25].any()
    for row, (prompt, answer) in enumerate(pairs):
        predicted = fields["tokens"][row, 25:][fields["completion"][row, 25:]]
        assert predicted.tolist() == [*answer, END]
        seen = fields["segments"][row] > 0
        assert fields["positions"][row][seen].tolist() == list(range(len(prompt + answer) + 1))


def test_prompts_are_padded_on_the_left():
    tokens, where = prompts(answered([[7], [8]], [[1], [2, 3]]), 3)
    assert tokens.tolist() == [[0, 0, 1], [0, 2, 3]]
    assert where.tolist() == [[False, False, True], [False, True, True]]
    assert tokens.dtype == np.int32


def test_a_text_with_a_label_lies_alone_in_its_row():
    documents = Documents.of([[1, 2, 0], [3, 0]], "labelled", label=[1, 0])
    fields, _ = pad(documents, 4)
    assert fields["tokens"].tolist() == [[1, 2, 0, 0], [3, 0, 0, 0]]
    assert fields["segments"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert fields["label"].tolist() == [1, 0]
    assert "completion" not in fields


def test_what_cannot_be_used_is_dropped_with_its_count():
    documents = answered([[7], [], [7] * 9, [8]], [[1], [1], [1], [1] * 9])
    for lay in (pack, pad):
        fields, summary = lay(documents, 6, drop=True)
        assert (summary.documents, summary.empty, summary.too_long) == (1, 1, 2)
        assert fields["tokens"].tolist() == [[1, 7, 0, 0, 0, 0]]
    _, summary = pad(documents, 13, prompt_length=3, drop=True)
    assert (summary.documents, summary.empty, summary.too_long) == (2, 1, 1)


@pytest.mark.parametrize(
    ("message", "use"),
    [
        ("length must be at least 2", lambda: pack(answered([[7]], None), 1)),
        ("1 of 2 documents have nothing to predict", lambda: pack(answered([[7], []], None), 4)),
        ("nothing to predict", lambda: pad(answered([[]], [[1, 2]]), 4)),
        (
            "must not be cut and are longer than a row of 4 tokens, the first is document 0 with 1",
            lambda: pack(answered([[7, 7, 7]], [[1]]), 4),
        ),
        ("must not be cut", lambda: pad(Documents.of([[7] * 5], "x", label=[0]), 4)),
        ("longer than 1 tokens of prompt and 3", lambda: _pad_at(answered([[7]], [[1, 1]]), 1)),
        ("longer than 1 tokens of prompt and 3", lambda: _pad_at(answered([[7] * 3], [[1]]), 1)),
        (r"prompt_length must be in \[1, 4\)", lambda: _pad_at(answered([[7]], [[1]]), 4)),
        ("is for documents with prompts", lambda: _pad_at(answered([[7]], None), 2)),
        ("none of 1 documents can be used", lambda: pack(answered([[]], None), 4, drop=True)),
        ("need a row each", lambda: pack(Documents.of([[7, 0]], "x", label=[0]), 4)),
        ("1 of 2 documents have no prompt", lambda: prompts(answered([[7], [7]], [[1], []]))),
        ("prompt longer than 1 tokens", lambda: prompts(answered([[7]], [[1, 2]]), 1)),
        ("has no documents", lambda: prompts(Documents.of([], "x"))),
    ],
)
def test_documents_that_do_not_fit_are_refused(message, use):
    with pytest.raises(ValueError, match=message):
        use()


def _pad_at(documents, prompt_length):
    return pad(documents, 4, prompt_length=prompt_length)
