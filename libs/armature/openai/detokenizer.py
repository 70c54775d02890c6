"""Tokens to text as they come, whole characters only.

Invariant: however the tokens are cut into batches, the concatenation of what `feed` returns and of `finish` is the
same. A character that spans tokens comes with the last of them; bytes that can't become a character any more are
U+FFFD, as in a whole decode. Special tokens add nothing, unless a parser looks for them. The text continues the prompt:
a leading space is kept.
"""

from codecs import utf_8_decode
from collections.abc import Callable, Sequence
from typing import Protocol

from armature.openai.vocabulary import Vocabulary

_CONTEXT_TOKENS = 6
"""Tokens decoded again in front of new ones, for decoders that look at neighbours."""
_LONGEST_CHARACTER_TOKENS = 8
"""A character has at most 4 bytes; tokens that still end in U+FFFD after twice as many are not becoming one."""


class Detokenizer(Protocol):
    """The text of one answer."""

    def feed(self, token_ids: Sequence[int]) -> str:
        """The characters that these tokens complete."""
        ...

    def finish(self) -> str:
        """What is left of an incomplete character; nothing may be fed afterwards."""
        ...


def detokenizer(vocabulary: Vocabulary, prompt: Sequence[int] = (), shown: frozenset[str] = frozenset()) -> Detokenizer:
    """A detokenizer for an answer to `prompt`; special tokens with the names `shown` show in the text."""
    if vocabulary.is_concatenative:
        return _ByteDetokenizer(vocabulary.showing(shown) if shown else vocabulary.visible)
    return _WindowDetokenizer(vocabulary, prompt, shown)


class _ByteDetokenizer:
    def __init__(self, visible: Callable[[int], bytes]) -> None:
        self._visible = visible
        self._rest = b""

    def feed(self, token_ids: Sequence[int]) -> str:
        data = b"".join(map(self._visible, token_ids))
        if self._rest:
            data = self._rest + data
        text, used = utf_8_decode(data, "replace", False)
        self._rest = data[used:]
        return text

    def finish(self) -> str:
        text, _ = utf_8_decode(self._rest, "replace", True)
        self._rest = b""
        return text


class _WindowDetokenizer:
    """Decodes a window twice, with and without the new token; the difference is new text."""

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int], shown: frozenset[str]) -> None:
        self._tokenizer = vocabulary.tokenizer
        self._hidden = vocabulary.special_ids - vocabulary.ids_of(shown)
        self._window = list(prompt[-_CONTEXT_TOKENS:])
        self._known = len(self._window)
        self._known_text = self._decode(self._window)

    def feed(self, token_ids: Sequence[int]) -> str:
        return "".join([self._step(token_id) for token_id in token_ids])

    def finish(self) -> str:
        text = self._decode(self._window)[len(self._known_text) :]
        self._settle()
        return text

    def _step(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._decode(self._window)
        unsettled = len(self._window) - self._known
        if text.endswith("\ufffd") and unsettled < _LONGEST_CHARACTER_TOKENS:
            return ""
        new = text[len(self._known_text) :]
        if new:
            self._settle()
        return new

    def _settle(self) -> None:
        del self._window[:-_CONTEXT_TOKENS]
        self._known = len(self._window)
        self._known_text = self._decode(self._window)

    def _decode(self, token_ids: list[int]) -> str:
        token_ids = [token_id for token_id in token_ids if token_id not in self._hidden]
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
