"""Responses that are made in the background: had again, cancelled from anywhere, never left open for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from armature.openai.serving.http.server import HttpServer
from armature.openai.serving.responses.store import ResponseStore, StoreOptions
from armature.openai.serving.rest import make_rest_app
from armature.runtime.processes import start_valkey
from armature.runtime.redis_client import RedisClient
from tests.services.gateway.fakes import FakeRouter, FakeWorker, breaking_after, listening
from tests.services.gateway.harness import MODEL, TEXT, Gateway, make_worker, running_core
from tests.support.eventually import eventually

ASK: Any = {"model": MODEL, "input": "Where is it?", "background": True}


@asynccontextmanager
async def serving(worker: FakeWorker, store: ResponseStore) -> AsyncIterator[Gateway]:
    """A gateway before a worker that listens already."""
    router = FakeRouter([worker])
    async with listening(router), running_core([worker], [router]) as (core, _):
        http = HttpServer(make_rest_app(core, store), "127.0.0.1", 0)
        running = asyncio.create_task(http.run())
        await http.started()
        url = f"http://127.0.0.1:{http.port}"
        async with httpx.AsyncClient(base_url=url, timeout=15.0) as client:
            yield Gateway(core, url, client)
        http.stop(now=True)
        await running


def silent() -> FakeWorker:
    """Makes five tokens and no more."""
    return make_worker(script=breaking_after(5, "silence"))


async def ended(client: openai.AsyncOpenAI, response_id: str) -> Any:
    async def has_ended() -> bool:
        return (await client.responses.retrieve(response_id)).status != "in_progress"

    await eventually(has_ended)
    return await client.responses.retrieve(response_id)


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisClient]:
    valkey = await start_valkey(tmp_path)
    client = RedisClient(f"redis://{valkey.address}", timeout_s=5.0)
    yield client
    await client.close()
    await valkey.kill()


async def test_a_response_is_completed_after_its_request_and_can_be_gone_on_from() -> None:
    step = asyncio.Event()
    worker = make_worker(step=step)
    async with listening(worker), serving(worker, ResponseStore(None, "test")) as gateway, gateway.openai() as client:
        begun = await client.responses.create(**ASK, metadata={"a": "b"})
        assert (begun.status, begun.background, begun.output) == ("in_progress", True, [])
        with pytest.raises(openai.BadRequestError, match="still being made"):
            await client.responses.create(model=MODEL, input="x", previous_response_id=begun.id)
        step.set()
        done = await ended(client, begun.id)
        assert (done.status, done.output_text, done.metadata) == ("completed", TEXT, {"a": "b"})
        after = await client.responses.create(model=MODEL, input="And?", previous_response_id=begun.id)
        assert after.output_text == TEXT
        with pytest.raises(openai.BadRequestError):
            await client.responses.cancel(begun.id)
        assert gateway.core.inflight == 0


async def test_what_can_not_be_made_is_told_at_once() -> None:
    worker = make_worker()
    async with listening(worker), serving(worker, ResponseStore(None, "test")) as gateway, gateway.openai() as client:
        for wrong in ({"model": "nobody"}, {"input": "long " * 2000}, {"previous_response_id": "resp_0"}):
            with pytest.raises(openai.APIStatusError) as caught:
                await client.responses.create(**ASK | wrong)
            assert caught.value.status_code in (400, 404)
        assert gateway.core.inflight == 0


async def test_a_cancelled_response_keeps_what_was_made_and_ends_the_work() -> None:
    worker = silent()
    async with listening(worker), serving(worker, ResponseStore(None, "test")) as gateway, gateway.openai() as client:
        begun = await client.responses.create(**ASK)
        await eventually(lambda: bool(worker.requests))
        stopped = await client.responses.cancel(begun.id)
        assert stopped.status == "cancelled"
        assert (await client.responses.cancel(begun.id)).status == "cancelled"
        assert (await client.responses.retrieve(begun.id)).status == "cancelled"
        await eventually(lambda: len(worker.cancelled) == 1 and gateway.core.inflight == 0)


async def test_a_deleted_response_is_not_made_any_more_and_stays_away() -> None:
    worker = silent()
    async with listening(worker), serving(worker, ResponseStore(None, "test")) as gateway, gateway.openai() as client:
        begun = await client.responses.create(**ASK)
        await eventually(lambda: bool(worker.requests))
        await client.responses.delete(begun.id)
        await eventually(lambda: len(worker.cancelled) == 1 and gateway.core.inflight == 0)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(begun.id)


async def test_only_so_many_are_made_at_the_same_time() -> None:
    worker = silent()
    store = ResponseStore(None, "test", StoreOptions(max_background_responses=2))
    async with listening(worker), serving(worker, store) as gateway, gateway.openai() as client:
        for _ in range(2):
            await client.responses.create(**ASK)
        with pytest.raises(openai.RateLimitError):
            await client.responses.create(**ASK)


async def test_a_response_that_fails_says_so() -> None:
    worker = make_worker(script=breaking_after(0))
    async with listening(worker), serving(worker, ResponseStore(None, "test")) as gateway, gateway.openai() as client:
        begun = await client.responses.create(**ASK)
        failed = await ended(client, begun.id)
        assert (failed.status, failed.error.code) == ("failed", "server_error")
        assert gateway.core.inflight == 0


async def test_any_gateway_shows_and_cancels_what_another_makes(redis: RedisClient) -> None:
    worker = silent()
    stores = [ResponseStore(redis, "test") for _ in range(2)]
    async with (
        listening(worker),
        serving(worker, stores[0]) as one,
        serving(worker, stores[1]) as other,
        one.openai() as here,
        other.openai() as there,
    ):
        begun = await here.responses.create(**ASK)
        assert (await there.responses.retrieve(begun.id)).status == "in_progress"
        await there.responses.cancel(begun.id)
        assert (await ended(there, begun.id)).status == "cancelled"
        await eventually(lambda: one.core.inflight == 0)


async def test_a_client_reads_a_stream_on_where_it_left_at_any_gateway(redis: RedisClient) -> None:
    step = asyncio.Event()
    worker = make_worker(step=step)
    stores = [ResponseStore(redis, "test") for _ in range(2)]
    async with (
        listening(worker),
        serving(worker, stores[0]) as one,
        serving(worker, stores[1]) as other,
        one.openai() as here,
        other.openai() as there,
    ):
        async with await here.responses.create(**ASK, stream=True) as stream:
            first = await anext(aiter(stream))
        assert (first.type, first.sequence_number) == ("response.created", 0)
        response_id = first.response.id
        readers = [here.responses.retrieve(response_id, stream=True, starting_after=0)]
        readers += [there.responses.retrieve(response_id, stream=True, starting_after=0)]
        reading = [asyncio.create_task(_events(await reader)) for reader in readers]
        step.set()
        told, elsewhere = await asyncio.gather(*reading)
        assert elsewhere == told
        assert [event["sequence_number"] for event in told] == list(range(1, 1 + len(told)))
        assert "".join(event["delta"] for event in told if event["type"] == "response.output_text.delta") == TEXT
        assert told[-1]["type"] == "response.completed"
        for client in (here, there):
            whole = await _events(await client.responses.retrieve(response_id, stream=True))
            assert whole[1:] == told
            rest = await client.responses.retrieve(response_id, stream=True, starting_after=len(told) - 2)
            assert await _events(rest) == told[-2:]
        await eventually(lambda: one.core.inflight == 0)


async def test_a_stream_whose_gateway_has_gone_ends_with_an_error(redis: RedisClient) -> None:
    worker, store = silent(), ResponseStore(redis, "test")
    async with listening(worker):
        async with serving(worker, store) as gateway, gateway.openai() as client:
            stream = await client.responses.create(**ASK, stream=True)
            created = await anext(aiter(stream))
            await stream.close()
        (lease,) = [key async for key in _keys(redis, "*background:lease:*")]
        async with serving(worker, store) as gateway, gateway.openai() as client:
            reading = await client.responses.retrieve(created.response.id, stream=True)
            await redis.call("DEL", lease)
            *told, last = await _events(reading)
            assert (last["type"], last["sequence_number"]) == ("error", len(told))
            assert "can't go on" in last["message"]


async def test_only_streams_that_are_kept_are_shown() -> None:
    worker = make_worker(script=breaking_after(0))
    async with listening(worker), serving(worker, ResponseStore(None, "test")) as gateway, gateway.openai() as client:
        stream = await client.responses.create(**ASK, stream=True)
        events = await _events(stream)
        assert events[-1]["type"] == "response.failed"
        kept = await client.responses.retrieve(events[0]["response"]["id"], stream=True)
        assert await _events(kept) == events
        plain = await client.responses.create(**ASK)
        with pytest.raises(openai.BadRequestError, match="not kept"):
            await client.responses.retrieve(plain.id, stream=True)
        wrong = await gateway.client.get(f"/v1/responses/{plain.id}?stream=true&starting_after=x")
        assert wrong.status_code == 400
        assert "starting_after" in wrong.text


async def _events(stream: Any) -> list[dict[str, Any]]:
    return [event.model_dump(mode="json") async for event in stream]


async def test_what_nobody_makes_any_more_has_failed(redis: RedisClient) -> None:
    worker, store = silent(), ResponseStore(redis, "test")
    async with listening(worker):
        async with serving(worker, store) as gateway, gateway.openai() as client:
            begun = await client.responses.create(**ASK)
        (lease,) = [key async for key in _keys(redis, "*background:lease:*")]
        async with serving(worker, store) as gateway, gateway.openai() as client:
            assert (await client.responses.retrieve(begun.id)).status == "in_progress"
            await redis.call("DEL", lease)
            failed = await client.responses.retrieve(begun.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "server_error")


async def _keys(redis: RedisClient, pattern: str) -> AsyncIterator[bytes]:
    for key in await redis.call("KEYS", pattern):
        yield key
