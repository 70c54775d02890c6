"""Puts together what the members of a cell tell of themselves. Pure: asks nobody, and time comes in.

A member that does not answer keeps what it told last, with its problem beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from armature.console import shapes
from armature.console.rates import Rates
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, Member, Role, Tier
from armature.v1.kv_index_pb2 import IndexStats, WorkerChange
from armature.v1.kv_offload_pb2 import StatsResponse, TierStats
from armature.v1.planner_pb2 import PlannerStatus, WorkerCounts
from armature.v1.router_pb2 import RouterStats
from armature.v1.worker_pb2 import LoadReport, WorkerStats

Stats = WorkerStats | RouterStats | IndexStats | StatsResponse | PlannerStatus
OffloadStats = StatsResponse

WORKERS = ("prefill-worker", "decode-worker")
_CACHED, _PREFILL, _DECODE = "cached", "prefill", "decode"
_READ, _OFFLOADED, _ONBOARDED = "read", "offloaded", "onboarded"
_TIERS: tuple[shapes.Tier, ...] = ("G1", "G2", "G3", "G4")

S = TypeVar("S", WorkerStats, RouterStats, IndexStats, StatsResponse, PlannerStatus)


@dataclass(frozen=True, slots=True)
class Heard:
    """What a member told when it was last asked, or last before it stopped to answer."""

    stats: Stats | None = None
    at_s: float = 0.0
    problem: str = ""


NOTHING = Heard()


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that is known at one moment."""

    wall_s: float
    members: Sequence[Member]
    is_stale: bool = False
    heard: Mapping[str, Heard] = field(default_factory=dict[str, Heard])


