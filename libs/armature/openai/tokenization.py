"""A model's tokenizer: text and chats to token ids, and the vocabulary for the way back.

Chats repeat: the system prompt and earlier turns come again with every turn. A special token ends whatever the
tokenizer looks at, so a chat is cut before each of them, and pieces that were met before are not tokenized again.
"""

import itertools
import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from armature.openai.rules import ChatPrompt, Prompt, TextPrompt
from armature.openai.template import ChatTemplate, load_chat_template, no_chat_template
from armature.openai.token_bounds import max_bytes_per_token
from armature.openai.vocabulary import Vocabulary


class ModelTokenizer:
    """What a model's directory says about text.

    Methods may be called from any thread.
    """

    def __init__(self, tokenizer: Tokenizer, definition: bytes, template: ChatTemplate | None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.vocabulary = Vocabulary(tokenizer, definition)
        self._tokenizer = tokenizer
        self._template = template
        self._pieces = PieceCache(tokenizer)
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

    def least_tokens(self, text: str) -> int:
        """As many tokens `text` has at least, by its length alone; 0 if that tells nothing."""
        return int(len(text.encode(errors="surrogatepass")) / self._bytes_per_token)

    def next_turn(self, prompt: ChatPrompt, answer: str) -> Sequence[int]:
        """With which token ids the prompt of the next turn begins: what two different next turns have in common.

        So it is the template that says what the next turn keeps of this one.

        Raises:
            ApiError: there is no chat template, or it refuses such messages.
        """
        if self._template is None:
            raise no_chat_template("")
        turns: list[Sequence[int]] = []
        for question in ("0", "1"):
            added = [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
            text = self._template.render([*prompt.messages, *added], prompt.variables)
            turns.append(self._pieces.encode(text))
        shared = zip(*turns, strict=False)
        return turns[0][: sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], shared))]

    def encode(self, prompt: Prompt, text: str) -> Sequence[int]:
        """Token ids of `text`, which is `prompt` rendered. Chat templates write the special tokens themselves."""
        if isinstance(prompt, ChatPrompt):
            return self._pieces.encode(text)
        return _encode(self._tokenizer, text, add_special_tokens=True)


class PieceCache:
    """Tokenizes text piece by piece, each beginning with a special token, and remembers pieces.

    Same ids as tokenizing at once: the tokenizer itself cuts the raw text at these tokens first. It holds the most
    recently used pieces up to `max_bytes`. Threads may share it: long prompts are tokenized off the event loop.
    """

    def __init__(self, tokenizer: Tokenizer, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._tokenizer = tokenizer
        self._cut = _cut_pattern(tokenizer)
        self._max_bytes = max_bytes
        self.size_bytes = 0
        self._pieces: OrderedDict[str, array[int]] = OrderedDict()
        self._lock = threading.Lock()

    def encode(self, text: str) -> "array[int]":
        if self._cut is None:
            return self._tokenize(text)
        starts = [0, *(match.start() for match in self._cut.finditer(text) if match.start() > 0), len(text)]
        token_ids = array("I")
        for start, end in itertools.pairwise(starts):
            token_ids.extend(self._piece(text[start:end]))
        return token_ids

    def _piece(self, piece: str) -> "array[int]":
        with self._lock:
            known = self._pieces.get(piece)
            if known is not None:
                self._pieces.move_to_end(piece)
                return known
        token_ids = self._tokenize(piece)
        with self._lock:
            self._keep(piece, token_ids)
        return token_ids

    def _keep(self, piece: str, token_ids: "array[int]") -> None:
        if piece not in self._pieces:  # another thread may have been faster
            self._pieces[piece] = token_ids
            self.size_bytes += _size_bytes(piece, token_ids)
        while self.size_bytes > self._max_bytes:
            self.size_bytes -= _size_bytes(*self._pieces.popitem(last=False))

    def _tokenize(self, text: str) -> "array[int]":
        return array("I", _encode(self._tokenizer, text, add_special_tokens=False))


def _encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Without offsets, which nobody needs, and without the interpreter's lock: other threads run meanwhile."""
    return tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids


def _size_bytes(piece: str, token_ids: "array[int]") -> int:
    return 2 * len(piece) + 4 * len(token_ids) + 200


def _cut_pattern(tokenizer: Tokenizer) -> "re.Pattern[str] | None":
    """Matches where text may be cut, or None if this tokenizer has added tokens that look around themselves."""
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip or token.single_word for token in added):
        return None
    names = [token.content for token in added if not token.normalized or token.special]
    if not names or any(token.normalized for token in added if token.special):
        return None
    # The longest name first, as the tokenizer takes the longest match.
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
