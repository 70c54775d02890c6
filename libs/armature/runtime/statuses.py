"""The one table from errors to what a client sees, over gRPC and over HTTP."""

from dataclasses import dataclass

import grpc

from armature.runtime.errors import (
    CallerError,
    ForbiddenError,
    NotFoundError,
    OverloadedError,
    PeerError,
    UnauthenticatedError,
    UnavailableError,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What to tell a client about a failure. `is_ours`: a bug of this process, to be logged with its traceback."""

    code: grpc.StatusCode
    http_status: int
    message: str
    retry_after_s: float = 0.0
    is_ours: bool = False


# The first match counts, so a subclass stands before its base.
_TABLE: tuple[tuple[type[Exception], grpc.StatusCode, int], ...] = (
    (OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED, 503),
    (UnavailableError, grpc.StatusCode.UNAVAILABLE, 503),
    (UnauthenticatedError, grpc.StatusCode.UNAUTHENTICATED, 401),
    (ForbiddenError, grpc.StatusCode.PERMISSION_DENIED, 403),
    (NotFoundError, grpc.StatusCode.NOT_FOUND, 404),
    (CallerError, grpc.StatusCode.INVALID_ARGUMENT, 400),
    (PeerError, grpc.StatusCode.INTERNAL, 502),
    (TimeoutError, grpc.StatusCode.DEADLINE_EXCEEDED, 504),
)

# A nested call's status is passed on where it says the same about ours; everything else is a failure between us and
# the peer, of which the caller is innocent.
_PASSED_ON: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


def answer_to(error: Exception) -> Answer:
    """What a client is told about `error`; the text of an unexpected one stays inside."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # of the only task that has failed
    if isinstance(error, grpc.aio.AioRpcError):
        code = error.code()
        passed_on = code if code in _PASSED_ON else grpc.StatusCode.INTERNAL
        return Answer(passed_on, _PASSED_ON.get(code, 502), f"a peer answered {code.name}: {error.details()}")
    for kind, code, http_status in _TABLE:
        if isinstance(error, kind):
            retry_after_s = error.retry_after_s if isinstance(error, UnavailableError) else 0.0
            return Answer(code, http_status, str(error) or "the deadline has passed", retry_after_s)
    return Answer(grpc.StatusCode.INTERNAL, 500, f"internal error ({type(error).__name__})", is_ours=True)
