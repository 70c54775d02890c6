"""What OpenAI's answers look like, and those of the gateway's own routes.

Answers are encoded from parts, not from these structs, so the tests hold the one against the other. What is not in a
struct is not in the answer.
"""

import datetime
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    """All there is; what may be missing is UNSET."""


class ErrorDetails(Shape):
    message: str
    """What is wrong and what to send instead, for people."""
    type: str
    param: str | None
    code: str | None


class Error(Shape):
    """What went wrong; `param` names the field, `code` is for programs."""

    error: ErrorDetails


class ServingInfo(Shape):
    """How the request was served."""

    decode_worker: str
    prefill_worker: str
    cached_tokens: int
    transferred_tokens: int
    transferred_bytes: int
    transport: str
    transfer_s: float
    prefill_cached_tokens: int
    ttft_s: float
    migrations: int
    reason: str
    onboarded: dict[str, int]
    """Cached tokens that were read from tiers below the device: `{"G2": 160}`."""
    onboard_s: float
    pull_worker: str
    onboard_asked_tokens: int
    onboard_found_tokens: int


class PromptTokensDetails(Shape):
    cached_tokens: int


class CompletionTokensDetails(Shape):
    reasoning_tokens: int


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


FinishReason = Literal["stop", "length", "tool_calls"]


class TokenLogprob(Shape):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Shape):
    content: list[TokenLogprobs]
    refusal: None


class CompletionLogprobs(Shape):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class FunctionArguments(Shape):
    name: str
    arguments: str


class ChatToolCall(Shape):
    id: str
    type: Literal["function"]
    function: FunctionArguments


class ChatMessage(Shape):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ChatToolCall] | UnsetType = UNSET


class ChatChoice(Shape):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class PromptLogprob(Shape):
    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By token id, for each token of a prompt; of the first nothing is known."""


class ChatCompletion(Shape):
    """The whole answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    armature: ServingInfo | UnsetType = UNSET


class FunctionDelta(Shape):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(Shape):
    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatDelta(Shape):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Shape):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Shape):
    """One event of a streamed chat. The last but one may have the usage and no choices; the last is `[DONE]`."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    armature: ServingInfo | UnsetType = UNSET


class CompletionChoice(Shape):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(Shape):
    """The whole answer to a completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    armature: ServingInfo | UnsetType = UNSET


class CompletionChunkChoice(Shape):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionChunk(Shape):
    """One event of a streamed completion, as for chats."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    armature: ServingInfo | UnsetType = UNSET


class EmbeddingEntry(Shape):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or 32-bit little-endian floats in base64."""


class EmbeddingUsage(Shape):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Shape):
    object: Literal["list"]
    data: list[EmbeddingEntry]
    model: str
    usage: EmbeddingUsage


class TokenizedText(Shape):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizedText(Shape):
    prompt: str


class ModelDetails(Shape):
    block_size: int
    vocab_size: int
    eos_token_ids: list[int]
    embedding_size: int


class Model(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int
    type: Literal["model"]
    display_name: str
    created_at: str
    max_input_tokens: int
    max_tokens: int
    armature: ModelDetails


class Models(Shape):
    object: Literal["list"]
    data: list[Model]
    has_more: Literal[False]
    first_id: str | None
    last_id: str | None


class Health(Shape):
    status: Literal["ok", "unavailable"]
    models: list[str]
    inflight_requests: int


class Version(Shape):
    version: str


class Readiness(Shape):
    ready: bool


class Liveness(Shape):
    live: Literal[True]


class Tenant(Shape):
    """Limits of 0 are none."""

    name: str
    cache_namespace: str
    requests_per_min: int
    tokens_per_min: int
    concurrent_requests: int
    is_disabled: bool
    keys: int | UnsetType = UNSET


class Tenants(Shape):
    data: list[Tenant]


class Key(Shape):
    id: str
    tenant: str
    name: str
    created_at: datetime.datetime | None
    expires_at: datetime.datetime | None


class CreatedKey(Key):
    key: str
    """Shown here and never again."""


class Keys(Shape):
    data: list[Key]


class DeletedTenant(Shape):
    name: str
    deleted: Literal[True]


class DeletedKey(Shape):
    id: str
    deleted: Literal[True]


class UsedTokens(Shape):
    day: str
    tenant: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class UsageReport(Shape):
    data: list[UsedTokens]
    is_complete: bool
    """Whether the use that other gateways have counted is in it."""


class OpenApiDocument(msgspec.Struct):
    """This document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]
