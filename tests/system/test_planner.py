"""The campaign of `make campaign-planner` in short: load comes, shifts and vanishes, and a leader dies in mid-scale."""

import asyncio
from pathlib import Path

import grpc
import httpx
import pytest

from tests.campaigns.planner.run import (
    CHANGE,
    LEADERSHIP,
    STEP_TIMEOUT_S,
    Shape,
    did,
    planned_cell,
    traffic_on,
)
from tests.support.asking import ask
from tests.support.dashboards import exposed, metrics_asked_for
from tests.support.eventually import eventually

POLICY = """
targets: {ttft_s: 2.5, itl_s: 0.2, quantile: 0.9}
interval_s: 0.5
window_s: 3.0
pattern_s: 6.0
start_up_s: 4.0
down_after_s: 8.0
flip_after_s: 2.0
forecast: {quantile: 0.7, forecasters: [{ewma: {alpha: 0.5}}]}
limits: {max_workers: 5}
"""
LONG_PROMPTS, LONG_ANSWERS, NOTHING = Shape(2.0, 4000, 4), Shape(8.0, 60, 40), Shape(0.0, 1, 1)


async def test_workers_start_turn_and_drain_with_the_load_and_no_request_notices(tmp_path: Path) -> None:
    flags = ("--prefill=1", "--decode=1", "--set=router.disaggregation=always")
    async with planned_cell(tmp_path, POLICY, *flags) as cell:
        async with traffic_on(cell) as traffic:
            traffic.shape = LONG_PROMPTS
            grown = await cell.until(did("starts as prefill"), "prefill workers start")
            killed = await cell.kill_leader()
            assert killed == grown.planner
            taken = await cell.until(
                lambda entry: entry.kind == LEADERSHIP and entry.planner != killed, "the other leads", grown.number
            )
            traffic.shape = LONG_ANSWERS
            turned = await cell.until(did("to decode"), "a prefill worker turns", taken.number)
            assert turned.planner != killed
            traffic.shape = NOTHING
            await cell.until(did("drains"), "workers drain", turned.number)
        assert traffic.answered == traffic.asked and not traffic.failures
        log = await cell.log()
        async with httpx.AsyncClient(trust_env=False) as client:
            page = (await client.get(f"http://{cell.planners()[0].metrics_address}/metrics")).text
    assert {name for name in metrics_asked_for() if name.startswith("armature_planner_")} <= exposed(page)
    assert [entry.number for entry in log] == list(range(1, len(log) + 1))
    for entry in log:
        assert not entry.problems, entry
        if entry.kind == CHANGE:
            assert entry.plan.reason in entry.text and "instead of" in entry.text and entry.plan.text in entry.text


IDLE_POLICY = """
targets: {ttft_s: 2.5, itl_s: 0.2, quantile: 0.9}
interval_s: 1.0
window_s: 4.0
pattern_s: 8.0
start_up_s: 5.0
idle_after_s: 3.0
limits: {min_workers: 0, max_workers: 2}
"""


@pytest.mark.slow
async def test_a_cell_without_requests_has_no_worker_and_the_next_request_waits_for_one(tmp_path: Path) -> None:
    async with planned_cell(tmp_path, IDLE_POLICY, "--prefill=0", "--decode=0", "--aggregated=1") as cell:
        async with grpc.aio.insecure_channel(cell.state.grpc) as channel:
            for first in range(300, 1300, 100):  # until steps have been measured nothing is decided
                await ask(channel, list(range(first, first + 500)), 4)
            idle = await cell.until(did("drains"), "the last worker drains")
            assert idle.plan.reason == "idle"
            await eventually(lambda: not cell.workers(), STEP_TIMEOUT_S, "no worker is left")
            leader = await cell.kill_leader()
            prompts = [list(range(first, first + 500)) for first in (300, 900)]
            answers = await asyncio.gather(*(ask(channel, prompt, 4, timeout_s=90.0) for prompt in prompts))
            assert [len(answer.token_ids) for answer in answers] == [4, 4]
        woken = await cell.until(lambda entry: entry.plan.reason == "wake", "a worker is started", idle.number)
        assert woken.planner != leader and any("starts as aggregated" in done for done in woken.done)
