"""Makes the OpenAPI 3.1 document: schemas of the types that decode requests, narrowed by the rules that check them."""

import re
from collections.abc import Collection, Iterable
from functools import cache
from http import HTTPStatus
from importlib import metadata
from typing import Any

import msgspec

from armature.openai.anthropic.errors import OVERLOADED, in_words_of
from armature.openai.anthropic.errors import MessagesError as MessagesApiError
from armature.openai.errors import ApiError
from armature.openai.openapi.message_shapes import MessagesError
from armature.openai.openapi.narrowing import narrow
from armature.openai.openapi.operations import JSON, OPERATIONS, UNHEALTHY, Operation, Parameter
from armature.openai.openapi.shapes import Error
from armature.openai.tenancy.doorkeeper import ADMIN_PATH, is_open

REF = "#/components/schemas/{name}"
_DESCRIPTION = """The gateway of a cell: OpenAI's and Anthropic's APIs over the models that its workers serve.

Fields that are not listed are ignored, except inside `armature` and `nvext`, where they are refused. A connection that
brings no valid HTTP/1.1 is answered 400, headers above 64 KiB 431; both end it. What is sent to a path with another
method is answered 405. Streams are server-sent events, whose type stands in `x-itemSchema`."""

_KEYS = {
    "api_key": {"type": "http", "scheme": "bearer", "description": "A tenant's API key."},
    "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same in this header."},
    "admin_key": {"type": "http", "scheme": "bearer", "description": "The key of --admin-key."},
    "x_admin_key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same in this header."},
}
_RETRY_AFTER = {"retry-after": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}


def described(path: str) -> str:
    """A route's path as the document writes it."""
    return re.sub(r"{(\w+):\w+}", r"{\1}", path)


@cache
def document(routes: frozenset[tuple[str, str]], *, needs_key: bool) -> bytes:
    """The document of a gateway that has these routes, each a method and a path, as JSON.

    `needs_key` tells whether API keys are asked for.

    Raises:
        KeyError: a route is not described.
    """
    by_route = {(one.method, one.path): one for one in OPERATIONS}
    operations = [one for route, one in by_route.items() if route in routes]
    if unknown := routes - by_route.keys():
        raise KeyError(f"not described: {sorted(unknown)}")
    types = [kind for one in operations for kind in (one.body, one.answer, one.events) if kind is not None]
    schemas, components = msgspec.json.schema_components([*types, Error, MessagesError], ref_template=REF)
    by_type = dict(zip([*map(repr, types), repr(Error), repr(MessagesError)], schemas, strict=True))
    narrow(components)
    paths: dict[str, Any] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, by_type, needs_key=needs_key)
        if one.names:
            paths[one.path][one.method.lower()]["responses"][str(one.status)]["links"] = _links(one, operations)
    made = {
        "openapi": "3.1.0",
        "info": {"title": "Armature", "version": metadata.version("armature"), "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": _KEYS},
    }
    return msgspec.json.encode(made)


def _operation(one: Operation, by_type: dict[str, Any], *, needs_key: bool) -> dict[str, Any]:
    security = _security(one.path, needs_key=needs_key)
    refusals = {*one.refusals, *(() if is_open(one.path) else (401, 403))}
    described: dict[str, Any] = {
        "operationId": _id_of(one),
        "tags": [one.group],
        "summary": one.summary,
        "security": security,
        "responses": {
            **({str(one.status): _answer(one, by_type)} if one.answer is not None else {}),
            **{str(status): _refusal(one, status, by_type) for status in sorted(refusals)},
        },
    }
    if one.parameters:
        described["parameters"] = [_parameter(parameter) for parameter in one.parameters]
    if one.body is not None:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": by_type[repr(one.body)]}}}
    return described


def _id_of(one: Operation) -> str:
    return re.sub(r"\W+", "_", f"{one.method.lower()}{one.path}").strip("_")


def _links(one: Operation, operations: Iterable[Operation]) -> dict[str, Any]:
    """What can be done with that which was made."""
    takers = [other for other in operations if any(given.name == one.names for given in other.parameters)]
    return {
        _id_of(taker): {"operationId": _id_of(taker), "parameters": {one.names: "$response.body#/id"}}
        for taker in takers
    }


def _answer(one: Operation, by_type: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {one.media_type: {"schema": by_type[repr(one.answer)]}}
    if one.events is not None:
        content["text/event-stream"] = {"schema": {"type": "string"}, "x-itemSchema": by_type[repr(one.events)]}
    return {"description": HTTPStatus(one.status).phrase, "content": content}


def _refusal(one: Operation, status: int, by_type: dict[str, Any]) -> dict[str, Any]:
    if one.path in UNHEALTHY:
        schema = by_type[repr(one.answer)]
    else:
        words = in_words_of(one.path, ApiError(status, ""))
        schema = by_type[repr(MessagesError if isinstance(words, MessagesApiError) else Error)]
    refusal: dict[str, Any] = {"description": _phrase(status), "content": {JSON: {"schema": schema}}}
    if status in (429, 503, OVERLOADED) and one.path not in UNHEALTHY:
        refusal["headers"] = _RETRY_AFTER
    return refusal


def _phrase(status: int) -> str:
    return "Overloaded" if status == OVERLOADED else HTTPStatus(status).phrase


def _security(path: str, *, needs_key: bool) -> list[dict[str, Any]]:
    if is_open(path):
        return []
    if path.startswith(ADMIN_PATH):
        return [{"admin_key": []}, {"x_admin_key": []}]
    keys: list[dict[str, Any]] = [{"api_key": []}, {"x_api_key": []}]
    return keys if needs_key else [{}, *keys]


def _parameter(parameter: Parameter) -> dict[str, Any]:
    described: dict[str, Any] = {"name": parameter.name, "in": parameter.place, "schema": parameter.schema}
    if parameter.about:
        described["description"] = parameter.about
    if parameter.place == "path":
        described["required"] = True
    return described


def route_names(routes: Iterable[tuple[str, Collection[str]]]) -> frozenset[tuple[str, str]]:
    """Method and path of routes, whose paths may name converters; HEAD goes with GET."""
    return frozenset((method, described(path)) for path, methods in routes for method in methods if method != "HEAD")
