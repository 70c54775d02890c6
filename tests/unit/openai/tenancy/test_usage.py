"""What tenants have used, added up over gateways that share a Redis, each batch once."""

import asyncio
import datetime
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from armature.openai.tenancy.usage import MAX_WAITING, Spent, UsageMeter, UsageRow
from armature.runtime.processes import start_valkey
from armature.runtime.redis_client import RedisClient, RedisUnavailableError

DAY = datetime.date(2030, 1, 31)
TODAY = DAY.isoformat()
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisClient]:
    valkey = await start_valkey(tmp_path_factory.mktemp("valkey"))
    client = RedisClient(f"redis://{valkey.address}", timeout_s=5.0)
    yield client
    await client.close()
    await valkey.kill()


class Forgetful(RedisClient):
    """Does what it is told, and loses its answers."""

    loses = True

    async def call(self, *command: str | bytes | int | float, timeout_s: float | None = None) -> object:
        answer = await super().call(*command, timeout_s=timeout_s)
        if self.loses:
            raise RedisUnavailableError("the answer is lost")
        return answer


async def test_gateways_add_up_by_tenant_model_and_day(redis: RedisClient) -> None:
    first, second = (UsageMeter(name, "sum:", redis) for name in ("a", "b"))
    first.add(Spent(TODAY, "acme", "org/model-1"), (1, 100, 10, 50))
    second.add(Spent(TODAY, "acme", "org/model-1"), (1, 200, 20, 0))
    second.add(Spent(TODAY, "globex", "m"), (1, 1, 1, 0))
    second.add(Spent("2030-01-30", "acme", "m"), (1, 5, 5, 0))
    assert await first.flush() and await second.flush()
    rows, is_complete = await first.report(DAY, DAY)
    assert is_complete
    assert rows == [UsageRow(TODAY, "acme", "org/model-1", 2, 300, 30, 50), UsageRow(TODAY, "globex", "m", 1, 1, 1, 0)]
    rows, _ = await first.report(datetime.date(2030, 1, 1), DAY, "acme")
    assert [(row.day, row.requests) for row in rows] == [("2030-01-30", 1), (TODAY, 2)]


async def test_a_batch_whose_answer_is_lost_counts_once(redis: RedisClient) -> None:
    address = redis._redis.connection_pool.connection_kwargs
    lossy = Forgetful(f"redis://{address['host']}:{address['port']}", timeout_s=5.0)
    meter = UsageMeter("a", "once:", lossy)
    meter.add(Spent(TODAY, "acme", "m"), (1, 10, 1, 0))
    assert not await meter.flush()
    meter.add(Spent(TODAY, "acme", "m"), (1, 10, 1, 0))
    assert not await meter.flush()
    rows, is_complete = await meter.report(DAY, DAY)
    assert not is_complete
    lossy.loses = False
    assert await meter.flush()
    rows, is_complete = await meter.report(DAY, DAY)
    assert (rows, is_complete) == ([UsageRow(TODAY, "acme", "m", 2, 20, 2, 0)], True)
    await lossy.close()


class Slow(RedisClient):
    """Answers when it is told to, and then loses what it is told to lose."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout_s=5.0)
        self.asked = asyncio.Queue[asyncio.Future[bool]]()

    async def call(self, *command: str | bytes | int | float, timeout_s: float | None = None) -> object:
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(told)
        if not await told:
            raise RedisUnavailableError("it is away")
        return await super().call(*command, timeout_s=timeout_s)


async def test_two_that_send_at_once_lose_nothing(redis: RedisClient) -> None:
    address = redis._redis.connection_pool.connection_kwargs
    slow = Slow(f"redis://{address['host']}:{address['port']}")
    meter = UsageMeter("a", "twice:", slow)
    meter.add(Spent(TODAY, "acme", "m"), (1, 10, 1, 0))
    sending = [asyncio.create_task(meter.flush()) for _ in range(2)]
    first = await slow.asked.get()
    meter.add(Spent(TODAY, "acme", "m"), (1, 10, 1, 0))
    first.set_result(True)
    for outcome in (False, True):  # the second batch is lost once
        (await slow.asked.get()).set_result(outcome)
    await asyncio.gather(*sending)
    assert await UsageMeter("b", "twice:", redis).report(DAY, DAY) == (
        [UsageRow(TODAY, "acme", "m", 2, 20, 2, 0)],
        True,
    )
    await slow.close()


async def test_without_redis_a_gateway_knows_what_it_has_served_itself() -> None:
    meter = UsageMeter("a", "", None)
    meter.add(Spent(TODAY, "acme", "m"), (1, 10, 1, 0))
    assert await meter.report(DAY, DAY) == ([UsageRow(TODAY, "acme", "m", 1, 10, 1, 0)], False)


async def test_what_waits_is_bounded() -> None:
    meter = UsageMeter("a", "", None)
    for number in range(MAX_WAITING + 10):
        meter.add(Spent(TODAY, "acme", f"m{number}"), (1, 1, 1, 0))
    rows, _ = await meter.report(DAY, DAY)
    assert len(rows) == MAX_WAITING


async def test_redis_that_is_away_loses_nothing(tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path)
    port = int(valkey.address.rpartition(":")[2])
    client = RedisClient(f"redis://{valkey.address}", timeout_s=5.0)
    meter = UsageMeter("a", "away:", client)
    await valkey.kill()
    meter.add(Spent(TODAY, "acme", "m"), (1, 10, 1, 0))
    assert not await meter.flush()
    rows, is_complete = await meter.report(DAY, DAY)
    assert ([row.requests for row in rows], is_complete) == ([1], False)
    valkey = await start_valkey(tmp_path, port=port)
    while not await meter.flush():
        pass
    assert (await meter.report(DAY, DAY))[0] == rows
    await client.close()
    await valkey.kill()
