"""The answer to a message request: content blocks, the message object, and the events that tell of both.

Whole and streamed answers are made by the same code: a whole one just has no events.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from armature.openai.answers import Usage, info_dict
from armature.openai.assembler import LENGTH
from armature.openai.parsers.events import AnswerEvent, Content, Reasoning, ToolCallArguments, ToolCallStart
from armature.openai.typed_events import Delta, TypedEvents
from armature.v1.common_pb2 import ServingInfo

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _Open:
    """The block that is being made: its text is not in it yet."""

    block: dict[str, Any]
    grows_with: type[AnswerEvent]
    delta: Delta
    text: list[str] = field(default_factory=list[str])


class MessageAnswer:
    """One answer as it is made. Begin it, feed it, then `finish` it, once."""

    def __init__(
        self, request_id: str, model: str, *, is_streamed: bool, shows_thinking: bool, tells_edits: bool = False
    ) -> None:
        self._request_id = request_id
        self._shows_thinking = shows_thinking
        self._extra: dict[str, Any] = {"context_management": {"applied_edits": []}} if tells_edits else {}
        """Told at the end."""
        self._events = TypedEvents(is_streamed=is_streamed, is_numbered=False)
        self._open: _Open | None = None
        self._content: list[dict[str, Any]] = []
        self._message: dict[str, Any] = {
            "id": f"msg_{request_id}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self._content,
            "stop_reason": None,
            "stop_sequence": None,
        }

    def begin(self, usage: Usage) -> None:
        """The first tokens are there, and with them what is known of the prompt."""
        self._message["usage"] = _usage(usage)
        self._events.tell("message_start", message=self._message)
        self._events.tell("ping")

    def feed(self, events: Iterable[AnswerEvent]) -> None:
        """What a piece of the answer says."""
        for event in events:
            if isinstance(event, ToolCallStart):
                call_id = event.call_id or f"toolu_{self._request_id}{event.index}"
                self._begin({"type": "tool_use", "id": call_id, "name": event.name, "input": {}})
            elif self._shows_thinking or not isinstance(event, Reasoning):
                self._grow(event)

    def finish(
        self, finish_reason: str, stop_sequence: str | None, usage: Usage, info: ServingInfo | None = None
    ) -> None:
        """The answer has ended; `info` is how it was served, if that was asked for."""
        self._end()
        reason = self._stop_reason(finish_reason, stop_sequence)
        message = self._message
        message["stop_reason"] = reason
        message["stop_sequence"] = stop_sequence if reason == "stop_sequence" else None
        message["usage"] = _usage(usage)
        extra = self._extra if info is None else self._extra | {"armature": info_dict(info)}
        message.update(extra)
        delta = {key: message[key] for key in ("stop_reason", "stop_sequence")}
        self._events.tell("message_delta", delta=delta, usage=message["usage"], **extra)
        self._events.tell("message_stop")

    def to_json(self) -> bytes:
        return _encode(self._message)

    def take_events(self) -> bytes:
        """The events since the last call, as bytes to be written."""
        return self._events.take()

    def _stop_reason(self, finish_reason: str, stop_sequence: str | None) -> str:
        if finish_reason == LENGTH:
            return "max_tokens"
        if stop_sequence is not None:
            return "stop_sequence"
        return "tool_use" if any(block["type"] == "tool_use" for block in self._content) else "end_turn"

    def _grow(self, event: Content | Reasoning | ToolCallArguments) -> None:
        """Put the text into the open block, or into a new one if that is of another kind."""
        if self._open is None or self._open.grows_with is not type(event):
            if isinstance(event, Content):
                self._begin({"type": "text", "text": ""})
            else:
                assert isinstance(event, Reasoning), "arguments of a call come after its start"
                self._begin({"type": "thinking", "thinking": "", "signature": ""})
        assert self._open is not None
        self._open.text.append(event.text)
        self._events.tell_delta(self._open.delta, event.text)

    def _begin(self, block: dict[str, Any]) -> None:
        self._end()
        index = len(self._content)
        grows_with, empty = _DELTAS[block["type"]]
        self._open = _Open(block, grows_with, self._events.delta("content_block_delta", index=index, delta=empty))
        self._events.tell("content_block_start", index=index, content_block=block)

    def _end(self) -> None:
        if self._open is None:
            return
        block, text = self._open.block, "".join(self._open.text)
        if block["type"] == "tool_use":
            block["input"] = _arguments(text)
        else:
            block[block["type"]] = text
        self._events.tell("content_block_stop", index=len(self._content))
        self._content.append(block)
        self._open = None


# By a block's type: what makes it longer, and how events tell of that.
_DELTAS: dict[str, tuple[type[AnswerEvent], dict[str, str]]] = {
    "text": (Content, {"type": "text_delta", "text": ""}),
    "thinking": (Reasoning, {"type": "thinking_delta", "thinking": ""}),
    "tool_use": (ToolCallArguments, {"type": "input_json_delta", "partial_json": ""}),
}


def _arguments(text: str) -> dict[str, Any]:
    """The input of a call; empty if the answer was cut off in it, which its stop reason tells."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


def _usage(usage: Usage) -> dict[str, Any]:
    """Tokens read from a cache are counted apart here."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens or 0},
    }
