"""Grammars bound to a vocabulary, and answers followed through them token by token."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from llguidance import LLMatcher, LLTokenizer

from armature.grammars.notation import LIMITS, GrammarError, readable, source_of
from armature.v1.common_pb2 import Grammar

MAX_COMPILED = 64
"""Grammars that are kept ready. A compiled one takes some 100 KB, one made to hurt up to 60 MB."""


class Follower:
    """Where one answer stands in its grammar. A copy of the compiled grammar, which is never advanced itself."""

    __slots__ = ("_compiled", "_followed", "matcher")

    def __init__(self, compiled: LLMatcher) -> None:
        self._compiled = compiled
        self.matcher = compiled.deep_copy()
        self._followed = 0

    def follow(self, token_ids: Sequence[int], prompt_tokens: int, end: int) -> None:
        """Come to the state after the output `token_ids[prompt_tokens:end]`, whatever of it was followed before.

        An answer that was moved here, or whose last step failed, is replayed.
        """
        if self._followed > end - prompt_tokens:
            self.matcher = self._compiled.deep_copy()
            self._followed = 0
        if self._followed < end - prompt_tokens:
            self.matcher.consume_tokens(list(token_ids[prompt_tokens + self._followed : end]))
            self._followed = end - prompt_tokens

    def accept(self, token_id: int) -> bool:
        """Take a token that has just been chosen; whether nothing can follow it."""
        self.matcher.consume_token(token_id)
        self._followed += 1
        return self.matcher.is_stopped()

    @property
    def problem(self) -> str:
        """Why it can't go on; empty if it can."""
        return readable(self.matcher.get_error()) if self.matcher.is_error() else ""


class GrammarCompiler:
    """Compiles for one vocabulary and remembers what was used last. Methods may be called from any thread.

    `directory` is the model's, read when the first grammar comes; `vocab_size` is the width of its logits, and
    `eos_token_ids` are what it may say when the grammar is satisfied.
    """

    def __init__(self, directory: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._directory = directory
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._compiled)

    def compile(self, grammar: Grammar) -> Follower:
        """Someone to follow a new answer. Blocking: milliseconds, and a second for the vocabulary at the first call.

        Raises:
            GrammarError: the grammar can't be followed.
        """
        source = source_of(grammar)
        with self._lock:
            compiled = self._compiled.get(source)
            if compiled is None:
                compiled = self._compile(source)
                self._compiled[source] = compiled
            self._compiled.move_to_end(source)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
            return Follower(compiled)

    def _compile(self, source: str) -> LLMatcher:
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._directory, self._vocab_size, self._eos_token_ids)
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise GrammarError(readable(matcher.get_error()))
        return matcher


def _tokenizer(directory: Path, vocab_size: int, eos_token_ids: list[int]) -> LLTokenizer:
    try:
        definition = (directory / "tokenizer.json").read_text()
        return LLTokenizer(definition, n_vocab=vocab_size, eos_token=eos_token_ids or None)
    except Exception as error:  # the library raises plain Exception for a tokenizer that it does not know
        raise GrammarError(f"this model's tokenizer can't be used for grammars: {readable(str(error))}") from None