class Picture:
    """Remembers of each member what it needs to tell how quickly things go."""

    def __init__(self, *, gateway_id: str, namespace: str, version: str) -> None:
        self._gateway_id = gateway_id
        self._namespace = namespace
        self._version = version
        self._rates: dict[str, Rates] = {}

    def draw(self, seen: Seen) -> shapes.Cell:
        """The cell at this moment."""
        self._rates = {member.id: self._rates.get(member.id) or Rates() for member in seen.members}
        self._read(seen)
        by_kind: dict[str, list[Member]] = {}
        for member in sorted(seen.members, key=lambda member: member.id):
            by_kind.setdefault(member.kind, []).append(member)
        workers = [member for kind in WORKERS for member in by_kind.get(kind, ())]
        trust, held = _trust(_told(by_kind.get("kv-index", ()), seen, IndexStats))
        beliefs = _beliefs(_told(by_kind.get("router", ()), seen, RouterStats))
        known = _Known(seen, trust, held, beliefs)
        offloads = {one.id: _offload(one, known) for one in by_kind.get("kv-offload", ())}
        drawn = {one.id: self._worker(one, known) for one in workers}
        return shapes.Cell(
            now=seen.wall_s,
            version=self._version,
            namespace=self._namespace,
            is_stale=seen.is_stale,
            models=_models(workers),
            gateways={one.id: self._gateway(one, known) for one in by_kind.get("gateway", ())},
            routers={one.id: _router(one, known) for one in by_kind.get("router", ())},
            indexes={one.id: _index(one, known) for one in by_kind.get("kv-index", ())},
            workers=drawn,
            offloads=offloads,
            planners={one.id: _planner(one, known) for one in by_kind.get("planner", ())},
            tiers=_tiers(workers, drawn, offloads.values()),
            transfers=self._transfers(_told(workers, seen, WorkerStats)),
            cached_share=self._cached_share(one.id for one in workers),
        )

    def _read(self, seen: Seen) -> None:
        for member_id, rates in self._rates.items():
            heard = seen.heard.get(member_id, NOTHING)
            if isinstance(heard.stats, WorkerStats) and not heard.problem:
                rates.take(heard.at_s, _counters(heard.stats))

    def _gateway(self, member: Member, known: "_Known") -> shapes.Gateway:
        return shapes.Gateway(**known.member(member), is_this=member.id == self._gateway_id)

    def _worker(self, member: Member, known: "_Known") -> shapes.Worker:
        stats, rates = known.stats(member, WorkerStats()), self._rates[member.id]
        load: LoadReport = stats.load
        role: Any = Role.Name(member.worker.role).removeprefix("ROLE_").lower()
        return shapes.Worker(
            **known.member(member),
            role=role,
            model=member.worker.model.name,
            engine=member.worker.engine,
            running=load.running_seqs,
            waiting=load.waiting_seqs,
            most_running=member.worker.max_num_seqs,
            waiting_prefill_tokens=load.waiting_prefill_tokens,
            total_blocks=load.total_blocks or member.worker.num_blocks,
            used_blocks=load.total_blocks - load.free_blocks,
            cached_blocks=stats.cached_blocks,
            staged_blocks=stats.staged_blocks,
            prefill_tokens_per_s=rates.per_s(_PREFILL),
            decode_tokens_per_s=rates.per_s(_DECODE),
            cached_share=self._cached_share([member.id]),
            step_s=load.decode_step_s,
            preemptions=stats.preemptions,
            read_bytes_per_s=rates.per_s(_READ),
            offloaded_bytes_per_s=rates.per_s(_OFFLOADED),
            onboarded_bytes_per_s=rates.per_s(_ONBOARDED),
            index_trust=known.trust.get(member.id, ""),
            indexed_blocks=known.held.get(member.id, 0),
            believed_share=known.beliefs.get(member.id),
        )

    def _cached_share(self, worker_ids: Iterable[str]) -> float | None:
        each = [self._rates[worker_id] for worker_id in worker_ids]
        cached = sum(rates.growth(_CACHED) or 0.0 for rates in each)
        needed = cached + sum(rates.growth(_PREFILL) or 0.0 for rates in each)
        return cached / needed if needed else None

    def _transfers(self, told: Iterable[tuple[str, WorkerStats]]) -> dict[str, shapes.Transfer]:
        drawn: dict[str, shapes.Transfer] = {}
        seconds: dict[str, float] = {}
        for worker_id, stats in told:
            for one in stats.transfers:
                name = one.transport
                sum_ = drawn.setdefault(name, shapes.Transfer(bytes_per_s=None, size_bytes=0, prompts=0, mean_s=0.0))
                sum_.size_bytes += one.size_bytes
                sum_.prompts += one.prompts
                seconds[name] = seconds.get(name, 0.0) + one.seconds
                if (rate := self._rates[worker_id].per_s(f"{_READ} {name}")) is not None:
                    sum_.bytes_per_s = (sum_.bytes_per_s or 0.0) + rate
        for name, sum_ in drawn.items():
            sum_.mean_s = seconds[name] / sum_.prompts if sum_.prompts else 0.0
        return drawn


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of members besides their own words."""

    seen: Seen
    trust: Mapping[str, str]
    held: Mapping[str, int]
    beliefs: Mapping[str, float]

    def stats(self, member: Member, default: S) -> S:
        stats = self.seen.heard.get(member.id, NOTHING).stats
        return stats if isinstance(stats, type(default)) else default

    def member(self, member: Member) -> dict[str, Any]:
        """The fields of `shapes.Member`."""
        return {
            "address": member.address,
            "node": member.node,
            "state": "draining" if member.state == MEMBER_STATE_DRAINING else "ready",
            "problem": self.seen.heard.get(member.id, NOTHING).problem,
        }


def _counters(stats: WorkerStats) -> dict[str, float]:
    counters: dict[str, float] = {
        _PREFILL: stats.prefill_tokens,
        _CACHED: stats.cached_tokens,
        _DECODE: stats.decode_tokens,
        _READ: sum(one.size_bytes for one in stats.transfers),
        _OFFLOADED: stats.offloaded_bytes,
        _ONBOARDED: sum(one.size_bytes for one in stats.onboarded),
    }
    return counters | {f"{_READ} {one.transport}": one.size_bytes for one in stats.transfers}


def _told(members: Iterable[Member], seen: Seen, kind: type[S]) -> list[tuple[str, S]]:
    """Who of these has told something, and what."""
    heard = ((member.id, seen.heard.get(member.id, NOTHING).stats) for member in members)
    return [(member_id, stats) for member_id, stats in heard if isinstance(stats, kind)]


def _trust(told: Iterable[tuple[str, IndexStats]]) -> tuple[dict[str, str], dict[str, int]]:
    """How far sources are trusted, and blocks that they hold; the first kv-index that tells of one counts."""
    trust: dict[str, str] = {}
    held: dict[str, int] = {}
    for _, stats in told:
        for source in stats.sources:
            trust.setdefault(source.id, _trust_name(source.trust))
            held.setdefault(source.id, source.blocks)
    return trust, held


def _trust_name(kind: "WorkerChange.Kind.ValueType") -> str:
    return WorkerChange.Kind.Name(kind).removeprefix("KIND_").lower()


def _beliefs(told: Iterable[tuple[str, RouterStats]]) -> dict[str, float]:
    least: dict[str, float] = {}
    for _, stats in told:
        for belief in stats.beliefs:
            least[belief.worker_id] = min(belief.share, least.get(belief.worker_id, 1.0))
    return least


def _models(workers: Iterable[Member]) -> dict[str, shapes.Model]:
    drawn: dict[str, shapes.Model] = {}
    for member in workers:
        card = member.worker.model
        fresh = shapes.Model(context_length=card.context_length, block_size=card.block_size, workers=0)
        drawn.setdefault(card.name, fresh).workers += 1
    return drawn


def _router(member: Member, known: _Known) -> shapes.Router:
    stats = known.stats(member, RouterStats())
    return shapes.Router(
        **known.member(member),
        policy=stats.policy,
        requests_in_flight=stats.requests_in_flight,
        queued_requests=stats.queued_requests,
        queued_work_s=stats.queued_work_s,
        index_blocks=stats.index_blocks,
    )


def _index(member: Member, known: _Known) -> shapes.Index:
    stats = known.stats(member, IndexStats())
    sources: dict[str, int] = {}
    for source in stats.sources:
        name = _trust_name(source.trust)
        sources[name] = sources.get(name, 0) + 1
    return shapes.Index(
        **known.member(member), indexed_blocks=stats.indexed_blocks, size_bytes=stats.size_bytes, sources=sources
    )


def _offload(member: Member, known: _Known) -> shapes.Offload:
    stats = known.stats(member, OffloadStats())
    return shapes.Offload(
        **known.member(member),
        block_bytes=stats.layout.block_bytes,
        leases=stats.leases,
        tiers={tier_name(tier.tier): _tier(tier) for tier in stats.tiers if tier.capacity_blocks},
        index_trust=known.trust.get(member.id, ""),
    )


def _tier(stats: TierStats) -> shapes.OffloadTier:
    return shapes.OffloadTier(**{name: getattr(stats, name) for name in shapes.OffloadTier.__struct_fields__})


def tier_name(tier: "Tier.ValueType") -> shapes.Tier:
    """As people call it."""
    return _TIERS[tier - Tier.TIER_G1]


def _planner(member: Member, known: _Known) -> shapes.Planner:
    stats = known.stats(member, PlannerStatus())
    return shapes.Planner(
        **known.member(member),
        leader=stats.leader,
        connector=stats.connector,
        policy=stats.policy,
        model=stats.model,
        is_paused=stats.targets.is_paused,
        ttft_target_s=stats.targets.ttft_s,
        itl_target_s=stats.targets.itl_s,
        target_quantile=stats.targets.quantile,
        ready=_counts(stats.fleet.ready),
        starting=_counts(stats.fleet.starting),
        wanted=_counts(stats.fleet.wanted),
        reason=stats.plan.reason,
        text=stats.plan.text,
        obstacles=[*stats.obstacles],
        log=[shapes.PlanEntry(at=entry.at_s, text=entry.text, done=list(entry.done)) for entry in stats.log],
    )


def _counts(counts: WorkerCounts) -> shapes.Workers:
    return shapes.Workers(aggregated=counts.aggregated, prefill=counts.prefill, decode=counts.decode)


def _tiers(
    members: Iterable[Member], workers: Mapping[str, shapes.Worker], offloads: Iterable[shapes.Offload]
) -> dict[shapes.Tier, shapes.TierSum]:
    sums: dict[shapes.Tier, shapes.TierSum] = {
        name: shapes.TierSum(used_blocks=0, capacity_blocks=0, size_bytes=0) for name in _TIERS
    }
    for member in members:
        worker = workers[member.id]
        _add(sums["G1"], worker.used_blocks, worker.total_blocks, member.worker.model.block_bytes)
    for offload in offloads:
        for name, tier in offload.tiers.items():
            _add(sums[name], tier.used_blocks, tier.capacity_blocks, offload.block_bytes)
    return {name: one for name, one in sums.items() if one.capacity_blocks}


def _add(sum_: shapes.TierSum, used_blocks: int, capacity_blocks: int, block_bytes: int) -> None:
    sum_.used_blocks += used_blocks
    sum_.capacity_blocks += capacity_blocks
    sum_.size_bytes += used_blocks * block_bytes
