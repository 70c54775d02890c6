"""What telling tenants apart costs the gateway per request, and that tenants can't see each other's cached prompts.

The second part asks a live cell of simulated workers, which take a real model's time: a prompt for the first time,
again by the same tenant, and by another tenant. To the other one a prompt must look new: no cached tokens, and times to
first token from the same distribution as those of new prompts; `z` is the difference of their means in standard errors.
"""

import asyncio
import datetime
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

from armature.openai.tenancy.admission import begin
from armature.openai.tenancy.allowance import Allowance
from armature.openai.tenancy.caller import Caller, TenantLimits
from armature.openai.tenancy.doorkeeper import Doorkeeper
from armature.openai.tenancy.keys import KeyBook, KeyEntry, KeyTable, digest_of, new_key
from armature.openai.tenancy.quotas import Quotas
from armature.runtime.processes import start_etcd, start_valkey
from armature.runtime.redis_client import RedisClient
from tests.support.cell import running_cell

PROMPTS, PROMPT_TOKENS = 60, 2000
CALLS, AT_A_TIME = 4000, 32


def run() -> dict[str, object]:
    return asyncio.run(_run())


async def _run() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        return {"cpu_us_per_request": await _cpu(Path(folder)), "isolation": await _isolation(Path(folder) / "cell")}


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


async def _isolation(folder: Path) -> dict[str, object]:
    folder.mkdir()
    keys = {tenant: new_key()[0] for tenant in ("one", "other")}
    book = {"keys": {key[:12]: {"tenant": tenant, "digest": digest_of(key)} for tenant, key in keys.items()}}
    (folder / "keys.yaml").write_text(yaml.safe_dump(book))
    etcd = await start_etcd(folder / "etcd")
    flags = {"gateway": ("--keys", str(folder / "keys.yaml"))}
    workers = ("--performance", "qwen3-32b-tp2-h200", "--max-num-batched-tokens", "2048")
    seen: dict[str, list[tuple[int, float]]] = {"new": [], "same tenant again": [], "other tenant": []}
    async with running_cell(
        folder, etcd.address, prefill=0, decode=0, fleets=(2,), worker_flags=workers, flags=flags
    ) as cell, httpx.AsyncClient(base_url=cell.url, timeout=60) as client:  # fmt: skip
        rng = random.Random(1)
        for _ in range(PROMPTS):
            prompt = rng.choices(range(300, 1000), k=PROMPT_TOKENS)
            # A prompt of its own after the others', so that both are asked for at the same distance from new ones.
            fresh = rng.choices(range(300, 1000), k=PROMPT_TOKENS)
            await _ask(client, keys["one"], prompt)
            order = ["new", "same tenant again", "other tenant"]
            rng.shuffle(order)
            for kind in order:
                asked = fresh if kind == "new" else prompt
                seen[kind].append(await _ask(client, keys["other" if kind == "other tenant" else "one"], asked))
    await etcd.stop()
    told: dict[str, object] = {kind: _figures(values) for kind, values in seen.items()}
    new, other = ([ttft_s for _, ttft_s in seen[kind]] for kind in ("new", "other tenant"))
    error_s = (statistics.variance(new) / len(new) + statistics.variance(other) / len(other)) ** 0.5
    told["z_other_tenant_against_new"] = round((statistics.mean(other) - statistics.mean(new)) / error_s, 2)
    return told


async def _ask(client: httpx.AsyncClient, key: str, prompt: list[int]) -> tuple[int, float]:
    body = {"model": "demo", "prompt": prompt, "max_tokens": 1, "armature": {"include_info": True}}
    answer = await client.post("/v1/completions", json=body, headers={"authorization": f"Bearer {key}"})
    told = answer.json()
    return told["usage"]["prompt_tokens_details"]["cached_tokens"], told["armature"]["ttft_s"]


def _figures(values: list[tuple[int, float]]) -> dict[str, float]:
    times = [ttft_s for _, ttft_s in values]
    return {
        "cached_tokens_mean": statistics.mean(cached for cached, _ in values),
        "ttft_s_median": round(statistics.median(times), 4),
        "ttft_s_mean": round(statistics.mean(times), 4),
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
