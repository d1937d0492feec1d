"""From text to the batches of a stream."""

import dataclasses
import gzip
import itertools
import json

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdjax import data
from kdjax.data import text
from kdjax.data.corpora import Corpus, Document, join
from kdjax.data.source import Split
from kdjax.data.tokenizers import ByteTokenizer, CharacterTokenizer

BYTES = ByteTokenizer()
SPLITS = ("train", "validation", "test")


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("KDJAX_DATA_DIR", str(tmp_path / "prepared"))
    return tmp_path / "prepared" / "tokens"


def in_splits(*documents, **options):
    """A corpus whose splits all hold the same documents."""
    return Corpus.of(dict.fromkeys(SPLITS, documents), "same", **options)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=6), st.integers(2, 16))
def test_rows_decode_to_the_texts_they_were_made_of(texts, length):
    texts = [t.encode("utf-8", "ignore").decode() or "x" for t in texts]
    made = data.text_dataset(in_splits(*map(Document, texts)), BYTES, length)
    arrays, found = made.splits["train"].arrays(), {}
    # A piece that does not begin with the first token of a document repeats the one before it.
    ids = list(itertools.chain(*([*t.encode(), BYTES.end] for t in texts)))
    total = (arrays["completion"]).sum() + len(texts)
    assert total == len(ids)
    if length > max(len(t.encode()) for t in texts):
        for tokens, segments in zip(arrays["tokens"], arrays["segments"]):
            for segment in range(1, segments.max() + 1):
                decoded = BYTES.decode(tokens[segments == segment].tolist())
                found[decoded] = found.get(decoded, 0) + 1
        assert found == {t: texts.count(t) for t in texts}


def test_a_document_is_start_prompt_text_and_end():
    class Started(ByteTokenizer):
        vocabulary, start = 258, 257

    corpus = in_splits(Document("b", prompt="a"), Document("c"), Document("", prompt="a"))
    documents = data.tokenize(corpus, Started())["train"]
    assert documents.tokens.tolist() == [257, 97, 98, 256, 257, 99, 256, 257, 97, 256]
    assert documents.bounds.tolist() == [0, 4, 7, 10]
    assert documents.prompt.tolist() == [2, 0, 2]


def test_an_empty_text_is_refused_or_counted_whatever_the_tokenizer_adds():
    class Started(ByteTokenizer):
        vocabulary, start = 258, 257

    corpus = in_splits(Document(""), Document("some"))
    for tokenizer in (BYTES, Started()):
        with pytest.raises(ValueError, match="same/train: 1 of 2 documents have nothing"):
            data.text_dataset(corpus, tokenizer, 8)
        assert data.text_dataset(corpus, tokenizer, 8, drop=True).summaries["test"].empty == 1


def test_tokens_are_kept_and_found_by_texts_and_tokenizer(prepared, monkeypatch):
    calls = []
    encode = text._encode
    monkeypatch.setattr(text, "_encode", lambda *a: calls.append(a[-1]) or encode(*a))
    corpus = in_splits(Document("abbb"), Document("baba"))
    first = data.tokenize(corpus, BYTES)
    assert calls == ["same/train"]  # the other splits hold the same texts
    again = data.tokenize(corpus, ByteTokenizer())
    assert len(calls) == 1
    for name in ("tokens", "bounds", "prompt"):
        np.testing.assert_array_equal(getattr(first["train"], name), getattr(again["train"], name))
    other = data.tokenize(corpus, CharacterTokenizer("ab"))["train"]
    assert len(calls) == 2
    assert other.tokens.tolist() == [0, 1, 1, 1, 2, 1, 0, 1, 0, 2]

    class Backwards(ByteTokenizer):  # the same vocabulary, other tokens
        def encode(self, text):
            return super().encode(text)[::-1]

    Backwards.__qualname__ = "ByteTokenizer"
    assert data.tokenize(corpus, Backwards())["test"].tokens[0] == ord("b")
    assert len(calls) == 3
    data.tokenize(in_splits(Document("abbb", prompt="x"), Document("baba")), BYTES)
    assert len(calls) == 4
    renamed = ByteTokenizer()
    renamed.fingerprint = "another"
    data.tokenize(corpus, renamed)
    assert len(calls) == 5
    assert len(list(prepared.glob("*.npz"))) == 5
    assert not list(prepared.glob("*.part"))


