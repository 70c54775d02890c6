"""Traces: OpenTelemetry spans that follow a request through the cell, or nearly nothing when tracing is off.

The cell's streams are shared by many requests, so a trace context travels inside the frames (`traceparent` fields) and
spans name their parent explicitly. For a call of its own, `trace_metadata` carries it in gRPC metadata.
"""

import asyncio
import logging
import os
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from armature.runtime.logs import Seldom

TRACEPARENT = "traceparent"

# Spans beyond these are dropped, so a slow or absent collector costs memory for at most this many.
MAX_QUEUED_SPANS = 8192
EXPORT_TIMEOUT_S = 5
EXPORT_INTERVAL_S = 1
# How long the end of the process waits for the last spans to be sent.
FLUSH_TIMEOUT_S = 3.0
# While the collector is away, every export fails; one line a minute tells enough.
COMPLAINT_INTERVAL_S = 60.0
_EXPORTER_LOG = "opentelemetry.exporter.otlp.proto.grpc.exporter"


@dataclass(frozen=True, slots=True)
class _Tracing:
    provider: TracerProvider
    exporter: SpanExporter
    tracer: Tracer


_off: Tracer = trace.NoOpTracer()
_tracing: _Tracing | None = None


class SpanScope(Protocol):
    """What `span` returns: a context manager that makes the span current and ends it."""

    def __enter__(self) -> Span: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None: ...


def setup_tracing(service: str, endpoint: str, *, member_id: str = "", ratio: float = 1.0) -> None:
    """Send spans to the OTLP gRPC collector at `endpoint` (`host:port`, or a URL); empty leaves tracing off.

    `ratio` of the traces that begin here are recorded; those begun elsewhere follow their parent.
    """
    if not endpoint:
        return
    secure = endpoint.startswith("https://")
    target = endpoint if "://" in endpoint else f"http://{endpoint}"
    exporter = OTLPSpanExporter(endpoint=target, insecure=not secure, timeout=EXPORT_TIMEOUT_S)
    logging.getLogger(_EXPORTER_LOG).filters[:] = [Seldom(COMPLAINT_INTERVAL_S)]
    export_to(exporter, service, member_id=member_id, ratio=ratio)


def export_to(exporter: SpanExporter, service: str, *, member_id: str = "", ratio: float = 1.0) -> None:
    """Send spans to another exporter than OTLP's."""
    global _tracing
    shutdown_tracing()
    attributes = {"service.name": service, "service.instance.id": member_id, "process.pid": os.getpid()}
    provider = TracerProvider(
        resource=Resource.create(attributes), sampler=ParentBasedTraceIdRatio(ratio), shutdown_on_exit=False
    )
    processor = BatchSpanProcessor(
        exporter, max_queue_size=MAX_QUEUED_SPANS, schedule_delay_millis=EXPORT_INTERVAL_S * 1000
    )
    provider.add_span_processor(processor)
    _tracing = _Tracing(provider, exporter, provider.get_tracer("armature"))


def shutdown_tracing() -> None:
    """Send what is queued, for at most `FLUSH_TIMEOUT_S`, and turn tracing off. Blocking; call it off the loop."""
    global _tracing
    ending, _tracing = _tracing, None
    if ending is None:
        return
    # The SDK itself would wait half a minute for a collector that hangs.
    closing = threading.Thread(target=ending.provider.shutdown, daemon=True)
    closing.start()
    closing.join(FLUSH_TIMEOUT_S)
    if closing.is_alive():
        ending.exporter.shutdown()
        closing.join(FLUSH_TIMEOUT_S)


def is_tracing() -> bool:
    """Whether spans are recorded at all."""
    return _tracing is not None


def tracer() -> Tracer:
    """The process's tracer, for what `span` does not cover."""
    return _tracing.tracer if _tracing is not None else _off


def span(
    name: str, *, traceparent: str = "", kind: SpanKind = SpanKind.INTERNAL, **attributes: AttributeValue
) -> SpanScope:
    """A context manager that yields a span, current while it is open.

    The parent is `traceparent` if given, else the current span. An exception ends the span as an error, and so does
    cancellation, with the description `cancelled`. It may be held open in an async generator that another task closes.
    """
    if _tracing is None:
        return NO_SPAN
    return _Scope(start_span(name, traceparent=traceparent, kind=kind, **attributes))


def start_span(
    name: str, *, traceparent: str = "", kind: SpanKind = SpanKind.INTERNAL, **attributes: AttributeValue
) -> Span:
    """A span that is not made current; the caller owns it and must `end()` it."""
    if _tracing is None:
        return INVALID_SPAN
    parent = parse_traceparent(traceparent) if traceparent else None
    context = trace.set_span_in_context(NonRecordingSpan(parent), otel_context.Context()) if parent else None
    return _tracing.tracer.start_span(name, context=context, kind=kind, attributes=attributes)


class _Scope:
    """An open span. Not `trace.use_span`: that one detaches with a token of the context that opened it, which fails
    when an async generator is closed from elsewhere."""

    __slots__ = ("_outer", "_span")

    def __init__(self, opened: Span) -> None:
        self._span = opened
        self._outer = otel_context.get_current()

    def __enter__(self) -> Span:
        self._outer = otel_context.get_current()
        otel_context.attach(trace.set_span_in_context(self._span, self._outer))
        return self._span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        otel_context.attach(self._outer)
        if error is not None:
            _blame(self._span, error)
        self._span.end()


class _OffScope:
    __slots__ = ()

    def __enter__(self) -> Span:
        return INVALID_SPAN

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        pass


NO_SPAN: SpanScope = _OffScope()
"""What `span` returns when tracing is off."""


def _blame(failed: Span, error: BaseException) -> None:
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
        failed.set_status(Status(StatusCode.ERROR, "cancelled"))
    else:
        failed.record_exception(error)
        failed.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))


def current_traceparent() -> str:
    """The current span as a W3C `traceparent`; empty when there is none or tracing is off."""
    return traceparent_of(trace.get_current_span()) if _tracing is not None else ""


def traceparent_of(of: Span) -> str:
    """A span as a W3C `traceparent` (version 00); empty for the invalid span."""
    context = of.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """gRPC metadata that makes the callee's span a child of the current one: `stub.Call(..., metadata=...)`."""
    traceparent = current_traceparent()
    return ((TRACEPARENT, traceparent),) if traceparent else ()


def parse_traceparent(text: str) -> SpanContext | None:
    """The context that a W3C `traceparent` names; None if it is malformed, which starts a new trace."""
    parts = text.split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2] or parts[0] == "ff":
        return None
    try:
        trace_id, span_id, flags = (int(part, 16) for part in parts[1:4])
    except ValueError:
        return None
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
    return context if context.is_valid else None
