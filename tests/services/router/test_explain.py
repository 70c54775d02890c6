"""Explain: what the Route stream decided can be asked for, with what was weighed and what others would have done."""

import time

import grpc
import pytest

from armature.index.packing import pack_hashes
from armature.index.tiers import Tier
from armature.index.trust import TrustState
from armature.routing import columns as at
from armature.runtime.membership import MemberChange
from armature.runtime.policies import shipped_policies
from armature.v1.common_pb2 import TIER_G2, TIER_G3
from armature.v1.router_pb2 import ExplainRequest, Progress, RouteRequest, RouterStatsRequest
from armature.v1.router_pb2_grpc import RouterStub
from armature.v1.worker_pb2 import TierSpeed
from tests.services.router.harness import Routing, ask, progress, query, routing
from tests.support.eventually import eventually
from tests.support.scripted_worker import scripted_workers


async def explain(router: Routing, **asked: object):  # type: ignore[no-untyped-def]
    stub = RouterStub(router.channels.get(router.server.address))
    return (await stub.Explain(ExplainRequest(**asked), timeout=5)).decisions  # type: ignore[arg-type]


async def test_a_decision_is_told_with_all_that_was_weighed() -> None:
    async with scripted_workers("d1", "d2", "p1") as workers, routing() as router:
        router.join(*workers)
        router.core.index.store("d2", range(30))
        call = router.gateway()
        (placement,) = await ask(call, query(1, 500))
        (decision,) = await explain(router, request_id="r1")
        assert decision.reason == placement.assigned.reason
        assert (decision.model, decision.prompt_tokens, decision.unit) == ("m", 500, "s")
        (chosen,) = [candidate for candidate in decision.candidates if candidate.is_chosen]
        assert (chosen.decode_worker, chosen.overlap_tokens) == ("d2", 300)
        assert chosen.predicted_ttft_s == placement.assigned.predicted_ttft_s
        assert len(decision.candidates) == decision.num_candidates == 4
        for candidate in decision.candidates:
            assert sum(candidate.terms.values()) == pytest.approx(candidate.cost)
        costs = [candidate.cost for candidate in decision.candidates]
        assert costs == sorted(costs)
        call.cancel()


async def test_what_is_read_from_lower_tiers_is_told_by_tier() -> None:
    async with scripted_workers("d1", "d2") as (one, two), routing() as router:
        speeds = [TierSpeed(tier=tier, bytes_per_s=1e9, latency_s=1e-4) for tier in (TIER_G2, TIER_G3)]
        one.report(onboarding=speeds)
        router.join(one, two)
        await eventually(lambda: len(router.core.state("m")[at.BLOCK_ONBOARD_S].nonzero()[0]) == 1)
        index = router.core.index
        for worker in (one, two):
            index.add(worker.worker_id)
        index.store("d1", range(10))
        index.store("o1", range(20), Tier.G2)
        index.store("o1", range(20, 30), Tier.G3)
        index.attach("o1", ["d1", "d2"])
        call = router.gateway()
        (placement,) = await ask(call, query(1, 500))
        assert placement.assigned.worker_id == "d1"
        (decision,) = await explain(router, request_id="r1")
        parts = {
            candidate.decode_worker: [(part.tier, part.tokens) for part in candidate.onboard]
            for candidate in decision.candidates
        }
        assert parts == {"d1": [(TIER_G2, 100), (TIER_G3, 100)], "d2": []}
        assert "d1 alone with 10 of G2 and 10 of G3" in decision.reason
        call.cancel()


async def test_a_worker_that_had_better_read_from_another_nodes_kv_offload_is_told_where_and_it_is_explained() -> None:
    async with scripted_workers("d1", "d2", "o1") as (one, two, offload), routing() as router:
        one.report(waiting_prefill_tokens=50_000, pull_bytes_per_s=1e10)
        two.report(pull_bytes_per_s=1e10)
        router.join(one, two, offload)

        def reports() -> bool:
            state = router.core.state("m")
            return bool(state[at.BLOCK_PULL_S].all() and state[at.BUSY_UNTIL_S].any())

        await eventually(reports)
        index = router.core.index
        index.add("d1")
        index.store("o1", range(40), Tier.G2)
        index.attach("o1", ["d1"])
        call = router.gateway()
        (placement,) = await ask(call, query(1, 500))
        assigned, source = placement.assigned, placement.assigned.prefill
        assert (assigned.worker_id, source.worker_id, source.address) == ("d2", "o1", offload.address)
        assert (source.is_offload, source.cached_only, source.kv_fingerprint) == (True, True, b"same")
        (decision,) = await explain(router, request_id="r1")
        (chosen,) = [candidate for candidate in decision.candidates if candidate.is_chosen]
        assert chosen.pull_worker == "o1" and chosen.terms["peer_pull"] > 0
        assert "d2 alone after reading from o1" in decision.reason
        # One that leaves, or keeps other blocks now, is read from no more.
        router.cell.on_change(MemberChange("left", offload.member))
        (placement,) = await ask(call, query(2, 500, sequence_hashes=pack_hashes([*range(40), *range(90, 100)])))
        assert not placement.assigned.HasField("prefill")
        call.cancel()


