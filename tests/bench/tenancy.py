"""What telling tenants apart costs the gateway per request. What they see of each other: `isolation`."""

import asyncio
import datetime
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from armature.openai.tenancy.admission import begin
from armature.openai.tenancy.allowance import Allowance
from armature.openai.tenancy.caller import Caller, TenantLimits
from armature.openai.tenancy.doorkeeper import Doorkeeper
from armature.openai.tenancy.keys import KeyBook, KeyEntry, KeyTable, digest_of, new_key
from armature.openai.tenancy.quotas import Quotas
from armature.runtime.processes import start_valkey
from armature.runtime.redis_client import RedisClient

CALLS, AT_A_TIME = 4000, 32


def run() -> dict[str, object]:
    return asyncio.run(_run())


async def _run() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        return {"cpu_us_per_request": await _cpu(Path(folder))}


async def _cpu(folder: Path) -> dict[str, float]:
    keys = [new_key()[0] for _ in range(1000)]
    table = KeyTable(KeyBook(keys={key[:12]: KeyEntry(tenant="t", digest=digest_of(key)) for key in keys}))
    headers = [(b"host", b"x"), (b"content-type", b"x"), (b"authorization", f"Bearer {keys[7]}".encode())]
    limits = TenantLimits(requests_per_min=10**9, tokens_per_min=10**12, concurrent_requests=10**6)
    limited, free = (Caller(tenant="t", cache_namespace="t", limits=one) for one in (limits, TenantLimits()))
    allowance, doorkeeper = Allowance(0.0), Doorkeeper(table)
    alone = Quotas("bench", "", None)

    async def admit(quotas: Quotas, caller: Caller) -> None:
        admission = begin(caller, quotas)
        await admission.charge(100)
        admission.close()

    valkey = await start_valkey(folder / "valkey")
    client = RedisClient(f"redis://{valkey.address}", timeout_s=5.0)
    shared = Quotas("bench", "bench:", client, timeout_s=5.0)
    running = asyncio.create_task(shared.run())
    now = datetime.datetime.now(datetime.UTC)
    found = {
        "finding a key": _timed(lambda: table.find(keys[7], now)),
        "finding a key in headers": _timed(lambda: doorkeeper.identify(headers)),
        "deciding on limits": _timed(lambda: allowance.admit(limits, 100, 3, 1.0)),
        "a tenant without limits": await _timed_calls(lambda: admit(alone, free), 1),
        "limits without Redis": await _timed_calls(lambda: admit(alone, limited), 1),
        "limits in Redis, one at a time": await _timed_calls(lambda: admit(shared, limited), 1),
        f"limits in Redis, {AT_A_TIME} at a time": await _timed_calls(lambda: admit(shared, limited), AT_A_TIME),
    }
    running.cancel()
    await client.close()
    await valkey.kill()
    return {name: round(us, 2) for name, us in found.items()}


def _timed(work: Callable[[], object]) -> float:
    started_s = time.process_time()
    for _ in range(CALLS):
        work()
    return (time.process_time() - started_s) / CALLS * 1e6


async def _timed_calls(work: Callable[[], Any], at_a_time: int) -> float:
    started_s = time.process_time()
    for _ in range(CALLS // at_a_time):
        await asyncio.gather(*(work() for _ in range(at_a_time)))
    return (time.process_time() - started_s) / (CALLS // at_a_time * at_a_time) * 1e6


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
