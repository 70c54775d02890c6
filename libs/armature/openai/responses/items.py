"""Items of a conversation: checked, named, and as the messages that a chat template knows."""

import re
from collections.abc import Sequence

from armature.openai.errors import invalid
from armature.openai.responses.schema import (
    FunctionCallItem,
    FunctionCallOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
    known_item,
    text_of,
)
from armature.openai.schema import CalledFunction, Message, ToolCall

MAX_ITEMS = 4096
"""In one request."""

REFERENCE = "item_reference"
"""The type of an item that only names one of an earlier response."""

_OWN_ID = re.compile(r"[a-z]+_([0-9a-f]{24})[io][0-9]+")
_ROLES = ("user", "assistant", "system", "developer")
_PREFIXES = {"function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def input_items(given: str | Sequence[Item] | None, request_id: str) -> list[Item]:
    """The items of an input, each with its type and an id.

    Raises:
        ApiError: 400 that names the field.
    """
    if given is None or not len(given):
        raise invalid("input", "must be a text that is not empty or a list of items")
    if isinstance(given, str):
        given = [{"role": "user", "content": [{"type": "input_text", "text": given}]}]
    if len(given) > MAX_ITEMS:
        raise invalid("input", f"at most {MAX_ITEMS} items are possible, not {len(given)}")
    return [_named(f"input[{index}]", item, f"{request_id}i{index}") for index, item in enumerate(given)]


def response_of(item_id: str) -> str | None:
    """The response that an item belongs to, by the id that was given to it here; None: it is not one of ours."""
    found = _OWN_ID.fullmatch(item_id)
    return f"resp_{found[1]}" if found else None


def _named(where: str, item: Item, name: str) -> Item:
    known = known_item(where, item)
    if isinstance(known, MessageItem):
        if known.role not in _ROLES:
            raise invalid(f"{where}.role", f"must be one of {', '.join(_ROLES)}, not '{known.role[:40]}'")
        content = known.content
        text_of(f"{where}.content", content)
        if isinstance(content, str):
            kind = "output_text" if known.role == "assistant" else "input_text"
            item = {**item, "content": [{"type": kind, "text": content}]}
    elif isinstance(known, FunctionCallOutputItem):
        text_of(f"{where}.output", known.output)
    elif isinstance(known, ReasoningItem):
        text_of(f"{where}.content", known.content or "")
    kind = item.get("type", "message")
    given = item.get("id")
    return {**item, "type": kind, "id": given if isinstance(given, str) and given else f"{_prefix(kind)}_{name}"}


def _prefix(kind: str) -> str:
    return _PREFIXES.get(kind, "msg")


def chat_messages(items: Sequence[Item]) -> list[Message]:
    """The conversation as messages; what the assistant thought, said and called in one go is one message."""
    messages: list[Message] = []
    reasoning: str | None = None
    for index, item in enumerate(items):
        where = f"input[{index}]"
        match known_item(where, item):
            case MessageItem(role=role, content=content):
                messages.append(Message(role, text_of(where, content)))
            case FunctionCallItem() as call:
                if not messages or messages[-1].role != "assistant" or reasoning:
                    messages.append(Message("assistant", ""))
                made = ToolCall(call.call_id, CalledFunction(call.name, call.arguments))
                messages[-1].tool_calls = [*(messages[-1].tool_calls or ()), made]
            case FunctionCallOutputItem() as output:
                messages.append(Message("tool", text_of(where, output.output), tool_call_id=output.call_id))
            case ReasoningItem(content=content):
                reasoning = text_of(where, content or "")
                continue
        if reasoning and messages[-1].role == "assistant":
            messages[-1].reasoning_content = reasoning
        reasoning = None
    return messages
