"""Every route of the HTTP surface: what it takes, what it answers, and with which statuses it refuses."""

from dataclasses import dataclass, field
from typing import Any

from armature.console.shapes import MAX_CANDIDATES, CellChange, CellNow, Decisions
from armature.openai.anthropic.errors import OVERLOADED
from armature.openai.anthropic.schema import CountBody, MessagesBody
from armature.openai.openapi import message_shapes, response_shapes, shapes
from armature.openai.responses.schema import ResponseBody
from armature.openai.schema import ChatBody, CompletionBody
from armature.openai.tenancy.admin import NewKey
from armature.openai.tenancy.keys import NAME_PATTERN, TenantEntry
from armature.openai.texts import DetokenizeBody, EmbeddingBody, TokenizeBody

JSON, HTML, PLAIN = "application/json", "text/html", "text/plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One in the path, the query or the headers."""

    name: str
    place: str
    schema: dict[str, Any] = field(default_factory=lambda: {"type": "string"})
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    group: str
    summary: str
    answer: Any = str
    """The type of a whole answer."""
    media_type: str = JSON
    status: int = 200
    events: Any = None
    """The type of a streamed answer's events, where it can be streamed."""
    body: Any = None
    """The type of the request's body, where it has one."""
    parameters: tuple[Parameter, ...] = ()
    names: str = ""
    """The parameter of other operations that the answer's `id` is for."""
    refusals: tuple[int, ...] = ()
    """Statuses of errors; 401 and 403 go without saying where a key is needed."""


_TIME = Parameter(
    name="x-request-timeout",
    place="header",
    schema={"type": "string", "pattern": r"^\s*([0-9]{1,9}(\.[0-9]{1,9})?\s*(s|ms)?\s*)?$"},
    about="How long the client waits for its answer: `30`, `30s`, `1500ms`.",
)
_SESSION = Parameter(
    name="x-armature-session-id",
    place="header",
    about="Equal for requests of one conversation, up to 256 bytes; what the body says goes first.",
)
_INFO = Parameter(name="x-armature-info", place="header", about="`true`: the answer tells how it was served.")
_TRACE = Parameter(name="traceparent", place="header", about="The W3C trace context of the caller.")
_ASKING = (_TIME, _INFO, _SESSION, _TRACE)
_SERVING = (400, 404, 408, 413, 415, 429, 500, 503, 504)
_MESSAGES = (*_SERVING, OVERLOADED)
_RESPONSE_ID = Parameter(name="response_id", place="path")
_TENANT = Parameter(name="name", place="path", schema={"type": "string", "pattern": NAME_PATTERN})
_KEY_ID = Parameter(name="key_id", place="path")
_DAY = {"type": "string", "format": "date"}

_MODEL_ROUTES = (
    Operation(
        method="POST", path="/v1/chat/completions", group="OpenAI", summary="Answer a chat",
        body=ChatBody, answer=shapes.ChatCompletion, events=shapes.ChatCompletionChunk,
        parameters=_ASKING, refusals=_SERVING,
    ),
    Operation(
        method="POST", path="/v1/completions", group="OpenAI", summary="Continue a text",
        body=CompletionBody, answer=shapes.Completion, events=shapes.CompletionChunk,
        parameters=_ASKING, refusals=_SERVING,
    ),
    Operation(
        method="POST", path="/v1/responses", group="OpenAI", summary="Make a response, which the next can go on from",
        body=ResponseBody, answer=response_shapes.Response, events=response_shapes.ResponseEvent,
        names="response_id", parameters=_ASKING, refusals=_SERVING,
    ),
    Operation(
        method="GET", path="/v1/responses/{response_id}", group="OpenAI", summary="Show a response that was kept",
        answer=response_shapes.Response, events=response_shapes.ResponseEvent, refusals=(400, 404),
        parameters=(
            _RESPONSE_ID,
            Parameter(
                name="stream", place="query", schema={"type": "boolean"},
                about="The events of a response that was begun with `background` and `stream`.",
            ),
            Parameter(
                name="starting_after", place="query", schema={"type": "integer", "minimum": 0},
                about="The `sequence_number` of the event after which to begin.",
            ),
        ),
    ),
    Operation(
        method="DELETE", path="/v1/responses/{response_id}", group="OpenAI", summary="Forget a response",
        answer=response_shapes.DeletedResponse, parameters=(_RESPONSE_ID,), refusals=(404,),
    ),
    Operation(
        method="GET", path="/v1/responses/{response_id}/input_items", group="OpenAI",
        summary="List what a response was asked with", answer=response_shapes.InputItems,
        parameters=(
            _RESPONSE_ID,
            Parameter(name="limit", place="query", schema={"type": "integer", "minimum": 1, "maximum": 100}),
            Parameter(name="order", place="query", schema={"enum": ["asc", "desc"]}, about="`desc` if left out."),
            Parameter(name="after", place="query", about="The id of the item that comes before the first."),
        ),
        refusals=(400, 404),
    ),
    Operation(
        method="POST", path="/v1/responses/{response_id}/cancel", group="OpenAI",
        summary="End a response that is being made in the background", answer=response_shapes.Response,
        parameters=(_RESPONSE_ID,), refusals=(400, 404),
    ),
    Operation(
        method="POST", path="/v1/messages", group="Anthropic", summary="Answer a conversation",
        body=MessagesBody, answer=message_shapes.AnswerMessage, events=message_shapes.MessageEvent,
        parameters=_ASKING, refusals=_MESSAGES,
    ),
    Operation(
        method="POST", path="/v1/messages/count_tokens", group="Anthropic", summary="Count the tokens of a prompt",
        body=CountBody, answer=message_shapes.TokenCount, parameters=(_TIME, _TRACE), refusals=_MESSAGES,
    ),
    Operation(
        method="POST", path="/v1/embeddings", group="OpenAI", summary="Embed texts",
        body=EmbeddingBody, answer=shapes.Embeddings, parameters=(_TIME, _TRACE), refusals=_SERVING,
    ),
    Operation(
        method="POST", path="/tokenize", group="Tokens", summary="From a text or chat to tokens",
        body=TokenizeBody, answer=shapes.TokenizedText, parameters=(_TIME, _TRACE), refusals=_SERVING,
    ),
    Operation(
        method="POST", path="/detokenize", group="Tokens", summary="From tokens to text",
        body=DetokenizeBody, answer=shapes.DetokenizedText, parameters=(_TIME, _TRACE), refusals=_SERVING,
    ),
    Operation(
        method="GET", path="/v1/models", group="OpenAI", summary="List the models that have workers",
        answer=shapes.Models,
    ),
    Operation(
        method="GET", path="/v1/models/{model}", group="OpenAI", summary="Show a model", answer=shapes.Model,
        parameters=(Parameter(name="model", place="path"),), refusals=(404, 503),
    ),
)  # fmt: skip

