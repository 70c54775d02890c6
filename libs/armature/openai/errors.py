"""Errors as OpenAI clients expect them: `{"error": {"message", "type", "param", "code"}}` under an HTTP status.

A message names the field and says what to send instead. Nothing else ever leaves the gateway: what is not an `ApiError`
is our own bug and becomes `internal()`.
"""

import msgspec

from armature.runtime.errors import (
    ArmatureError,
    CallerError,
    ForbiddenError,
    NotFoundError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
)

_ENCODER = msgspec.json.Encoder()

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    500: "server_error",
    502: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(ArmatureError):
    """What a client is told. `retry_after_s` above 0 becomes a Retry-After header."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, "invalid_request_error")

    def to_json(self) -> bytes:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return _ENCODER.encode({"error": error})


def invalid(param: str, fix: str, *, code: str = "invalid_value") -> ApiError:
    """The value of `param` can't be used; `fix` says what would be accepted."""
    return ApiError(400, f"Invalid '{param}': {fix}", param=param, code=code)


def unsupported(param: str, fix: str) -> ApiError:
    """The field would change the meaning of the answer and is not implemented."""
    return ApiError(400, f"Unsupported parameter '{param}': {fix}", param=param, code="unsupported_parameter")


def model_not_found(model: str, served: list[str]) -> ApiError:
    known = f"served here: {', '.join(served[:20])}" if served else "no model is served at the moment"
    return ApiError(404, f"The model '{model[:200]}' does not exist; {known}", param="model", code="model_not_found")


def context_exceeded(param: str, prompt_tokens: int, context_length: int, *, at_least: bool = False) -> ApiError:
    tokens = f"at least {prompt_tokens}" if at_least else f"{prompt_tokens}"
    return ApiError(
        400,
        f"The prompt has {tokens} tokens, but the model's context holds {context_length}, answer included; "
        f"shorten '{param}' to at most {context_length - 1} tokens",
        param=param,
        code="context_length_exceeded",
    )


def overloaded(message: str, retry_after_s: float = 1.0) -> ApiError:
    return ApiError(429, message, code="overloaded", retry_after_s=retry_after_s)


def no_workers(message: str, retry_after_s: float = 2.0) -> ApiError:
    return ApiError(503, message, code="no_workers", retry_after_s=retry_after_s)


def deadline_exceeded(message: str) -> ApiError:
    return ApiError(504, message, code="deadline_exceeded")


def internal() -> ApiError:
    return ApiError(500, "The gateway failed on this request; its log has the details", code="internal_error")


def blamed(error: ApiError) -> Exception:
    """The error by whom it blames, which a gRPC server turns into a status."""
    if error.status == 401:
        return UnauthenticatedError(error.message)
    if error.status == 403:
        return ForbiddenError(error.message)
    if error.status == 404:
        return NotFoundError(error.message)
    if error.status == 429:
        return OverloadedError(error.message, error.retry_after_s)
    if error.status == 503:
        return UnavailableError(error.message, error.retry_after_s)
    if error.status == 504:
        return TimeoutError(error.message)
    return CallerError(error.message) if error.status < 500 else ArmatureError(error.message)
