"""A client that leaves stops the work, in the prefill worker and in the decode worker alike."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import asdict

import httpx
import pytest

from tests.support.asking import ask, channel_to
from tests.support.cell import Cell, running_cell
from tests.support.eventually import eventually
from tests.support.models import SPEED_SHAPE, make_model
from tests.support.rest import until_at_rest


@pytest.fixture(scope="module")
async def cell(etcd_address: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cell]:
    flags = {"router": ("--disaggregation", "always")}
    # Large enough that a long prompt takes seconds: time to leave in.
    model = make_model(tmp_path_factory.mktemp("model"), **{**asdict(SPEED_SHAPE), "context": 4096})
    workers = ("--model", str(model), "--model-name", "demo", "--max-num-batched-tokens", "64")
    async with running_cell(
        tmp_path_factory.mktemp("leaving"), etcd_address, decode=1, flags=flags, worker_flags=workers
    ) as cell:
        yield cell


def body(length: int, seed: int) -> dict[str, object]:
    rng = random.Random(seed)
    prompt = [rng.randrange(300, 4000) for _ in range(length)]
    return {"model": "demo", "prompt": prompt, "max_tokens": 400, "ignore_eos": True, "temperature": 0, "stream": True}


async def work_done(cell: Cell) -> tuple[float, float]:
    """Prompt tokens computed by the prefill worker, tokens produced by the decode worker."""
    prefill = (await cell.services["prefill-worker-0"].metrics())["armature_worker_prefill_tokens_total"]
    decode = (await cell.services["decode-worker-0"].metrics())["armature_worker_decode_tokens_total"]
    return prefill, decode


async def test_leaving_during_prefill_stops_the_prefill(cell: Cell) -> None:
    before, _ = await work_done(cell)
    async with httpx.AsyncClient(timeout=30.0) as client:
        task = asyncio.create_task(client.post(f"{cell.url}/v1/completions", json=body(3600, seed=1)))

        async def begun() -> bool:
            return (await work_done(cell))[0] > before

        await eventually(begun, what="the prefill has begun")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await until_at_rest(cell)
    after, _ = await work_done(cell)
    assert 0 < after - before < 3000, "the prompt was computed to its end"


async def test_leaving_during_decode_stops_the_decode(cell: Cell) -> None:
    _, before = await work_done(cell)
    async with (
        httpx.AsyncClient(timeout=30.0) as client,
        client.stream("POST", f"{cell.url}/v1/completions", json=body(100, seed=2)) as response,
    ):
        events = 0
        async for line in response.aiter_lines():
            events += line.startswith("data:")
            if events >= 5:
                break
    await until_at_rest(cell)
    _, after = await work_done(cell)
    assert 5 <= after - before < 300, "the answer was computed to its end"


async def test_a_grpc_call_that_is_cancelled_stops_the_work(cell: Cell) -> None:
    _, before = await work_done(cell)
    prompt = body(100, seed=3)["prompt"]
    assert isinstance(prompt, list)
    async with channel_to(cell) as channel:
        seen: list[int] = []
        task = asyncio.create_task(ask(channel, prompt, 400, on_tokens=lambda answer: seen.append(1)))
        await eventually(lambda: len(seen) >= 3, what="tokens arrive")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until_at_rest(cell)
    _, after = await work_done(cell)
    assert after - before < 300


async def test_fifty_clients_that_leave_at_any_moment_leave_nothing_behind(cell: Cell) -> None:
    rng = random.Random(5)

    async def come_and_go(client: httpx.AsyncClient, seed: int) -> None:
        try:
            async with asyncio.timeout(rng.uniform(0.0, 1.5)):
                await client.post(f"{cell.url}/v1/completions", json=body(rng.randrange(1, 800), seed))
        except TimeoutError:
            pass

    async with httpx.AsyncClient(timeout=30.0, limits=httpx.Limits(max_connections=60)) as client:
        await asyncio.gather(*(come_and_go(client, 100 + i) for i in range(50)))
    await until_at_rest(cell)
