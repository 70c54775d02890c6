"""Room for blocks that a transport brings, from another worker or from a tier below the device.

Between `reserve` and `finish` the blocks of a request belong to a transport and can't be preempted. That can't block
the pool for good: a fetch waits for nothing in this pool and ends by itself, and then its blocks may be preempted like
any others. Whatever did not arrive is computed here.
"""

from collections.abc import Sequence

from armature.blocks.pool import BlockPool
from armature.scheduling.job import Job
from armature.scheduling.lifecycle import Event
from armature.scheduling.lower_tiers import LowerTiers
from armature.scheduling.outbox import Outbox
from armature.scheduling.request import Reserved, SeenPrompt


class Reservations:
    """Reserves, lands and ends the remote blocks of requests, at most `max_fetching` requests at a time."""

    def __init__(
        self, pool: BlockPool, outbox: Outbox, block_size: int, max_fetching: int, lower: LowerTiers | None = None
    ) -> None:
        self._pool = pool
        self._lower = lower
        self._outbox = outbox
        self._block_size = block_size
        self._max_fetching = max_fetching
        self.fetching = 0
        """Requests whose blocks a transport may be writing."""

    @property
    def is_full(self) -> bool:
        return self.fetching >= self._max_fetching

    def note_seen(self, job: Job, num_blocks: int) -> None:
        """Tell the tiers below of a prompt's first blocks, wherever they are."""
        if num_blocks:
            self._outbox.seen.append(SeenPrompt(tuple(job.digests[:num_blocks]), job.request.terms))

    def find_below(self, job: Job, num_blocks: int) -> int:
        """Up to which of the prompt's first blocks it pays to read what is not cached; 0: it doesn't."""
        assert self._lower is not None
        held = len(self._pool.find(job.digests[:num_blocks]))
        count = self._lower.num_worth_reading(job.digests[held:num_blocks], held)
        return held + count if count else 0

    def reserve(self, job: Job, spare_blocks: int, up_to_block: int) -> bool:
        """Pin what is cached, take room for the rest up to an index if that leaves `spare_blocks`; False: not now.

        The job stays WAITING if nothing has to be fetched. Its digests must cover these blocks.
        """
        found = self._pool.find(job.digests[:up_to_block])
        missing = up_to_block - len(found)
        if missing:
            room = self._pool.free_blocks - self._pool.num_inactive(found)
            if missing + spare_blocks > room:
                return False
        self._pool.pin(found)
        fresh = self._pool.allocate(missing)
        assert fresh is not None
        job.is_onboarding = not job.wants_fetch
        job.wants_fetch = job.asks_below = False
        job.block_ids = [*found, *fresh]
        job.fetch_from = len(found)
        job.cached_tokens = len(found) * self._block_size
        digests = tuple(job.digests[len(found) : up_to_block])
        tenant = job.request.tenant
        told = Reserved(job.request_id, len(found), tuple(fresh), digests, job.is_onboarding, tenant)
        self._outbox.reserved.append(told)
        if missing:
            job.advance(Event.RESERVE)
            self._outbox.opened += fresh
            self.fetching += 1
        return True

    def land(self, job: Job, num_blocks: int) -> None:
        """Let the first `num_blocks` fetched blocks be found by others."""
        reserved = len(job.block_ids) - job.fetch_from
        for index in range(job.fetch_from + job.landed, job.fetch_from + min(num_blocks, reserved)):
            self._pool.commit(job.block_ids[index], job.digests[index])
            job.landed += 1

    def finish(self, job: Job, num_blocks: int, quarantined: Sequence[int]) -> None:
        """Keep the first `num_blocks` fetched blocks and give back the rest, `quarantined` ones to nobody yet."""
        self.land(job, num_blocks)
        keep = job.fetch_from + job.landed
        rest = job.block_ids[keep:]
        del job.block_ids[keep:]
        unsafe = frozenset(quarantined)
        self._pool.quarantine([block_id for block_id in rest if block_id in unsafe])
        self._pool.release([block_id for block_id in rest if block_id not in unsafe])
        job.advance(Event.FETCHED)
        if job.is_onboarding:
            job.cached_tokens += job.landed * self._block_size
        self.fetching -= 1
