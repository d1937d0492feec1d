"""Text to ids and back, and what is refused."""

import json

import pytest

from kdjax.data.tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    LibraryTokenizer,
    byte_symbols,
    fingerprint,
    load_tokenizer,
    tokenizer_from_gguf,
)

tokenizers = pytest.importorskip(
    "tokenizers", reason="tokenizers is not installed: pip install -e '.[language]'"
)

CHAT = (
    "{% for m in messages %}<|open|>{{ m['role'] }}\n{{ m['content'] }}<|close|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|open|>assistant\n{% endif %}"
)
SPECIAL = ["<|end|>", "<|open|>", "<|close|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2", "( h"]
TEXTS = ["hello world", "  two\n\nlines\t", "naïve café \U0001f600", "a1234,b!?", "it's", ""]


def byte_level(**changes):
    """The metadata of a GGUF file with all bytes, six merges and three control tokens."""
    tokens = SPECIAL + byte_symbols() + [merge.replace(" ", "") for merge in MERGES]
    metadata = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "merges": MERGES,
        "bos_token_id": 1,
        "eos_token_id": 0,
        "add_bos_token": False,
        **changes,
    }
    keys = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return {**keys, "tokenizer.chat_template": CHAT}


def sentence_piece(**changes):
    """Pieces with scores; bytes stand for what no piece spells."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    words = ["\u2581", *"helowrd", "lo", "he", "hel", "hello", "\u2581w", "\u2581\u2581"]
    metadata = {
        "model": "llama",
        "tokens": pieces + words,
        "token_type": kinds + [1] * (len(words) - 1) + [4],
        "scores": [0.0] * 259 + [-float(n) for n in range(len(words))],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_space_prefix": False,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}


def pieces(tokenizer, text):
    return [tokenizer.backend.id_to_token(i) for i in tokenizer.encode(text)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["byte", "character", "byte_level", "sentence_piece"])
def test_decoding_undoes_encoding(kind, text):
    tokenizer = {
        "byte": ByteTokenizer,
        "character": lambda: CharacterTokenizer("".join(TEXTS)),
        "byte_level": lambda: tokenizer_from_gguf(byte_level(), "x"),
        "sentence_piece": lambda: tokenizer_from_gguf(sentence_piece(), "x"),
    }[kind]()
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocabulary for i in ids)
    assert tokenizer.decode([*ids, tokenizer.end]) == text
    with pytest.raises(ValueError, match="ids must lie in"):
        tokenizer.decode([tokenizer.vocabulary])


def test_byte_level_merges_follow_their_order_and_the_file_s_way_to_cut():
    tokenizer = tokenizer_from_gguf(byte_level(), "x")
    assert pieces(tokenizer, "hello w12") == ["hello", "Ġw", "1", "2"]
    assert pieces(tokenizer_from_gguf(byte_level(pre="gpt-2"), "x"), "w12") == ["w", "12"]
    assert pieces(tokenizer, "hell<|end|>") == ["hell", "<|end|>"]
    assert (tokenizer.start, tokenizer.end, tokenizer.pad) == (None, 0, 0)
    with_start = tokenizer_from_gguf(byte_level(add_bos_token=True, padding_token_id=2), "x")
    assert (with_start.start, with_start.pad) == (1, 2)


def test_qwen_files_compose_characters_and_cut_in_their_own_way():
    tokenizer = tokenizer_from_gguf(byte_level(pre="qwen2"), "x")
    assert pieces(tokenizer, "e\u0301") == pieces(tokenizer, "\u00e9") == ["Ã", "©"]
    assert pieces(tokenizer, "(h") == ["(h"]
    assert pieces(tokenizer_from_gguf(byte_level(), "x"), "(h") == ["(", "h"]


def test_sentence_pieces_merge_by_the_score_of_what_they_make():
    # Of "hello", "lo" scores best, then "he", "hel", and the two of them together.
    tokenizer = tokenizer_from_gguf(sentence_piece(), "x")
    assert pieces(tokenizer, "hel") == ["hel"]
    assert pieces(tokenizer, "hello") == ["hello"]
    assert pieces(tokenizer, "hello  wé") == ["hello", "\u2581\u2581", "w", "<0xC3>", "<0xA9>"]
    assert tokenizer.start == 1
    with_prefix = tokenizer_from_gguf(sentence_piece(add_space_prefix=True), "x")
    assert pieces(with_prefix, "w") == ["\u2581w"]
    assert with_prefix.decode(with_prefix.encode("w")) == "w"


def test_a_character_without_a_token_is_refused_not_dropped():
    tokens = [token for token in byte_level()["tokenizer.ggml.tokens"] if token != "q"]
    tokenizer = tokenizer_from_gguf(
        byte_level(tokens=tokens, token_type=[3] * 3 + [1] * (len(tokens) - 3)), "x"
    )
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    with pytest.raises(ValueError, match="'q' at 3, which the vocabulary cannot spell"):
        tokenizer.encode("he q")


def test_a_conversation_takes_the_model_s_form():
    tokenizer = tokenizer_from_gguf(byte_level(), "x")
    ids = tokenizer.chat([{"role": "user", "content": "hello"}])
    text = "<|open|>user\nhello<|close|>\n<|open|>assistant\n"
    assert tokenizer.backend.decode(ids, skip_special_tokens=False) == text
    assert ids[0] == 1
    with pytest.raises(ValueError, match="must have role and content"):
        tokenizer.chat([{"role": "user"}])
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="roles must alternate"):
        tokenizer.chat([{"role": "user", "content": "hello"}])
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.chat([{"role": "user", "content": "hello"}])


def test_a_chat_template_cannot_leave_its_sandbox():
    tokenizer = tokenizer_from_gguf(byte_level(), "x")
    tokenizer.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ValueError, match="unsafe"):
        tokenizer.chat([{"role": "user", "content": "hello"}])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (byte_level(model="rwkv"), "tokenizer.ggml.model 'rwkv' is not one of"),
        (byte_level(pre="tekken"), "tokenizer.ggml.pre 'tekken' is not one of"),
        (byte_level(merges=None), "x has no tokenizer.ggml.merges"),
        (byte_level(eos_token_id=9999), "end must be the id of a token, got 9999"),
        (byte_level(token_type=[3]), "266 tokens and 1 types"),
        (byte_level(tokens=["a", "a"], token_type=[1, 1]), "two tokens of the same text"),
        (sentence_piece(scores=[0.0]), "tokens and 1 scores"),
    ],
)
def test_what_a_gguf_file_lacks_is_named(metadata, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_from_gguf(metadata, "x")


def hugging_face_folder(folder, **settings):
    backend = tokenizer_from_gguf(byte_level(), "x").backend
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|open|> $A", special_tokens=[("<|open|>", 1)]
    )
    backend.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": {"content": "<|end|>"}, "chat_template": CHAT, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_hugging_face_folder_gives_the_same_tokenizer(tmp_path):
    hugging_face_folder(tmp_path, pad_token="<|close|>")
    loaded, built = load_tokenizer(tmp_path), tokenizer_from_gguf(byte_level(), "x")
    for text in TEXTS:
        assert loaded.encode(text) == built.encode(text)
    assert loaded.fingerprint == built.fingerprint
    assert (loaded.start, loaded.end, loaded.pad) == (1, 0, 2)
    message = [{"role": "user", "content": "hello"}]
    assert loaded.chat(message) == built.chat(message)


def test_a_hugging_face_folder_is_refused_by_what_it_lacks(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    hugging_face_folder(tmp_path, eos_token=None)
    with pytest.raises(ValueError, match="names no eos_token"):
        load_tokenizer(tmp_path)
    hugging_face_folder(tmp_path, eos_token="<|nothing|>")
    with pytest.raises(ValueError, match=r"'<\|nothing\|>' is not in the vocabulary"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="is no tokenizer"):
        load_tokenizer(tmp_path)


def test_the_fingerprint_tells_vocabularies_apart():
    prints = {
        ByteTokenizer().fingerprint,
        CharacterTokenizer("ab").fingerprint,
        CharacterTokenizer("ac").fingerprint,
        tokenizer_from_gguf(byte_level(), "x").fingerprint,
        fingerprint([]),
    }
    assert len(prints) == 5
    assert CharacterTokenizer("ab").fingerprint == CharacterTokenizer("bab").fingerprint
    # Recorded: caches are told apart by it, so it may not change.
    assert ByteTokenizer().fingerprint == "669c391843a3fc9459e89e96af2debec"


def test_special_ids_must_be_in_the_vocabulary():
    backend = tokenizer_from_gguf(byte_level(), "x").backend
    with pytest.raises(ValueError, match="pad must be the id of a token, got -1"):
        LibraryTokenizer(backend, start=None, end=0, pad=-1)
    with pytest.raises(ValueError, match="at least one character"):
        CharacterTokenizer("")
