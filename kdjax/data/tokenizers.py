"""Text to token ids and back: published tokenizers, bytes, characters.

All have the same few attributes and methods (`Tokenizer`). `fingerprint` tells vocabularies apart:
ids of one mean nothing to a network or a cache of another.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

# How words are cut before byte pairs are merged, by the name that a GGUF file gives. After these
# expressions no space is added or lost.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "qwen2": (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}",),
    "llama-bpe": (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",),
}
_CONTROL, _USER_DEFINED = 3, 4  # types of tokens in a GGUF file


class Tokenizer(Protocol):
    """What every tokenizer here has.

    Attributes:
      vocabulary: number of ids; the ids are 0, ..., vocabulary - 1.
      start: id that opens a document where the model wants one, or None.
      end: id that ends a document.
      pad: id for places that hold no token (`end` where the tokenizer has no other).
      fingerprint: hexadecimal; equal for equal vocabularies.
    """

    vocabulary: int
    start: int | None
    end: int
    pad: int
    fingerprint: str

    def encode(self, text: str) -> list[int]:
        """The ids of a text; `start` and `end` are not added."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special ids are left out, broken UTF-8 becomes U+FFFD."""


def fingerprint(tokens: Sequence[str | bytes]) -> str:
    """blake2b of a vocabulary, in the order of the ids: 32 hexadecimal digits.

    >>> fingerprint(["a", "bc"]) == fingerprint([b"a", b"bc"]) != fingerprint(["ab", "c"])
    True
    """
    digest = hashlib.blake2b(digest_size=16)
    for token in tokens:
        data = token.encode("utf-8", "surrogatepass") if isinstance(token, str) else token
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


class ByteTokenizer:
    """The bytes of UTF-8, and an end.

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("hé"), tokenizer.end, tokenizer.vocabulary
    ([104, 195, 169], 256, 257)
    >>> tokenizer.decode([104, 195, 169, 256])
    'hé'
    """

    vocabulary = 257
    start = None
    end = 256
    pad = 256

    def __init__(self):
        self.fingerprint = fingerprint([bytes([value]) for value in range(256)] + [b"<end>"])

    def encode(self, text: str) -> list[int]:
        """The bytes."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        """The text; `end` is left out.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        ids = _known(ids, self.vocabulary)
        return bytes(i for i in ids if i != self.end).decode("utf-8", "replace")


