"""Composes a decode worker."""

from armature.engines.host.compose import run_worker
from armature.runtime import service
from armature.runtime.runtime import Runtime
from armature.v1.common_pb2 import ROLE_AGGREGATED, ROLE_DECODE
from services.decode_worker.settings import DecodeWorkerSettings


async def app(runtime: Runtime[DecodeWorkerSettings]) -> None:
    await run_worker(runtime, ROLE_DECODE if runtime.settings.role == "decode" else ROLE_AGGREGATED)


def main() -> int:
    return service.main("decode-worker", DecodeWorkerSettings, app)
