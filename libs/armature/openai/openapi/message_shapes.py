"""What Anthropic's Messages API answers: messages, their blocks, the events of a stream, and errors."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from armature.openai.openapi.shapes import ServingInfo, Shape

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessagesErrorDetails(Shape):
    type: str
    message: str


class MessagesError(Shape):
    """What went wrong, as Anthropic's clients expect it."""

    type: Literal["error"]
    error: MessagesErrorDetails


class TextBlock(Shape, tag="text", tag_field="type"):
    text: str


class ThinkingBlock(Shape, tag="thinking", tag_field="type"):
    thinking: str
    signature: str


class ToolUseBlock(Shape, tag="tool_use", tag_field="type"):
    id: str
    name: str
    input: dict[str, Any]


AnswerBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageOutputDetails(Shape):
    thinking_tokens: int


class MessageUsage(Shape):
    input_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens: int
    output_tokens_details: MessageOutputDetails


class ContextManagement(Shape):
    applied_edits: list[None]
    """None ever is."""


class AnswerMessage(Shape):
    """The model's message."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    context_management: ContextManagement | UnsetType = UNSET
    armature: ServingInfo | UnsetType = UNSET


class TokenCount(Shape):
    input_tokens: int


class TextDelta(Shape, tag="text_delta", tag_field="type"):
    text: str


class ThinkingDelta(Shape, tag="thinking_delta", tag_field="type"):
    thinking: str


class InputJsonDelta(Shape, tag="input_json_delta", tag_field="type"):
    partial_json: str


class EndOfMessage(Shape):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageStart(Shape, tag="message_start", tag_field="type"):
    message: AnswerMessage


class Ping(Shape, tag="ping", tag_field="type"):
    pass


class ContentBlockStart(Shape, tag="content_block_start", tag_field="type"):
    index: int
    content_block: AnswerBlock


class ContentBlockDelta(Shape, tag="content_block_delta", tag_field="type"):
    index: int
    delta: TextDelta | ThinkingDelta | InputJsonDelta


class ContentBlockStop(Shape, tag="content_block_stop", tag_field="type"):
    index: int


class MessageDelta(Shape, tag="message_delta", tag_field="type"):
    delta: EndOfMessage
    usage: MessageUsage
    context_management: ContextManagement | UnsetType = UNSET
    armature: ServingInfo | UnsetType = UNSET


class MessageStop(Shape, tag="message_stop", tag_field="type"):
    pass


class StreamError(Shape, tag="error", tag_field="type"):
    error: MessagesErrorDetails


MessageEvent = (
    MessageStart
    | Ping
    | ContentBlockStart
    | ContentBlockDelta
    | ContentBlockStop
    | MessageDelta
    | MessageStop
    | StreamError
)
