"""Composes a gateway."""

import asyncio
import sys

from starlette.types import ASGIApp

from armature.console.opening import open_console
from armature.openai.kserve.servicer import KServeServicer
from armature.openai.serving.core import ServingCore
from armature.openai.serving.http.server import HttpServer, bound_socket
from armature.openai.serving.request_log import open_request_log
from armature.openai.serving.responses.store import ResponseStore
from armature.openai.serving.rest import make_rest_app
from armature.openai.tenancy.opening import open_tenancy
from armature.runtime import allocator, service
from armature.runtime.addresses import join_host_port
from armature.runtime.redis_client import RedisClient
from armature.runtime.replicas import Replicas, run_replicas
from armature.runtime.runtime import Runtime
from armature.runtime.service import App
from armature.third_party.kserve.v2.inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from armature.v1.inference_pb2_grpc import add_InferenceServicer_to_server
from services.gateway.servicer import InferenceServicer
from services.gateway.settings import GatewaySettings

CLOSE_TIMEOUT_S = 2.0
"""For the last bytes of answers that are complete."""


async def app(runtime: Runtime[GatewaySettings]) -> None:
    settings = runtime.settings
    core = ServingCore(
        runtime.member_id,
        runtime.channels,
        runtime.tasks,
        secret=settings.cluster_secret.encode(),
        options=settings.serving,
        tokenizers=settings.tokenizers,
    )
    redis = RedisClient(settings.redis, timeout_s=settings.redis_timeout_s) if settings.redis else None
    admin = await open_tenancy(
        core, runtime, redis,
        keys=settings.keys, admin_key=settings.admin_key, limits_timeout_s=settings.limits_timeout_s,
    )  # fmt: skip
    if settings.request_log is not None:
        requests = open_request_log(settings.request_log, settings.request_log_max_bytes)
        core.on_end.append(requests.ended)
        runtime.tasks.create_task(requests.run(), name="request log")
    members = await runtime.view(on_change=core.member_changed)
    console = open_console(core, runtime, members)
    runtime.server.guard(core.doorkeeper.check_call)
    runtime.server.add(add_InferenceServicer_to_server, InferenceServicer(core), "armature.v1.Inference")
    runtime.server.add(
        add_GRPCInferenceServiceServicer_to_server, KServeServicer(core), "inference.GRPCInferenceService"
    )
    responses = ResponseStore(redis, settings.namespace, settings.store)
    rest = make_rest_app(core, responses, [*admin.routes(), *console.routes()])
    http = _http_server(rest, settings)
    serving = runtime.tasks.create_task(http.run(), name="http")
    await http.started()
    try:
        announce = {"http": join_host_port(settings.http_host, http.port)}
        await runtime.serve(drain=core.drain, announce=announce)
    finally:
        console.feed.close()
        http.stop()
        _, late = await asyncio.wait([serving], timeout=CLOSE_TIMEOUT_S)
        if late:
            http.stop(now=True)
            await serving
        if redis is not None:
            await admin.meter.flush()
            await redis.close()


def _http_server(rest: ASGIApp, settings: GatewaySettings) -> HttpServer:
    return HttpServer(
        rest,
        settings.http_host,
        settings.http_port,
        certificate=settings.certificate,
        write_timeout_s=settings.write_timeout_s,
        reuse_port=settings.http_reuse_port,
        seats=settings.seats,
    )


def main() -> int:
    return service.main("gateway", GatewaySettings, app, start=_start)


def _start(kind: str, settings: GatewaySettings, app: App[GatewaySettings]) -> int:
    if settings.processes > 1:
        return _run_several(settings)
    allocator.return_memory()
    return service.run(kind, settings, app)


def _run_several(settings: GatewaySettings) -> int:
    """Processes that share the HTTP port and nothing else."""
    # Bound and never listening, this socket gets no connection: it only keeps the port.
    with bound_socket(settings.http_host, settings.http_port, reuse_port=True) as holder:
        port: int = holder.getsockname()[1]

        def command(number: int) -> list[str]:
            own = ["--processes", "1", "--http-port", str(port), "--http-reuse-port"]
            own += ["--id", f"{settings.id}-{number}"] if settings.id else []
            if log := settings.request_log:
                own += ["--request-log", str(log.with_name(f"{log.stem}-{number}{log.suffix}"))]
            return [sys.executable, "-m", "services.gateway", *sys.argv[1:], *own]  # the last of equal flags counts

        def tell(lines: list[list[str]]) -> None:
            ids, grpc = ",".join(words[2] for words in lines), next(word for word in lines[0] if "grpc=" in word)
            print(f"READY gateway {ids} {grpc} http={join_host_port(settings.http_host, port)}", flush=True)  # noqa: T201

        drain_s = settings.drain_timeout_s
        return run_replicas(lambda: Replicas(command, settings.processes, drain_timeout_s=drain_s, on_ready=tell))
