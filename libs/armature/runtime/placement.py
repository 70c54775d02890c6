"""The wire's words for placement in the core's, and back: for the router, and for whoever falls back on its core."""

from collections.abc import Mapping

from google.protobuf.message import DecodeError

from armature.index.packing import unpack_hashes
from armature.index.tiers import Tier
from armature.index.trust import Answered
from armature.performance.linear import LinearModel
from armature.routing.decision import Candidate, Placed, Query, Rejected, RejectionCode
from armature.routing.queueing.outcome import Queued
from armature.routing.worker import NO_READING, Load, Reading, Role, Speeds, Store, Worker
from armature.runtime.errors import CallerError, PeerError
from armature.runtime.hints import hints_of
from armature.runtime.roster import MemberChange
from armature.scheduling.lower_tiers import TierSpeed
from armature.v1 import router_pb2
from armature.v1.common_pb2 import HANDOFF_PULL, MEMBER_STATE_DRAINING, Member
from armature.v1.worker_pb2 import LoadReport, PrefillTarget, StepCosts

WORKER_KINDS = ("prefill-worker", "decode-worker")
"""Kinds of members that requests are placed on."""
OFFLOAD_KIND = "kv-offload"
"""Kind of members that keep blocks for the workers of their node."""

_CODES = {
    RejectionCode.NO_WORKERS: router_pb2.Rejection.CODE_NO_WORKERS,
    RejectionCode.OVERLOADED: router_pb2.Rejection.CODE_OVERLOADED,
}


def worker_of(member: Member) -> Worker:
    """What placement knows of a worker, from its record.

    Raises:
        PeerError: the record lacks what a worker must tell.
    """
    info = member.worker
    try:
        return Worker(
            worker_id=member.id,
            role=Role(info.role),
            model=info.model.name,
            block_size=info.model.block_size,
            block_bytes=info.model.block_bytes,
            num_blocks=info.num_blocks,
            max_num_seqs=info.max_num_seqs,
            max_num_batched_tokens=info.max_num_batched_tokens,
            fingerprint=info.kv_fingerprint,
            is_draining=member.state == MEMBER_STATE_DRAINING,
        )
    except ValueError as error:
        raise PeerError(f"the record of {member.id} is of no use: {error}") from error


def store_of(member: Member) -> Store | None:
    """What placement knows of a kv-offload; None: it does not know yet what its blocks are like, or goes away."""
    if not member.offload.HasField("layout") or member.state == MEMBER_STATE_DRAINING:
        return None
    return Store(member.id, member.offload.layout.kv_fingerprint)


def load_of(report: LoadReport) -> Load:
    """A worker's report.

    Raises:
        PeerError: it says what can't be.
    """
    try:
        return Load(
            running_seqs=report.running_seqs,
            waiting_seqs=report.waiting_seqs,
            waiting_prefill_tokens=report.waiting_prefill_tokens,
            free_blocks=report.free_blocks,
            speeds=Speeds(report.prefill_tokens_per_s, report.decode_step_s, report.transfer_bytes_per_s),
            steps=_steps_of(report.step_costs) if report.HasField("step_costs") else None,
            reading=_reading_of(report),
        )
    except ValueError as error:
        raise PeerError(f"the load report is of no use: {error}") from error


def load_from(data: bytes) -> Load:
    """A worker's report as it travels.

    Raises:
        PeerError: it is none, or says what can't be.
    """
    try:
        return load_of(LoadReport.FromString(data))
    except DecodeError as error:
        raise PeerError("what it tells is no load report") from error


def query_of(query: router_pb2.Query, owner: str = "") -> Query:
    """What is asked, on behalf of `owner`.

    Raises:
        CallerError: there is no prompt, or hashes or hints are of no use.
    """
    try:
        return Query(
            request_id=query.request_id,
            model=query.model,
            prompt_tokens=query.prompt_tokens,
            hashes=unpack_hashes(query.sequence_hashes),
            excluded=tuple(query.excluded_workers),
            owner=owner,
            tenant=query.tenant,
            session_id=query.session_id,
            hints=hints_of(query.hints),
            prefill_locally=query.prefill_locally,
        )
    except ValueError as error:
        raise CallerError(f"query {query.query_id}: {error}") from error


def answered_of(progress: router_pb2.Progress) -> Answered | None:
    """What a kv-offload has said to the worker; None: none was asked, or it has not answered."""
    if not progress.onboard_asked_tokens:
        return None
    return Answered(progress.onboard_asked_tokens, progress.onboard_found_tokens)


def _steps_of(costs: StepCosts) -> LinearModel:
    decode = costs.fixed_s, costs.decode_s, costs.context_token_s
    return LinearModel(*decode, costs.prefill_token_s, costs.prefill_pair_s)


def _reading_of(report: LoadReport) -> Reading:
    if not report.onboarding:
        return Reading(report.pull_bytes_per_s) if report.pull_bytes_per_s else NO_READING
    tiers = {Tier(speed.tier): TierSpeed(speed.bytes_per_s, speed.latency_s) for speed in report.onboarding}
    return Reading(report.pull_bytes_per_s, tiers)


def placement_of(
    query_id: int, outcome: Placed | Queued | Rejected, members: Mapping[str, Member], *, omit_reason: bool = False
) -> router_pb2.Placement:
    """The answer to a query; `members` has the chosen workers' records. What is refused is always told why."""
    if isinstance(outcome, Rejected):
        return router_pb2.Placement(query_id=query_id, rejected=rejection_of(outcome))
    if isinstance(outcome, Queued):
        waiting = router_pb2.Waiting(
            expected_wait_s=outcome.expected_wait_s, within_s=outcome.within_s, reason=outcome.reason
        )
        return router_pb2.Placement(query_id=query_id, waiting=waiting)
    chosen = outcome.chosen
    assigned = router_pb2.Assignment(
        worker_id=chosen.decode_id,
        address=members[chosen.decode_id].address,
        prefill=_target_of(chosen, members),
        overlap_tokens=outcome.overlap_tokens,
        predicted_ttft_s=chosen.ttft_s,
        reason="" if omit_reason else outcome.reason,
    )
    return router_pb2.Placement(query_id=query_id, assigned=assigned)


def rejection_of(outcome: Rejected) -> router_pb2.Rejection:
    """A refusal as the contract has it."""
    return router_pb2.Rejection(code=_CODES[outcome.code], reason=outcome.reason, retry_after_s=outcome.retry_after_s)


def _target_of(chosen: Candidate, members: Mapping[str, Member]) -> PrefillTarget | None:
    """Whom the decode worker is to read from; a peer or kv-offload that has gone since can't be."""
    if chosen.prefill_id:
        return target_of(members[chosen.prefill_id])
    source = members.get(chosen.pull_id)
    if source is None:
        return None
    if source.kind == OFFLOAD_KIND:
        return PrefillTarget(
            worker_id=source.id,
            address=source.address,
            handoff=HANDOFF_PULL,
            kv_fingerprint=source.offload.layout.kv_fingerprint,
            cached_only=True,
            is_offload=True,
        )
    target = target_of(source)
    target.cached_only = True
    return target


def promise_of(change: MemberChange) -> tuple[str, float]:
    """The model for which a planner starts workers when somebody asks, and how long that takes; no name: for none."""
    told = change.member.planner
    return ("" if change.kind == "left" else told.wakes.name), told.start_up_s


def target_of(member: Member) -> PrefillTarget:
    """What a decode worker needs to reach a prefill worker."""
    return PrefillTarget(
        worker_id=member.id,
        address=member.address,
        handoff=member.worker.handoff,
        kv_fingerprint=member.worker.kv_fingerprint,
    )