_ADMIN_ROUTES = (
    Operation(
        method="GET", path="/admin/tenants", group="Administration", summary="List tenants and their limits",
        answer=shapes.Tenants,
    ),
    Operation(
        method="PUT", path="/admin/tenants/{name}", group="Administration", summary="Set a tenant's limits",
        body=TenantEntry, answer=shapes.Tenant, parameters=(_TENANT,), refusals=(400, 409, 413, 503),
    ),
    Operation(
        method="DELETE", path="/admin/tenants/{name}", group="Administration",
        summary="Forget the limits of a tenant without keys", answer=shapes.DeletedTenant,
        parameters=(_TENANT,), refusals=(404, 409, 503),
    ),
    Operation(
        method="GET", path="/admin/keys", group="Administration", summary="List keys, by their ids",
        answer=shapes.Keys,
    ),
    Operation(
        method="POST", path="/admin/keys", group="Administration", summary="Make a key, which is shown once",
        body=NewKey, answer=shapes.CreatedKey, status=201, names="key_id", refusals=(400, 409, 413, 503),
    ),
    Operation(
        method="DELETE", path="/admin/keys/{key_id}", group="Administration", summary="Revoke a key",
        answer=shapes.DeletedKey, parameters=(_KEY_ID,), refusals=(404, 409, 503),
    ),
    Operation(
        method="GET", path="/admin/usage", group="Administration", summary="Use by tenant, model and day",
        answer=shapes.UsageReport,
        parameters=(
            Parameter(name="from", place="query", schema=_DAY, about="The first day, today if left out."),
            Parameter(name="to", place="query", schema=_DAY, about="The last day, today if left out."),
            Parameter(name="tenant", place="query", about="All tenants if left out."),
        ),
        refusals=(400,),
    ),
)  # fmt: skip

_CONSOLE_ROUTES = (
    Operation(
        method="GET", path="/admin/cell", group="Administration",
        summary="The cell as it is now; with `accept: text/event-stream`, every second", answer=CellNow,
        events=CellNow | CellChange, refusals=(429, 503),
    ),
    Operation(
        method="GET", path="/admin/decisions", group="Administration", summary="Where the latest requests went",
        answer=Decisions,
        parameters=(
            Parameter(name="limit", place="query", schema={"type": "integer", "minimum": 1, "maximum": 100}),
        ),
        refusals=(400,),
    ),
    Operation(
        method="GET", path="/admin/decisions/{request_id}", group="Administration",
        summary="Why a request went where it went, and where other policies would have sent it", answer=Decisions,
        parameters=(
            Parameter(name="request_id", place="path"),
            Parameter(
                name="max_candidates", place="query",
                schema={"type": "integer", "minimum": 1, "maximum": MAX_CANDIDATES}, about="The best ones.",
            ),
        ),
        refusals=(400, 404),
    ),
    Operation(method="GET", path="/console", group="Console", summary="A page that shows the cell", media_type=HTML),
    Operation(
        method="GET", path="/console/{file}", group="Console", summary="A part of that page", media_type="*/*",
        parameters=(Parameter(name="file", place="path"),), refusals=(404,),
    ),
)  # fmt: skip

_OWN_ROUTES = (
    Operation(
        method="GET", path="/health", group="Health", summary="How it is, for people", answer=shapes.Health,
        refusals=(503,),
    ),
    Operation(
        method="GET", path="/ready", group="Health", summary="Whether a request would be served now",
        answer=shapes.Readiness, refusals=(503,),
    ),
    Operation(method="GET", path="/live", group="Health", summary="Whether it is alive", answer=shapes.Liveness),
    Operation(method="GET", path="/version", group="Health", summary="Which release this is", answer=shapes.Version),
    Operation(method="GET", path="/metrics", group="Health", summary="Prometheus metrics", media_type=PLAIN),
    Operation(
        method="GET", path="/openapi.json", group="Health", summary="This document", answer=shapes.OpenApiDocument
    ),
    Operation(method="GET", path="/docs", group="Health", summary="This document, to be read", media_type=HTML),
)  # fmt: skip

OPERATIONS = (*_MODEL_ROUTES, *_ADMIN_ROUTES, *_CONSOLE_ROUTES, *_OWN_ROUTES)
UNHEALTHY = frozenset({"/health", "/ready"})
"""Their 503 has the shape of their 200."""
