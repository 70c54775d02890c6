"""Explain: what the Route stream decided can be asked for, with what was weighed and what others would have done."""

import grpc
import pytest

from armature.runtime.policies import shipped_policies
from armature.v1.router_pb2 import ExplainRequest, Progress, RouteRequest
from armature.v1.router_pb2_grpc import RouterStub
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
