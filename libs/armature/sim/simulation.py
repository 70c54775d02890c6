"""Replays traffic on a cell, from event to event: the composition of the parts in this folder.

Events are arrivals, refused clients that come again, the ends of steps and transfers, deaths, and news on its way to
routers. Two at the same instant happen in the order in which they were scheduled, so a run depends on its inputs only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from armature.index.tiers import Tier
from armature.routing.queueing.outcome import Outcome
from armature.routing.router import RoutingCore
from armature.routing.worker import Load, Speeds, Worker
from armature.scheduling.lower_tiers import TierChange
from armature.scheduling.request import EngineLoad, FinishReason, KvEvent, StepOutput
from armature.sim.arrivals import ClosedLoop, OpenLoop
from armature.sim.cell import CellShape, Failure
from armature.sim.clock import Clock
from armature.sim.elastic import Elastic, Scaling
from armature.sim.gateway import Fetching, Gateway
from armature.sim.handoffs import Handoffs
from armature.sim.levels import Levels
from armature.sim.links import Links
from armature.sim.node import Node
from armature.sim.observed import ObservedRecord
from armature.sim.pulls import Pulls
from armature.sim.record import Record
from armature.sim.routers import Routers
from armature.sim.site import Site, WorkerOutcome
from armature.sim.timeline import Timeline
from armature.sim.trace import ContentHasher, Trace
from armature.sim.worker import SimulatedWorker

_PROGRESS_STEP = 50


class TierUse(NamedTuple):
    """What came of a tier."""

    onboarded_blocks: int
    written_blocks: int


@dataclass(frozen=True, slots=True)
class Run:
    """What a simulation has seen."""

    outcomes: Record
    """In order of arrival."""
    workers: Sequence[WorkerOutcome]
    tiers: Mapping[Tier, TierUse]
    """Of all nodes together."""
    pulled_blocks: int
    """Read from other workers' devices, and from what other nodes keep."""
    failed_fetches: int
    """Prompts of which not all blocks came from the prefill worker."""
    timeline: Timeline
    """`waiting` and `running` requests of all workers together, and under its id the share of the time that each
    worker has computed."""


