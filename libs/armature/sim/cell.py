"""What a simulated cell is: plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from armature.index.tiers import Tier
from armature.offload.policy import OffloadPolicy, TierShape
from armature.performance.step import PerformanceModel
from armature.routing.worker import NO_READING, Reading, Role, Worker
from armature.scheduling.lower_tiers import TierSpeed
from armature.sim.worker import WorkerShape


@dataclass(frozen=True, slots=True)
class Failure:
    """A worker dies, and comes back empty.

    Raises:
        ValueError: it would be before the start, or end before it began.
    """

    worker_id: str
    at_s: float
    down_s: float = float("inf")
    """Until it is back; infinite: it stays away."""

    def __post_init__(self) -> None:
        if not 0 <= self.at_s < float("inf"):
            raise ValueError(f"{self.worker_id} fails at {self.at_s} s; that must be at least 0")
        if not self.down_s >= 0:
            raise ValueError(f"{self.worker_id} is down for {self.down_s} s; that must be at least 0")


class Engine(NamedTuple):
    """What a worker's engine is."""

    shape: WorkerShape
    performance: PerformanceModel


@dataclass(frozen=True, slots=True, kw_only=True)
class CellShape:
    """Workers of equal hardware, but perhaps for prefill, and what lies between them and the routers.

    Raises:
        ValueError: nobody would make tokens, time would run backwards, or an unknown worker fails.
    """

    num_workers: int = 0
    """That do prefill and decode."""
    num_prefill: int = 0
    num_decode: int = 0
    worker: WorkerShape
    performance: PerformanceModel
    prefill: Engine | None = None
    """Of prefill workers; None: they are like the others."""
    model: str = "model"
    block_bytes: int = 1
    link_bytes_per_s: float = 40e9
    """Of each worker, in and out."""
    workers_per_node: int = 8
    """That share what lies below their devices."""
    tier_shapes: Mapping[Tier, TierShape] = field(default_factory=dict[Tier, TierShape])
    """The tiers below the devices of each node; empty: there are none."""
    offload_policy: OffloadPolicy = field(default_factory=OffloadPolicy)
    """What they keep."""
    can_pull: bool = False
    """Whether workers may read a prefix from a peer's device or from another node, if the policy says so."""
    max_fetches: int = 32
    """Prompts that a worker reads at the same time from prefill workers; further ones wait."""
    lease_s: float = 30.0
    """How long staged blocks outlive their reader."""
    event_lag_s: float = 0.0
    """Between a change in a worker's cache and a router's index."""
    report_interval_s: float = 0.0
    """Between a worker's load reports; 0: one after every step."""
    share_lag_s: float | None = None
    """Until a router knows what another has placed; None: routers tell each other nothing."""
    detection_s: float = 10.0
    """From a worker's death until the routers know. Until then requests are still sent there, and come back."""
    migration_limit: int = 3
    """How often a request may move to another worker."""
    failures: tuple[Failure, ...] = ()
    stretches: bool = True
    """Off: every step is planned by itself, for checking."""

    def __post_init__(self) -> None:
        if min(self.num_workers, self.num_prefill, self.num_decode) < 0:
            raise ValueError("num_workers, num_prefill and num_decode count workers: 0 or more")
        if self.num_workers + self.num_decode < 1:
            raise ValueError("num_workers is 0 and so is num_decode; somebody must make tokens")
        if self.num_prefill and not self.num_decode:
            raise ValueError("num_decode is 0; prefill workers serve decode workers only")
        for name in ("event_lag_s", "report_interval_s", "detection_s", "lease_s"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.share_lag_s is not None and not 0 <= self.share_lag_s < float("inf"):
            raise ValueError(f"share_lag_s is {self.share_lag_s}; it must be at least 0")
        if self.workers_per_node < 1:
            raise ValueError(f"workers_per_node is {self.workers_per_node}; it must be at least 1")
        if self.tier_shapes and Tier.G2 not in self.tier_shapes:
            raise ValueError("there is no host memory (G2), through which blocks come from and go to other tiers")
        if self.prefill and self.prefill.shape.block_size != self.worker.block_size:
            raise ValueError(
                f"prefill has blocks of {self.prefill.shape.block_size} tokens, others of {self.worker.block_size}"
            )
        names = [worker.worker_id for worker in self.workers()]
        for failure in self.failures:
            if failure.worker_id not in names:
                raise ValueError(f"there is no worker {failure.worker_id!r} to fail; there are {_listed(names)}")

    def engine(self, role: Role) -> Engine:
        """Of a worker with that role."""
        if role is Role.PREFILL and self.prefill:
            return self.prefill
        return Engine(self.worker, self.performance)

    @property
    def reading(self) -> Reading:
        """What every worker says of how quickly it reads blocks that are kept elsewhere."""
        if not (self.tier_shapes or self.can_pull):
            return NO_READING
        tiers: dict[Tier, TierSpeed] = {}
        for tier, shape in self.tier_shapes.items():
            host = self.tier_shapes[Tier.G2]
            # Blocks from further below pass through host memory.
            block_s, latency_s = 1 / host.read_bytes_per_s, host.read_latency_s
            if tier is not Tier.G2:
                block_s, latency_s = block_s + 1 / shape.read_bytes_per_s, latency_s + shape.read_latency_s
            tiers[tier] = TierSpeed(1 / block_s, latency_s)
        return Reading(self.link_bytes_per_s if self.can_pull else 0.0, tiers)

    def nodes(self) -> dict[str, list[str]]:
        """The workers of each node."""
        names, size = [worker.worker_id for worker in self.workers()], self.workers_per_node
        return {f"n{first // size}": names[first : first + size] for first in range(0, len(names), size)}

    def workers(self) -> list[Worker]:
        """The workers as placement knows them."""
        pools = (
            (Role.AGGREGATED, "w", self.num_workers),
            (Role.PREFILL, "p", self.num_prefill),
            (Role.DECODE, "d", self.num_decode),
        )
        return [
            self._worker(f"{letter}{i:0{len(str(count - 1))}}", role)
            for role, letter, count in pools
            for i in range(count)
        ]

    def _worker(self, worker_id: str, role: Role) -> Worker:
        shape = self.engine(role).shape
        return Worker(
            worker_id=worker_id,
            role=role,
            model=self.model,
            block_size=shape.block_size,
            block_bytes=self.block_bytes,
            num_blocks=shape.num_blocks,
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.max_num_batched_tokens,
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} to {names[-1]}"
