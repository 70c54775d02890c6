"""An OTLP collector for tests: a gRPC server that keeps the spans it is sent."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Received:
    service: str
    span: Span

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def trace_id(self) -> str:
        return self.span.trace_id.hex()

    @property
    def attributes(self) -> dict[str, str]:
        return {item.key: item.value.string_value for item in self.span.attributes}


@dataclass
class OtlpSink(trace_service_pb2_grpc.TraceServiceServicer):
    address: str = ""
    spans: list[Received] = field(default_factory=list[Received])
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        async with self._arrived:
            for group in request.resource_spans:
                named = {item.key: item.value.string_value for item in group.resource.attributes}
                spans = [span for scope in group.scope_spans for span in scope.spans]
                self.spans += [Received(named["service.name"], span) for span in spans]
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    async def wait_for(self, condition: Callable[[list[Received]], bool], timeout_s: float = 10.0) -> list[Received]:
        """All spans so far, once they satisfy `condition`."""
        async with asyncio.timeout(timeout_s), self._arrived:
            await self._arrived.wait_for(lambda: condition(self.spans))
            return list(self.spans)

    def named(self, name: str) -> Received:
        return next(received for received in self.spans if received.name == name)


@asynccontextmanager
async def otlp_sink() -> AsyncIterator[OtlpSink]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    sink = OtlpSink()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(sink, server)
    sink.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield sink
    finally:
        await server.stop(0)
