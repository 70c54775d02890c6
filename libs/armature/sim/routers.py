"""The routers of a cell: each with a ledger of its own, and a copy of the index and of the load that may be late."""

from collections.abc import Callable, Sequence

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import BlockDigest, pack_hashes
from armature.index.packing import unpack_hashes
from armature.index.prefix_index import PrefixIndex
from armature.index.tiers import Tier
from armature.routing.router import RoutingCore
from armature.routing.worker import NO_READING, Load, Store, Worker
from armature.scheduling.lower_tiers import TierChange
from armature.sim.cell import CellShape
from armature.sim.clock import Clock
from armature.sim.router import Decided, Router, TellOthers
from armature.sim.site import Site


class Routers:
    """Tells all routers what workers tell.

    Raises:
        ValueError: there is no router.
    """

    def __init__(self, cores: Sequence[RoutingCore], cell: CellShape, clock: Clock, decided: Decided) -> None:
        if not cores:
            raise ValueError("there is no router; at least 1 must be")
        self._cores = cores
        self._cell = cell
        self._clock = clock
        self._routers = [Router(core, clock, decided, self._others(core)) for core in cores]
        self._latest: dict[str, Load] = {}
        self._turn = 0

    def next(self) -> Router:
        """Whose turn it is to place a request."""
        self._turn += 1
        return self._routers[(self._turn - 1) % len(self._routers)]

    def _others(self, core: RoutingCore) -> TellOthers | None:
        """How a router's placements reach the others; None: they don't."""
        lag_s = self._cell.share_lag_s
        if lag_s is None or len(self._cores) == 1:
            return None
        others = [other for other in self._cores if other is not core]

        def tell(what: Callable[[RoutingCore], None]) -> None:
            def do(_: float) -> None:
                for other in others:
                    what(other)

            self._clock.at(self._clock.now_s + lag_s, do)

        return tell

    # --- workers

    def put_worker(self, worker: Worker) -> None:
        """A worker has come, or come back: nothing that was known of its cache is true."""
        for core in self._cores:
            core.index.drop(worker.worker_id)
            core.put_worker(worker)
            if self._cell.tier_shapes:
                core.index.add(worker.worker_id)
        if self._cell.reading is not NO_READING:
            # As live workers do when somebody begins to listen.
            self._report(
                worker.worker_id, Load(free_blocks=worker.num_blocks, reading=self._cell.reading), self._clock.now_s
            )

    def describe(self, worker: Worker) -> None:
        """A worker has another role, drains or is called back; its cache is what it was."""
        for core in self._cores:
            core.put_worker(worker)

    def remove_worker(self, worker_id: str) -> None:
        """A worker is known to be dead."""
        self._latest.pop(worker_id, None)
        for core in self._cores:
            core.index.drop(worker_id)
            core.remove_worker(worker_id)

    def on_cache(self, site: Site, events: Sequence[KvEvent]) -> None:
        """A worker's cache has changed; indexes learn of it after the lag, unless the worker has died by then."""
        self._after_lag(lambda: self._apply(site.worker_id, events), site)

    def put_node(self, node_id: str, worker_ids: Sequence[str]) -> None:
        """Workers share what lies below their devices."""
        for core in self._cores:
            core.stores.put(Store(node_id))
            core.index.attach(node_id, worker_ids)

    def on_node(self, node_id: str, changes: Sequence[TierChange]) -> None:
        """What a node keeps has changed."""

        def apply() -> None:
            for kind, tier, packed in changes:
                hashes = unpack_hashes(packed)
                for core in self._cores:
                    _apply(core.index, node_id, kind, hashes, tier or Tier.G2)

        self._after_lag(apply)

    def _after_lag(self, apply: Callable[[], None], site: Site | None = None) -> None:
        lag_s, epoch = self._cell.event_lag_s, site.epoch if site else 0
        if not lag_s:
            apply()
            return

        def do(_: float) -> None:
            if site is None or site.epoch == epoch:
                apply()

        self._clock.at(self._clock.now_s + lag_s, do)

    def on_load(self, site: Site, load: Load, now_s: float) -> None:
        """A worker has ended a step."""
        interval_s = self._cell.report_interval_s
        if not interval_s:
            self._report(site.worker_id, load, now_s)
            return
        is_due = site.worker_id in self._latest
        self._latest[site.worker_id] = load
        if is_due:
            return

        def report(at_s: float) -> None:
            latest = self._latest.pop(site.worker_id, None)
            if latest is not None:
                self._report(site.worker_id, latest, at_s)

        # All workers tell at the same rhythm: whole multiples of the interval.
        self._clock.at((int(now_s / interval_s) + 1) * interval_s, report)

    def _report(self, worker_id: str, load: Load, now_s: float) -> None:
        for router in self._routers:
            router.report(worker_id, load, now_s)

    def _apply(self, worker_id: str, events: Sequence[KvEvent]) -> None:
        for event in events:
            hashes = sequence_hashes(event.digests)
            for core in self._cores:
                _apply(core.index, worker_id, event.kind, hashes)


def _apply(
    index: PrefixIndex, source_id: str, kind: KvEventKind, hashes: Sequence[int], tier: Tier = Tier.G1
) -> None:  # fmt: skip
    if kind is KvEventKind.STORED:
        index.store(source_id, hashes, tier)
    elif kind is KvEventKind.REMOVED:
        index.remove(source_id, hashes, tier)
    else:
        index.clear(source_id, tier)


def sequence_hashes(digests: Sequence[BlockDigest]) -> tuple[int, ...]:
    """What indexes know blocks by."""
    return unpack_hashes(pack_hashes(digests))
