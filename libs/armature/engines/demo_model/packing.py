"""Packs documents and chats into training rows.

Every row begins at the beginning of a document, as a prompt does when the model is served; the document at the end of
a row is cut off. Loss counts on plain text and on the assistant's words, not on questions and role names.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from armature.engines.demo_model.chats import Turn, ask, conversation, small_talk, topic_chat
from armature.engines.demo_model.corpus import Entry
from armature.engines.demo_model.tokenizer import END_OF_TEXT, SPECIAL_TOKENS, TURN_END, TURN_START

IGNORED = -100
"""The label of a token that loss does not count."""

_POPULAR_WEIGHT = 3
_ROW_LENGTHS = (512, 2048, 4096)
_ROW_WEIGHTS = (0.86, 0.1, 0.04)
TOKENS_PER_STEP = 4096

Document = tuple[list[int], list[int]]
"""Token ids and labels, equally long."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What there is to learn from."""

    entries: Sequence[Entry]
    topics: dict[str, str]

    def all(self) -> Iterator[str]:
        """Everything once, with a question for each entry, so that the words of chats become tokens of their own."""
        rng = random.Random(0)
        for entry in self.entries:
            yield f"{entry.name}\n{entry.text}"
            yield "".join(f"{turn.role}\n{turn.content}\n" for turn in ask(entry, rng))
        yield from self.topics.values()


class Packer:
    """An endless, seeded supply of batches."""

    def __init__(self, texts: Texts, tokenizer: Tokenizer, seed: int) -> None:
        self._texts = texts
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        self._entries = self._shuffled_entries()
        self._special = {token: SPECIAL_TOKENS.index(token) for token in SPECIAL_TOKENS}

    def batch(self, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and labels, [rows, length]; plain text gives way to chats as `progress` goes from 0 to 1."""
        length = self._rng.choices(_ROW_LENGTHS, _ROW_WEIGHTS)[0]
        rows = [self._row(length, plain_share=0.5 * (1 - progress)) for _ in range(TOKENS_PER_STEP // length)]
        return torch.tensor([ids for ids, _ in rows]), torch.tensor([labels for _, labels in rows])

    def _row(self, length: int, plain_share: float) -> Document:
        ids: list[int] = []
        labels: list[int] = []
        while len(ids) < length:
            is_plain = self._rng.random() < plain_share
            more_ids, more_labels = self._plain() if is_plain else self._chat()
            ids += [*more_ids, self._special[END_OF_TEXT]]
            labels += [*more_labels, self._special[END_OF_TEXT] if is_plain else IGNORED]
        return ids[:length], labels[:length]

    def _plain(self) -> Document:
        if self._rng.random() < 0.2:
            text = self._rng.choice(list(self._texts.topics.values()))
        else:
            entry = self._rng.choice(self._texts.entries)
            text = f"{entry.name}\n\n{entry.text}"
        ids = self._encode(text)
        return ids, ids

    def _chat(self) -> Document:
        draw = self._rng.random()
        if draw < 0.02:
            return self._render(list(small_talk(self._rng)))
        if draw < 0.04:
            return self._render(topic_chat(*self._rng.choice(list(self._texts.topics.items())), self._rng))
        count = self._rng.choices((1, 2, 3, 6), (0.6, 0.2, 0.1, 0.1))[0]
        return self._render(conversation([next(self._entries) for _ in range(count)], self._rng))

    def _render(self, turns: list[Turn]) -> Document:
        """The chat template's output, in tokens."""
        ids: list[int] = []
        labels: list[int] = []
        for turn in turns:
            head = [self._special[TURN_START], *self._encode(f"{turn.role}\n")]
            body = [*self._encode(turn.content), self._special[TURN_END]]
            newline = self._encode("\n")
            ids += head + body + newline
            counted = body if turn.role == "assistant" else [IGNORED] * len(body)
            labels += [IGNORED] * len(head) + counted + [IGNORED] * len(newline)
        return ids, labels

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def _shuffled_entries(self) -> Iterator[Entry]:
        """Every entry once a round, popular ones several times."""
        deck = [e for e in self._texts.entries for _ in range(_POPULAR_WEIGHT if e.is_popular else 1)]
        while True:
            self._rng.shuffle(deck)
            yield from deck
