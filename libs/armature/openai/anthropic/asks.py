"""From the body of a message to an `Ask`.

It is translated into a chat request, whose rules then hold; this module has what only the Messages API knows.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec

from armature.openai.anthropic.messages import chat_messages, system_text
from armature.openai.anthropic.schema import Block, CacheControl, CountBody, MessagesBody, OutputConfig, Tool
from armature.openai.asks import THINKING_VARIABLES, chat_ask
from armature.openai.errors import invalid, unsupported
from armature.openai.extensions import ArmatureOptions, HintOptions
from armature.openai.renaming import renaming
from armature.openai.rules import Ask
from armature.openai.schema import ChatBody, JsonSchemaFormat, Message, ResponseFormat

NAMES = (
    (r"stop", "stop_sequences"),
    (r"max_completion_tokens", "max_tokens"),
    (r"reasoning_effort", "output_config.effort"),
    (r"response_format(?:\.json_schema)?(\..*)?", r"output_config.format\1"),
    (r"(tools\[\d+\])\.function\.parameters(.*)", r"\1.input_schema\2"),
    (r"(tools\[\d+\])\.function(\..*)?", r"\1\2"),
    (r"(tool_choice)\.function(\..*)?", r"\1\2"),
    (r"messages\[.*", "messages"),
)
"""What chat's fields are called here."""

THINKING_KINDS = ("enabled", "disabled", "adaptive", "between_tools")

_ALIKE = ("model", "temperature", "top_p", "top_k", "min_p", "seed", "ignore_eos")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_CACHE_TTL_S = {"5m": 300.0, "1h": 3600.0}

REFUSED = (
    ("container", "there are no containers or skills here; leave it out"),
    ("mcp_servers", "tools are called by the client; leave it out and declare them as tools"),
)


def message_ask(body: MessagesBody, session: str = "") -> Ask:
    """Check a request; `session` names its conversation if the body does not.

    Raises:
        ApiError: 400 that names the field.
    """
    chat = _chat_body(body)
    chat.stream = body.stream
    chat.max_completion_tokens = body.max_tokens
    chat.stop = body.stop_sequences
    chat.armature = _with_cache_ttl(body)
    for name in _ALIKE:
        setattr(chat, name, getattr(body, name))
    return _ask(chat, session)


def count_ask(body: CountBody) -> Ask:
    """The prompt of a request, of which only the tokens are to be counted.

    Raises:
        ApiError: 400 that names the field.
    """
    return _ask(_chat_body(body), "")


def shows_thinking(body: CountBody) -> bool:
    """Whether reasoning is part of the answer: it must be asked for."""
    thinking = body.thinking
    return thinking is not None and thinking.type != "disabled" and thinking.display != "omitted"


def _ask(chat: ChatBody, session: str) -> Ask:
    with renaming(NAMES):
        return replace(chat_ask(chat, session), prompt_field="messages")


def _chat_body(body: CountBody) -> ChatBody:
    for name, fix in REFUSED:
        if getattr(body, name):
            raise unsupported(name, fix)
    system = [Message("system", system_text(body.system))] if body.system else []
    choice = body.tool_choice
    return ChatBody(
        model=body.model,
        messages=[*system, *chat_messages(body.messages)],
        tools=[_tool(index, tool) for index, tool in enumerate(body.tools or ())] or None,
        tool_choice=_tool_choice(body) if choice else None,
        parallel_tool_calls=False if choice and choice.disable_parallel_tool_use else None,
        response_format=_response_format(body.output_config),
        reasoning_effort=body.output_config.effort if body.output_config else None,
        chat_template_kwargs=_variables(body),
    )


def _variables(body: CountBody) -> dict[str, Any]:
    """Thinking is off unless it is asked for, as in Anthropic's API; others leave it to the model when to think."""
    kind = body.thinking.type if body.thinking else "disabled"
    if kind not in THINKING_KINDS:
        raise unsupported("thinking.type", f"must be one of {', '.join(THINKING_KINDS)}, not '{kind[:40]}'")
    told = {} if kind in ("adaptive", "between_tools") else dict.fromkeys(THINKING_VARIABLES, kind == "enabled")
    return told | (body.chat_template_kwargs or {})


def _tool(index: int, tool: Tool) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise unsupported(f"tools[{index}].type", f"only custom tools are implemented, not '{tool.type[:40]}'")
    if tool.input_schema is None:
        raise invalid(f"tools[{index}].input_schema", "a tool needs the schema of its input")
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
    }
    return {"type": "function", "function": {key: value for key, value in function.items() if value is not None}}


def _tool_choice(body: CountBody) -> str | dict[str, Any]:
    assert body.tool_choice is not None
    choice = body.tool_choice
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    if choice.type not in _CHOICES:
        raise invalid("tool_choice.type", f"must be auto, any, tool or none, not '{choice.type[:40]}'")
    return _CHOICES[choice.type]


def _response_format(config: OutputConfig | None) -> ResponseFormat | None:
    wanted = config.format if config else None
    if wanted is None:
        return None
    if wanted.type != "json_schema" or wanted.schema is None:
        raise invalid("output_config.format", 'must be {"type": "json_schema", "schema": {...}}')
    schema = msgspec.Raw(msgspec.json.encode(wanted.schema))
    return ResponseFormat("json_schema", JsonSchemaFormat(schema=schema))


def _with_cache_ttl(body: MessagesBody) -> ArmatureOptions | None:
    """`cache_control` says how long a prompt is worth keeping: the longest time counts, for all of it."""
    ttls_s = [_ttl_s(control) for control in _cache_controls(body)]
    options = body.armature
    if not ttls_s or (options is not None and options.hints is not None):
        return options
    hints = HintOptions(cache_ttl_s=max(ttls_s))
    return ArmatureOptions(
        include_info=options is not None and options.include_info,
        session_id=options.session_id if options else None,
        hints=hints,
    )


def _cache_controls(body: MessagesBody) -> Iterator[CacheControl]:
    marked: list[Block | Tool] = [*(body.tools or ())]
    for content in (body.system, *(message.content for message in body.messages)):
        if isinstance(content, list):
            marked.extend(content)
    for control in (body.cache_control, *(one.cache_control for one in marked)):
        if control is not None:
            yield control


def _ttl_s(control: CacheControl) -> float:
    ttl_s = _CACHE_TTL_S.get(control.ttl or "5m")
    if ttl_s is None:
        raise invalid("cache_control.ttl", f"must be one of {', '.join(_CACHE_TTL_S)}")
    return ttl_s
