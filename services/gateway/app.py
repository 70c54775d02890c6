"""Composes a gateway."""

import asyncio

from armature.openai.serving.core import ServingCore
from armature.openai.serving.http_server import HttpServer
from armature.openai.serving.request_log import open_request_log
from armature.openai.serving.response_store import ResponseStore
from armature.openai.serving.rest import make_rest_app
from armature.openai.tenancy.key_file import KeyFile
from armature.openai.tenancy.quotas import Quotas
from armature.runtime import service
from armature.runtime.addresses import join_host_port
from armature.runtime.redis_client import RedisClient
from armature.runtime.runtime import Runtime
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
    if settings.keys is not None:
        keys = KeyFile(settings.keys)
        core.doorkeeper.table = keys.read()
        runtime.tasks.create_task(keys.follow(core.doorkeeper), name="API keys")
    redis = RedisClient(settings.redis, timeout_s=settings.redis_timeout_s) if settings.redis else None
    core.quotas = Quotas(runtime.member_id, f"armature:{settings.namespace}:quota:", redis)
    runtime.tasks.create_task(core.quotas.run(), name="quotas")
    if settings.request_log is not None:
        requests = open_request_log(settings.request_log, settings.request_log_max_bytes)
        core.on_end.append(requests.ended)
        runtime.tasks.create_task(requests.run(), name="request log")
    await runtime.view("decode-worker", "prefill-worker", "router", on_change=core.member_changed)
    runtime.server.guard(core.doorkeeper.check_call)
    runtime.server.add(add_InferenceServicer_to_server, InferenceServicer(core), "armature.v1.Inference")
    responses = ResponseStore(redis, settings.namespace, settings.store)
    rest = make_rest_app(core, runtime.tasks, responses)
    http = HttpServer(rest, settings.http_host, settings.http_port, certificate=settings.certificate)
    serving = runtime.tasks.create_task(http.run(), name="http")
    await http.started()
    try:
        announce = {"http": join_host_port(settings.http_host, http.port)}
        await runtime.serve(drain=core.drain, announce=announce)
    finally:
        http.stop()
        _, late = await asyncio.wait([serving], timeout=CLOSE_TIMEOUT_S)
        if late:
            http.stop(now=True)
            await serving
        if redis is not None:
            await redis.close()


def main() -> int:
    return service.main("gateway", GatewaySettings, app)