def test_a_broken_kept_file_is_named(prepared):
    corpus = in_splits(Document("abba"))
    data.tokenize(corpus, BYTES)
    (kept,) = prepared.glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:50])
    with pytest.raises(ValueError, match=rf"{kept.name} is broken .*: delete it"):
        data.tokenize(corpus, BYTES)


def test_a_token_outside_the_vocabulary_is_refused(prepared):
    class Wrong(ByteTokenizer):
        vocabulary = 98

    with pytest.raises(ValueError, match="same/train, document 0: token 98 is outside"):
        data.tokenize(in_splits(Document("ab")), Wrong())
    assert not list(prepared.glob("*.npz"))


# Streams


@pytest.fixture
def numbers():
    documents = [Document(f"number {i}") for i in range(90)]
    return data.text_dataset(Corpus.of(documents, "numbers"), BYTES, 20)


def test_streams_serve_the_rows_and_resume(numbers):
    split = numbers.splits["train"]
    resident, host = (s(split, 4, seed=1) for s in (data.resident, data.host))
    items = list(itertools.islice(resident.items(), 15))
    batch = resident.assemble(resident.table, items[0])
    assert {n: (x.shape, x.dtype.name) for n, x in batch.items()} == {
        "tokens": ((4, 20), "int32"),
        "completion": ((4, 20), "bool"),
        "segments": ((4, 20), "int32"),
        "positions": ((4, 20), "int32"),
        "domain": ((4,), "int32"),
        "id": ((4,), "int32"),
        "where": ((4,), "bool"),
    }
    later = next(resident.items(start=14))
    np.testing.assert_array_equal(later["row"], items[14]["row"])
    read = next(iter(host.items(14)))
    expected = resident.assemble(resident.table, items[14])
    for name, x in host.assemble(host.table, read).items():
        np.testing.assert_array_equal(x, expected[name])


def test_a_sequential_stream_pads_the_last_batch(numbers):
    split = numbers.splits["validation"]
    stream = data.sequential(split, len(split) - 1)
    batches = [stream.assemble(stream.table, item) for item in stream.items()]
    assert [int(b["where"].sum()) for b in batches] == [len(split) - 1, 1]
    seen = np.concatenate([np.asarray(b["tokens"])[np.asarray(b["where"])] for b in batches])
    np.testing.assert_array_equal(seen, split.arrays()["tokens"])


