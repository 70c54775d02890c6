"""Answers in OpenAI's two shapes, whole and as server-sent events.

A stream's chunks differ in a few bytes, so the rest is encoded once a request; text is always JSON-encoded, never
pasted. Order in a stream: chunks with text (chat's first one has the role), a chunk with the finish reason, a chunk
with the usage if asked for, `[DONE]`.
"""

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from armature.openai.answer_reader import AnswerMessage
from armature.openai.assembler import Piece
from armature.openai.errors import ApiError
from armature.openai.logprobs import chat_logprobs, encoded, legacy_logprobs
from armature.openai.parsers.events import AnswerEvent, Content, Reasoning, ToolCallArguments, ToolCallStart
from armature.openai.prompt_scores import Echo
from armature.openai.vocabulary import Vocabulary
from armature.v1.common_pb2 import ModelCard, ServingInfo, Tier

_encode = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"

REASONING = "reasoning_content"
"""What messages and deltas call the model's reasoning: DeepSeek's name, which clients know best."""

ROLE = b'{"role":"assistant","content":""}'


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int | None = None
    """None: reasoning is not told apart."""

    def to_dict(self) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
        if self.reasoning_tokens is not None:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        return usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What shapes one request's answer, apart from what is in it."""

    kind: Literal["chat", "completion"]
    request_id: str
    model: str
    vocabulary: Vocabulary
    top_logprobs: int | None = None
    """None: no log probabilities were asked for."""
    include_usage: bool = False
    counts_on: bool = False
    """Each chunk tells what has been used so far."""
    created_s: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_chat(self) -> bool:
        return self.kind == "chat"

    @property
    def answer_id(self) -> str:
        return f"{'chatcmpl' if self.is_chat else 'cmpl'}-{self.request_id}"

    def logprobs(self, piece: Piece, after: int = 0) -> dict[str, Any] | None:
        """The piece's log probabilities, or None if they were not asked for or there are none.

        `after` counts the characters of a prompt that stands before the answer.
        """
        if self.top_logprobs is None or not piece.tokens:
            return None
        if self.is_chat:
            return chat_logprobs(self.vocabulary, piece, self.top_logprobs)
        shown = legacy_logprobs(self.vocabulary, piece, self.top_logprobs)
        if after:
            shown["text_offset"] = [offset + after for offset in shown["text_offset"]]
        return shown

    def encoded_logprobs(self, piece: Piece) -> msgspec.Raw | None:
        """The same as JSON, for a piece that may be long."""
        if self.top_logprobs is None or not piece.tokens:
            return None
        return encoded(chat_logprobs if self.is_chat else legacy_logprobs, self.vocabulary, piece, self.top_logprobs)


@dataclass(frozen=True, slots=True)
class PromptShown:
    """What is told of a prompt with its answers."""

    echo: Echo | None = None
    logprobs: list[dict[str, Any] | None] | None = None
    """vLLM's `prompt_logprobs`."""


NO_PROMPT = PromptShown()


class ChunkEncoder:
    """The events of one streamed answer, as bytes to be written; `index` is its place among those to a prompt."""

    def __init__(self, form: Form, index: int = 0) -> None:
        self._form = form
        self._echoed_characters = 0
        kind = "chat.completion.chunk" if form.is_chat else "text_completion"
        head = {"id": form.answer_id, "object": kind, "created": form.created_s, "model": form.model}
        self._head = b"data: " + _encode(head)[:-1]
        place = b"%d" % index
        self._choice = self._head + b',"choices":[{"index":' + place + (b',"delta":' if form.is_chat else b',"text":')
        self._before = self._choice + (b'{"content":' if form.is_chat else b"")
        self._close = b"}" if form.is_chat else b""
        self._set_usage(b',"usage":null' if form.include_usage else b"")

    def count(self, usage: Usage) -> None:
        """The chunks that follow tell this."""
        self._set_usage(b',"usage":' + _encode(usage.to_dict()))

    def _set_usage(self, usage: bytes) -> None:
        self._usage = usage
        self._after = self._close + self._tail(b"null", b"null")

    def start(self, echo: Echo | None = None) -> bytes:
        """Before the first text: chat's role, or the prompt that a completion repeats."""
        if self._form.is_chat:
            return self._choice + ROLE + self._tail(b"null", b"null")
        if echo is None:
            return b""
        self._echoed_characters = len(echo.text)
        logprobs = b"null" if echo.logprobs is None else _encode(echo.logprobs)
        return self._before + _encode(echo.text) + self._tail(logprobs, b"null")

    def piece(self, piece: Piece) -> bytes:
        """A chunk with the piece's text, or one for each thing that it says, if any; its end is left to `finish`."""
        if piece.events is not None:
            return self._told(piece, piece.events) if piece.events or piece.tokens else b""
        if not (piece.text or piece.tokens):
            return b""
        if piece.tokens and (logprobs := self._form.logprobs(piece, self._echoed_characters)) is not None:
            return self._before + _encode(piece.text) + self._close + self._tail(_encode(logprobs), b"null")
        return self._before + _encode(piece.text) + self._after

    def _told(self, piece: Piece, events: Sequence[AnswerEvent]) -> bytes:
        """The first chunk has the log probabilities of all."""
        logprobs = self._form.logprobs(piece)
        if logprobs is None and len(events) == 1 and isinstance(events[0], Content):  # nearly all
            return self._before + _encode(events[0].text) + self._after
        after = self._tail(b"null", b"null")
        deltas = [_encode(_delta(event)) for event in events]
        if logprobs is None:
            return b"".join([self._choice + delta + after for delta in deltas])
        first, *others = deltas or [b'{"content":""}']
        shown = self._choice + first + self._tail(_encode(logprobs), b"null")
        return shown + b"".join([self._choice + delta + after for delta in others])

    def finish(self, reason: str, info: ServingInfo | None) -> bytes:
        extra = b',"armature":' + _encode(info_dict(info)) if info is not None else b""
        return self._choice + (b"{}" if self._form.is_chat else b'""') + self._tail(b"null", _encode(reason), extra)

    def usage(self, usage: Usage) -> bytes:
        """A chunk without choices; nothing if it was not asked for."""
        if not self._form.include_usage:
            return b""
        return self._head + b',"choices":[],"usage":' + _encode(usage.to_dict()) + b"}\n\n"

    def _tail(self, logprobs: bytes, reason: bytes, extra: bytes = b"") -> bytes:
        return b',"logprobs":' + logprobs + b',"finish_reason":' + reason + b"}]" + self._usage + extra + b"}\n\n"


