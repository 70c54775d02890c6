"""What stands around every handler of a server: deadline, trace, error table, metrics.

Not an OpenTelemetry or gRPC add-on: those break streaming handlers written as coroutines and cost more than the call.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.trace import SpanKind
from prometheus_client import Counter, Histogram

from armature.runtime import telemetry
from armature.runtime.errors import CallerError
from armature.runtime.statuses import answer_to

log = logging.getLogger(__name__)

# In quotes: the class is generic for type checkers only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Guard: TypeAlias = Callable[[str, Any], None]

# What a unary call gets that came without a deadline, and the most that any gets: nobody waits longer for one answer.
DEFAULT_DEADLINE_S = 30.0
MAX_DEADLINE_S = 600.0

_handled = Counter("armature_rpc_handled_total", "Calls that have ended, by status code.", ["method", "code"])
_seconds = Histogram(
    "armature_rpc_duration_seconds",
    "Duration of unary calls.",
    ["method"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)


class Boundary(grpc.aio.ServerInterceptor):
    """Wraps each method's handler once, at its first call."""

    def __init__(self) -> None:
        self.guard: Guard = _let_in
        """Is given every call's method and metadata first, and raises for those that it does not let in."""
        self._active_unary_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._wrapped: dict[str, Handler] = {}

    async def wait_idle(self) -> None:
        """Return when no unary call is being handled; the caller bounds the wait."""
        await self._idle.wait()

    def _enter(self) -> None:
        self._active_unary_calls += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._active_unary_calls -= 1
        if not self._active_unary_calls:
            self._idle.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MaybeHandler:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None  # nobody serves this method: gRPC answers UNIMPLEMENTED
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        read = handler.request_deserializer
        coding = {
            "request_deserializer": read and refusing(read) if handler.request_streaming else _marking(read),
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            inner: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream
            make: Any = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(self.streaming(method, inner), **coding) if inspect.isasyncgenfunction(inner) else handler
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make(self._unary(method, inner), **coding) if inspect.iscoroutinefunction(inner) else handler

    def _unary(self, method: str, inner: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        observe_s = _seconds.labels(method).observe
        ok = _handled.labels(method, "OK")

        async def call(request: Any, context: Any) -> Any:
            self._enter()
            started_s = time.perf_counter()
            try:
                self.guard(method, context.invocation_metadata() or ())
                _check_read(request)
                with _server_span(method, context, always=True):
                    response = await _within_deadline(inner, request, context)
                ok.inc()
            except BaseException as error:
                await _fail(method, context, error)
            else:
                return response
            finally:
                self._leave()
                observe_s(time.perf_counter() - started_s)

        return call

    def streaming(
        self, method: str, inner: Callable[[Any, Any], AsyncIterator[Any]]
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        """The handler of a method that answers with a stream, wrapped."""

        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                self.guard(method, context.invocation_metadata() or ())
                _check_read(request)
                with _server_span(method, context, always=False):
                    responses: Any = inner(request, context)
                    async with aclosing(responses):
                        async for response in responses:
                            yield response
            except BaseException as error:
                await _fail(method, context, error)
            else:
                _handled.labels(method, "OK").inc()

        return call


class _Unreadable:
    """Stands for a request that is no message of its method's type: what a deserializer raises never gets here."""


_UNREADABLE = _Unreadable()
Read: TypeAlias = Callable[[bytes], Any]


def _marking(read: Read | None) -> Read | None:
    """For methods that take one message; a mark for what can't be read."""
    if read is None:
        return None

    def marking(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            return _UNREADABLE

    return marking


def refusing(read: Read) -> Read:
    """For methods that take a stream: whoever reads it gets the error."""

    def refusing(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError:
            raise _unreadable() from None

    return refusing


def _check_read(request: Any) -> None:
    if request is _UNREADABLE:
        raise _unreadable()


def _unreadable() -> CallerError:
    return CallerError("the request is no valid message of this method's type")


def _let_in(method: str, metadata: Any) -> None:
    """Everybody may call everything."""


async def _within_deadline(inner: Callable[[Any, Any], Awaitable[Any]], request: Any, context: Any) -> Any:
    left_s: float | None = context.time_remaining()
    if left_s is not None and left_s <= MAX_DEADLINE_S:
        return await inner(request, context)  # gRPC itself cancels the handler at the caller's deadline
    async with asyncio.timeout(DEFAULT_DEADLINE_S if left_s is None else MAX_DEADLINE_S):
        return await inner(request, context)


def _server_span(method: str, context: Any, *, always: bool) -> telemetry.SpanScope:
    """A span for a unary call; for a stream only if its caller sent a context, since shared streams live for ever."""
    if not telemetry.is_tracing():
        return telemetry.span(method)
    traceparent = next(
        (value for key, value in context.invocation_metadata() or () if key == telemetry.TRACEPARENT), ""
    )
    if not traceparent and not always:
        return telemetry.NO_SPAN
    return telemetry.span(method, traceparent=traceparent, kind=SpanKind.SERVER, **{"rpc.system": "grpc"})


async def _fail(method: str, context: Any, error: BaseException) -> NoReturn:
    # Cancelled, or closed by the caller's leaving, or reading on though the server has stopped.
    if not isinstance(error, Exception) or _is_server_stopped(error):
        _handled.labels(method, "CANCELLED").inc()
        raise error
    if isinstance(error, grpc.aio.AbortError):  # the handler has answered itself
        code = context.code()
        _handled.labels(method, code.name if isinstance(code, grpc.StatusCode) else str(code)).inc()
        _let_go(error)
        raise error
    answer = answer_to(error)
    _handled.labels(method, answer.code.name).inc()
    if answer.is_ours:
        log.error("%s failed", method, exc_info=error)
    retry_after = (("retry-after-s", f"{answer.retry_after_s:g}"),) if answer.retry_after_s else ()
    try:
        await context.abort(answer.code, answer.message, retry_after)
    except grpc.aio.AbortError as aborted:
        _let_go(aborted)
        raise
    raise AssertionError("abort returned")


def _let_go(aborted: grpc.aio.AbortError) -> None:
    """Have the refused call freed when it has ended.

    gRPC's call keeps this error, whose frames keep the call: such a circle, with the request and the core's buffers in
    it, would wait for the collector. gRPC itself takes the error within this step of the event loop.
    """

    def forget() -> None:
        aborted.__traceback__ = aborted.__context__ = None

    asyncio.get_running_loop().call_soon(forget)


def _is_server_stopped(error: Exception) -> bool:
    """What gRPC raises in a handler that reads or writes after the stop; the class has no public name."""
    known = (grpc.aio.AbortError, grpc.aio.InternalError, grpc.aio.UsageError)
    return isinstance(error, grpc.aio.BaseError) and not isinstance(error, known)
