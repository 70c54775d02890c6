"""Blocks that are read from a peer's device, or from what another node keeps, instead of computed.

The scheduler reserves room for them as for those of a prefill worker, and computes whatever is not read. Reading is
worth it only if it takes less time than computing.
"""

from collections.abc import Mapping, Sequence

from armature.blocks.hashing import BlockDigest
from armature.performance.prompts import blocks_s
from armature.scheduling.request import Reserved
from armature.sim.cell import CellShape
from armature.sim.handoffs import Changed
from armature.sim.links import Links
from armature.sim.node import Node
from armature.sim.site import Site


class Pulls:
    """All of a cell. `changed` is told what landing blocks change in a worker's cache."""

    def __init__(self, cell: CellShape, links: Links, sites: Mapping[str, Site], changed: Changed) -> None:
        self._cell = cell
        self._links = links
        self._sites = sites
        self._changed = changed
        self.nodes: dict[str, Node] = {}
        """Is to be filled with those that can be read from."""
        self._read: dict[str, int] = {}
        self.pulled_blocks = 0

    def wants(self, site: Site, digests: Sequence[BlockDigest], source_id: str) -> bool:
        """Whether some of a prompt's blocks had better be read; `digests` are of those that may be of use."""
        held = len(site.engine.pool.find(digests))
        return self._num_worth_reading(digests[held:], held, source_id) > 0

    def take_read_tokens(self, request_id: str) -> int:
        """Prompt tokens that were read and not computed; asked once, with the first token."""
        return self._read.pop(request_id, 0)

    def on_reserved(self, site: Site, reserved: Reserved, source_id: str, now_s: float) -> None:
        """There is room: read what is worth it."""
        if not reserved.block_ids:
            return
        count = self._num_worth_reading(reserved.digests, reserved.first_block, source_id)
        if not count:
            self._finish(site, reserved, 0)
        elif source_id in self.nodes:
            self.nodes[source_id].on_pull(
                site, reserved, self._links, lambda tiers: self._count(reserved, len(tiers)), now_s
            )
        else:
            self._read_from_peer(site, reserved, count, source_id, now_s)

    def _read_from_peer(self, site: Site, reserved: Reserved, count: int, peer_id: str, now_s: float) -> None:
        peer, epoch = self._sites[peer_id], site.epoch
        peer_epoch, pinned = peer.epoch, peer.engine.pool.match(reserved.digests[:count])

        def done(_: float) -> None:
            is_whole = peer.epoch == peer_epoch
            if is_whole:
                peer.engine.pool.release(pinned)
                peer.poke()
            if site.epoch == epoch:
                self._finish(site, reserved, count if is_whole else 0)

        self._links.start(peer_id, site.worker_id, count * self._cell.block_bytes, done, now_s)

    def _num_worth_reading(self, digests: Sequence[BlockDigest], first_block: int, source_id: str) -> int:
        if source_id in self.nodes:
            count = len(self.nodes[source_id].store.find(digests))
        else:
            peer = self._sites[source_id]
            count = len(peer.engine.pool.find(digests)) if peer.is_up else 0
        computing_s = blocks_s(self._cell.performance, self._cell.worker.block_size, first_block, count)
        return count if count * self._cell.block_bytes / self._cell.link_bytes_per_s < computing_s else 0

    def _finish(self, site: Site, reserved: Reserved, num_blocks: int) -> None:
        if num_blocks:
            self._count(reserved, num_blocks)
            self._changed(site, site.engine.land(reserved.request_id, num_blocks))
        site.engine.finish_remote(reserved.request_id, num_blocks)
        site.poke()

    def _count(self, reserved: Reserved, num_blocks: int) -> None:
        self._read[reserved.request_id] = num_blocks * self._cell.worker.block_size
        self.pulled_blocks += num_blocks
