"""Composes a prefill worker."""

from armature.engines.host.compose import run_worker
from armature.runtime import service
from armature.runtime.runtime import Runtime
from armature.v1.common_pb2 import ROLE_PREFILL
from services.prefill_worker.settings import PrefillWorkerSettings


async def app(runtime: Runtime[PrefillWorkerSettings]) -> None:
    await run_worker(runtime, ROLE_PREFILL)


def main() -> int:
    return service.main("prefill-worker", PrefillWorkerSettings, app)