class CharacterTokenizer:
    """The characters of a corpus, in the order of their code points, and an end.

    Args:
      corpus: any text; its set of characters is the vocabulary.

    Raises:
      ValueError: an empty corpus.

    >>> tokenizer = CharacterTokenizer("banana")
    >>> tokenizer.encode("nab"), tokenizer.end, tokenizer.decode([0, 2, 3])
    ([2, 0, 1], 3, 'an')
    >>> tokenizer.encode("cab")
    Traceback (most recent call last):
    ValueError: text has the character 'c' at 0, which the corpus does not have
    """

    start = None

    def __init__(self, corpus: str):
        self.characters = "".join(sorted(set(corpus)))
        if not self.characters:
            raise ValueError("corpus must have at least one character, got an empty text")
        self._ids = {character: i for i, character in enumerate(self.characters)}
        self.end = self.pad = len(self.characters)
        self.vocabulary = len(self.characters) + 1
        self.fingerprint = fingerprint([*self.characters, "<end>"])

    def encode(self, text: str) -> list[int]:
        """One id a character.

        Raises:
          ValueError: a character that the corpus does not have.
        """
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            at = text.index(error.args[0])
            raise ValueError(
                f"text has the character {error.args[0]!r} at {at}, which the corpus does not have"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text; `end` is left out.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        ids = _known(ids, self.vocabulary)
        return "".join(self.characters[i] for i in ids if i != self.end)


class LibraryTokenizer:
    """A `tokenizers.Tokenizer`, with the special ids that its model uses.

    Args:
      backend: the `tokenizers.Tokenizer`.
      start: id or None, as in `Tokenizer`.
      end: id.
      pad: id. None: `end`.
      chat_template: the model's Jinja template of a conversation, or None.
    """

    def __init__(
        self,
        backend: Any,
        *,
        start: int | None,
        end: int,
        pad: int | None = None,
        chat_template: str | None = None,
    ):
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        tokens = {i: token for token, i in backend.get_vocab(with_added_tokens=True).items()}
        self.vocabulary = max(tokens) + 1
        self.start, self.end, self.pad = start, end, end if pad is None else pad
        self.chat_template = chat_template
        for name, value in (("start", start), ("end", end), ("pad", self.pad)):
            if value is not None and value not in tokens:
                raise ValueError(f"{name} must be the id of a token, got {value!r}")
        self.fingerprint = fingerprint([tokens.get(i, "") for i in range(self.vocabulary)])
        # A byte without a token of its own would vanish from the text.
        byte_level = type(backend.decoder).__name__ == "ByteLevel"
        symbols = byte_symbols() if byte_level else ()
        known = set(tokens.values())
        self._lost = bytes(byte for byte, symbol in enumerate(symbols) if symbol not in known)

    def encode(self, text: str) -> list[int]:
        """The ids of a text. The names of special tokens in it become those tokens.

        Raises:
          ValueError: a character that the vocabulary cannot spell.
        """
        if self._lost:
            data = text.encode("utf-8")
            if len(data.translate(None, self._lost)) < len(data):
                lost = next(c for c in text if set(c.encode("utf-8")) & set(self._lost))
                raise ValueError(
                    f"text has the character {lost!r} at {text.index(lost)}, which the vocabulary "
                    "cannot spell"
                )
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text; special tokens are left out.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        return self.backend.decode(_known(ids, self.vocabulary), skip_special_tokens=True)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The prompt that asks the model for its next turn, in the model's own form.

        Args:
          messages: `{"role": "system" | "user" | "assistant", "content": ...}`, in order.

        Returns:
          Ids, up to and with the opening of the assistant's turn.

        Raises:
          ImportError: the package jinja2 is not installed.
          ValueError: the model has no chat template, or its template refuses the messages.
        """
        if self.chat_template is None:
            raise ValueError("this tokenizer has no chat template: its model is not made to chat")
        for message in messages:
            if set(message) != {"role", "content"}:
                raise ValueError(f"a message must have role and content, got {sorted(message)}")
        try:
            import jinja2
            import jinja2.sandbox
        except ImportError as error:
            raise ImportError(
                "chat templates need the package jinja2: pip install 'kdjax[language]'"
            ) from error

        def refuse(reason):
            raise jinja2.TemplateError(reason)

        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True
        )
        try:
            text = environment.from_string(self.chat_template).render(
                messages=list(messages),
                add_generation_prompt=True,
                bos_token=self._token(self.start),
                eos_token=self._token(self.end),
                raise_exception=refuse,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses these messages ({error})") from error
        return self.encode(text)

    def _token(self, token: int | None) -> str:
        return "" if token is None else self.backend.id_to_token(token)


def train_word_tokenizer(texts: Iterable[str], vocabulary: int) -> LibraryTokenizer:
    """A tokenizer whose tokens are the most frequent words of some texts.

    Words are in lower case; marks are words of their own. Every other word is one id: what is
    decoded is no longer the text, so that this is for texts that are read, not written.

    Args:
      texts: of the training split alone.
      vocabulary: number of ids, the end and the unknown word among them; at least 3.

    Raises:
      ImportError: the package tokenizers is not installed.
      ValueError: a vocabulary below 3.

    >>> tokenizer = train_word_tokenizer(["A dog, a cat.", "a dog"], 5)
    >>> tokenizer.encode("A dog saw a bird"), tokenizer.vocabulary
    ([2, 3, 1, 2, 1], 5)
    """
    if vocabulary < 3:
        raise ValueError(f"vocabulary must be at least 3, got {vocabulary}")
    library = _library()
    backend = library.Tokenizer(library.models.WordLevel(unk_token="[unknown]"))
    backend.normalizer = library.normalizers.Lowercase()
    backend.pre_tokenizer = library.pre_tokenizers.Whitespace()
    trainer = library.trainers.WordLevelTrainer(
        vocab_size=vocabulary, special_tokens=["[end]", "[unknown]"], show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return LibraryTokenizer(backend, start=None, end=0)


def byte_symbols() -> list[str]:
    """The printable character that stands for each of the 256 bytes in byte-level BPE.

    Radford et al. 2019 (GPT-2): printable Latin-1 stands for itself, the others for U+0100 and on.

    >>> byte_symbols()[ord("a")], byte_symbols()[ord(" ")]
    ('a', 'Ġ')
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(0x100 + n) for n in range(256))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


