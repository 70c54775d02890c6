"""The bodies of `/v1/messages` and `/v1/messages/count_tokens`, as msgspec structs.

Fields that stand here and would change the answer's meaning, but are not implemented, are refused by `asks`; others of
Anthropic's API are ignored. Of `context_management`, which agents send with everything, the answer tells that no edit
was applied.
"""

from typing import Any

import msgspec

from armature.openai.extensions import ArmatureOptions


class CacheControl(msgspec.Struct):
    type: str
    ttl: str | None = None


class Block(msgspec.Struct):
    """Any content block: `type` says which of the other fields it has."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: "str | list[Block] | None" = None
    is_error: bool | None = None
    thinking: str | None = None
    cache_control: CacheControl | None = None
    source: Any = None
    title: str | None = None


class InputMessage(msgspec.Struct):
    role: str
    content: str | list[Block]


class Tool(msgspec.Struct):
    name: str
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    type: str | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None


class ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    type: str
    budget_tokens: int | None = None
    display: str | None = None


class OutputFormat(msgspec.Struct):
    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct):
    effort: str | None = None
    format: OutputFormat | None = None


class CountBody(msgspec.Struct, kw_only=True):
    """What makes up a prompt."""

    model: str
    messages: list[InputMessage]
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    container: Any = None
    mcp_servers: Any = None
    context_management: Any = None


class MessagesBody(CountBody, kw_only=True):
    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    ignore_eos: bool | None = None
    armature: ArmatureOptions | None = None
