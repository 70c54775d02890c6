"""Errors as Anthropic clients expect them: `{"type": "error", "error": {"type", "message"}}` under an HTTP status."""

import msgspec

from armature.openai.errors import ApiError

OVERLOADED = 529
"""The status for servers that have too much to do; 429 is for clients that ask too much."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


class MessagesError(ApiError):
    """An error in this shape."""

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")

    def to_json(self) -> bytes:
        return msgspec.json.encode({"type": "error", "error": {"type": self.type, "message": self.message}})


def shaped(error: ApiError) -> MessagesError:
    """The same error in this shape."""
    is_overloaded = error.status == 429 and error.code == "overloaded"
    return MessagesError(
        OVERLOADED if is_overloaded else error.status,
        error.message,
        param=error.param,
        code=error.code,
        retry_after_s=error.retry_after_s,
    )


def in_words_of(path: str, error: ApiError) -> ApiError:
    """The error in the shape of the API that a path belongs to."""
    return shaped(error) if path.startswith("/v1/messages") else error


def error_event(error: ApiError) -> bytes:
    """What ends a stream that has begun and can't go on."""
    return b"event: error\ndata: " + shaped(error).to_json() + b"\n\n"
