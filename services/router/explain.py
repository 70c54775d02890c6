"""Answers `Router.Explain`: what was weighed, what was chosen, and what another policy would have done."""

from collections.abc import Mapping, Sequence

from armature.routing import columns as at
from armature.routing.decision import Candidate, Placed
from armature.routing.history import Decision, History
from armature.routing.judge import Judgement
from armature.routing.policy import Policy
from armature.runtime.errors import CallerError, NotFoundError
from armature.runtime.placement import rejection_of
from armature.v1 import router_pb2
from armature.v1.common_pb2 import Tier as WireTier
from armature.v1.common_pb2 import TierTokens

_DECISIONS = _CANDIDATES = 10
"""When no number is asked for."""
_MOST_DECISIONS = 1000


class Explainer:
    """Reads a history; `policies` are those that a decision can be judged by."""

    def __init__(self, history: History, policies: Mapping[str, Policy]) -> None:
        self._history = history
        self._policies = policies

    def explain(self, request: router_pb2.ExplainRequest, now_s: float) -> router_pb2.ExplainResponse:
        """Decisions on a request, or the latest.

        Raises:
            NotFoundError: none is remembered of the request.
            CallerError: a policy is unknown.
        """
        names = () if request.without_counterfactuals else request.policies or self._policies
        policies = [self._policy(name) for name in names]
        if request.request_id:
            decisions = self._history.of(request.request_id)
            if not decisions:
                raise NotFoundError(
                    f"no decision on request {request.request_id} is remembered here; {len(self._history)} later ones "
                    "are, or another router made it"
                )
        else:
            decisions = self._history.latest(min(request.limit or _DECISIONS, _MOST_DECISIONS))
        count = request.max_candidates or _CANDIDATES
        told = [_decision(decision, policies, count, now_s) for decision in decisions]
        return router_pb2.ExplainResponse(decisions=told)

    def _policy(self, name: str) -> Policy:
        policy = self._policies.get(name)
        if policy is None:
            raise CallerError(f"policies: there is no policy {name!r}; there are {', '.join(self._policies)}")
        return policy


def _decision(decision: Decision, others: Sequence[Policy], count: int, now_s: float) -> router_pb2.Decision:
    query = decision.query
    told = router_pb2.Decision(
        request_id=query.request_id,
        model=query.model,
        tenant=query.tenant,
        session_id=query.session_id,
        prompt_tokens=query.prompt_tokens,
        age_s=now_s - decision.decided_s,
        policy=decision.policy.name,
        unit=decision.policy.unit,
        cached_tokens=decision.cached_tokens,
    )
    if decision.first_token_s is not None:
        told.ttft_s = decision.first_token_s - decision.decided_s
    judgement = decision.judged_by(decision.policy)
    if decision.rejected is not None:
        told.rejected.CopyFrom(rejection_of(decision.rejected))
        told.reason = decision.rejected.reason
    if judgement is None:
        return told
    chosen = judgement.chosen
    block_size = int(judgement.ways.rows[at.BLOCK_SIZE, judgement.pick.way])
    told.reason = Placed(judgement, chosen, chosen.overlap_blocks * block_size).reason
    told.num_candidates = len(judgement)
    best = [int(way) for way in judgement.costs.argsort(kind="stable")[:count]]
    if judgement.pick.way not in best:
        best[-1] = judgement.pick.way
    told.candidates.extend(_candidate(judgement, way) for way in best)
    told.counterfactuals.extend(_counterfactual(decision, chosen, other) for other in others)
    return told


def _candidate(judgement: Judgement, way: int) -> router_pb2.Candidate:
    candidate, block_size = judgement.candidate(way), int(judgement.ways.rows[at.BLOCK_SIZE, way])
    return router_pb2.Candidate(
        decode_worker=candidate.decode_id,
        prefill_worker=candidate.prefill_id,
        pull_worker=candidate.pull_id,
        cost=candidate.cost,
        terms=candidate.terms,
        predicted_ttft_s=candidate.ttft_s,
        overlap_tokens=candidate.overlap_blocks * block_size,
        is_chosen=way == judgement.pick.way,
        onboard=[
            TierTokens(tier=WireTier.ValueType(tier), tokens=blocks * block_size)
            for tier, blocks in candidate.onboard_blocks.items()
        ],
    )


def _counterfactual(decision: Decision, chosen: Candidate, policy: Policy) -> router_pb2.Counterfactual:
    judgement = decision.judged_by(policy)
    if judgement is None:
        return router_pb2.Counterfactual(policy=policy.name)
    other = judgement.chosen
    return router_pb2.Counterfactual(
        policy=policy.name,
        decode_worker=other.decode_id,
        prefill_worker=other.prefill_id,
        predicted_ttft_s=other.ttft_s,
        is_same=other[:2] == chosen[:2],
    )
