"""Blocks for jobs: found in the cache, handed out, sealed when complete, and taken back when others need them more.

Who ranks first keeps its blocks longest. A job that loses its blocks waits at its old place in the queue and computes
its tokens again, less those that are still found in the cache by then.
"""

from armature.blocks.hashing import BlockDigest, BlockHasher
from armature.blocks.pool import BlockPool
from armature.scheduling.job import Job
from armature.scheduling.lifecycle import Event, State
from armature.scheduling.queues import Queues, by_rank


class Room:
    """Places jobs in the pool and lets them grow."""

    def __init__(self, pool: BlockPool, hasher: BlockHasher, queues: Queues) -> None:
        self._pool = pool
        self._hasher = hasher
        self._queues = queues
        self.block_size = hasher.block_size
        self.opened: list[int] = []
        """Blocks handed out since the last plan."""
        self.sealed: list[tuple[int, BlockDigest]] = []
        """Blocks that the next plan completes."""
        self.preemptions = 0

    @property
    def spare_blocks(self) -> int:
        """What is left when every running answer gets one more."""
        return self._pool.free_blocks - len(self._queues.decoding)

    def place(self, job: Job) -> bool:
        """Give the job blocks for all its tokens, cached ones first; False (and no change) if there is no room."""
        block_size = self.block_size
        held = len(job.block_ids)
        tokens = job.end if job.is_prefill else len(job.token_ids)
        # At least one token is computed, to have logits to sample from.
        findable = (tokens if job.is_prefill else tokens - 1) // block_size if job.finds_blocks else 0
        self.extend_digests(job, findable)
        found = self._pool.find(job.digests[held:findable])
        missing = -(-tokens // block_size) - held - len(found)
        if missing and not self._has_room(job, missing, found):
            return False
        self._pool.pin(found)
        fresh = self._pool.allocate(missing)
        assert fresh is not None
        self.opened += fresh
        job.block_ids += found
        job.block_ids += fresh
        job.computed = (held + len(found)) * block_size
        if job.cached_tokens < 0:
            job.cached_tokens = min(job.computed, job.prompt_tokens)
            self._queues.note_cached(job)
        return True

    def place_cached(self, job: Job) -> None:
        """Give a PREFILL job the blocks that are cached, and let that be all of it."""
        self.extend_digests(job, job.end // self.block_size)
        job.block_ids += self._pool.match(job.digests)
        job.computed = job.end = job.cached_tokens = len(job.block_ids) * self.block_size

    def grow(self, job: Job) -> bool:
        """Give a running answer one more block, preempting whoever ranks last; False if that was itself."""
        while (fresh := self._pool.allocate(1)) is None:
            last = self._last_holder()
            if last.state is State.WAITING:
                self._drop_blocks(last)
            else:
                self._preempt(last)
            if last is job:
                return False
        job.block_ids += fresh
        self.opened += fresh
        return True

    def seal(self, job: Job, start: int, end: int) -> None:
        """Note the blocks that are complete once the tokens from `start` to `end` are computed."""
        first, last = start // self.block_size, end // self.block_size
        if first < last and job.shares_blocks:
            self.extend_digests(job, last)
            self.sealed += zip(job.block_ids[first:last], job.digests[first:last], strict=True)

    def extend_digests(self, job: Job, num_blocks: int) -> None:
        """Know the digests of the job's first `num_blocks` blocks."""
        known = len(job.digests)
        if known < num_blocks:
            parent = job.digests[-1] if known else job.request.root
            tokens = job.token_ids[known * self.block_size : num_blocks * self.block_size]
            job.digests += self._hasher.extend(parent, tokens)

    def _has_room(self, job: Job, missing: int, found: list[int]) -> bool:
        # Running answers keep room for a block each, or the newcomer would soon be preempted.
        needed = missing + len(self._queues.decoding)
        while needed > self._pool.free_blocks - self._pool.num_inactive(found):
            # As long as something runs, blocks become free by themselves.
            if self._queues.num_running or not self.take_from_waiting(job):
                return False
        return True

    def take_from_waiting(self, job: Job) -> bool:
        """Drop the blocks of the last one, other than `job`, that waits with some; whether there was one."""
        others = [other for other in self._queues.idle_holders() if other is not job]
        if others:
            self._drop_blocks(others[-1])
        return bool(others)

    def _last_holder(self) -> Job:
        """Who ranks last of those whose blocks can be taken: not those that a transport writes or a reader reads."""
        queues = self._queues
        prefilling = [job for job in queues.prefilling if not job.is_prefill]
        return max([*queues.decoding, *prefilling, *queues.idle_holders()], key=by_rank)

    def _preempt(self, job: Job) -> None:
        self.preemptions += 1
        self._queues.leave(job)
        job.advance(Event.PREEMPT)
        self._drop_blocks(job)
        self._queues.enqueue(job)

    def _drop_blocks(self, job: Job) -> None:
        self._pool.release(job.block_ids)
        job.block_ids.clear()
        job.computed = 0
        self._queues.note_backlog(job)