def load_tokenizer(folder: str | os.PathLike) -> LibraryTokenizer:
    """The tokenizer of a Hugging Face folder: `tokenizer.json`, `tokenizer_config.json`.

    `start` is what `tokenizer.json` puts before a text; `end` is `eos_token`.

    Raises:
      FileNotFoundError: one of the two files is missing.
      ImportError: the package tokenizers is not installed.
      ValueError: a broken file, or no `eos_token`.
    """
    place = pathlib.Path(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (place / name).is_file():
            raise FileNotFoundError(f"{place} has no {name}")
    try:
        backend = _library().Tokenizer.from_str((place / "tokenizer.json").read_text("utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{place / 'tokenizer.json'} is no tokenizer ({error})") from error
    settings = json.loads((place / "tokenizer_config.json").read_text("utf-8"))

    def special(name: str) -> int | None:
        token = settings.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            return None
        if backend.token_to_id(token) is None:
            raise ValueError(f"{place}: {name} {token!r} is not in the vocabulary")
        return backend.token_to_id(token)

    end = special("eos_token")
    if end is None:
        raise ValueError(f"{place / 'tokenizer_config.json'} names no eos_token")
    added = backend.encode("", add_special_tokens=True).ids
    template = settings.get("chat_template")
    beside = place / "chat_template.jinja"
    if template is None and beside.is_file():
        template = beside.read_text("utf-8")
    if template is not None and not isinstance(template, str):
        raise ValueError(f"{place}: several chat templates are not supported")
    return LibraryTokenizer(
        backend,
        start=added[0] if added and added[0] != end else None,
        end=end,
        pad=special("pad_token"),
        chat_template=template,
    )


def tokenizer_from_gguf(metadata: Mapping[str, Any], where: str) -> LibraryTokenizer:
    """The tokenizer that a GGUF file's metadata describes.

    Byte-level BPE ("gpt2") with one of `PRE_TOKENIZERS`, or SentencePiece BPE ("llama").

    Args:
      metadata: the keys `tokenizer.*` of the file.
      where: the file, for errors.

    Raises:
      ImportError: the package tokenizers is not installed.
      ValueError: another kind of tokenizer, another pre-tokenizer, or a missing key.
    """

    def take(name: str, *default: Any) -> Any:
        value = metadata.get(f"tokenizer.ggml.{name}", *default)
        if value is None and not default:
            raise ValueError(f"{where} has no tokenizer.ggml.{name}")
        return value

    model, tokens = take("model"), take("tokens")
    kinds: dict[str, Callable[..., Any]] = {"gpt2": _byte_level, "llama": _sentence_piece}
    if model not in kinds:
        raise ValueError(f"{where}: tokenizer.ggml.model {model!r} is not one of {sorted(kinds)}")
    types = take("token_type")
    if len(types) != len(tokens):
        raise ValueError(f"{where} has {len(tokens)} tokens and {len(types)} types")
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"{where} has two tokens of the same text")
    backend = kinds[model](take, tokens, where)
    added = _library().AddedToken
    of_type = {kind: [t for t, own in zip(tokens, types) if own == kind] for kind in set(types)}
    # All of a type at once: the library builds its search tree anew for every call.
    backend.add_special_tokens(
        [added(t, special=True, normalized=False) for t in of_type.get(_CONTROL, ())]
    )
    backend.add_tokens(
        [added(t, normalized=model == "llama") for t in of_type.get(_USER_DEFINED, ())]
    )
    wants_start = take("add_bos_token", model == "llama")
    return LibraryTokenizer(
        backend,
        start=take("bos_token_id") if wants_start else None,
        end=take("eos_token_id"),
        pad=take("padding_token_id", None),
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def _byte_level(take: Callable, tokens: Sequence[str], where: str) -> Any:
    library, cut = _library(), take("pre")
    if cut not in PRE_TOKENIZERS:
        raise ValueError(
            f"{where}: tokenizer.ggml.pre {cut!r} is not one of {sorted(PRE_TOKENIZERS)}"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in take("merges")]
    ids = {token: i for i, token in enumerate(tokens)}
    backend = _byte_pairs(where, ids, merges, ignore_merges=cut == "llama-bpe")
    if cut == "qwen2":
        backend.normalizer = library.normalizers.NFC()
    pre = library.pre_tokenizers
    backend.pre_tokenizer = pre.Sequence(
        [
            *(pre.Split(library.Regex(rule), "isolated") for rule in PRE_TOKENIZERS[cut]),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = library.decoders.ByteLevel()
    return backend


def _sentence_piece(take: Callable, tokens: Sequence[str], where: str) -> Any:
    """Pairs are merged in the order of the scores of what they make."""
    library, scores = _library(), take("scores")
    if len(scores) != len(tokens):
        raise ValueError(f"{where} has {len(tokens)} tokens and {len(scores)} scores")
    ids = {token: i for i, token in enumerate(tokens)}
    pairs = []
    for i, token in enumerate(tokens):
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        found = [(left, right) for left, right in cuts if left in ids and right in ids]
        found.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        pairs += [(-scores[i], pair) for pair in found]
    pairs.sort(key=lambda scored: scored[0])
    unknown = take("unknown_token_id", None)
    backend = _byte_pairs(
        where,
        ids,
        [pair for _, pair in pairs],
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    prefix = take("add_space_prefix", True)
    space = "\u2581"
    marks = [library.normalizers.Replace(" ", space)]
    decoders = [
        library.decoders.Replace(space, " "),
        library.decoders.ByteFallback(),
        library.decoders.Fuse(),
    ]
    if prefix:
        marks.insert(0, library.normalizers.Prepend(space))
        decoders.append(library.decoders.Strip(" ", 1, 0))
    backend.normalizer = library.normalizers.Sequence(marks)
    backend.decoder = library.decoders.Sequence(decoders)
    return backend


def _byte_pairs(where: str, ids: dict[str, int], merges: list, **options: Any) -> Any:
    library = _library()
    try:
        return library.Tokenizer(library.models.BPE(ids, merges, **options))
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{where}: tokens and merges do not fit each other ({error})") from error


def _known(ids: Iterable[int], vocabulary: int) -> list[int]:
    ids = [int(i) for i in ids]
    for i in ids:
        if not 0 <= i < vocabulary:
            raise ValueError(f"ids must lie in [0, {vocabulary}), got {i}")
    return ids


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "published tokenizers need the package tokenizers: pip install 'kdjax[language]'"
        ) from error
    return tokenizers
