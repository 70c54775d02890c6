"""What routers remember of their decisions, asked of all of them."""

import asyncio
import time
from collections.abc import Iterable, Sequence

import grpc

from armature.console import shapes
from armature.console.picture import tier_name
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import NotFoundError
from armature.v1 import router_pb2 as pb
from armature.v1.common_pb2 import Member
from armature.v1.router_pb2_grpc import RouterStub

TIMEOUT_S = 5.0
_MOST = 100


async def latest(channels: ChannelPool, routers: Sequence[Member], limit: int) -> shapes.Decisions:
    """The latest decisions of all routers, each with the way that was chosen only."""
    request = pb.ExplainRequest(limit=min(limit, _MOST), max_candidates=1, without_counterfactuals=True)
    answers, problems = await _ask(channels, routers, request)
    decisions = _decisions(answers)
    return shapes.Decisions(data=decisions[:limit], problems=problems)


async def on_request(
    channels: ChannelPool, routers: Sequence[Member], request_id: str, max_candidates: int
) -> shapes.Decisions:
    """All decisions on one request, with everything that was weighed.

    Raises:
        NotFoundError: no router remembers one.
    """
    request = pb.ExplainRequest(request_id=request_id, max_candidates=max_candidates)
    answers, problems = await _ask(channels, routers, request)
    decisions = _decisions(answers)
    if not decisions:
        raise NotFoundError(f"no router remembers a decision on request '{request_id[:80]}'")
    return shapes.Decisions(data=decisions, problems=problems)


async def _ask(
    channels: ChannelPool, routers: Sequence[Member], request: pb.ExplainRequest
) -> tuple[list[tuple[str, pb.Decision]], dict[str, str]]:
    asking = (RouterStub(channels.get(one.address)).Explain(request, timeout=TIMEOUT_S) for one in routers)
    answers = await asyncio.gather(*(_settled(one) for one in asking))
    told: list[tuple[str, pb.Decision]] = []
    problems: dict[str, str] = {}
    for router, answer in zip(routers, answers, strict=True):
        if isinstance(answer, pb.ExplainResponse):
            told += [(router.id, decision) for decision in answer.decisions]
        elif answer.code() is not grpc.StatusCode.NOT_FOUND:
            problems[router.id] = answer.code().name.lower()
    return told, problems


async def _settled(
    call: "grpc.aio.UnaryUnaryCall[pb.ExplainRequest, pb.ExplainResponse]",
) -> pb.ExplainResponse | grpc.aio.AioRpcError:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error


def _decisions(told: Iterable[tuple[str, pb.Decision]]) -> list[shapes.Decision]:
    now = time.time()
    decisions = [_decision(router, decision, now) for router, decision in told]
    return sorted(decisions, key=lambda decision: -decision.decided_at)


def _decision(router: str, decision: pb.Decision, now: float) -> shapes.Decision:
    return shapes.Decision(
        request_id=decision.request_id,
        router=router,
        model=decision.model,
        tenant=decision.tenant,
        prompt_tokens=decision.prompt_tokens,
        decided_at=now - decision.age_s,
        policy=decision.policy,
        unit=decision.unit,
        reason=decision.reason,
        is_rejected=decision.HasField("rejected"),
        candidates=[_candidate(one) for one in decision.candidates],
        num_candidates=decision.num_candidates,
        counterfactuals=[
            shapes.Counterfactual(**{name: getattr(one, name) for name in shapes.Counterfactual.__struct_fields__})
            for one in decision.counterfactuals
        ],
        ttft_s=decision.ttft_s if decision.HasField("ttft_s") else None,
        cached_tokens=decision.cached_tokens if decision.HasField("cached_tokens") else None,
    )


def _candidate(one: pb.Candidate) -> shapes.Candidate:
    return shapes.Candidate(
        decode_worker=one.decode_worker,
        prefill_worker=one.prefill_worker,
        pull_worker=one.pull_worker,
        cost=one.cost,
        terms=dict(one.terms),
        predicted_ttft_s=one.predicted_ttft_s,
        overlap_tokens=one.overlap_tokens,
        onboard_tokens={tier_name(part.tier): part.tokens for part in one.onboard},
        is_chosen=one.is_chosen,
    )
