"""What a model's directory says about text: its tokenizer, its chat template, its vocabulary for the way back."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from armature.openai.encoder import choose_encoder, seconds_per_character
from armature.openai.rules import ChatPrompt, TextPrompt
from armature.openai.template import ChatTemplate, load_chat_template, no_chat_template
from armature.openai.token_bounds import max_bytes_per_token
from armature.openai.tools import reply_to
from armature.openai.vocabulary import Vocabulary

TIMED_CHARACTERS, TIMED_WEIGHT = 2000, 0.1
"""Shorter prompts tell nothing of longer ones; one long prompt is no rule."""


class ModelTokenizer:
    """One model's. Methods may be called from any thread."""

    def __init__(self, tokenizer: Tokenizer, definition: bytes, template: ChatTemplate | None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.vocabulary = Vocabulary(tokenizer, definition)
        self.encoder = choose_encoder(tokenizer, definition)
        self.seconds_per_character = seconds_per_character(self.encoder)
        """Of making tokens of text: at first of text that is hard on purpose, then of what comes."""
        self.cut = cut_pattern(tokenizer)
        ids = tokenizer.get_vocab()
        self.vocab_size = 1 + max(ids.values(), default=-1)
        """Above every id that encoding gives, added tokens included."""
        self.vocabulary.learn(ids)
        self._template = template
        self._bytes_per_token = max_bytes_per_token(tokenizer, definition)

    @classmethod
    def load(cls, directory: Path) -> "ModelTokenizer":
        """Read `tokenizer.json` and the chat template. Blocking, and slow for large vocabularies.

        Raises:
            OSError: there is no readable `tokenizer.json`.
            ValueError: it, or the template, can't be used.
        """
        definition = (directory / "tokenizer.json").read_bytes()
        try:
            tokenizer = Tokenizer.from_buffer(definition)
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"{directory / 'tokenizer.json'}: {error}") from error
        return cls(tokenizer, definition, load_chat_template(directory))

    def text_of(self, model: str, prompt: TextPrompt | ChatPrompt) -> str:
        """The text to tokenize.

        Raises:
            ApiError: 400, if there is no chat template or it refuses the messages.
        """
        if isinstance(prompt, TextPrompt):
            return prompt.text
        if self._template is None:
            raise no_chat_template(model)
        return self._template.render(prompt.messages, prompt.variables)

    def took(self, characters: int, seconds: float) -> None:
        """Hear how long a prompt took."""
        if characters >= TIMED_CHARACTERS:
            self.seconds_per_character += TIMED_WEIGHT * (seconds / characters - self.seconds_per_character)

    @property
    def template_source(self) -> str:
        """The chat template; empty if there is none."""
        return self._template.source if self._template else ""

    def least_tokens(self, text: str) -> int:
        """As many tokens `text` has at least, by its length alone; 0 if that tells nothing."""
        return int(len(text.encode(errors="surrogatepass")) / self._bytes_per_token)

    def next_turn(self, prompt: ChatPrompt, answer: Mapping[str, Any]) -> Sequence[int]:
        """With which token ids the prompt of the next turn begins: what two different next turns have in common.

        So it is the template that says what the next turn keeps of this one. After a message `answer` with calls the
        next turn has the first one's result, else something that the user says.

        Raises:
            ApiError: there is no chat template, or it refuses such messages.
        """
        if self._template is None:
            raise no_chat_template("")
        turns: list[Sequence[int]] = []
        for question in ("0", "1"):
            text = self._template.render([*prompt.messages, answer, reply_to(answer, question)], prompt.variables)
            turns.append(self.encoder.encode(text))
        shared = zip(*turns, strict=False)
        return turns[0][: sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], shared))]


def cut_pattern(tokenizer: Tokenizer) -> "re.Pattern[str] | None":
    """Matches where text may be cut without changing its tokens: before each special token.

    None if this tokenizer has added tokens that look around themselves.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return None
    names = [token.content for token in added if not token.normalized or token.special]
    if not names or any(token.normalized for token in added if token.special):
        return None
    # The longest name first, as the tokenizer takes the longest match.
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
