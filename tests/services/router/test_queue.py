"""Queries that nobody can take now: told that they wait, answered when there is room, gone with their client."""

from dataclasses import replace
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from armature.routing.queueing.gates import Wait
from armature.v1.hints_pb2 import Hints
from armature.v1.router_pb2 import Progress, Rejection
from tests.services.router.harness import POLICY, Routing, ask, hear, progress, query, routing
from tests.support.eventually import eventually
from tests.support.scripted_worker import ScriptedWorker, scripted_workers


async def busy(router: Routing, *workers: ScriptedWorker) -> None:
    """Let workers join that have more than a minute of prompts to compute."""
    for worker in workers:
        worker.report(waiting_prefill_tokens=90_000)
    router.join(*workers)
    await eventually(lambda: all(router.core._accounts[worker.worker_id].busy_until_s > 0 for worker in workers))


async def test_a_query_that_waits_is_told_so_and_answered_when_a_worker_has_room() -> None:
    async with scripted_workers("d1") as (worker,), routing() as router:
        await busy(router, worker)
        call = router.gateway()
        (first,) = await ask(call, query(1))
        assert (first.query_id, first.WhichOneof("outcome")) == (1, "waiting")
        assert first.waiting.within_s == pytest.approx(60.0, abs=0.1)
        assert first.waiting.reason.startswith("waits with 0 others")
        worker.report(waiting_prefill_tokens=0)
        (second,) = await hear(call)
        assert (second.query_id, second.assigned.worker_id) == (1, "d1")
        assert "; waited 0." in second.assigned.reason
        assert router.core.requests_in_flight == 1
        call.cancel()


async def test_a_worker_that_joins_takes_what_waits() -> None:
    async with scripted_workers("d1", "d2") as (worker, other), routing() as router:
        await busy(router, worker)
        call = router.gateway()
        await ask(call, query(1))
        router.join(other)
        assert (await hear(call))[0].assigned.worker_id == "d2"
        call.cancel()


async def test_a_request_that_ends_makes_room_for_one_that_waits() -> None:
    impatient = replace(POLICY, queue=replace(POLICY.queue, gate=Wait(below_s=2.0)))
    async with scripted_workers("d1") as (worker,), routing(impatient) as router:
        router.join(worker)
        call = router.gateway()
        (placed,) = await ask(call, query(1, tokens=4000))
        assert placed.assigned.worker_id == "d1"
        (waiting,) = await ask(call, query(2, sequence_hashes=b""))
        assert waiting.WhichOneof("outcome") == "waiting"
        (answer,) = await ask(call, progress=[progress("r1", Progress.KIND_FINISHED)])
        assert (answer.query_id, answer.assigned.worker_id) == (2, "d1")
        call.cancel()


async def test_whoever_can_be_answered_is_answered_before_those_that_wait() -> None:
    async with scripted_workers("d1") as (worker,), routing() as router:
        await busy(router, worker)
        call = router.gateway()
        both = await ask(call, query(1), query(2, model="x"))
        assert [one.WhichOneof("outcome") for one in both] == ["waiting", "rejected"]
        (third,) = await ask(call, query(3, model="x"))
        assert third.rejected.code == Rejection.CODE_NO_WORKERS
        call.cancel()


async def test_priority_and_tenants_decide_who_is_next() -> None:
    async with scripted_workers("d1") as (worker,), routing() as router:
        await busy(router, worker)
        call = router.gateway()
        facts: list[dict[str, Any]] = [
            {"tenant": "flood"}, {"tenant": "flood"}, {"tenant": "quiet"}, {"hints": Hints(priority=2)},
        ]  # fmt: skip
        await ask(call, *[query(n, tokens=300, sequence_hashes=b"", **some) for n, some in enumerate(facts)])
        worker.report(waiting_prefill_tokens=0)
        answered: list[int] = []
        while len(answered) < 4:
            answered += [one.query_id for one in await hear(call)]
        assert answered == [3, 0, 2, 1]
        call.cancel()


async def test_a_full_queue_sheds_the_least_valuable_and_says_when_to_come_again() -> None:
    policy = replace(POLICY, queue=replace(POLICY.queue, max_requests=1))
    before = shed()
    async with scripted_workers("d1") as (worker,), routing(policy) as router:
        await busy(router, worker)
        call = router.gateway()
        await ask(call, query(1))
        (full,) = await ask(call, query(2))
        assert full.rejected.code == Rejection.CODE_OVERLOADED
        assert full.rejected.reason.startswith("the queue is full: 1 requests wait with 0.5 s of work")
        assert full.rejected.retry_after_s >= 1
        pushed_out, waiting = await ask(call, query(3, hints=Hints(priority=1)))
        assert (pushed_out.query_id, pushed_out.rejected.code) == (1, Rejection.CODE_OVERLOADED)
        assert (waiting.query_id, waiting.WhichOneof("outcome")) == (3, "waiting")
        await eventually(lambda: queued() == 1)
        call.cancel()
        await eventually(lambda: len(router.dispatcher) == 0)
        await eventually(
            lambda: REGISTRY.get_sample_value("armature_router_queued_requests", {"priority": "1"}) is None
        )
    assert {reason: count - before[reason] for reason, count in shed().items()} == {"full": 1, "pushed_out": 1}


def queued() -> float | None:
    return REGISTRY.get_sample_value("armature_router_queued_requests", {"priority": "1"})


def shed() -> dict[str, float]:
    name = "armature_router_shed_total"
    return {reason: REGISTRY.get_sample_value(name, {"reason": reason}) or 0 for reason in ("full", "pushed_out")}


async def test_a_client_that_leaves_waits_no_more() -> None:
    async with scripted_workers("d1") as (worker,), routing() as router:
        await busy(router, worker)
        call = router.gateway()
        await ask(call, query(1))
        (second,) = await ask(call, query(2), progress=[progress("r1", Progress.KIND_FINISHED)])
        assert second.WhichOneof("outcome") == "waiting"
        assert len(router.dispatcher) == 1
        worker.report(waiting_prefill_tokens=0)
        assert [one.query_id for one in await hear(call)] == [2]
        assert router.core.requests_in_flight == 1
        call.cancel()


async def test_a_gateway_that_leaves_takes_its_waiting_queries_along() -> None:
    async with scripted_workers("d1") as (worker,), routing() as router:
        await busy(router, worker)
        one, two = router.gateway(), router.gateway()
        await ask(one, query(1), query(2))
        await ask(two, query(1))
        one.cancel()
        await eventually(lambda: len(router.dispatcher) == 1)
        worker.report(waiting_prefill_tokens=0)
        assert (await hear(two))[0].assigned.worker_id == "d1"
        await two.done_writing()
        assert await two.read() is grpc.aio.EOF
        await eventually(lambda: router.core.requests_in_flight == 0)
