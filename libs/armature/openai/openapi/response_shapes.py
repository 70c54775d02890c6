"""What the Responses API answers: response objects, their items, and the events of a stream."""

from typing import Any, Literal

from msgspec import UNSET, UnsetType

from armature.openai.openapi.shapes import ServingInfo, Shape, TokenLogprobs

Status = Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]


class OutputText(Shape, tag="output_text", tag_field="type"):
    text: str
    annotations: list[Any]
    logprobs: list[TokenLogprobs]


class ReasoningText(Shape, tag="reasoning_text", tag_field="type"):
    text: str


class OutputMessage(Shape, tag="message", tag_field="type"):
    id: str
    role: Literal["assistant"]
    content: list[OutputText]
    status: Status


class OutputReasoning(Shape, tag="reasoning", tag_field="type"):
    id: str
    summary: list[Any]
    content: list[ReasoningText]
    status: Status


class OutputFunctionCall(Shape, tag="function_call", tag_field="type"):
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


OutputItem = OutputMessage | OutputReasoning | OutputFunctionCall
OutputPart = OutputText | ReasoningText


class ResponseFailure(Shape):
    code: str
    message: str


class IncompleteDetails(Shape):
    reason: Literal["max_output_tokens"]


class ReasoningSettings(Shape):
    effort: str | None
    summary: None


class TextSettings(Shape):
    format: dict[str, Any]


class InputTokensDetails(Shape):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(Shape):
    reasoning_tokens: int


class ResponseUsage(Shape):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class Response(Shape):
    """A response, as it is made or complete; what was asked for is shown as it was understood."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    background: bool
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: ReasoningSettings
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float | None
    text: TextSettings
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    armature: ServingInfo | UnsetType = UNSET


class DeletedResponse(Shape):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(Shape):
    """A page of the items that a response was asked with."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class _Event(Shape, tag_field="type"):
    sequence_number: int


class _ResponseEvent(_Event):
    response: Response


class ResponseCreated(_ResponseEvent, tag="response.created"):
    pass


class ResponseInProgress(_ResponseEvent, tag="response.in_progress"):
    pass


class ResponseCompleted(_ResponseEvent, tag="response.completed"):
    pass


class ResponseIncomplete(_ResponseEvent, tag="response.incomplete"):
    pass


class ResponseFailed(_ResponseEvent, tag="response.failed"):
    pass


class OutputItemAdded(_Event, tag="response.output_item.added"):
    output_index: int
    item: OutputItem


class OutputItemDone(_Event, tag="response.output_item.done"):
    output_index: int
    item: OutputItem


class _ItemEvent(_Event):
    item_id: str
    output_index: int


class _PartEvent(_ItemEvent):
    content_index: int


class ContentPartAdded(_PartEvent, tag="response.content_part.added"):
    part: OutputPart


class ContentPartDone(_PartEvent, tag="response.content_part.done"):
    part: OutputPart


class OutputTextDelta(_PartEvent, tag="response.output_text.delta"):
    delta: str
    logprobs: list[TokenLogprobs]


class OutputTextDone(_PartEvent, tag="response.output_text.done"):
    text: str
    logprobs: list[TokenLogprobs]


class ReasoningTextDelta(_PartEvent, tag="response.reasoning_text.delta"):
    delta: str


class ReasoningTextDone(_PartEvent, tag="response.reasoning_text.done"):
    text: str


class CallArgumentsDelta(_ItemEvent, tag="response.function_call_arguments.delta"):
    delta: str


class CallArgumentsDone(_ItemEvent, tag="response.function_call_arguments.done"):
    name: str
    arguments: str


ResponseEvent = (
    ResponseCreated
    | ResponseInProgress
    | OutputItemAdded
    | ContentPartAdded
    | OutputTextDelta
    | OutputTextDone
    | ReasoningTextDelta
    | ReasoningTextDone
    | CallArgumentsDelta
    | CallArgumentsDone
    | ContentPartDone
    | OutputItemDone
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
)
