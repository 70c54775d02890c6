"""The answer to a response request: output items, the response object, and the events that tell of both as they grow.

Whole and streamed answers are made by the same code: a whole one just has no events.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from armature.openai.answers import Usage, info_dict
from armature.openai.assembler import LENGTH
from armature.openai.errors import ApiError
from armature.openai.packed_tokens import PackedTokens, TopTokens
from armature.openai.parsers.events import AnswerEvent, Content, Reasoning, ToolCallArguments, ToolCallStart
from armature.openai.responses.schema import ResponseBody
from armature.openai.typed_events import Delta, TypedEvents
from armature.v1.common_pb2 import ServingInfo

_encode = msgspec.json.Encoder().encode

Shown = Callable[[Iterable[TopTokens]], msgspec.Raw]
"""A list of log probabilities as JSON. Until their item ends they wait packed: as JSON they take ten times as much."""


def _unshown(tokens: Iterable[TopTokens]) -> msgspec.Raw:
    raise AssertionError("nobody has asked for log probabilities")


@dataclass(slots=True)
class _Open:
    """The item that is being made: its text is not in it yet."""

    item: dict[str, Any]
    grows_with: type[AnswerEvent]
    where: dict[str, Any]
    """What its events have in common."""
    delta: Delta
    text: list[str] = field(default_factory=list[str])
    tokens: PackedTokens = field(default_factory=PackedTokens)
    """Those whose log probabilities are told."""


class OutputItems:
    """Turns what an answer says into items; one at a time is open."""

    def __init__(self, request_id: str, events: TypedEvents, shown: Shown) -> None:
        self.items: list[dict[str, Any]] = []
        self._shown = shown
        self._request_id = request_id
        self._events = events
        self._open: _Open | None = None

    @property
    def is_empty(self) -> bool:
        return self._open is None and not self.items

    def feed(self, event: AnswerEvent, tokens: Sequence[TopTokens] = ()) -> None:
        """Take in an event; `tokens` are those of a content, with their log probabilities."""
        if isinstance(event, ToolCallStart):
            call_id = event.call_id or f"call_{self._request_id}{event.index}"
            self._begin("function_call", call_id=call_id, name=event.name, arguments="")
            return
        if self._open is None or self._open.grows_with is not type(event):
            if isinstance(event, Content):
                self._begin("message", role="assistant", content=[])
            else:
                assert isinstance(event, Reasoning), "arguments of a call come after its start"
                self._begin("reasoning", summary=[], content=[])
        assert self._open is not None
        self._open.text.append(event.text)
        if tokens:
            self._open.tokens.extend(tokens)
            if self._events.is_streamed:
                told = {**self._open.where, "delta": event.text, "logprobs": self._shown(tokens)}
                self._events.tell("response.output_text.delta", **told)
        else:
            self._events.tell_delta(self._open.delta, event.text)

    def close(self, status: str, tokens: Sequence[TopTokens] = ()) -> None:
        """Nothing more comes; `status` is that of the last item, `tokens` those without text at its end."""
        if self._open is not None:
            self._open.tokens.extend(tokens)
            self._end(status)

    def _begin(self, kind: str, **fields: Any) -> None:
        self.close("completed")
        item = {"type": kind, "id": f"{_PREFIXES[kind]}_{self._request_id}o{len(self.items)}", **fields}
        item["status"] = "in_progress"
        where = {"item_id": item["id"], "output_index": len(self.items)}
        if kind != "function_call":
            where["content_index"] = 0
        grows_with, delta, empty = _DELTAS[kind]
        self._open = _Open(item, grows_with, where, self._events.delta(delta, **where, **empty))
        self._events.tell("response.output_item.added", output_index=len(self.items), item=item)
        if kind != "function_call":
            self._events.tell("response.content_part.added", **where, part=_part(kind, "", ()))

    def _end(self, status: str) -> None:
        assert self._open is not None
        item, where, text = self._open.item, self._open.where, "".join(self._open.text)
        kind, tell = item["type"], self._events.tell
        if kind == "function_call":
            item["arguments"] = text
            tell("response.function_call_arguments.done", **where, name=item["name"], arguments=text)
        else:
            part = _part(kind, text, self._shown(self._open.tokens) if self._open.tokens else ())
            item["content"] = [part]
            if kind == "message":
                tell("response.output_text.done", **where, text=text, logprobs=part["logprobs"])
            else:
                tell("response.reasoning_text.done", **where, text=text)
            tell("response.content_part.done", **where, part=part)
        item["status"] = status
        tell("response.output_item.done", output_index=len(self.items), item=item)
        self.items.append(item)
        self._open = None


# By an item's type: what makes it longer, and the event that tells of that, with the fields besides its place.
_DELTAS: dict[str, tuple[type[AnswerEvent], str, dict[str, Any]]] = {
    "message": (Content, "response.output_text.delta", {"logprobs": (), "delta": ""}),
    "reasoning": (Reasoning, "response.reasoning_text.delta", {"delta": ""}),
    "function_call": (ToolCallArguments, "response.function_call_arguments.delta", {"delta": ""}),
}

_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


def _part(kind: str, text: str, logprobs: msgspec.Raw | tuple[()]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


class ResponseAnswer:
    """One response as it is made. Feed it, then `finish` or `fail` it, once."""

    def __init__(self, request_id: str, body: ResponseBody, created_s: int, shown: Shown = _unshown) -> None:
        self.response_id = response_id_of(request_id)
        self.response = _response_object(self.response_id, body, created_s)
        self._events = TypedEvents(is_streamed=bool(body.stream), is_numbered=True)
        self._tokens = PackedTokens()
        self.num_scored = 0
        """Tokens whose log probabilities are told."""
        self._output = OutputItems(request_id, self._events, shown)
        for kind in ("response.created", "response.in_progress"):
            self._events.tell(kind, response=self.response)

    def feed(self, events: Iterable[AnswerEvent], tokens: Sequence[TopTokens] = ()) -> None:
        """What a piece of the answer says, and its tokens' log probabilities: they go with the text to come."""
        if tokens:
            self._tokens.extend(tokens)
            self.num_scored += len(tokens)
        for event in events:
            if self._tokens and isinstance(event, Content):
                self._output.feed(event, self._tokens)
                self._tokens = PackedTokens()
            else:
                self._output.feed(event)

    def finish(self, finish_reason: str, usage: Usage, now_s: int, info: ServingInfo | None = None) -> None:
        """The answer has ended well, or for length; `info` is how it was served, if that was asked for."""
        is_cut = finish_reason == LENGTH
        if self._output.is_empty:
            self._output.feed(Content(""))
        self._output.close("incomplete" if is_cut else "completed", self._tokens)
        self.response["usage"] = _usage(usage)
        if info is not None:
            self.response["armature"] = info_dict(info)
        if is_cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["completed_at"] = now_s
        self._close("incomplete" if is_cut else "completed")

    def cancel(self) -> None:
        """Somebody has ended it."""
        self._output.close("incomplete")
        self._close("cancelled")

    def fail(self, error: ApiError) -> bytes:
        """The answer can't be completed; its last events."""
        self._output.close("incomplete")
        self.response["error"] = {"code": _error_code(error), "message": error.message}
        self._close("failed")
        return self.take_events()

    def to_json(self) -> bytes:
        return _encode(self.response)

    def take_events(self) -> bytes:
        """The events since the last call, as bytes to be written."""
        return self._events.take()

    def _close(self, status: str) -> None:
        self.response["status"] = status
        self.response["output"] = self._output.items
        self._events.tell(f"response.{status}", response=self.response)


def response_id_of(request_id: str) -> str:
    return f"resp_{request_id}"


def _response_object(response_id: str, body: ResponseBody, created_s: int) -> dict[str, Any]:
    """The response before it says anything; what the client asked for is shown as it was understood."""
    wanted = body.text.format if body.text else None
    shape = {"type": "text"} if wanted is None else msgspec.to_builtins(wanted)
    effort = body.reasoning.effort if body.reasoning else None
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_s,
        "completed_at": None,
        "status": "in_progress",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": body.temperature,
        "text": {"format": {key: value for key, value in shape.items() if value is not None}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [{"parameters": None, "strict": None, **tool} for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _error_code(error: ApiError) -> str:
    if error.status == 429:
        return "rate_limit_exceeded"
    return "server_error" if error.status >= 500 else "invalid_prompt"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
