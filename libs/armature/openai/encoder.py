"""Text to token ids, by the fastest of two libraries that agree.

`tokenizers` is what models are made with; `fastokens` knows fewer kinds of them, and needs a tenth to a hundredth of
the time for those. It is used where it loads the model's tokenizer and gives the same ids for texts that are meant to
make it fail; otherwise `tokenizers` is.
"""

import logging
import random
import time
from array import array
from collections.abc import Iterator
from typing import Protocol

import fastokens
from tokenizers import Tokenizer

log = logging.getLogger(__name__)

CHECKED_TEXTS = 64
"""How many texts of the model's own tokens, put together at random, are compared besides those below."""

_HARD_TEXTS = (
    "",
    " ",
    "\n",
    "  two  spaces,\ttabs\t\t and \r\n\r\n lines \n \n  ",
    "It's they'll WE'VE I'D don\u2019t 1234567890 3.14159e-10 0x7fff 1,000,000 ½ ② Ⅷ ٣٤٥",
    "def f(x: int) -> None:\n    return {'a': [1, 2]}[\"a\"]  # comment\n\n\n\nclass A:\n\tpass\n",
    "naïve café Grüße Straße ﬁ İstanbul ǅ ẞ ß",
    "e\u0301 a\u0308 n\u0303 \u1100\u1161\u11a8 \u0915\u094d\u0937 \ufeffand\u200bzero\u200dwidth\u00a0space\u2028",
    "こんにちは世界、你好。한국어 привет мир مرحبا שלום नमस्ते ไทย",
    "🙂🚀👩‍👩‍👧🏳️‍🌈🇩🇪👍🏽",
    "\x00\x01\x1f\x7f\x85\ufffd\U0010ffff",
    "https://example.com/a/b?c=d&e=%20f#g <html lang='en'>&amp;</html> {{x}} ${y} @user #tag",
    "a" * 300 + "!" * 200 + " " * 200 + "\n" * 50 + "ab" * 100 + "=" * 100,
)


class Encoder(Protocol):
    """One tokenizer. May be called from any thread, and lets others run meanwhile."""

    name: str
    """Of the library."""

    def encode(self, text: str, *, add_special_tokens: bool = False) -> "array[int]":
        """The token ids of `text`; special tokens that are written in it count as such."""
        ...


class PlainEncoder:
    """By `tokenizers`."""

    name = "tokenizers"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, *, add_special_tokens: bool = False) -> "array[int]":
        """Without offsets, which nobody needs."""
        encoding = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        return array("I", encoding.ids)


class FastEncoder:
    """By `fastokens`.

    Raises:
        ValueError: it does not know this kind of tokenizer.
    """

    name = "fastokens"

    def __init__(self, definition: bytes) -> None:
        self._tokenizer = fastokens.Tokenizer.from_json_str(definition.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, *, add_special_tokens: bool = False) -> "array[int]":
        # Flat ids come as bytes, without an object for each of them.
        packed, _ = self._tokenizer.encode_batch_flat([text], add_special_tokens=add_special_tokens)
        return array("I", packed)


def choose_encoder(tokenizer: Tokenizer, definition: bytes) -> Encoder:
    """The fast encoder if it can be had and is right, else the plain one. `definition` is the tokenizer.json."""
    plain = PlainEncoder(tokenizer)
    try:
        fast = FastEncoder(definition)
        wrong = next((text for text in _texts(tokenizer) if not _agree(plain, fast, text)), None)
    except Exception as error:  # foreign code on a foreign file; whatever it is, there is another way
        log.info("fastokens can't be used for this tokenizer: %s", error)
        return plain
    if wrong is not None:
        log.warning("fastokens gives other tokens than tokenizers for %r and is not used", wrong[:100])
        return plain
    return fast


def seconds_per_character(encoder: Encoder) -> float:
    """Processor time of encoding text that was not seen before, roughly."""
    text = "".join(_HARD_TEXTS)
    began_s = time.thread_time()
    encoder.encode(text)
    return (time.thread_time() - began_s) / len(text)


def _agree(plain: Encoder, fast: Encoder, text: str) -> bool:
    return all(
        plain.encode(text, add_special_tokens=special) == fast.encode(text, add_special_tokens=special)
        for special in (False, True)
    )


def _texts(tokenizer: Tokenizer) -> Iterator[str]:
    """What is compared: hard texts, each special token between neighbours it may swallow, and random tokens."""
    yield from _HARD_TEXTS
    names = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    yield "".join(f" {name} x{name}\n{name}" for name in names)
    yield from (name[: len(name) // 2] + " " + name for name in names[:CHECKED_TEXTS])
    rng, size = random.Random(0), tokenizer.get_vocab_size()
    for length in range(1, CHECKED_TEXTS + 1):
        yield tokenizer.decode([rng.randrange(size) for _ in range(length)], skip_special_tokens=False)
