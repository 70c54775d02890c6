"""Finds out who is calling, before anything else is done for them: around all of REST, before every gRPC method.

What is not named here as open to everybody takes a key. So a route that is added is guarded from the start.
"""

import datetime
import hmac
from collections.abc import Awaitable, Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from armature.openai.anthropic.errors import in_words_of
from armature.openai.errors import ApiError, blamed
from armature.openai.tenancy.caller import ANYBODY, Caller, found_caller, set_caller
from armature.openai.tenancy.keys import KeyTable, digest_of
from armature.openai.tenancy.nearness import is_local

OPEN_PATHS = frozenset({"/live", "/ready", "/health", "/version", "/metrics", "/openapi.json", "/docs", "/console"})
OPEN_PREFIX = "/console/"
ADMIN_PATH = "/admin/"
LOOKING_PATHS = ("/admin/cell", "/admin/decisions")
"""Under which nothing can be changed."""
OPEN_METHODS = (
    "/grpc.health.v1.Health/",
    "/grpc.reflection.",
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)
_CHALLENGE = (b"www-authenticate", b"Bearer")


class Doorkeeper:
    """Knows the keys; `table` may be replaced at any time. None: everybody may come in, as one tenant."""

    def __init__(self, table: KeyTable | None = None) -> None:
        self.table = table
        self.admin_digest = ""
        """Of the key that opens `/admin/`; empty: nothing does."""

    def identify(self, headers: "Iterable[tuple[bytes | str, bytes | str]]") -> Caller:
        """Who sends these headers, or this gRPC metadata.

        Raises:
            ApiError: 401 or 403.
        """
        if self.table is None:
            return ANYBODY
        key = presented_key(headers)
        if not key:
            message = "An API key is needed: send the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
            raise ApiError(401, message, code="missing_api_key")
        return self.table.find(key, datetime.datetime.now(datetime.UTC))

    def check_admin(self, headers: "Iterable[tuple[bytes | str, bytes | str]]") -> None:
        """Let in who has the admin key.

        Raises:
            ApiError: 401 or 403.
        """
        if not self.admin_digest:
            message = "Nobody administers this gateway: start it with --admin-key, or ARMATURE_ADMIN_KEY set"
            raise ApiError(403, message, code="no_admin_key")
        key = presented_key(headers)
        if not key:
            raise ApiError(401, "The admin key is needed: send 'Authorization: Bearer KEY'", code="missing_api_key")
        if not hmac.compare_digest(digest_of(key), self.admin_digest):
            raise ApiError(403, "This key does not administer the gateway", code="not_admin")

    def check_call(self, method: str, metadata: "Iterable[tuple[str, str | bytes]]") -> None:
        """Let a gRPC call in.

        Raises:
            UnauthenticatedError, ForbiddenError: it has no key, or its key is not good for this.
        """
        if not method.startswith(OPEN_METHODS):
            try:
                set_caller(self.identify(metadata))
            except ApiError as error:
                raise blamed(error) from error

    def caller(self) -> Caller:
        """For whom the current task works.

        Raises:
            LookupError: it passed no door, and callers are told apart.
        """
        caller = found_caller()
        if caller is None:
            if self.table is not None:
                raise LookupError("a request is being served whose caller is not known")
            return ANYBODY
        return caller

    def guard(self, app: ASGIApp) -> ASGIApp:
        """`app`, for those who may come in. No coroutine, like all layers around a stream: each token would pass it."""

        def guarded(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
            if scope["type"] == "http" and not is_open(scope["path"]):
                try:
                    if scope["path"].startswith(ADMIN_PATH):
                        if not self._may_look(scope):
                            self.check_admin(scope["headers"])
                        caller = ANYBODY
                    else:
                        caller = self.identify(scope["headers"])
                except ApiError as error:
                    return _refuse(scope, send, error)
                set_caller(caller)
            return app(scope, receive, send)

        return guarded

    def _may_look(self, scope: Scope) -> bool:
        """Whether nobody has set any key here, and who wants to look sits at this machine."""
        is_kept = self.table is not None or bool(self.admin_digest)
        return not is_kept and scope["path"].startswith(LOOKING_PATHS) and is_local(scope)


def is_open(path: str) -> bool:
    """Whether everybody may come in there."""
    return path in OPEN_PATHS or path.startswith(OPEN_PREFIX)


def presented_key(headers: "Iterable[tuple[bytes | str, bytes | str]]") -> str:
    """The key in these headers, empty if there is none: OpenAI's way, or else Anthropic's."""
    other = ""
    for name, value in headers:
        if name in (b"authorization", "authorization"):
            scheme, _, key = _text(value).partition(" ")
            if scheme.lower() == "bearer" and key.strip():
                return key.strip()
        elif name in (b"x-api-key", "x-api-key"):
            other = _text(value).strip()
    return other


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("latin-1")


async def _refuse(scope: Scope, send: Send, error: ApiError) -> None:
    body = in_words_of(scope["path"], error).to_json()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 401:
        headers.append(_CHALLENGE)
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
