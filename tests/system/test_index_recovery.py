"""kv-index and router are killed under load and start again: prompts keep finding the worker that has their prefix."""

import asyncio
import random
import re
from pathlib import Path

import grpc
import httpx
from prometheus_client.parser import text_string_to_metric_families

from armature.runtime.processes import start_valkey
from tests.support.asking import ask, channel_to
from tests.support.cell import Cell, Service, running_cell
from tests.support.eventually import eventually

WORKERS = 4
FAMILIES = 40
PREFIX_TOKENS = 480
CONCURRENCY = 8
SIMULATED = ("--engine", "simulated", "--transport", "grpc", "--lease-ttl-s", "2")


class Load:
    """Prompts of many families, each with a long beginning in common."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._rng = random.Random(5)
        self._prefixes = [self._tokens(PREFIX_TOKENS) for _ in range(FAMILIES)]
        self._places = asyncio.Semaphore(CONCURRENCY)

    async def round(self) -> float:
        """Ask once for each family; the share of their beginnings that was cached where it was needed."""
        prompts = [prefix + self._tokens(20) for prefix in self._prefixes]
        cached = await asyncio.gather(*(self._ask(prompt) for prompt in prompts))
        return sum(cached) / (FAMILIES * PREFIX_TOKENS)

    async def probe(self) -> None:
        """Ask for something that belongs to no family."""
        await self._ask(self._tokens(5))

    async def until(self, event: asyncio.Event) -> None:
        """Ask until something has happened. Every request must be answered."""
        while not event.is_set():
            await self.round()

    async def _ask(self, prompt: list[int]) -> int:
        async with self._places:
            answer = await ask(self._channel, prompt, 4)
        assert len(answer.token_ids) == 4
        return min(answer.info.cached_tokens, PREFIX_TOKENS)

    def _tokens(self, count: int) -> list[int]:
        return [self._rng.randrange(300, 4000) for _ in range(count)]


async def samples(service: Service) -> dict[str, float]:
    """Metrics of one service; labelled ones as `name{value}`."""
    async with httpx.AsyncClient(timeout=10.0, trust_env=False) as client:
        text = (await client.get(f"http://{service.addresses['metrics']}/metrics")).text
    return {
        sample.name + (f"{{{','.join(sample.labels.values())}}}" if sample.labels else ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def holds(service: Service, **wanted: float) -> bool:
    found = await samples(service)
    return all(found.get(re.sub("__(.*)", r"{\1}", name)) == value for name, value in wanted.items())


async def test_killed_and_started_again_under_load_they_need_no_warming_up(etcd_address: str, tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path / "valkey")
    flags = {
        "kv_index": ("--redis", f"redis://{valkey.address}", "--snapshot-interval-s", "0.2", "--lease-ttl-s", "2"),
        "router": ("--lease-ttl-s", "2"),
    }
    shape = {"prefill": 0, "decode": 0, "aggregated": WORKERS}
    cell_of = running_cell(tmp_path / "recovery", etcd_address, **shape, worker_flags=SIMULATED, flags=flags)
    try:
        async with cell_of as cell, channel_to(cell) as channel:
            await lose_and_recover(cell, Load(channel))
    finally:
        await valkey.kill()


async def lose_and_recover(cell: Cell, load: Load) -> None:
    index, router = cell.services["kv-index"], cell.services["router"]

    async def is_kept() -> bool:
        return (await samples(index)).get("armature_kv_index_snapshots_total{saved}", 0) >= WORKERS

    for _ in range(3):
        await load.round()
    await eventually(is_kept)

    async def has_copy() -> bool:
        copy, own = (await samples(router))["armature_router_index_blocks"], await samples(index)
        return copy == own["armature_kv_index_blocks"] > FAMILIES

    await eventually(has_copy)
    blocks = (await samples(router))["armature_router_index_blocks"]

    # Dead: the router goes on with the copy that it has.
    back = asyncio.Event()
    asking = asyncio.create_task(load.until(back))
    await index.kill()
    await eventually(lambda: is_alone(router, blocks))
    await load.round()

    # Back: from the snapshots and the workers' rings, without a dump.
    await index.spawn()
    await eventually(lambda: holds(index, armature_kv_index_trust__exact=WORKERS))
    found = await samples(index)
    assert found["armature_kv_index_recoveries_total{restored}"] == WORKERS
    assert found["armature_kv_index_dumps_total"] == 0
    await eventually(lambda: holds(router, armature_router_index_copies_total=2, armature_router_index_stale_seconds=0))
    back.set()
    await asking

    # A router that knows nothing but what the index has kept: what it predicts comes from there, and is true.
    await router.kill()
    await router.spawn()
    await eventually(lambda: holds(router, armature_router_index_stale_seconds=0))

    async def is_asked() -> bool:
        await load.probe()
        return await holds(router, armature_router_gateways=1)

    await eventually(is_asked)
    cached = await load.round() * FAMILIES * PREFIX_TOKENS
    predicted = (await samples(router))["armature_router_overlap_tokens_total"]
    assert predicted > 0.7 * FAMILIES * PREFIX_TOKENS
    assert cached > 0.9 * predicted

    async def is_checked() -> bool:
        return (await samples(router))["armature_router_checked_requests_total"] >= FAMILIES

    await eventually(is_checked)
    found = await samples(router)
    assert found["armature_router_actual_cached_tokens_total"] >= cached
    assert found["armature_router_prediction_error_tokens_total{missing}"] < 0.1 * predicted
    believed = [value for name, value in found.items() if name.startswith("armature_router_trust{")]
    assert len(believed) == WORKERS
    assert min(believed) > 0.8


async def is_alone(router: Service, blocks: float) -> bool:
    found = await samples(router)
    return found["armature_router_index_stale_seconds"] > 0 and found["armature_router_index_blocks"] >= blocks