class Simulation:
    """One trace, one cell, its routers. Use it once: `run`.

    `concurrency` clients ask one request after another; 0: requests come when the trace says.
    """

    def __init__(
        self,
        trace: Trace,
        cell: CellShape,
        cores: Sequence[RoutingCore],
        *,
        concurrency: int = 0,
        scaling: Scaling | None = None,
    ) -> None:
        """With `scaling` the cell's workers are the room that a planner has, and it says who of them is there.

        Raises:
            ValueError: the parts don't fit each other.
        """
        if trace.block_size != cell.worker.block_size:
            raise ValueError(f"the trace has blocks of {trace.block_size} tokens, workers {cell.worker.block_size}")
        self._cell = cell
        self._reading = cell.reading
        self._clock = clock = Clock()
        self._routers = Routers(cores, cell, clock, self._on_decided)
        self._hasher = ContentHasher(cell.worker.block_size)
        workers = cell.workers()
        self._sites = {worker.worker_id: Site(worker, self._engine, clock, self._hear) for worker in workers}
        links = Links(clock, cell.link_bytes_per_s)
        self._handoffs = Handoffs(cell, clock, links, self._sites, self._on_cache)
        self._pulls = Pulls(cell, links, self._sites, self._on_cache)
        fetching = Fetching(self._handoffs, self._pulls)
        self.elastic = Elastic(scaling, clock, self._routers, self._sites, self._leave) if scaling else None
        record = ObservedRecord(self.elastic.observer) if self.elastic else Record()
        holds = self.elastic is not None
        self._gateway = Gateway(
            cell, clock, self._routers, self._sites, fetching, self._on_end, record, holds=holds
        )  # fmt: skip
        self._arrivals = (
            ClosedLoop(trace, clock, self._gateway.accept, concurrency)
            if concurrency
            else OpenLoop(trace, clock, self._gateway.accept)
        )
        self._levels = Levels(list(self._sites))
        if self.elastic:
            if cell.failures:
                raise ValueError("failures and a planner can't be simulated together; leave out --fail")
        else:
            for worker in workers:
                self._routers.put_worker(worker)
        self._num_requests = len(trace.requests)
        self._nodes = self._open_nodes()
        """By worker; empty if nothing lies below devices."""

    def _engine(self, worker: Worker) -> SimulatedWorker:
        cell = self._cell
        shape, performance = cell.engine(worker.role)
        lower_block_bytes = cell.block_bytes if cell.tier_shapes else 0
        return SimulatedWorker(
            shape, self._hasher, performance, stretches=cell.stretches, lower_block_bytes=lower_block_bytes
        )

    def _open_nodes(self) -> dict[str, Node]:
        cell, nodes = self._cell, dict[str, Node]()
        for node_id, worker_ids in cell.nodes().items() if cell.tier_shapes else ():
            node = Node(node_id, cell, self._clock, self._on_cache, self._on_node)
            self._routers.put_node(node_id, worker_ids)
            self._pulls.nodes[node_id] = node
            for worker_id in worker_ids:
                nodes[worker_id] = node
                node.join(self._sites[worker_id])
        return nodes

    @property
    def engines(self) -> list[SimulatedWorker]:
        return [site.engine for site in self._sites.values()]

    @property
    def nodes(self) -> list[Node]:
        """Those with something below their devices."""
        return list(dict.fromkeys(self._nodes.values()))

    @property
    def outcomes(self) -> Record:
        return self._gateway.record

    def run(self, on_progress: Callable[[int], None] | None = None) -> Run:
        """Until every request has ended; `on_progress` hears how many have, now and then."""
        for failure in self._cell.failures:
            self._expect(failure)
        if self.elastic:
            self.elastic.begin(lambda: self.outcomes.ended >= self._num_requests)
        self._arrivals.start()
        record, told = self.outcomes, 0
        while self._clock.step():
            if on_progress and record.ended >= told + _PROGRESS_STEP:
                told = record.ended
                on_progress(told)
        outcomes = [site.close() for site in self._sites.values()]
        pulled, failures = self._pulls.pulled_blocks, self._handoffs.failures
        return Run(record, outcomes, self._use_of_tiers(), pulled, failures, self._levels.timeline)

    def _use_of_tiers(self) -> dict[Tier, TierUse]:
        nodes = self.nodes
        return {
            tier: TierUse(
                sum([node.onboarded_blocks[tier] for node in nodes]),
                sum([node.store.counts[tier].stored for node in nodes]),
            )
            for tier in self._cell.tier_shapes
        }

    # --- from engines

    def _hear(self, site: Site, output: StepOutput, now_s: float) -> None:
        for told in output.tokens:
            if told.finish_reason is not FinishReason.ERROR or not self._handoffs.on_refused(told, now_s):
                self._gateway.on_tokens(told, now_s)
        if output.offload is not None:
            self._nodes[site.worker_id].on_news(site, output.offload, now_s)
        for reserved in output.reserved:
            if reserved.is_onboarding:
                self._nodes[site.worker_id].on_reserved(site, reserved, now_s)
            else:
                self._gateway.on_reserved(site, reserved, now_s)
        for staged in output.staged:
            self._handoffs.on_staged(staged, now_s)
        if output.kv_events:
            self._on_cache(site, output.kv_events)
        self._levels.on_step(site, output.load, now_s)
        self._routers.on_load(site, self._load_of(site, output.load), now_s)

    def _on_cache(self, site: Site, events: Sequence[KvEvent]) -> None:
        self._routers.on_cache(site, events)

    def _on_node(self, node: Node, changes: Sequence[TierChange]) -> None:
        self._routers.on_node(node.node_id, changes)

    def _load_of(self, site: Site, load: EngineLoad) -> Load:
        speeds = Speeds(load.prefill_tokens_per_s, load.decode_step_s, self._handoffs.bytes_per_s(site.worker_id))
        left = (load.running_seqs, load.waiting_seqs, load.waiting_prefill_tokens, load.free_blocks)
        return Load(*left, speeds, load.step_costs, self._reading)

    # --- parts of a circle

    def _on_decided(self, decided: Outcome, now_s: float) -> None:
        self._gateway.on_decided(decided, now_s)

    def _on_end(self, now_s: float) -> None:
        self._arrivals.on_end(now_s)

    def _leave(self, worker_id: str) -> None:
        """A worker that has nothing to do any more goes."""
        site = self._sites[worker_id]
        site.die()
        self._levels.on_death(site, self._clock.now_s)
        self._tell_node(site)
        self._handoffs.on_death(site, self._clock.now_s)
        self._routers.remove_worker(site.worker_id)

    def _tell_node(self, site: Site) -> None:
        """A worker has lost its engine; the next one will know what its node keeps."""
        for node in self.nodes:
            node.on_death(site)
        if site.worker_id in self._nodes:
            self._nodes[site.worker_id].join(site)

    # --- deaths

    def _expect(self, failure: Failure) -> None:
        site = self._sites[failure.worker_id]
        self._clock.at(failure.at_s, lambda now_s: self._die(site, failure, now_s))

    def _die(self, site: Site, failure: Failure, now_s: float) -> None:
        if not site.is_up:
            return
        output_tokens = site.engine.output_tokens(now_s)
        site.die()
        epoch = site.epoch
        self._levels.on_death(site, now_s)
        self._tell_node(site)
        self._handoffs.on_death(site, now_s)
        self._gateway.on_death(site, output_tokens, now_s)

        def detect(_: float) -> None:
            if not site.is_up and site.epoch == epoch:
                self._routers.remove_worker(site.worker_id)

        def revive(_: float) -> None:
            site.is_up = True
            self._routers.put_worker(site.worker)

        self._clock.at(now_s + self._cell.detection_s, detect)
        if failure.down_s < float("inf"):
            self._clock.at(now_s + failure.down_s, revive)
