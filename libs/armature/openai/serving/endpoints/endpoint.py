"""What stands around every route that takes a body: admission, reading it, telling failures, counting, tracing."""

import asyncio
import logging
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

from starlette.types import Receive, Scope, Send

from armature.openai.answers import error_event
from armature.openai.anthropic.errors import in_words_of
from armature.openai.errors import ApiError, internal
from armature.openai.rules import Ask
from armature.openai.serving.core import ServingCore
from armature.openai.serving.http.exchange import (
    ClientLeftError,
    Exchange,
    check_headers,
    header,
    requested_timeout_s,
)
from armature.openai.serving.metrics import CANCELLATIONS, REQUEST_S, REQUESTS
from armature.runtime import telemetry

log = logging.getLogger(__name__)

CLIENT_LEFT = 499
DISCARDED_BODIES = 4
"""How much of a body that is too large is read, as a multiple of what is allowed, before the connection is closed."""


@dataclass(slots=True)
class Call:
    """One request to a route."""

    exchange: Exchange
    request_id: str
    started_s: float
    """As the event loop counts."""
    traceparent: str
    error_event: Callable[[ApiError], bytes] = error_event
    """What ends a stream that has begun and can't go on."""

    @property
    def session(self) -> str:
        """The conversation that the headers name; empty if they name none."""
        scope = self.exchange.scope
        return header(scope, b"x-armature-session-id") or header(scope, b"x-dynamo-session-id")

    def with_headers(self, ask: Ask) -> Ask:
        """`x-armature-info: true` asks for the same as the field in the body, for clients that can't add fields."""
        wanted = header(self.exchange.scope, b"x-armature-info").lower() in ("1", "true")
        return replace(ask, include_info=True) if wanted else ask


class Endpoint(ABC):
    """An ASGI application for the POST route at `route`."""

    request_id_header = b"x-request-id"
    """In which answers say what the request is called in logs."""

    def __init__(self, core: ServingCore, route: str) -> None:
        self.route = route
        self._core = core

    @abstractmethod
    async def answer(self, call: Call, data: bytes) -> int:
        """Answer the body in `data` and return the status that was sent. Runs while the request counts as served.

        Raises:
            ApiError: what to tell the client instead.
        """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = secrets.token_hex(12)
        exchange = Exchange(scope, receive, send, headers=((self.request_id_header, request_id.encode()),))
        started_s = asyncio.get_running_loop().time()
        status = CLIENT_LEFT
        try:
            with telemetry.span("gateway", traceparent=header(scope, b"traceparent"), route=self.route) as span:
                status = await self._serve(Call(exchange, request_id, started_s, telemetry.traceparent_of(span)))
                span.set_attribute("http.response.status_code", status)
        finally:
            REQUESTS.labels(self.route, str(status)).inc()
            REQUEST_S.observe(asyncio.get_running_loop().time() - started_s)
            if status == CLIENT_LEFT:
                CANCELLATIONS.inc()

    async def _serve(self, call: Call) -> int:
        """The status that the client got, whatever happened."""
        options = self._core.options
        try:
            with self._core.bodies.body() as body:
                timeout_s = requested_timeout_s(call.exchange.scope)
                self._core.check_open()
                check_headers(call.exchange.scope, options.max_body_bytes)
                data = await call.exchange.read_body(body, options.max_body_bytes, options.body_timeout_s)
                with self._core.admitted(timeout_s):
                    return await self.answer(call, data)
        except ApiError as error:
            return await self._fail(call, error)
        except ClientLeftError:
            return CLIENT_LEFT
        except Exception:
            log.exception("request %s failed", call.request_id)
            return await self._fail(call, internal())

    async def _fail(self, call: Call, error: ApiError) -> int:
        """Tell the client, by a status if none has been sent; that status."""
        exchange = call.exchange
        if error.status >= 500:
            log.warning("%s answers %d: %s", self.route, error.status, error.message)
        if exchange.has_begun:
            await exchange.send_events(call.error_event(error), is_last=True)
        else:
            if error.status == 413:
                options = self._core.options
                await exchange.discard_body(DISCARDED_BODIES * options.max_body_bytes, options.body_timeout_s)
            await exchange.send_error(in_words_of(self.route, error))
        return error.status
