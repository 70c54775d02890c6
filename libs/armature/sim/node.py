"""A node's kv-offload in simulated time: what workers offer goes down, what they reserve room for comes up.

It decides nothing: what is kept is the business of `TierStore`, what is offered and read that of each worker's
scheduler, how long a worker waits that of `Patience`, all as in live cells. Here bytes take their time. Each worker has
a way of its own to host memory and back; a disk and a remote store are shared by the node, reads and writes apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from armature.blocks.events import KvEventKind
from armature.index.packing import HASH_BYTES
from armature.index.tiers import Tier
from armature.offload.cascade import CopyJob
from armature.offload.ledger import Facts
from armature.offload.readers import Lease
from armature.offload.store import TierStore
from armature.offload.tiers import Change
from armature.performance.prompts import blocks_s
from armature.scheduling.lower_tiers import TierChange
from armature.scheduling.offloading import OffloadRun, Terms
from armature.scheduling.patience import Patience
from armature.scheduling.request import OffloadNews, Reserved, SeenPrompt
from armature.sim.cell import CellShape
from armature.sim.clock import Clock
from armature.sim.handoffs import MAX_READ_BYTES, Changed
from armature.sim.links import Links
from armature.sim.site import Site

MAX_COPIES = 16
"""Blocks on their way between tiers at the same time."""
UNKNOWN_S = 2.0
"""How long workers wait for blocks while they don't know what computing them takes, as live ones do."""

PATIENCE_S = 0.5
"""How long an offer waits for room, as in live nodes."""
Ended = Callable[[Sequence[Tier]], None]
"""Is told where the blocks were that have come."""
LEASE_S = 60.0
"""How long blocks are kept for a reader at most; patience ends long before."""
Told = Callable[["Node", Sequence[TierChange]], None]


@dataclass(slots=True, eq=False)
class _Onboarding:
    """Blocks of one prompt on their way up."""

    site: Site
    reserved: Reserved
    lease: Lease
    tiers: Sequence[Tier]
    """Where its blocks were when they were asked for; as many as there were."""
    patience: Patience
    links: Links
    source_id: str
    """Whose link they take to the worker."""
    ended: Ended
    deadline_s: float = 0.0
    landed: int = 0
    is_reading: bool = False
    is_over: bool = False


@dataclass(slots=True, eq=False)
class _Offer:
    """Blocks of a worker on their way down."""

    site: Site
    epoch: int
    run: OffloadRun
    patient_until_s: float
    done: int = 0
    """Of its blocks, those that were taken or refused."""