def test_a_subset_keeps_the_proportions_of_the_domains():
    short = Corpus.of([Document(f"{i}") for i in range(60)], "short")
    long = Corpus.of([Document(f"{i}" * 20) for i in range(60)], "long")
    made = data.text_dataset(join({"short": short, "long": long}, "both"), BYTES, 20)
    rows = made.domain_rows("train")
    sizes = np.array([len(found) for found in rows.values()])
    split = made.splits["train"]
    assert sizes.sum() == len(split)
    half = split.subset(len(split) // 2, seed=0)
    assert np.abs(np.bincount(half.arrays()["domain"]) - sizes / 2).max() <= 1
    assert len(half.subset(5, seed=0)) == 5  # and a part of the part can be had
    stream = data.resident(split, 2, seed=0, indices=rows["long"])
    batch = stream.assemble(stream.table, next(stream.items()))
    assert batch["domain"].tolist() == [1, 1]
    only = dataclasses.replace(
        made, splits={"train": Split.of({"domain": np.zeros(3, np.int32)}, "x")}
    )
    with pytest.raises(ValueError, match="both/train has no rows of the domain 'long'"):
        only.domain_rows("train")


# Corpora


def test_pythons_own_library_is_the_same_documents_twice():
    one, other = data.load_text("python_stdlib"), data.load_text("python_stdlib")
    assert one == other
    names = {split: [d.name for d in found] for split, found in one.splits.items()}
    together = [name for found in names.values() for name in found]
    assert len(set(together)) == len(together) > 300
    assert all(found == sorted(found) for found in names.values())
    assert {"dataclasses.py", "asyncio/events.py"} <= set(together)
    parts = {part for name in together for part in name.split("/")}
    assert not parts & {"test", "tests", "idlelib", "encodings", "site-packages"}
    assert one.record["python"].startswith("3.")
    assert one.sizes()["train"][1] > 3e6


def test_pythons_reference_shares_no_paragraph_between_splits():
    corpus = data.load_text("python_reference")
    assert corpus == data.load_text("python_reference")
    paragraphs = {
        split: {p.strip() for d in found for p in d.text.split("\n\n")}
        for split, found in corpus.splits.items()
    }
    for one, other in itertools.combinations(paragraphs.values(), 2):
        assert not one & other
    assert sum(size for _, size in corpus.sizes().values()) > 2e5


def test_a_plain_text_is_cut_at_blank_lines(tmp_path):
    pieces = [f"  line {i}\nsecond" for i in range(60)]
    place = tmp_path / "a.txt.gz"
    place.write_bytes(gzip.compress("\n \n\n".join(pieces).encode()))
    corpus = data.load_text(f"text:{place}")
    assert sorted(d.text for found in corpus.splits.values() for d in found) == sorted(pieces)
    assert all(len(found) > 0 for found in corpus.splits.values())
    assert data.load_text(f"text:{place}") == corpus


def test_a_document_stays_in_its_split_whatever_the_others_are():
    documents = [Document(f"text {i}") for i in range(90)]
    few, all_of_them = (Corpus.of(d, "x").splits for d in (documents[:60], documents))
    for split in SPLITS:
        assert set(few[split]) <= set(all_of_them[split])


def test_parts_of_a_text_are_its_splits(tmp_path):
    place, index = tmp_path / "a.txt", tmp_path / "index.json"
    place.write_text("one\n\ntwo\n\nthree\n\nfour", encoding="utf-8")
    parts = {"first": [0, 8], "valid": [10, 15], "test": [17, 21]}
    index.write_text(json.dumps({"a": {"chars": 21, "parts": parts}}))
    splits = {"train": ["first", "valid"], "validation": [], "test": "test"}
    with pytest.raises(ValueError, match="a/validation has no documents"):
        data.load_text(f"text:{place}", parts=str(index), splits=splits)
    splits = {"train": "first", "validation": "valid", "test": "test"}
    found = data.load_text(f"text:{place}", parts=str(index), splits=splits).splits
    assert {s: [d.text for d in ds] for s, ds in found.items()} == {
        "train": ["one", "two"],
        "validation": ["three"],
        "test": ["four"],
    }
    given = {"train": (0, 8), "valid": (10, 15), "test": (17, 21)}
    whole = data.load_text(f"text:{place}", parts=given, separator=None).splits
    assert whole["train"] == (Document("one\n\ntwo"),)


@pytest.fixture
def pairs(tmp_path):
    place = tmp_path / "pairs.jsonl.gz"
    rows = [
        {
            "split": split,
            "task": f"say {i}",
            "more": [{"input": "twice" if i % 2 else "", "output": f"{i}"}],
            "mood": "bad" if i % 3 else "good",
            "kind": "odd" if i % 2 else "even",
        }
        for split in ("train", "dev", "test")
        for i in range(9)
    ]
    place.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return place


def test_prompts_and_answers_come_from_fields(pairs):
    corpus = data.load_text(
        f"jsonl:{pairs}", prompt=("task", "more.0.input"), text="more.0.output", domain="kind"
    )
    assert {split: len(found) for split, found in corpus.splits.items()} == dict.fromkeys(SPLITS, 9)
    assert corpus.splits["validation"][:2] == (
        Document("0", prompt="say 0\n", domain=0),
        Document("1", prompt="say 1\ntwice\n", domain=1),
    )
    assert corpus.domains == ("even", "odd")
    made = data.text_dataset(corpus, BYTES, 24, packed=False, prompt_length=16)
    tokens, where = data.prompts(data.tokenize(corpus, BYTES)["test"])
    assert BYTES.decode(tokens[1][where[1]].tolist()) == "say 1\ntwice\n"
    row = made.splits["test"][1]
    assert BYTES.decode(row["tokens"][16:18].tolist()) == "1"
    assert row["completion"].nonzero()[0].tolist() == [16, 17]


def test_texts_with_labels_are_rows_with_labels(pairs):
    corpus = data.load_text(f"jsonl:{pairs}", text="task", label="mood")
    assert corpus.class_names == ("bad", "good")
    made = data.text_dataset(corpus, BYTES, 8, packed=False)
    assert made.num_classes == 2
    batch = made.splits["train"].stack(np.arange(4))
    assert set(batch) == {"tokens", "segments", "positions", "domain", "label"}
    assert batch["label"].tolist() == [1, 0, 0, 1]
    assert BYTES.decode(batch["tokens"][2][batch["segments"][2] > 0].tolist()) == "say 2"
    assert np.bincount(made.splits["train"].subset(6, seed=0).labels()).tolist() == [4, 2]
    assert jax.tree.all(jax.tree.map(lambda x: x.dtype != object, batch))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("python_stdlb", {}, "did you mean 'python_stdlib'"),
        ("txt:x", {}, "no text corpus 'txt:x'"),
        ("python_stdlib", {"seed": 1}, "takes no options"),
        ("jsonl:{pairs}", {}, "pairs.jsonl.gz, line 1: no 'text'"),
        ("jsonl:{pairs}", {"text": "answer"}, "pairs.jsonl.gz, line 1: no 'answer'"),
        ("jsonl:{pairs}", {"text": "more.1.output"}, "no 'more.1.output'"),
        ("jsonl:{pairs}", {"text": "more"}, "is no text"),
        ("jsonl:{pairs}", {"text": "task", "split": "kind"}, "'even' is none of"),
        ("jsonl:{pairs}", {"text": "task", "splits": {"train": "x"}}, "has no part 'x'"),
        ("jsonl:{pairs}", {"text": "task", "splits": {"tests": "dev"}}, "splits are"),
        ("jsonl:{pairs}", {"text": "task", "splits": {"test": "dev"}}, "train has no documents"),
        ("jsonl:{broken}", {"text": "task"}, "broken.jsonl, line 2: no JSON"),
        ("jsonl:{latin}", {"text": "task"}, "latin.txt cannot be read"),
        ("text:{latin}", {}, "latin.txt cannot be read"),
        ("text:{broken}", {"parts": {"train": (0, 999)}}, r"'train' is \[0, 999\]"),
        ("text:{broken}", {"parts": {"train": (0, 4), "test": (3, 6)}}, "overlap"),
        ("text:{broken}", {"parts": "{index}"}, "names no parts of 'broken'"),
    ],
)
def test_text_that_cannot_be_used_is_refused(tmp_path, pairs, name, options, message):
    places = {n: tmp_path / n for n in ("broken.jsonl", "latin.txt", "index.json")}
    places["broken.jsonl"].write_text('{"task": "x"}\nnothing')
    places["latin.txt"].write_bytes("naïve".encode("latin-1"))
    places["index.json"].write_text("{}")
    known = {n.split(".")[0]: p for n, p in places.items()} | {"pairs": pairs}
    if options.get("parts") == "{index}":
        options = {"parts": str(known["index"])}
    with pytest.raises(ValueError, match=message):
        data.load_text(name.format(**known), **options)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.txt"):
        data.load_text(f"text:{tmp_path / 'none.txt'}")


def test_prompt_length_is_refused_for_packed_rows():
    with pytest.raises(ValueError, match="prompt_length=4 is for rows of one document"):
        data.text_dataset(in_splits(Document("a")), BYTES, 8, prompt_length=4)
    with pytest.raises(ValueError, match="at least two corpora"):
        join({"one": in_splits(Document("a"))}, "x")
    labelled = in_splits(Document("a", label=0), class_names=("a",))
    with pytest.raises(ValueError, match="cannot be one domain"):
        join({"one": labelled, "two": labelled}, "x")
