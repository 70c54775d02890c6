"""Token ids as bytes: what each token adds to the text.

Two families of decoders concatenate bytes, token by token: byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece with
byte fallback (Llama 2, Mistral, Gemma). For those the table here is exact and costs a dictionary look-up. Other
decoders (WordPiece, CTC) look at neighbours: `is_concatenative` is false and the tokenizer itself must decode.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"^<0x([0-9A-Fa-f]{2})>$")


class _DecoderOnly(msgspec.Struct):
    decoder: dict[str, Any] | None = None


class Vocabulary:
    """One tokenizer's tokens. `definition` is its tokenizer.json, of which only the decoder is read here."""

    def __init__(self, tokenizer: Tokenizer, definition: bytes) -> None:
        self.tokenizer = tokenizer
        decoder = msgspec.json.decode(definition, type=_DecoderOnly).decoder
        added = tokenizer.get_added_tokens_decoder()
        self._added_ids = frozenset(added)
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._special_contents = frozenset(token.content for token in added.values() if token.special)
        self._to_bytes = _bytes_of_token(decoder)
        self._bytes = _Known(self._bytes_of)
        self._names = _Known(lambda token_id: self._bytes[token_id].decode("utf-8", "replace"))
        self._showing: dict[frozenset[str], Callable[[int], bytes]] = {}
        self._visible = _Known(self._visible_bytes)
        self.visible: Callable[[int], bytes] = self._visible.__getitem__
        """What a token adds to an answer: nothing if it is special or unknown. Only if `is_concatenative`."""

    @property
    def is_concatenative(self) -> bool:
        return self._to_bytes is not None

    def showing(self, names: frozenset[str]) -> Callable[[int], bytes]:
        """Like `visible`, but special tokens with these names are visible too."""
        visible = self._showing.get(names)
        if visible is None:
            shown = {token_id: self.token_bytes(token_id) for token_id in self.ids_of(names)}
            visible = self._showing[names] = _Known(self.visible, shown).__getitem__
        return visible

    def ids_of(self, names: Iterable[str]) -> frozenset[int]:
        """The tokens with these names, as far as there are any."""
        ids = (self.tokenizer.token_to_id(name) for name in names)
        return frozenset(token_id for token_id in ids if token_id is not None)

    def learn(self, vocabulary: Mapping[str, int]) -> None:
        """Look these names' tokens up now, so that no answer has to: one met for the first time costs twenty known."""
        to_bytes, visible = self._to_bytes, self._visible
        if to_bytes is not None:
            visible.update({token_id: to_bytes(name) for name, token_id in vocabulary.items()})
            for token_id in self._added_ids:  # may be hidden, and may have the id of another token
                visible.pop(token_id, None)

    def token_bytes(self, token_id: int) -> bytes:
        """The token by itself, special ones by their name; empty if there is no such token."""
        return self._bytes[token_id]

    def token_text(self, token_id: int) -> str:
        """The same as text, as well as a part of a character can be."""
        return self._names[token_id]

    def _bytes_of(self, token_id: int) -> bytes:
        token = self.tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self.special_ids or self._to_bytes is None:
            return token.encode()
        return self._to_bytes(token)

    def _visible_bytes(self, token_id: int) -> bytes:
        return b"" if self._is_hidden(token_id) else self.token_bytes(token_id)

    def _is_hidden(self, token_id: int) -> bool:
        return token_id in self.special_ids or self.tokenizer.id_to_token(token_id) in self._special_contents


Value = TypeVar("Value")


class _Known(dict[int, Value]):
    """Something by token id; what is not there yet is asked for once."""

    def __init__(self, ask: Callable[[int], Value], known: dict[int, Value] | None = None) -> None:
        super().__init__(known or {})
        self._ask = ask

    def __missing__(self, token_id: int) -> Value:
        piece = self[token_id] = self._ask(token_id)
        return piece


def _bytes_of_token(decoder: dict[str, Any] | None) -> "_ToBytes | None":
    """How a token's name becomes bytes, or None if the decoder is not one that concatenates."""
    # A Strip acts at the text's beginning only, which is the prompt's, not the answer's.
    parts: list[dict[str, Any]] = decoder.get("decoders", [decoder]) if decoder else []
    steps = [step for step in parts if step.get("type") not in ("Fuse", "Strip")]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return _ByteLevel()
    if kinds and set(kinds) <= {"Replace", "ByteFallback", "Metaspace"} and len(kinds) == len(set(kinds)):
        return _sentence_piece(steps)
    return None


class _ToBytes:
    def __call__(self, token: str) -> bytes:
        raise NotImplementedError


class _ByteLevel(_ToBytes):
    """GPT-2's alphabet: every byte is one printable character."""

    def __init__(self) -> None:
        self._byte_of = {chr(code): byte for byte, code in enumerate(_byte_level_codes())}

    def __call__(self, token: str) -> bytes:
        try:
            return bytes(map(self._byte_of.__getitem__, token))
        except KeyError:  # an added token is written as it is
            return token.encode()


def _byte_level_codes() -> list[int]:
    """The character of each byte: itself if it is printable, else the next one from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    codes: list[int] = []
    spare = 256
    for byte in range(256):
        codes.append(byte if byte in printable else spare)
        spare += byte not in printable
    return codes


class _SentencePiece(_ToBytes):
    def __init__(self, replacements: tuple[tuple[str, str], ...], has_byte_fallback: bool) -> None:
        self._replacements = replacements
        self._has_byte_fallback = has_byte_fallback

    def __call__(self, token: str) -> bytes:
        for pattern, content in self._replacements:
            token = token.replace(pattern, content)
        if self._has_byte_fallback and (byte := _BYTE_TOKEN.match(token)):
            return bytes([int(byte.group(1), 16)])
        return token.encode()


def _sentence_piece(steps: list[dict[str, Any]]) -> "_SentencePiece | None":
    replacements: list[tuple[str, str]] = []
    for step in steps:
        if step["type"] == "Metaspace":
            replacements.append((step.get("replacement", "▁"), " "))
        elif step["type"] == "Replace":
            pattern = step.get("pattern", {})
            if "String" not in pattern:  # a regular expression
                return None
            replacements.append((pattern["String"], step.get("content", "")))
    return _SentencePiece(tuple(replacements), any(step["type"] == "ByteFallback" for step in steps))
