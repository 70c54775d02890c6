"""What those hear who have only a spare seat: when to come back, unless they ask how the gateway is doing."""

from starlette.types import ASGIApp, Receive, Scope, Send

from armature.openai.anthropic.errors import in_words_of
from armature.openai.errors import ApiError
from armature.openai.serving.http.exchange import Exchange
from armature.openai.serving.http.protocol import CLOSE
from armature.openai.serving.http.seats import Reason

SPARE_IDLE_TIMEOUT_S = 5
HEALTH_PATHS = frozenset({"/live", "/ready", "/health", "/metrics"})
MAX_DISCARDED_BYTES, DISCARD_TIMEOUT_S = 1 << 20, 1.0

_ERRORS = {
    "all_taken": ApiError(
        503, "This gateway has as many connections as it takes; try again", code="too_many_connections",
        retry_after_s=1.0,
    ),
    "address": ApiError(
        429, "This gateway has as many connections from your address as it takes; use those that are open",
        code="too_many_connections", retry_after_s=1.0,
    ),
}  # fmt: skip


def told_to_come_back(app: ASGIApp, reason: Reason) -> ASGIApp:
    """`app` for somebody who is there for this reason: each request is its connection's last."""

    async def spare(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in HEALTH_PATHS:
            await app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, headers=(CLOSE,))
        await exchange.discard_body(MAX_DISCARDED_BYTES, DISCARD_TIMEOUT_S)
        await exchange.send_error(in_words_of(scope["path"], _ERRORS[reason]))

    return spare
