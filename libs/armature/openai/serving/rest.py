"""The REST surface: routes, and everything that is not an answer told in OpenAI's error shape."""

import importlib.metadata
from collections.abc import Awaitable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from armature.openai.answers import model_entry
from armature.openai.anthropic.errors import in_words_of
from armature.openai.errors import ApiError, internal
from armature.openai.openapi.routes import Description
from armature.openai.serving.core import ServingCore
from armature.openai.serving.endpoints.generate import GenerateEndpoint
from armature.openai.serving.endpoints.messages import CountTokensEndpoint, MessagesEndpoint
from armature.openai.serving.endpoints.responses import ResponsesEndpoint
from armature.openai.serving.endpoints.texts import DetokenizeEndpoint, EmbeddingsEndpoint, TokenizeEndpoint
from armature.openai.serving.http.json_response import JsonResponse
from armature.openai.serving.responses.background import Background
from armature.openai.serving.responses.store import ResponseStore
from armature.openai.serving.responses.tapes import Tapes
from armature.openai.serving.responses.views import ResponseViews


def make_rest_app(core: ServingCore, responses: ResponseStore, more: Sequence[Route] = ()) -> ASGIApp:
    """The ASGI application; `more` are routes to add."""
    most = responses.options.max_background_responses
    background = Background(core.tasks, responses.redis, responses.background_prefix, most)
    tapes = Tapes(core.tasks, responses.redis, responses.background_prefix, background)
    core.tasks.create_task(background.run(), name="background responses")
    endpoints = (
        GenerateEndpoint(core, "chat"),
        GenerateEndpoint(core, "completion"),
        ResponsesEndpoint(core, responses, background, tapes),
        MessagesEndpoint(core),
        CountTokensEndpoint(core),
        EmbeddingsEndpoint(core),
        TokenizeEndpoint(core),
        DetokenizeEndpoint(core),
    )
    posted = {endpoint.route: endpoint for endpoint in endpoints}
    views = _Views(core)
    routes = [
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in posted.items()),
        *ResponseViews(core, responses, background, tapes).routes(),
        *more,
        Route("/v1/models", views.models),
        Route("/v1/models/{model:path}", views.model),
        Route("/health", views.health),
        Route("/version", views.version),
        Route("/ready", views.ready),
        Route("/live", views.live),
        Route("/metrics", views.metrics),
    ]
    routes += Description(routes, core.doorkeeper).routes()
    others = Starlette(
        routes=routes,
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _internal_error},
    )

    def app(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """A token passes every layer that stands around its route, so these have none."""
        endpoint = posted.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        return (endpoint or others)(scope, receive, send)

    return core.doorkeeper.guard(app)


class _Views:
    def __init__(self, core: ServingCore) -> None:
        self._core = core

    async def models(self, request: Request) -> Response:
        served = self._core.catalog.served()
        entries = [model_entry(card, created_s) for card, created_s in served.values()]
        ids = [entry["id"] for entry in entries] or [None]
        pages = {"has_more": False, "first_id": ids[0], "last_id": ids[-1]}  # which Anthropic's clients look for
        return JsonResponse({"object": "list", "data": entries, **pages})

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        self._core.catalog.check_served(name)
        card, created_s = self._core.catalog.served()[name]
        return JsonResponse(model_entry(card, created_s))

    async def health(self, request: Request) -> Response:
        """What a person asks first; the status is `ready`'s."""
        state = {
            "status": "ok" if self._core.is_ready else "unavailable",
            "models": sorted(self._core.catalog.served()),
            "inflight_requests": self._core.inflight,
        }
        return JsonResponse(state, 200 if self._core.is_ready else 503)

    async def version(self, request: Request) -> Response:
        return JsonResponse({"version": importlib.metadata.version("armature")})

    async def ready(self, request: Request) -> Response:
        """Whether to send requests here: a gateway that serves no model, or is draining, is not ready."""
        return JsonResponse({"ready": self._core.is_ready}, 200 if self._core.is_ready else 503)

    async def live(self, request: Request) -> Response:
        return JsonResponse({"live": True})

    async def metrics(self, request: Request) -> Response:
        return Response(generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})


def _error(request: Request, error: ApiError, headers: dict[str, str] | None = None) -> Response:
    error = in_words_of(request.url.path, error)
    return Response(error.to_json(), error.status, headers=headers, media_type="application/json")


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    later = {"retry-after": str(max(1, round(error.retry_after_s)))} if error.retry_after_s > 0 else None
    return _error(request, error, later)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 404:
        there = f"/v1{path}"
        hint = f", but at {there}" if any(_path_of(route) == there for route in request.app.routes) else ""
        return _error(request, ApiError(404, f"There is nothing at {path}{hint}", code="unknown_url"))
    if error.status_code == 405:
        allowed = ", ".join(_methods(request))
        message = f"{request.method} is not possible at {path}, only {allowed}"
        return _error(request, ApiError(405, message, code="method_not_allowed"), {"allow": allowed})
    return _error(request, ApiError(error.status_code, str(error.detail)))


def _path_of(route: BaseRoute) -> str:
    return route.path if isinstance(route, Route) else ""


def _methods(request: Request) -> list[str]:
    """All that are possible at the request's path, which several routes may share."""
    routes = (route for route in request.app.routes if isinstance(route, Route))
    found = {
        method for route in routes if route.matches(request.scope)[0] != Match.NONE for method in route.methods or ()
    }
    return sorted(found)


async def _internal_error(request: Request, error: Exception) -> Response:
    return _error(request, internal())
