"""Asks a service whether it serves, as gRPC's health protocol tells it: a container's health check.

`python -m armature.runtime.probe` takes the settings that all services have. In a container that is configured by its
environment it needs no argument. Its exit status is 0 if the service serves.
"""

import sys
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from armature.runtime.addresses import EVERY_INTERFACE, join_host_port
from armature.runtime.errors import StartError
from armature.runtime.settings import CommonSettings, SettingsError, load

TIMEOUT_S = 3.0


def complaint(settings: CommonSettings) -> str:
    """What is wrong with the service that has these settings; empty if it serves."""
    if not settings.port:
        return "the service takes any free port: set --port for both"
    host = settings.advertise_host or ("127.0.0.1" if settings.host in EVERY_INTERFACE else settings.host)
    target = join_host_port(host, settings.port)
    try:
        with _channel(settings, target) as channel:
            stub: Any = HealthStub(channel)
            answer = stub.Check(HealthCheckRequest(), timeout=TIMEOUT_S)
    except StartError as error:
        return str(error)
    except grpc.RpcError as error:
        return f"{target} gives no answer: {error}"
    status = HealthCheckResponse.ServingStatus.Name(answer.status)
    return "" if status == "SERVING" else f"{target} says {status}"


def _channel(settings: CommonSettings, target: str) -> grpc.Channel:
    if settings.tls is None:
        return grpc.insecure_channel(target)
    return grpc.secure_channel(target, settings.tls.channel_credentials(), options=settings.tls.channel_options())


def main(argv: Sequence[str] | None = None) -> int | str:
    try:
        return complaint(load(CommonSettings, argv, prog="probe")) or 0
    except SettingsError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