def _delta(event: AnswerEvent) -> dict[str, Any]:
    match event:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {REASONING: text}
        case ToolCallStart(index, name, call_id):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case ToolCallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def _message(piece: Piece) -> dict[str, Any]:
    """Chat's message; content is null where there are calls only."""
    if piece.events is None:
        return {"role": "assistant", "content": piece.text, "refusal": None}
    answer = AnswerMessage(piece.events)
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.reasoning:
        message[REASONING] = answer.reasoning
    if answer.calls:
        message["content"] = answer.content or None
        message["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.calls
        ]
    return message


def error_event(error: ApiError) -> bytes:
    """What ends a stream that has begun and can't go on."""
    return b"data: " + error.to_json() + b"\n\n"


def whole_answer(
    form: Form,
    answers: Sequence[Piece],
    usage: Usage,
    info: ServingInfo | None,
    prompts: Sequence[PromptShown] = (NO_PROMPT,),
) -> bytes:
    """The body of answers that were not streamed; each piece is all of one. All `prompts` have as many answers."""
    of_each = len(answers) // len(prompts)
    body: dict[str, Any] = {
        "id": form.answer_id,
        "object": "chat.completion" if form.is_chat else "text_completion",
        "created": form.created_s,
        "model": form.model,
        "choices": [_choice(form, piece, prompts[place // of_each]) for place, piece in enumerate(answers)],
        "usage": usage.to_dict(),
    }
    if form.is_chat and prompts[0].logprobs is not None:
        body["prompt_logprobs"] = prompts[0].logprobs
    if info is not None:
        body["armature"] = info_dict(info)
    return _encode(body)


def _choice(form: Form, piece: Piece, prompt: PromptShown) -> dict[str, Any]:
    echo = prompt.echo or _NO_ECHO
    shown = {"message": _message(piece)} if form.is_chat else {"text": echo.text + piece.text}
    choice: dict[str, Any] = {"index": piece.index, **shown}
    if prompt.echo is None:
        choice["logprobs"] = form.encoded_logprobs(piece)
    else:
        choice["logprobs"] = _with_echo(echo, form.logprobs(piece, len(echo.text)))
    choice["finish_reason"] = piece.finish_reason
    if not form.is_chat and prompt.logprobs is not None:
        choice["prompt_logprobs"] = prompt.logprobs
    return choice


def _with_echo(echo: Echo, logprobs: dict[str, Any] | None) -> dict[str, Any] | None:
    """The prompt's log probabilities, if they are told, before the answer's."""
    if echo.logprobs is None:
        return logprobs
    own = logprobs or dict.fromkeys(echo.logprobs, ())
    return {name: None if own[name] is None else [*of, *own[name]] for name, of in echo.logprobs.items()}


_NO_ECHO = Echo("")


def info_dict(info: ServingInfo) -> dict[str, Any]:
    """How a request was served, as JSON: the names of the contract, all of them."""
    told = {field.name: getattr(info, field.name) for field in ServingInfo.DESCRIPTOR.fields}
    return told | {"onboarded": {Tier.Name(one.tier).removeprefix("TIER_"): one.tokens for one in info.onboarded}}


def model_entry(card: ModelCard, created: int) -> dict[str, Any]:
    """A model as OpenAI lists it, with what vLLM and Anthropic add; what is ours stands in `armature`."""
    return {
        "id": card.name,
        "object": "model",
        "created": created,
        "owned_by": "armature",
        "root": card.name,
        "parent": None,
        "max_model_len": card.context_length,
        "type": "model",
        "display_name": card.name,
        "created_at": datetime.datetime.fromtimestamp(created, datetime.UTC).isoformat().replace("+00:00", "Z"),
        "max_input_tokens": card.context_length,
        "max_tokens": card.context_length,
        "armature": {
            "block_size": card.block_size,
            "vocab_size": card.vocab_size,
            "eos_token_ids": list(card.eos_token_ids),
            "embedding_size": card.embedding_size,
        },
    }
