"""A node's blocks below the device, on an event loop: takes them from workers, brings them up for workers, keeps them.

What is taken in, what goes and what goes where is the business of `armature.offload`. Here bytes are moved, and looked
at before they count: a block's digest stands at its end, wherever it comes from.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from operator import eq, not_
from typing import NamedTuple, cast

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import BlockDigest
from armature.engines.host_memory import HostBlockMemory
from armature.engines.kv_event_log import KvEventLog
from armature.engines.kv_event_stream import HASHES_PER_MESSAGE
from armature.index.tiers import Tier
from armature.kv_store import metrics
from armature.kv_store.lower_store import LowerStore
from armature.kv_store.mover import Mover
from armature.kv_store.speed import Speed
from armature.offload.ledger import Facts
from armature.offload.store import Answer, TierStore
from armature.runtime.errors import OverloadedError
from armature.runtime.pulse import Pulse
from armature.runtime.tasks import Spawn
from armature.transfer.region import ReadError
from armature.transfer.source import Source
from armature.transfer.transports import Transport, Transports

log = logging.getLogger(__name__)

_STEP_INTERVAL_S = 0.25
_PIECE_BYTES = 64 * 1024 * 1024
"""Of one read: milliseconds over NIXL, so that offers of several workers take turns. Smaller ones take turns with our
own work for them, too: every end of one costs NIXL's threads and the event loop some tenths of a millisecond."""
_PATIENCE_S = 2.0
"""How long an offer waits while nothing gets to the tiers below; then blocks go that did not get there. A tier that
says that it can't take them is not waited for."""
_LONGEST_PATIENCE_S = 5.0
"""Likewise in all, however well it goes; workers give an offer up soon after."""
_WAITING_FOR_EACH = 16
"""Offers under way for each that is read; further ones are refused."""


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Bounds of what workers may ask at a time."""

    lease_s: float = 30.0
    """How long blocks are kept for a worker that has been told of all of them."""
    max_takes: int = 16
    """Offers that are read at the same time; further ones wait."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Blocks in a worker's memory."""

    source: Source
    digests: Sequence[bytes]
    block_ids: Sequence[int]
    facts: Facts
    stay_on_device: bool = False


class _Piece(NamedTuple):
    """Blocks of an offer that are being read."""

    reservation_id: int
    wanted: Sequence[int]
    """Which of the offer's."""
    slots: Sequence[int]
    done: "asyncio.Future[None]"
    started_s: float