class Node:
    """One node's. `changed` hears what landing blocks change in a worker's cache, `told` what can be found below."""

    def __init__(self, node_id: str, cell: CellShape, clock: Clock, changed: Changed, told: Told) -> None:
        self.node_id = node_id
        self.store = TierStore(cell.offload_policy, cell.tier_shapes)
        self.onboarded_blocks = dict.fromkeys(self.store.spaces, 0)
        """By workers of this node; by the tier in which they were when they were asked for."""
        self._cell = cell
        self._clock = clock
        self._changed = changed
        self._told = told
        self._sites: dict[str, Site] = {}
        host_bytes_per_s = cell.tier_shapes[Tier.G2].read_bytes_per_s
        self._down, self._up = Links(clock, host_bytes_per_s), Links(clock, host_bytes_per_s)
        below = {tier: shape for tier, shape in cell.tier_shapes.items() if tier is not Tier.G2}
        self._reads = {tier: Links(clock, shape.read_bytes_per_s) for tier, shape in below.items()}
        self._writes = {tier: Links(clock, shape.read_bytes_per_s) for tier, shape in below.items()}
        self._onboardings: dict[_Onboarding, None] = {}
        self._offers: dict[_Offer, None] = {}
        """Those that wait for room."""
        self._num_copies = 0
        self._worth_s: list[float] = []

    @property
    def num_under_way(self) -> int:
        """Prompts that are read for, and copies between tiers."""
        return len(self._onboardings) + self._num_copies

    def join(self, site: Site) -> None:
        """A worker has come, or has started again: it learns what is here."""
        self._sites[site.worker_id] = site
        lower = site.engine.lower
        for tier, speed in self._cell.reading.tiers.items():
            lower.measured(tier, speed)
        for tier, space in self.store.spaces.items():
            held = [copy.digest for copy in space if space.ready(copy.digest) is not None]
            lower.apply([_change_of(Change(tier, True, held))])

    def on_death(self, site: Site) -> None:
        """A worker has died; what it offered or read is void, what is here stays."""
        for onboarding in [one for one in self._onboardings if one.site is site]:
            self._close(onboarding)

    def on_news(self, site: Site, news: OffloadNews, now_s: float) -> None:
        """What a worker's scheduler tells the tiers below."""
        for seen in news.seen:
            self._see(seen, now_s)
        for run in news.runs:
            offer = _Offer(site, site.epoch, run, now_s + PATIENCE_S)
            self._clock.at(offer.patient_until_s, self._go_on)
            self._offload(offer, now_s)

    def on_reserved(self, site: Site, reserved: Reserved, now_s: float) -> None:
        """A worker of this node has room for blocks that are here."""

        def ended(tiers: Sequence[Tier]) -> None:
            for tier in tiers:
                self.onboarded_blocks[tier] += 1

        self._onboard(site, reserved, (self._up, site.worker_id), ended, now_s)

    def on_pull(self, site: Site, reserved: Reserved, links: Links, ended: Ended, now_s: float) -> None:
        """A worker of another node has room for blocks that are here, and reads them over the network."""
        self._onboard(site, reserved, (links, self.node_id), ended, now_s)

    def _onboard(
        self, site: Site, reserved: Reserved, road: tuple[Links, str], ended: Ended, now_s: float
    ) -> None:  # fmt: skip
        self.store.step(now_s)
        lease = self.store.readers.lease(reserved.digests, now_s, LEASE_S)
        tiers = [place.tier for place in lease.places]
        patience = Patience(
            site.engine.step_costs,
            block_size=self._cell.worker.block_size,
            first_block=reserved.first_block,
            num_blocks=len(tiers),
            unknown_s=UNKNOWN_S,
        )
        onboarding = _Onboarding(site, reserved, lease, tiers, patience, *road, ended)
        self._onboardings[onboarding] = None
        self._wait(onboarding, now_s)
        self._copy(now_s)
        self._advance(onboarding, now_s)

    # --- down

    def _see(self, seen: SeenPrompt, now_s: float) -> None:
        self.store.see(seen.digests, self._worth_of(len(seen.digests)), _facts_of(seen.terms), now_s)

    def _offload(self, offer: _Offer, now_s: float) -> None:
        """Take the next blocks of an offer, as many as there is room for; later, if there will be some soon."""
        count = self.store.top.room_blocks
        if not count and now_s < offer.patient_until_s:
            self._offers[offer] = None
            return
        self._offers.pop(offer, None)
        site, run = offer.site, offer.run
        digests = run.digests[offer.done : offer.done + (count or self.store.top.headroom_blocks)]
        offer.done += len(digests)
        reserved = self.store.reserve(digests, now_s, _facts_of(run.terms))
        num_blocks = sum([slot is not None for slot in reserved.slots])

        def done(at_s: float) -> None:
            is_good = site.epoch == offer.epoch
            self.store.commit(reserved.reservation_id, at_s, [is_good] * num_blocks)
            self._tell()
            self._copy(at_s)
            if is_good and offer.done < len(run.digests):
                self._offload(offer, at_s)
            elif is_good:
                site.engine.offloaded(run.run_id)
                site.poke()

        if num_blocks:
            self._down.start(site.worker_id, site.worker_id, num_blocks * self._cell.block_bytes, done, now_s)
        else:
            self._clock.at(now_s, done)

    def _go_on(self, now_s: float) -> None:
        """There may be room for those that wait."""
        for offer in list(self._offers):
            if offer.epoch == offer.site.epoch:
                self._offload(offer, now_s)
            else:
                del self._offers[offer]

    # --- up

    def _wait(self, onboarding: _Onboarding, now_s: float) -> None:
        """Give up when the worker's patience ends, unless something comes before."""
        ends_s = onboarding.deadline_s = onboarding.patience.deadline_s(onboarding.landed, now_s)

        def give_up(_: float) -> None:
            if onboarding.deadline_s == ends_s and not onboarding.is_over:
                self._end(onboarding)

        self._clock.at(ends_s, give_up)

    def _advance(self, onboarding: _Onboarding, now_s: float) -> None:
        """Read the next of what is in the fastest tier by now, or end if all has been read."""
        if onboarding.is_reading or onboarding.is_over:
            return
        if onboarding.landed == len(onboarding.tiers):
            self._end(onboarding)
            return
        first, at_once = onboarding.landed, max(1, MAX_READ_BYTES // self._cell.block_bytes)
        if onboarding.lease.places[first].tier is not Tier.G2:
            onboarding.lease = self.store.readers.update(onboarding.lease.lease_id)
            if len(onboarding.lease.places) <= first:
                self._end(onboarding)
                return
        coming = onboarding.lease.places[first : first + at_once]
        count = next((i for i, place in enumerate(coming) if place.tier is not Tier.G2), len(coming))
        if count:
            onboarding.is_reading = True
            size_bytes = count * self._cell.block_bytes

            def done(at_s: float) -> None:
                self._land(onboarding, count, at_s)

            onboarding.links.start(onboarding.source_id, onboarding.site.worker_id, size_bytes, done, now_s)

    def _land(self, onboarding: _Onboarding, count: int, now_s: float) -> None:
        onboarding.is_reading = False
        if onboarding.is_over:
            return
        onboarding.landed += count
        site, reserved = onboarding.site, onboarding.reserved
        events = site.engine.land(reserved.request_id, onboarding.landed)
        if events:
            self._changed(site, events)
        self._wait(onboarding, now_s)
        self._advance(onboarding, now_s)

    def _end(self, onboarding: _Onboarding) -> None:
        """The worker goes on with what it has."""
        self._close(onboarding)
        site, reserved, landed = onboarding.site, onboarding.reserved, onboarding.landed
        onboarding.ended(onboarding.tiers[:landed])
        self.store.onboarded(reserved.digests[:landed])
        site.engine.finish_remote(reserved.request_id, landed)
        site.poke()

    def _close(self, onboarding: _Onboarding) -> None:
        onboarding.is_over = True
        del self._onboardings[onboarding]
        self.store.readers.release(onboarding.lease.lease_id)

    # --- between tiers

    def _copy(self, now_s: float) -> None:
        """Begin as many copies as may be under way."""
        jobs = self.store.take_copies(now_s, MAX_COPIES - self._num_copies)
        self._tell()
        self._num_copies += len(jobs)
        for job in jobs:
            self._begin_copy(job)

    def _begin_copy(self, job: CopyJob) -> None:
        tier = max(job.source.tier, job.target.tier)
        links = (self._reads if job.source.tier is tier else self._writes)[tier]

        def begin(at_s: float) -> None:
            links.start(tier.name, tier.name, self._cell.block_bytes, done, at_s)

        def done(at_s: float) -> None:
            self._num_copies -= 1
            self.store.finish_copy(job.job_id, at_s)
            self._tell()
            self._copy(at_s)
            self._go_on(at_s)
            if job.target.tier is Tier.G2:
                for onboarding in list(self._onboardings):
                    self._advance(onboarding, at_s)

        self._clock.at(self._clock.now_s + self._cell.tier_shapes[tier].read_latency_s, begin)

    # --- news

    def _tell(self) -> None:
        changes = [_change_of(change) for change in self.store.take_changes()]
        if changes:
            for site in self._sites.values():
                site.engine.lower.apply(changes)
            self._told(self, changes)

    def _worth_of(self, num_blocks: int) -> list[float]:
        """What computing each of a prompt's first blocks takes."""
        known, performance, block_size = self._worth_s, self._cell.performance, self._cell.worker.block_size
        known += [blocks_s(performance, block_size, i, 1) for i in range(len(known), num_blocks)]
        return known[:num_blocks]


def _change_of(change: Change) -> TierChange:
    kind = KvEventKind.STORED if change.is_stored else KvEventKind.REMOVED
    return TierChange(kind, change.tier, b"".join([digest[:HASH_BYTES] for digest in change.digests]))


def _facts_of(terms: Terms) -> Facts:
    return Facts(tenant=terms.tenant, priority=min(max(terms.priority, -10), 10), keep_s=terms.keep_s)
