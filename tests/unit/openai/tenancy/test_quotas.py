"""Limits over several gateways that share one Redis, which may go."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from armature.openai.tenancy.allowance import CONCURRENT
from armature.openai.tenancy.caller import Caller, TenantLimits
from armature.openai.tenancy.quotas import Quotas
from armature.runtime.processes import start_valkey
from armature.runtime.redis_client import RedisClient
from tests.support.eventually import eventually
from tests.support.freezing import freeze


def tenant(**limits: int) -> Caller:
    return Caller(tenant="acme", cache_namespace="acme", limits=TenantLimits(**limits))


@asynccontextmanager
async def sharing(address: str, count: int = 2) -> AsyncIterator[list[Quotas]]:
    """Gateways' quotas over one Redis; patient, since other tests use the machine."""
    clients = [RedisClient(f"redis://{address}", timeout_s=5.0) for _ in range(count)]
    shared = [Quotas(f"gateway-{i}", "q:", client, timeout_s=5.0) for i, client in enumerate(clients)]
    running = [asyncio.create_task(quotas.run()) for quotas in shared]
    try:
        yield shared
    finally:
        for task in running:
            task.cancel()
        for client in clients:
            await client.close()


async def admitted(quotas: Quotas, caller: Caller, tokens: int = 1) -> str:
    verdict = await quotas.admit(caller, tokens)
    assert verdict is not None
    return verdict.denied_by


async def test_two_gateways_hold_one_limit_together_also_at_once(tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path)
    async with sharing(valkey.address) as gateways:
        caller, began_s = tenant(requests_per_min=30), time.monotonic()
        verdicts = await asyncio.gather(*(admitted(gateways[i % 2], caller) for i in range(100)))
        assert 30 <= verdicts.count("") <= 31 + (time.monotonic() - began_s) * 30 / 60
        many = Caller(tenant="other", cache_namespace="", limits=TenantLimits(concurrent_requests=7))
        verdicts = await asyncio.gather(*(admitted(gateways[i % 2], many) for i in range(40)))
        assert (verdicts.count(""), verdicts.count(CONCURRENT)) == (7, 33)
        assert [await admitted(quotas, many) for quotas in gateways] == [CONCURRENT] * 2
        gateways[0].leave(many, 0) if verdicts[0] == "" else gateways[1].leave(many, 0)
        await eventually(lambda: _is_admitted(gateways[1], many))
    await valkey.kill()


async def _is_admitted(quotas: Quotas, caller: Caller) -> bool:
    return await admitted(quotas, caller) == ""


async def test_limits_that_are_raised_count_at_once() -> None:
    quotas = Quotas("a", "", None)
    few, many = (Caller(tenant="acme", cache_namespace="", limits=TenantLimits(requests_per_min=n)) for n in (1, 600))
    denied = [await quotas.admit(few, 1) for _ in range(2)][-1]
    assert denied is not None and denied.denied_by == "requests_per_min"
    assert quotas.wait_s(few) > 50 and quotas.wait_s(many) == 0
    await eventually(lambda: _is_admitted(quotas, many))


async def test_what_was_not_used_comes_back(tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path)
    async with sharing(valkey.address) as (first, second):
        caller = tenant(tokens_per_min=1000)
        assert await admitted(first, caller, 900) == ""
        assert await admitted(second, caller, 900) == "tokens_per_min"
        first.leave(caller, 850)
        await eventually(lambda: _fits(second, caller, 900))
    await valkey.kill()


async def _fits(quotas: Quotas, caller: Caller, tokens: int) -> bool:
    return await admitted(quotas, caller, tokens) == ""


async def test_without_redis_each_gateway_goes_on_alone_from_what_it_knew(tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path)
    async with sharing(valkey.address, 1) as (quotas,):
        caller, began_s = tenant(requests_per_min=20), time.monotonic()
        assert [await admitted(quotas, caller) for _ in range(15)] == [""] * 15
        await valkey.kill()
        verdicts = await asyncio.gather(*(admitted(quotas, caller) for _ in range(40)))
        assert 5 <= verdicts.count("") <= 6 + (time.monotonic() - began_s) * 20 / 60
        assert quotas.wait_s(caller) > 0


async def test_a_frozen_redis_holds_up_requests_for_one_deadline_only(tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path)
    client = RedisClient(f"redis://{valkey.address}", timeout_s=5.0)
    quotas = Quotas("gateway", "q:", client, timeout_s=0.05)
    running = asyncio.create_task(quotas.run())
    caller = tenant(concurrent_requests=1000)
    await eventually(lambda: _is_admitted(quotas, caller))
    await asyncio.to_thread(freeze, valkey.pid)
    async with asyncio.timeout(10):
        for _ in range(300):  # with a deadline each this would be 15 s
            assert await admitted(quotas, caller) == ""
    running.cancel()
    await valkey.kill()
    await client.close()


async def test_a_client_that_leaves_while_it_is_decided_holds_nothing(tmp_path: Path) -> None:
    valkey = await start_valkey(tmp_path)
    async with sharing(valkey.address, 1) as (quotas,):
        caller = tenant(concurrent_requests=1)
        leaving = asyncio.create_task(quotas.admit(caller, 1))
        await asyncio.sleep(0)
        leaving.cancel()
        await eventually(lambda: _is_admitted(quotas, caller))
    await valkey.kill()


@pytest.mark.parametrize("tokens", [0, 10**9])
async def test_a_tenant_without_limits_asks_nobody(tokens: int) -> None:
    assert await Quotas("gateway", "", None).admit(tenant(), tokens) is None