class NodeStore:
    """Owns the tiers, the pool and everything that moves bytes between them; `run` keeps it going."""

    def __init__(
        self,
        tiers: TierStore,
        pool: HostBlockMemory,
        stores: Mapping[Tier, LowerStore],
        transports: Transports,
        *,
        spawn: Spawn,
        settings: StoreSettings = StoreSettings(),
    ) -> None:
        self.tiers = tiers
        self.pool = pool
        self.transports = transports
        self.settings = settings
        self.log = KvEventLog()
        self.news = Pulse()
        """Fires when the log has grown, or a block is where it was not before, or will not be."""
        self.mover = Mover(tiers, pool, stores, self.publish)
        self._stores = stores
        self._spawn = spawn
        self._take_slots = asyncio.Semaphore(settings.max_takes)
        self._num_takes = 0
        self._piece_blocks = max(1, _PIECE_BYTES // pool.block_bytes)
        self._read_until_s = 0.0
        self.taking = Speed()
        self.hits: Counter[Tier] = Counter()
        """Blocks announced to onboarding workers, by where they were."""
        metrics.watch(tiers.spaces, tiers.counts, lambda: len(tiers.readers))
        metrics.watch_speed(Tier.G2, "write", lambda: self.taking.bytes_per_s)

    async def restore(self) -> None:
        """Find what an earlier process has left; before anything is taken."""
        for tier, store in self._stores.items():
            found = await store.found()
            self.tiers.restore(tier, found, time.monotonic())
            log.info("%s: %d blocks of an earlier process", tier.name, len(found))
        self.publish()

    async def run(self) -> None:
        """Move blocks and let times run out, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.mover.run(), name="mover")
            for tier, store in self._stores.items():
                tasks.create_task(store.keep(partial(self._adopt, tier)), name=f"keeper of {tier.name}")
            while True:
                await asyncio.sleep(_STEP_INTERVAL_S)
                self.tiers.step(time.monotonic())
                self.publish()
                self.mover.wake()  # a write budget may allow more by now

    def publish(self) -> None:
        """Tell what can be found now, and no longer."""
        events: list[KvEvent] = []
        for change in self.tiers.take_changes():
            kind = KvEventKind.STORED if change.is_stored else KvEventKind.REMOVED
            if not change.is_stored and change.tier in self._stores:
                space = self.tiers.spaces[change.tier]  # where one may be on its way again by now
                self._stores[change.tier].let_go([one for one in change.digests if space.get(one) is None])
            for first in range(0, len(change.digests), HASHES_PER_MESSAGE):
                digests = tuple(cast(list[BlockDigest], change.digests[first : first + HASHES_PER_MESSAGE]))
                events.append(KvEvent(self.log.next_seq + len(events), kind, digests, change.tier))
        self.log.append(events)
        self.news.fire()

    def _adopt(self, tier: Tier, digests: Sequence[bytes]) -> Sequence[bytes]:
        adopted = self.tiers.adopt(tier, digests, time.monotonic())
        self.publish()
        return adopted

    async def take(self, offer: Offer) -> list[Answer | None]:
        """Read what the tiers want of an offer; what became of each block, None: its bytes did not come.

        The reading goes on if the caller goes: NIXL can't be stopped, and until it has ended its blocks are nobody's.

        Raises:
            OverloadedError: too many offers wait.
        """
        if self._num_takes >= self.settings.max_takes * _WAITING_FOR_EACH:
            raise OverloadedError(f"{self._num_takes} offers are under way")
        self._num_takes += 1
        settled: asyncio.Future[list[Answer | None]] = asyncio.get_running_loop().create_future()
        self._spawn(self._take(offer, settled))
        return await asyncio.shield(settled)

    async def _take(self, offer: Offer, settled: "asyncio.Future[list[Answer | None]]") -> None:
        answers: list[Answer | None] = [None] * len(offer.digests)
        try:
            async with self._take_slots:
                await self._take_all(offer, answers)
        finally:
            self._num_takes -= 1
            settled.set_result(answers)

    async def _take_all(self, offer: Offer, answers: list[Answer | None]) -> None:
        """Piece by piece: while one is being read, room for the next is made."""
        longest_s = time.monotonic() + _LONGEST_PATIENCE_S
        is_patient = True
        transport, first = self.transports.choose(offer.source), 0
        reading: list[_Piece] = []
        try:
            while first < len(answers):
                if reading and self.tiers.top.free_blocks < self.tiers.top.headroom_blocks:
                    await self._finish(reading.pop(0), offer, answers)
                is_patient = is_patient and await self._has_room(longest_s)
                count = min(self.tiers.top.room_blocks or self.tiers.top.headroom_blocks, self._piece_blocks)
                piece = self._start(transport, offer, range(first, min(first + count, len(answers))), answers)
                first += count
                if piece is not None:
                    reading.append(piece)
                if len(reading) > 1:
                    await self._finish(reading.pop(0), offer, answers)
        finally:
            for piece in reading:
                await self._finish(piece, offer, answers)

    async def _has_room(self, longest_s: float) -> bool:
        """Wait until blocks may come without others going that the tier below has not got yet; False: in vain."""
        top, leaving = self.tiers.top, 0
        until_s = 0.0
        while not top.room_blocks:
            if top.leaving_blocks != leaving:
                leaving, until_s = top.leaving_blocks, time.monotonic() + _PATIENCE_S
            try:
                async with asyncio.timeout(min(until_s, longest_s) - time.monotonic()):
                    await self.news.wait()
            except TimeoutError:
                return False
        return True

    def _start(
        self, transport: Transport, offer: Offer, indices: range, answers: list[Answer | None]
    ) -> "_Piece | None":
        """Make room for some blocks and begin to read those that are wanted."""
        digests = offer.digests[indices.start : indices.stop]
        made = self.tiers.reserve(digests, time.monotonic(), offer.facts, is_above=offer.stay_on_device)
        answers[indices.start : indices.stop] = made.answers
        if not made.reservation_id:
            return None
        wanted = [i for i, slot in zip(indices, made.slots, strict=True) if slot is not None]
        slots = [slot for slot in made.slots if slot is not None]
        done = transport.read(offer.source, slots, [offer.block_ids[i] for i in wanted])
        return _Piece(made.reservation_id, wanted, slots, done, time.monotonic())

    async def _finish(self, piece: "_Piece", offer: Offer, answers: list[Answer | None]) -> None:
        """Wait for the bytes, look at each block's digest, and let the right ones be found."""
        goods = [False] * len(piece.slots)
        try:
            await piece.done
            expected = [offer.digests[i] for i in piece.wanted]
            goods = list(map(eq, self.pool.digests(piece.slots), expected))
            now_s, size_bytes = time.monotonic(), len(goods) * self.pool.block_bytes
            taken_s = now_s - max(piece.started_s, self._read_until_s)
            self._read_until_s = now_s
            self.taking.measured(size_bytes, taken_s)
            metrics.seconds.labels("take", "g2").observe(taken_s)
            metrics.written_bytes.labels("g2").inc(size_bytes)
        except ReadError as error:
            log.warning("blocks of %s can't be read: %s", offer.source.address, error)
        finally:
            self.tiers.commit(piece.reservation_id, time.monotonic(), goods)
            for i in compress(piece.wanted, map(not_, goods)):
                answers[i] = None
            self.publish()
            self.mover.wake()

    def count_hits(self, came_from: Sequence[Tier]) -> None:
        """Blocks were announced that were in these tiers."""
        for tier, count in Counter(came_from).items():
            self.hits[tier] += count
            metrics.hit_blocks.labels(tier.name.lower()).inc(count)

    async def evict(self, digests: Sequence[bytes], tier: Tier | None) -> int:
        """Forget blocks, also for later processes; how many copies went."""
        gone = self.tiers.evict(digests, tier)
        self.publish()
        for lower, store in self._stores.items():
            if tier in (None, lower):
                await store.forget(digests)
        return gone

    async def close(self) -> None:
        """End what reads and writes; `run` has ended. The pool must stay mapped: somebody may still read it."""
        await self.transports.close()
        for store in self._stores.values():
            await store.close()
