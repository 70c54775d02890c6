"""The answer to a message request: content blocks, the message object, and the events that tell of both.

Whole and streamed answers are made by the same code: a whole one has nobody to tell the events to.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from armature.openai.answers import Usage, info_dict
from armature.openai.assembler import LENGTH
from armature.openai.parsers.events import AnswerEvent, Content, Reasoning, ToolCallArguments, ToolCallStart
from armature.v1.common_pb2 import ServingInfo

_encode = msgspec.json.Encoder().encode

PING = b'event: ping\ndata: {"type":"ping"}\n\n'


@dataclass(slots=True)
class _Open:
    """The block that is being made: its text is not in it yet."""

    block: dict[str, Any]
    text: list[str] = field(default_factory=list[str])


class MessageAnswer:
    """One answer as it is made. Begin it, feed it, then `finish` it, once."""

    def __init__(self, request_id: str, model: str, *, is_streamed: bool, shows_thinking: bool) -> None:
        self._request_id = request_id
        self._is_streamed = is_streamed
        self._shows_thinking = shows_thinking
        self._events: list[bytes] = []
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
        self._tell("message_start", message=self._message)
        if self._is_streamed:
            self._events.append(PING)

    def feed(self, events: Iterable[AnswerEvent]) -> None:
        """What a piece of the answer says."""
        for event in events:
            match event:
                case Content(text):
                    self._grow("text", text, {"type": "text", "text": ""}, {"type": "text_delta", "text": text})
                case Reasoning(text):
                    if self._shows_thinking:
                        empty = {"type": "thinking", "thinking": "", "signature": ""}
                        self._grow("thinking", text, empty, {"type": "thinking_delta", "thinking": text})
                case ToolCallStart(index, name, call_id):
                    call_id = call_id or f"toolu_{self._request_id}{index}"
                    self._begin_block({"type": "tool_use", "id": call_id, "name": name, "input": {}})
                case ToolCallArguments(_, text):
                    assert self._open is not None
                    self._open.text.append(text)
                    self._tell_delta({"type": "input_json_delta", "partial_json": text})

    def finish(
        self, finish_reason: str, stop_sequence: str | None, usage: Usage, info: ServingInfo | None = None
    ) -> None:
        """The answer has ended; `info` is how it was served, if that was asked for."""
        self._end_block()
        reason = self._stop_reason(finish_reason, stop_sequence)
        message = self._message
        message["stop_reason"] = reason
        message["stop_sequence"] = stop_sequence if reason == "stop_sequence" else None
        message["usage"] = _usage(usage)
        extra = {} if info is None else {"armature": info_dict(info)}
        message.update(extra)
        delta = {key: message[key] for key in ("stop_reason", "stop_sequence")}
        self._tell("message_delta", delta=delta, usage=message["usage"], **extra)
        self._tell("message_stop")

    def to_json(self) -> bytes:
        return _encode(self._message)

    def take_events(self) -> bytes:
        """The events since the last call, as bytes to be written."""
        events = b"".join(self._events)
        self._events.clear()
        return events

    def _stop_reason(self, finish_reason: str, stop_sequence: str | None) -> str:
        if finish_reason == LENGTH:
            return "max_tokens"
        if stop_sequence is not None:
            return "stop_sequence"
        return "tool_use" if any(block["type"] == "tool_use" for block in self._content) else "end_turn"

    def _grow(self, kind: str, text: str, empty: dict[str, Any], delta: dict[str, Any]) -> None:
        if self._open is None or self._open.block["type"] != kind:
            self._begin_block(empty)
        assert self._open is not None
        self._open.text.append(text)
        self._tell_delta(delta)

    def _begin_block(self, block: dict[str, Any]) -> None:
        self._end_block()
        self._open = _Open(block)
        self._tell("content_block_start", index=len(self._content), content_block=block)

    def _end_block(self) -> None:
        if self._open is None:
            return
        block, text = self._open.block, "".join(self._open.text)
        if block["type"] == "tool_use":
            block["input"] = _arguments(text)
        else:
            block[block["type"]] = text
        self._tell("content_block_stop", index=len(self._content))
        self._content.append(block)
        self._open = None

    def _tell_delta(self, delta: dict[str, Any]) -> None:
        self._tell("content_block_delta", index=len(self._content), delta=delta)

    def _tell(self, kind: str, **fields: Any) -> None:
        if self._is_streamed:
            data = _encode({"type": kind, **fields})
            self._events.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))


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
    }
