"""A real Valkey that is killed, frozen and started again under its client."""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from armature.runtime.processes import start_valkey
from armature.runtime.redis_client import RedisClient, RedisSettings, RedisUnavailableError
from tests.support.etcd import unused_address
from tests.support.eventually import eventually


def failures(reason: str) -> float:
    return REGISTRY.get_sample_value("armature_redis_failures_total", {"reason": reason}) or 0.0


@asynccontextmanager
async def client_of(address: str, timeout_s: float = 5.0) -> AsyncIterator[RedisClient]:
    client = RedisClient(f"redis://{address}", timeout_s=timeout_s)
    try:
        yield client
    finally:
        await client.close()


async def answers(client: RedisClient) -> bool:
    try:
        return await client.call("PING") == b"PONG"
    except RedisUnavailableError:
        return False


async def test_commands_are_answered_alone_and_together(tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path)
    async with client_of(valkey.address) as client:
        blob = bytes(range(256)) * 1000
        assert await client.call("SET", "a", blob) == b"OK"
        assert await client.call("GET", "a") == blob
        assert await client.call("GET", "none") is None
        assert (await client.call_all([("HSET", "h", "x", 1, "y", b"2"), ("HMGET", "h", "y", "z")]))[1] == [b"2", None]
    await valkey.kill()


async def test_a_refusal_is_told_and_is_no_absence(tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path)
    async with client_of(valkey.address) as client:
        await client.call("SET", "a", "text")
        before = failures("refused")
        with pytest.raises(RedisUnavailableError, match="refuses"):
            await client.call("HGET", "a", "field")
        assert (failures("refused"), client.is_up) == (before + 1, True)
        assert await answers(client)
    await valkey.kill()


async def test_a_server_that_dies_is_missed_once_and_found_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    valkey = await start_valkey(tmp_path)
    port = int(valkey.address.rpartition(":")[2])
    async with client_of(valkey.address) as client:
        assert await answers(client)
        await valkey.kill()
        before = failures("away"), failures("paused")
        for _ in range(100):
            assert not await answers(client)
        assert failures("away") > before[0]
        assert failures("paused") > before[1]
        assert sum("going on without" in record.message for record in caplog.records) == 1
        valkey = await start_valkey(tmp_path, port=port)
        await eventually(lambda: answers(client))
        assert sum("answers again" in record.message for record in caplog.records) == 1
    await valkey.kill()


async def test_a_frozen_server_costs_one_deadline_and_its_late_answers_are_nobodys(tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path)
    async with client_of(valkey.address) as client:
        await client.call_all([("SET", f"k{number}", f"v{number}") for number in range(20)])
        valkey.signal(signal.SIGSTOP)
        asked = [client.call("GET", f"k{number}", timeout_s=0.2) for number in range(10)]
        assert all(
            isinstance(one, RedisUnavailableError) for one in await asyncio.gather(*asked, return_exceptions=True)
        )
        before = failures("paused")
        began_s = time.monotonic()
        while failures("paused") == before and time.monotonic() < began_s + 10:
            await asyncio.gather(client.call("GET", "k1", timeout_s=0.2), return_exceptions=True)
        assert failures("paused") > before
        valkey.signal(signal.SIGCONT)
        await eventually(lambda: answers(client))
        for number in range(20):
            assert await client.call("GET", f"k{number}") == f"v{number}".encode()
    await valkey.kill()


async def test_a_call_that_is_cancelled_leaves_its_answer_to_nobody(tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path)
    # redis-py minds a cancellation that meets it while it connects only at the deadline.
    async with client_of(valkey.address, timeout_s=0.3) as client:
        await client.call("SET", "k", "v")
        for _ in range(10):
            waiting = asyncio.create_task(client.call("BLPOP", "never", 30))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting.cancel()
            assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
            assert await client.call("GET", "k") == b"v"
    await valkey.kill()


async def test_nobody_there_is_an_error_and_not_a_wait() -> None:
    async with client_of(unused_address()) as client:
        with pytest.raises(RedisUnavailableError, match="does not answer"):
            await client.call("PING")
        with pytest.raises(RedisUnavailableError, match="away") as error:
            await client.call("PING")
        assert error.value.retry_after_s > 0


@pytest.mark.parametrize(
    ("wrong", "key"),
    [({"redis": "localhost:6379"}, "redis must begin with"), ({"redis_timeout_s": 0.0}, "redis_timeout_s must be")],
)
def test_wrong_settings_are_named(wrong: dict[str, object], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        RedisSettings(**wrong)  # type: ignore[arg-type]
