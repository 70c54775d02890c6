"""Blocks that are read instead of computed: from a worker's own host memory, or from the device of a peer.

The scheduler reserves room for them as for those of a prefill worker, and computes whatever is not read. Reading is
worth it only if it takes less time than computing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from armature.blocks.hashing import BlockDigest
from armature.performance.prompts import blocks_s
from armature.scheduling.request import KvEvent, Reserved
from armature.sim.cell import CellShape
from armature.sim.clock import Clock
from armature.sim.handoffs import Changed
from armature.sim.host import HostChange, HostTier
from armature.sim.links import Links
from armature.sim.site import Site


@dataclass(slots=True)
class _Source:
    """Where a run of blocks can be read."""

    num_blocks: int = 0
    peer: Site | None = None
    """None: host memory."""
    pinned: list[int] = field(default_factory=list[int])
    """On the peer, until they are read."""


class Onboarding:
    """All of a cell. `changed` is told what landing blocks change in a worker's cache."""

    def __init__(
        self, cell: CellShape, clock: Clock, links: Links, sites: Mapping[str, Site], changed: Changed
    ) -> None:
        self._cell = cell
        self._links = links
        self._sites = sites
        self._changed = changed
        self._buses = Links(clock, cell.host_bytes_per_s) if cell.host_blocks else None
        self._hosts = {worker_id: HostTier(cell.host_blocks) for worker_id in sites}
        self._read: dict[str, int] = {}
        self.onboarded_blocks = 0
        self.pulled_blocks = 0

    def on_evicted(self, site: Site, events: Sequence[KvEvent]) -> HostChange:
        """A device's cache has changed; what that changes in host memory."""
        return self._hosts[site.worker_id].offload(events)

    def on_death(self, site: Site) -> None:
        """A worker has died, and its host memory with it."""
        self._hosts[site.worker_id] = HostTier(self._cell.host_blocks)

    def wants(self, site: Site, digests: Sequence[BlockDigest], pull_id: str) -> bool:
        """Whether some of a prompt's blocks had better be read; `digests` are of those that may be of use."""
        if not (self._cell.host_blocks or pull_id):
            return False
        held = len(site.engine.pool.find(digests))
        return self._source(site, digests[held:], held, pull_id).num_blocks > 0

    def take_read_tokens(self, request_id: str) -> int:
        """Prompt tokens that were read and not computed; asked once, with the first token."""
        return self._read.pop(request_id, 0)

    def on_reserved(self, site: Site, reserved: Reserved, pull_id: str, now_s: float) -> None:
        """There is room: read what is worth it."""
        if not reserved.block_ids:
            return
        source = self._source(site, reserved.digests, reserved.first_block, pull_id)
        if not source.num_blocks:
            self._finish(site, reserved, 0)
            return
        digests, epoch = reserved.digests[: source.num_blocks], site.epoch
        peer, peer_epoch = source.peer, source.peer.epoch if source.peer else 0
        if peer is None:
            self._hosts[site.worker_id].read(digests)
        else:
            source.pinned = peer.engine.pool.match(digests)

        def done(_: float) -> None:
            is_whole = peer is None or peer.epoch == peer_epoch
            if peer is not None and is_whole:
                peer.engine.pool.release(source.pinned)
                peer.poke()
            if site.epoch == epoch:
                self._finish(site, reserved, source.num_blocks if is_whole else 0, peer)

        size_bytes = source.num_blocks * self._cell.block_bytes
        links = self._buses if peer is None else self._links
        assert links is not None
        links.start(peer.worker_id if peer else site.worker_id, site.worker_id, size_bytes, done, now_s)

    def _source(self, site: Site, digests: Sequence[BlockDigest], first_block: int, pull_id: str) -> _Source:
        """The longest run that is read faster than computed; the worker's own memory if both are equal."""
        best = _Source()
        if self._cell.host_blocks:
            count = self._hosts[site.worker_id].run(digests)
            if self._is_faster(count, first_block, self._cell.host_bytes_per_s):
                best = _Source(count)
        peer = self._sites.get(pull_id)
        if peer is not None and peer.is_up:
            count = len(peer.engine.pool.find(digests))
            if count > best.num_blocks and self._is_faster(count, first_block, self._cell.link_bytes_per_s):
                best = _Source(count, peer)
        return best

    def _is_faster(self, count: int, first_block: int, bytes_per_s: float) -> bool:
        computing_s = blocks_s(self._cell.performance, self._cell.worker.block_size, first_block, count)
        return count * self._cell.block_bytes / bytes_per_s < computing_s

    def _finish(self, site: Site, reserved: Reserved, num_blocks: int, peer: Site | None = None) -> None:
        if num_blocks:
            self._read[reserved.request_id] = num_blocks * self._cell.worker.block_size
            if peer is None:
                self.onboarded_blocks += num_blocks
            else:
                self.pulled_blocks += num_blocks
            self._changed(site, site.engine.land(reserved.request_id, num_blocks))
        site.engine.finish_remote(reserved.request_id, num_blocks)
        site.poke()