async def test_every_other_policy_says_what_it_would_have_done() -> None:
    async with scripted_workers("d1", "d2") as workers, routing() as router:
        router.join(*workers)
        router.core.index.store("d2", range(30))
        call = router.gateway()
        await ask(call, query(1, 500))
        (decision,) = await explain(router, request_id="r1")
        others = {other.policy: other for other in decision.counterfactuals}
        assert sorted(others) == sorted(shipped_policies())
        assert others["round_robin"].decode_worker == "d1" and not others["round_robin"].is_same
        assert others["dynamo"].decode_worker == "d2" and others["dynamo"].is_same
        (decision,) = await explain(router, request_id="r1", policies=["random"])
        assert [other.policy for other in decision.counterfactuals] == ["random"]
        call.cancel()


async def test_what_came_of_it_is_told_too() -> None:
    async with scripted_workers("d1") as workers, routing() as router:
        router.join(*workers)
        call = router.gateway()
        await ask(call, query(1))
        assert not (await explain(router, request_id="r1"))[0].HasField("ttft_s")
        await call.write(RouteRequest(progress=[progress("r1", Progress.KIND_FIRST_TOKEN)]))

        async def told() -> bool:
            return (await explain(router, request_id="r1"))[0].HasField("ttft_s")

        await eventually(told)
        call.cancel()


async def test_the_latest_decisions_and_the_best_candidates_are_shown_as_many_as_asked_for() -> None:
    async with scripted_workers("d1", "d2") as workers, routing() as router:
        router.join(*workers)
        call = router.gateway()
        await ask(call, *[query(n) for n in range(1, 6)])
        decisions = await explain(router, limit=2, max_candidates=1)
        assert [decision.request_id for decision in decisions] == ["r4", "r5"]
        assert all(len(d.candidates) == 1 and d.candidates[0].is_chosen and d.num_candidates == 2 for d in decisions)
        call.cancel()


async def test_a_refusal_is_explained_by_its_reason() -> None:
    async with routing() as router:
        call = router.gateway()
        await ask(call, query(1))
        (decision,) = await explain(router, request_id="r1")
        assert decision.reason == decision.rejected.reason == "no decode worker serves model 'm'"
        assert not decision.candidates
        call.cancel()


@pytest.mark.parametrize(
    ("asked", "code", "message"),
    [
        ({"request_id": "nobody"}, grpc.StatusCode.NOT_FOUND, "no decision on request nobody is remembered here"),
        ({"policies": ["best"]}, grpc.StatusCode.INVALID_ARGUMENT, "policies: there is no policy 'best'; there are "),
    ],
)
async def test_what_is_not_there_is_said(asked: dict[str, object], code: grpc.StatusCode, message: str) -> None:
    async with routing() as router:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await explain(router, **asked)
        assert caught.value.code() == code
        assert (caught.value.details() or "").startswith(message)


async def test_without_counterfactuals_no_other_policy_is_asked() -> None:
    async with scripted_workers("d1", "d2") as workers, routing() as router:
        router.join(*workers)
        call = router.gateway()
        await ask(call, query(1, 500))
        (decision,) = await explain(router, without_counterfactuals=True, policies=["round_robin"])
        assert decision.candidates
        assert not decision.counterfactuals
        call.cancel()


async def test_a_router_tells_its_work_and_what_it_believes() -> None:
    async with scripted_workers("d1", "d2") as workers, routing() as router:
        router.join(*workers)
        router.core.index.store("d2", range(30))
        router.core.trust.mark("d2", TrustState.STALE, time.monotonic())
        call = router.gateway()
        await ask(call, query(1, 500))
        stub = RouterStub(router.channels.get(router.server.address))
        stats = await stub.GetStats(RouterStatsRequest(), timeout=5)
        assert (stats.policy, stats.requests_in_flight, stats.queued_requests) == (router.core.policy.name, 1, 0)
        assert stats.index_blocks == 30
        (belief,) = stats.beliefs
        assert (belief.worker_id, 0 < belief.share < 1) == ("d2", True)
        call.cancel()
