"""From a response's body and the conversation before it to an `Ask`.

It is translated into a chat request, whose rules then hold; this module has what only the Responses API knows.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from armature.openai.asks import chat_ask
from armature.openai.errors import invalid, unsupported
from armature.openai.renaming import renaming
from armature.openai.responses.items import chat_messages
from armature.openai.responses.schema import Format, Item, ResponseBody
from armature.openai.rules import RANGES, Ask, check_ranges
from armature.openai.schema import ChatBody, JsonSchemaFormat, Message, ResponseFormat

LOGPROBS = "message.output_text.logprobs"
"""In `include`: log probabilities are wanted."""
MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512

NAMES = (
    (r"max_completion_tokens", "max_output_tokens"),
    (r"reasoning_effort", "reasoning.effort"),
    (r"response_format(?:\.json_schema)?(\..*)?", r"text.format\1"),
    (r"(tools\[\d+\])\.function(\..*)?", r"\1\2"),
    (r"(tool_choice)\.function(\..*)?", r"\1\2"),
    (r"messages(\[.*)?", "input"),
)
"""What chat's fields are called here."""

_ALIKE = (
    "model", "stream", "temperature", "top_p", "top_logprobs", "parallel_tool_calls", "prompt_cache_key", "top_k",
    "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed", "stop", "stop_token_ids",
    "logit_bias", "ignore_eos", "min_tokens", "chat_template_kwargs", "armature", "nvext",
)  # fmt: skip

REFUSED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("conversation", (), "use previous_response_id"),
    ("prompt", (), "prompt templates are not stored here; send the input itself"),
    ("context_management", ([],), "conversations are never shortened; send what is to stay as input"),
    ("moderation", (), "answers are not moderated; leave it out"),
    ("truncation", ("disabled",), "conversations are never cut; send what is to stay as input"),
)


def check_body(body: ResponseBody) -> None:
    """Refuse what only this surface has, before anything is looked up.

    Raises:
        ApiError: 400 that names the field.
    """
    for name, neutral, fix in REFUSED:
        value = getattr(body, name)
        if value is not None and not any(type(value) is type(one) and value == one for one in neutral):
            raise unsupported(name, fix)
    check_ranges({"max_tool_calls": body.max_tool_calls})  # of built-in tools, of which there are none
    if body.background and body.store is False:
        raise invalid("background", 'not possible with "store": false: nobody could ask for the response')
    if body.max_output_tokens is not None and not RANGES["max_tokens"].holds(body.max_output_tokens):
        raise invalid("max_output_tokens", f"{RANGES['max_tokens'].fix}, not {body.max_output_tokens}")
    if body.top_logprobs and LOGPROBS not in (body.include or ()):
        raise invalid("top_logprobs", f'only possible with "include": ["{LOGPROBS}"]')
    _check_metadata(body.metadata or {})


def response_ask(body: ResponseBody, items: Sequence[Item], session: str = "") -> Ask:
    """What is asked of the model: `items` are the whole conversation, `session` is its name if the body has none.

    Raises:
        ApiError: 400 that names the field.
    """
    messages = [Message("system", body.instructions)] if body.instructions else []
    chat = ChatBody(
        messages=[*messages, *chat_messages(items)],
        max_completion_tokens=body.max_output_tokens,
        logprobs=LOGPROBS in (body.include or ()),
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
        response_format=_response_format(body.text.format if body.text else None),
        **_tools(body),
        **{name: getattr(body, name) for name in _ALIKE if name in ChatBody.__struct_fields__},
    )
    with renaming(NAMES):
        return replace(chat_ask(chat, session), prompt_field="input")


def _response_format(wanted: Format | None) -> ResponseFormat | None:
    if wanted is None or wanted.type != "json_schema":
        return None if wanted is None else ResponseFormat(wanted.type)
    schema = msgspec.Raw() if wanted.schema is None else msgspec.Raw(msgspec.json.encode(wanted.schema))
    return ResponseFormat("json_schema", JsonSchemaFormat(wanted.name, schema, wanted.strict))


def _tools(body: ResponseBody) -> dict[str, Any]:
    """`tools` and `tool_choice` as chat has them."""
    tools = body.tools or []
    for index, tool in enumerate(tools):
        if tool.get("type") != "function":
            kind = str(tool.get("type"))[:40]
            raise unsupported(f"tools[{index}].type", f"only function tools are implemented, not '{kind}'")
    choice = body.tool_choice
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            allowed = _allowed(choice)
            tools = [tool for tool in tools if tool.get("name") in allowed]
            choice = choice.get("mode", "auto")
        elif choice.get("type") == "function":
            choice = {"type": "function", "function": {"name": choice.get("name")}}
        else:
            raise unsupported("tool_choice.type", "must be function or allowed_tools")
    shaped = [
        {"type": "function", "function": {key: tool[key] for key in _FUNCTION if tool.get(key) is not None}}
        for tool in tools
    ]
    return {"tools": shaped or None, "tool_choice": choice}


_FUNCTION = ("name", "description", "parameters", "strict")


def _allowed(choice: dict[str, Any]) -> set[Any]:
    tools = choice.get("tools")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise invalid("tool_choice.tools", "must be a list of objects with a name")
    return {tool.get("name") for tool in tools}


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > MAX_METADATA:
        raise invalid("metadata", f"at most {MAX_METADATA} keys are possible, not {len(metadata)}")
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            fix = f"keys have at most {MAX_METADATA_KEY} characters and values {MAX_METADATA_VALUE}"
            raise invalid("metadata", fix)
