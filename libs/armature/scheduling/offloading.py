"""Which blocks are offered to the tiers below the device, and when. Pure; it moves no byte and holds no block.

What is offered is what requests let go of: a block in use can't be evicted, so there is no hurry before. Nothing is
pinned for it either: a block that is needed for something else while it is being copied is just gone, and its digest
tells the reader so. So no request ever waits for an offload.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from armature.blocks.hashing import BlockDigest
from armature.blocks.pool import BlockPool
from armature.scheduling.lower_tiers import LowerTiers


@dataclass(frozen=True, kw_only=True)
class OffloadTiming:
    """When blocks are offered, and how many at a time.

    Raises:
        ValueError: a number is out of its range.
    """

    when: Literal["released", "evicting"] = "released"
    """`released`: as soon as a request lets go of them. `evicting`: shortly before they would be evicted, which spares
    the lower tiers what comes back soon, but loses what a burst of requests evicts."""
    ahead: float = 0.25
    """For `evicting`: offered once no more than this share of the pool will be handed out before they are."""
    max_in_flight_blocks: int = 256
    """Being copied at the same time; the rate at which they are copied is the shell's business."""
    max_waiting_blocks: int = 65536
    """Beyond that, what has waited longest is not offered any more."""

    def __post_init__(self) -> None:
        if not 0 < self.ahead <= 1:
            raise ValueError(f"ahead is {self.ahead}; it must be above 0 and at most 1")
        for name in ("max_in_flight_blocks", "max_waiting_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


class Terms(NamedTuple):
    """On whose account a request's blocks are kept, and how dear they are to it."""

    tenant: str = ""
    priority: int = 0
    keep_s: float = 0.0


class OffloadRun(NamedTuple):
    """Blocks of one prompt that may be copied now, in its order."""

    run_id: int
    digests: tuple[BlockDigest, ...]
    block_ids: tuple[int, ...]
    terms: Terms


@dataclass(slots=True)
class _Released:
    """What a request has let go of."""

    digests: Sequence[BlockDigest]
    terms: Terms
    mark: int
    """How many blocks had been let go of before."""
    offered: int = 0
    """Of `digests`, those that have been dealt with."""


class Offloading:
    """Takes note of released blocks, gives out runs of them, and is told when a run is over."""

    def __init__(self, timing: OffloadTiming, pool: BlockPool, lower: LowerTiers) -> None:
        self._timing = timing
        self._pool = pool
        self._lower = lower
        self._ahead_blocks = int(timing.ahead * pool.total_blocks)
        self._waiting: deque[_Released] = deque()
        self._in_flight: dict[int, tuple[BlockDigest, ...]] = {}
        self._flying: set[BlockDigest] = set()
        self._released_blocks = 0
        self._last_run = 0
        self.waiting_blocks = 0
        self.missed_blocks = 0
        """Evicted, or pushed out of the line, before their turn came; since the start."""

    @property
    def in_flight_blocks(self) -> int:
        return len(self._flying)

    def released(self, digests: Sequence[BlockDigest], terms: Terms) -> None:
        """A request lets go of these complete blocks of its prompt and answer."""
        if not digests:
            return
        self._waiting.append(_Released(digests, terms, self._released_blocks))
        self._released_blocks += len(digests)
        self.waiting_blocks += len(digests)
        while self.waiting_blocks > self._timing.max_waiting_blocks:
            oldest = self._waiting.popleft()
            rest = oldest.digests[oldest.offered :]
            self.waiting_blocks -= len(rest)
            self.missed_blocks += len([digest for digest in rest if not self._lower.holds(digest)])

    def take(self) -> list[OffloadRun]:
        """Runs whose turn it is; each is `over` some time."""
        runs: list[OffloadRun] = []
        while self._waiting and self._is_due(self._waiting[0]):
            room = self._timing.max_in_flight_blocks - len(self._flying)
            if room <= 0:
                break
            first = self._waiting[0]
            run = self._next_run(first, room)
            if first.offered == len(first.digests):
                self._waiting.popleft()
            if run is not None:
                runs.append(run)
        return runs

    def over(self, run_id: int) -> None:
        """A run is copied, or never will be."""
        self._flying.difference_update(self._in_flight.pop(run_id, ()))

    def _is_due(self, released: _Released) -> bool:
        if self._timing.when == "released":
            return True
        # Evicted in the order of their release: so much is handed out before it is their turn. Blocks that somebody
        # has used again since make it seem less.
        before = self._pool.free_blocks - (self._released_blocks - released.mark)
        return before <= self._ahead_blocks

    def _next_run(self, released: _Released, room: int) -> OffloadRun | None:
        """The next blocks of a prompt that are here and not below, at most `room`."""
        digests: list[BlockDigest] = []
        block_ids: list[int] = []
        at = released.offered
        while at < len(released.digests) and len(digests) < room:
            digest = released.digests[at]
            at += 1
            if self._lower.holds(digest) or digest in self._flying:
                continue
            block_id = self._pool.block_of(digest)
            if block_id is None:
                self.missed_blocks += 1
                continue
            digests.append(digest)
            block_ids.append(block_id)
        self.waiting_blocks -= at - released.offered
        released.offered = at
        if not digests:
            return None
        self._last_run += 1
        run = OffloadRun(self._last_run, tuple(digests), tuple(block_ids), released.terms)
        self._in_flight[run.run_id] = run.digests
        self._flying.update(run.digests)
        return run
