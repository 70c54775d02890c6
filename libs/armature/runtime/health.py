"""The standard health service: one state for the whole process, told for every service that it serves.

Written as async generators, which interceptors can wrap; the one that comes with gRPC is not.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_Status = health_pb2.HealthCheckResponse.ServingStatus


class Health(health_pb2_grpc.HealthServicer):
    """Answers NOT_SERVING until `set_serving`; the empty service name stands for the process."""

    def __init__(self) -> None:
        self._services = {""}
        self._is_serving = False
        self._changed = asyncio.Event()

    def add(self, service_name: str) -> None:
        """Make a service known."""
        self._services.add(service_name)

    def set_serving(self, is_serving: bool) -> None:
        """Change the state and tell all watchers."""
        self._is_serving = is_serving
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return self._response(request.service)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        del context
        while True:
            changed = self._changed
            yield self._response(request.service)
            await changed.wait()

    def _response(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._services:
            return health_pb2.HealthCheckResponse(status=_Status.SERVICE_UNKNOWN)
        return health_pb2.HealthCheckResponse(status=_Status.SERVING if self._is_serving else _Status.NOT_SERVING)
