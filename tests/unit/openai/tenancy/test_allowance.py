"""Buckets of requests and tokens: against a naive oracle, and against the script that does the same in Redis."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

import armature.openai.tenancy.quotas as quotas_module
from armature.openai.tenancy.admission import duration
from armature.openai.tenancy.allowance import ADMITTED, CONCURRENT, REQUESTS, TOKENS, Allowance
from armature.openai.tenancy.caller import TenantLimits
from armature.runtime.processes import start_valkey
from armature.runtime.redis_client import RedisClient

SCRIPT = Path(quotas_module.__file__).with_name("allowance.lua").read_text()
VERDICTS = (ADMITTED, REQUESTS, TOKENS, CONCURRENT)


def fits(times_s: Sequence[float], now_s: float, per_min: int) -> bool:
    """Whether one more request now keeps every stretch of time within a minute's worth and what flows in meanwhile."""
    stretches = [(now_s - since_s, sum(time_s >= since_s for time_s in times_s)) for since_s in [*times_s, now_s]]
    return all(count + 1 <= per_min + length_s * per_min / 60 + 1e-6 for length_s, count in stretches)


@given(st.integers(1, 20), st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0, 7.0, 60.0]), max_size=60))
def test_a_request_is_admitted_exactly_when_no_stretch_of_time_gets_too_many(per_min: int, gaps_s: list[float]) -> None:
    limits = TenantLimits(requests_per_min=per_min)
    allowance, now_s = Allowance(0.0), 0.0
    admitted: list[float] = []
    for gap_s in gaps_s:
        now_s += gap_s
        verdict = allowance.admit(limits, 5, 0, now_s)
        assert (verdict.denied_by == ADMITTED) == fits(admitted, now_s, per_min)
        if verdict.denied_by:
            assert verdict.denied_by == REQUESTS
            assert not fits(admitted, now_s + verdict.retry_after_s * 0.99 - 1e-3, per_min)
            assert fits(admitted, now_s + verdict.retry_after_s + 1e-3, per_min)
        else:
            admitted.append(now_s)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 20.0]), st.integers(1, 3000), st.integers(0, 3000)), max_size=40))
def test_tokens_are_charged_by_estimate_settled_by_use_and_only_refill_with_time(
    work: list[tuple[float, int, int]],
) -> None:
    limits = TenantLimits(tokens_per_min=1000)
    allowance, now_s, level = Allowance(0.0), 0.0, 1000.0
    for gap_s, estimate, used in work:
        now_s += gap_s
        level = min(1000.0, level + gap_s * 1000 / 60)
        verdict = allowance.admit(limits, estimate, 0, now_s)
        assert (verdict.denied_by == ADMITTED) == (level >= min(estimate, 1000) - 1e-6)
        if not verdict.denied_by:
            allowance.give_back(limits, estimate - used, now_s)
            level = min(1000.0, level - used)
        assert abs(allowance.tokens - level) < 1e-6


def test_more_at_a_time_than_allowed_is_refused_and_costs_nothing() -> None:
    limits = TenantLimits(requests_per_min=1, concurrent_requests=2)
    allowance = Allowance(0.0)
    assert allowance.admit(limits, 1, 2, 0.0).denied_by == CONCURRENT
    assert allowance.admit(limits, 1, 1, 0.0).denied_by == ADMITTED


def test_a_limit_that_is_set_later_begins_to_count_then() -> None:
    allowance = Allowance(0.0)
    for second in range(100):
        assert not allowance.admit(TenantLimits(concurrent_requests=9), 50, 0, second).denied_by
    later = TenantLimits(requests_per_min=60, tokens_per_min=6000)
    assert not allowance.admit(later, 100, 0, 102.0).denied_by


def test_a_limit_that_comes_to_another_one_finds_its_bucket_full() -> None:
    allowance, few = Allowance(0.0), TenantLimits(requests_per_min=60)
    assert not allowance.admit(few, 50, 0, 1.0).denied_by
    allowance.give_back(few, 20, 1.0)
    both = TenantLimits(requests_per_min=60, tokens_per_min=6000)
    assert allowance.admit(both, 100, 0, 1.0) == (ADMITTED, 58.0, 5900.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0ms"), (0.12, "120ms"), (1.5, "1.5s"), (59.994, "60s"), (360, "6m0s"), (61.2, "1m2s")]
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisClient]:
    valkey = await start_valkey(tmp_path_factory.mktemp("valkey"))
    client = RedisClient(f"redis://{valkey.address}", timeout_s=5.0)
    yield client
    await client.close()
    await valkey.kill()


OPERATIONS = st.tuples(
    st.sampled_from([0.0, 0.25, 3.0, 30.0]), st.sampled_from([0, 1, 1]), st.integers(-500, 1500), st.integers(0, 3)
)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_script_in_redis_decides_as_the_allowance_does(redis: RedisClient) -> None:
    cases: list[tuple[TenantLimits, list[tuple[float, int, int, int]]]] = []

    @settings(max_examples=60, derandomize=True)
    @given(st.integers(0, 8), st.integers(0, 1000), st.integers(0, 3), st.lists(OPERATIONS, max_size=12))
    def collect(requests: int, tokens: int, concurrent: int, operations: list[tuple[float, int, int, int]]) -> None:
        limits = TenantLimits(requests_per_min=requests, tokens_per_min=tokens, concurrent_requests=concurrent)
        cases.append((limits, operations))

    collect()
    for number, (limits, operations) in enumerate(cases):
        allowance, now_s = Allowance(1.7e9), 1.7e9
        for gap_s, kind, amount, under_way in operations:
            now_s += gap_s
            tokens = abs(amount) if kind else amount
            three = (limits.requests_per_min, limits.tokens_per_min, limits.concurrent_requests)
            answer = await redis.call(
                "EVAL", SCRIPT, 1, f"t{number}", repr(now_s), 15, "g", *three, under_way, 1, kind, tokens
            )
            denied_by, requests_left, tokens_left, wait_s = answer[0].split()
            if kind:
                verdict = allowance.admit(limits, tokens, under_way, now_s)
                assert (VERDICTS[int(denied_by)], float(wait_s)) == (
                    verdict.denied_by,
                    pytest.approx(verdict.retry_after_s, abs=1e-4),
                )
            else:
                allowance.give_back(limits, tokens, now_s)
            assert float(requests_left) == pytest.approx(allowance.requests, abs=1e-4)
            assert float(tokens_left) == pytest.approx(allowance.tokens, abs=1e-2)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_gateway_serves_counts_for_the_others_until_its_lease_ends(redis: RedisClient) -> None:
    async def admit(gateway: str, now_s: float, under_way: int) -> str:
        (answer,) = await redis.call(
            "EVAL", SCRIPT, 1, "shared", repr(now_s), 15, gateway, 0, 0, 3, under_way, 1, 1, 10
        )
        return VERDICTS[int(answer.split()[0])]

    assert await admit("a", 1000.0, 1) == ADMITTED
    assert await admit("b", 1001.0, 0) == ADMITTED
    assert await admit("c", 1002.0, 0) == CONCURRENT
    assert await admit("b", 1003.0, 1) == CONCURRENT
    assert await admit("c", 1015.5, 0) == ADMITTED  # `a` is silent since 1000
