"""`/console`, the page, and what it asks: `/admin/cell` and `/admin/decisions`, for whoever has the admin key."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from hashlib import blake2b
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from armature.console import decisions
from armature.console.feed import CrowdedError, Feed
from armature.console.shapes import MAX_CANDIDATES, Decisions
from armature.openai.errors import ApiError, invalid, overloaded
from armature.openai.serving.http.exchange import Exchange, header
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import NotFoundError
from armature.v1.common_pb2 import Member

PAGE = Path(__file__).parent / "page"
STREAM_S = 3600.0
"""How long one stream lasts; who still watches opens the next."""
FIRST_S = 5.0
"""How long the first picture may take."""
EVENT_STREAM = "text/event-stream"

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    # Everything comes from here and goes nowhere else; nobody may frame it.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


class Console:
    """The endpoints. `routers` are those that are there now."""

    def __init__(self, feed: Feed, routers: Callable[[], Sequence[Member]], channels: ChannelPool) -> None:
        self.feed = feed
        self._routers = routers
        self._channels = channels

    def routes(self) -> list[Route]:
        return [
            Route("/console", self._page, methods=["GET"]),
            Route("/console/{file}", self._page, methods=["GET"]),
            Route("/admin/cell", CellEndpoint(self.feed), methods=["GET"]),
            Route("/admin/decisions", self._latest, methods=["GET"]),
            Route("/admin/decisions/{request_id}", self._on_request, methods=["GET"]),
        ]

    async def _page(self, request: Request) -> Response:
        name = request.path_params.get("file", "index.html")
        path = PAGE / name
        if path.parent != PAGE or path.suffix not in _TYPES or not path.is_file():
            raise ApiError(404, f"The console has no file '{name[:80]}'", code="unknown_url")
        body = path.read_bytes()
        tag = f'"{blake2b(body, digest_size=8).hexdigest()}"'
        headers = {**_HEADERS, "etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type=_TYPES[path.suffix])

    async def _latest(self, request: Request) -> Response:
        limit = _number(request, "limit", default=20, most=100)
        return _json(await decisions.latest(self._channels, self._routers(), limit))

    async def _on_request(self, request: Request) -> Response:
        count = _number(request, "max_candidates", default=12, most=MAX_CANDIDATES)
        try:
            told = await decisions.on_request(self._channels, self._routers(), request.path_params["request_id"], count)
        except NotFoundError as error:
            raise ApiError(404, str(error), code="no_decision") from None
        return _json(told)


class CellEndpoint:
    """The cell as JSON or, for who accepts no less than events, as it goes on."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, headers=((b"cache-control", b"no-store"),))
        try:
            if EVENT_STREAM in header(scope, b"accept"):
                await self._stream(exchange)
            else:
                async with aclosing(self._feed.watch()) as pictures, asyncio.timeout(FIRST_S):
                    first = await anext(pictures, None)
                if first is None:
                    raise ApiError(503, "The cell can't be shown now; try again", code="no_picture", retry_after_s=1.0)
                await exchange.send_json(200, first)
        except CrowdedError:
            raise overloaded("As many watch this cell as may; try again later", 5.0) from None
        except TimeoutError:
            raise overloaded("The cell could not be looked at in time; try again", 1.0) from None

    async def _stream(self, exchange: Exchange) -> None:
        async with exchange, aclosing(self._feed.watch()) as pictures:
            try:
                async with asyncio.timeout(STREAM_S):
                    async for picture in pictures:
                        await exchange.send_events(b"data: " + picture + b"\n\n")
            except TimeoutError:
                pass
            await exchange.send_events(b"", is_last=True)


def _number(request: Request, name: str, *, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= most and len(text) <= 6):
        raise invalid(name, f"must be a number from 1 to {most}")
    return int(text)


def _json(told: Decisions) -> Response:
    return Response(msgspec.json.encode(told), media_type="application/json", headers={"cache-control": "no-store"})
