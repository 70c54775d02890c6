"""The functions that a chat offers to its model, checked, and calls of them in a chat's messages.

Definitions go to the chat template as the client wrote them: models are trained on them with all their fields.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from armature.openai.errors import ApiError, invalid, unsupported
from armature.openai.parsers.calls import Tools

MAX_TOOLS = 256
FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_CHOICES = ("none", "auto", "required")
_CHOICE_FIX = 'must be "none", "auto", "required" or {"type": "function", "function": {"name": ...}}'


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Which functions the model may call, and whether it must."""

    definitions: Sequence[Mapping[str, Any]] = ()
    parameters: Tools = field(default_factory=dict[str, Mapping[str, Any]])
    """JSON schemas of the parameters by name."""
    must_call: Sequence[str] = ()
    """One of these, at least; empty: only if it wants to."""
    is_parallel: bool = True
    """Several calls may be in one answer."""


NO_TOOLS = ToolUse()


def tools_of(tools: Any, choice: Any, is_parallel: bool | None) -> ToolUse:
    """The fields `tools`, `tool_choice` and `parallel_tool_calls` of a chat.

    With the choice `none` the model is not told about the functions.

    Raises:
        ApiError: 400 that names the field.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise invalid("tool_choice", "only possible with tools")
        return NO_TOOLS
    if not isinstance(tools, list) or len(cast(list[Any], tools)) > MAX_TOOLS:
        raise invalid("tools", f"must be a list of at most {MAX_TOOLS} functions")
    definitions = cast(list[Any], tools)
    parameters: dict[str, Mapping[str, Any]] = {}
    for index, tool in enumerate(definitions):
        name, schema = _function(f"tools[{index}]", tool)
        if name in parameters:
            raise invalid(f"tools[{index}].function.name", f"there is another function '{name}'")
        parameters[name] = schema
    choice, allowed = _allowed(choice, parameters)
    if choice == "none":
        return NO_TOOLS
    if len(allowed) < len(parameters):
        definitions = [tool for tool in definitions if tool["function"]["name"] in allowed]
    return ToolUse(definitions, allowed, _must_call(choice, allowed), is_parallel is not False)


def rendered_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call as chat templates expect it: its arguments are an object, not text.

    A model may have written something else, as when its answer was cut off. What it wrote is told as the text it is,
    so that the conversation can go on, if the template can tell it.
    """
    decoded: Any
    try:
        decoded = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        decoded = arguments
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": decoded}}


def reply_to(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    """What comes after an assistant's message: the result of its first call, or else the user."""
    calls = message.get("tool_calls")
    if not calls:
        return {"role": "user", "content": text}
    return {"role": "tool", "content": text, "tool_call_id": calls[0]["id"], "name": calls[0]["function"]["name"]}


def with_text_arguments(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages for templates that want a call's arguments as text."""
    return [
        {**message, "tool_calls": [_as_text(call) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]


def no_tool_format(model: str) -> ApiError:
    fix = f"how the model '{model}' writes tool calls is not known; its workers can be told by --tool-call-parser"
    return unsupported("tools", fix)


def _function(where: str, tool: Any) -> tuple[str, Mapping[str, Any]]:
    """Name and parameters."""
    if not isinstance(tool, dict) or cast(dict[str, Any], tool).get("type") != "function":
        raise invalid(f"{where}.type", 'must be "function": others are not known here')
    function = cast(dict[str, Any], tool).get("function")
    if not isinstance(function, dict):
        raise invalid(f"{where}.function", "must be an object with a name")
    fields = cast(dict[str, Any], function)
    name, schema = fields.get("name"), fields.get("parameters")
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise invalid(f"{where}.function.name", "must be 1 to 128 letters, digits or any of _ . : / -")
    if schema is not None and not isinstance(schema, dict):
        raise invalid(f"{where}.function.parameters", "must be a JSON schema, or left out")
    return name, cast(dict[str, Any], schema or {})


def _allowed(choice: Any, parameters: Tools) -> tuple[Any, Tools]:
    """A choice without the form that allows some functions only, and those that it allows."""
    if not isinstance(choice, dict) or cast(dict[str, Any], choice).get("type") != "allowed_tools":
        return choice, parameters
    match cast(dict[str, Any], choice).get("allowed_tools"):
        case {"mode": "auto" | "required" as mode, "tools": [*tools]}:
            names = [tool["function"]["name"] for tool in tools if _is_named(tool)]
        case _:
            raise invalid("tool_choice.allowed_tools", 'must be {"mode": "auto" or "required", "tools": [...]}')
    if len(names) < len(tools) or not names:
        raise invalid("tool_choice.allowed_tools.tools", 'must be some {"type": "function", "function": {"name": ...}}')
    for name in names:
        if name not in parameters:
            raise invalid("tool_choice.allowed_tools.tools", f"there is no function '{name[:128]}' in tools")
    return mode, {name: schema for name, schema in parameters.items() if name in names}


def _is_named(tool: Any) -> bool:
    match tool:
        case {"function": {"name": str()}}:
            return True
        case _:
            return False


def _must_call(choice: Any, parameters: Tools) -> Sequence[str]:
    if choice is None or choice in _CHOICES:
        return tuple(parameters) if choice == "required" else ()
    function = cast(dict[str, Any], choice).get("function") if isinstance(choice, dict) else None
    name = cast(dict[str, Any], function).get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise invalid("tool_choice", _CHOICE_FIX)
    if name not in parameters:
        raise invalid("tool_choice", f"there is no function '{name[:128]}' in tools")
    return (name,)


def _as_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}
