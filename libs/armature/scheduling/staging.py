"""Blocks of prefilled prompts, announced to a reader as they are computed and held until it has read them."""

from armature.blocks.pool import BlockPool
from armature.scheduling.job import Job
from armature.scheduling.lifecycle import Event, State
from armature.scheduling.outbox import Outbox
from armature.scheduling.request import Staged


class Staging:
    """Announces, holds and releases the blocks of PREFILL jobs.

    While a prompt is being computed all its blocks are needed, so a release takes effect only when that is over.
    """

    def __init__(self, pool: BlockPool, outbox: Outbox, block_size: int) -> None:
        self._pool = pool
        self._outbox = outbox
        self._block_size = block_size
        self.blocks = 0
        """Blocks announced and not yet released."""

    def announce(self, job: Job) -> None:
        """Tell of the blocks that are complete since the last time."""
        complete = job.computed // self._block_size
        is_last = job.computed >= job.end
        if complete > job.announced or is_last:
            self._tell(job, max(complete, job.announced), is_last)

    def hold(self, job: Job) -> None:
        """Compute no more; keep what the reader has still to read."""
        if not job.is_last_told:
            self._tell(job, job.announced, is_last=True)
        job.advance(Event.HOLD)
        self._pool.release(job.block_ids[job.announced :])
        del job.block_ids[job.announced :]
        job.held_from = min(job.released, len(job.block_ids))
        self._pool.release(job.block_ids[: job.held_from])

    def release(self, job: Job, up_to_block: int) -> None:
        """The reader needs no block below this index."""
        up_to_block = min(up_to_block, job.announced)
        if up_to_block <= job.released:
            return
        self.blocks -= up_to_block - job.released
        job.released = up_to_block
        if up_to_block > job.held_from and job.state is State.HOLDING:
            self._pool.release(job.block_ids[job.held_from : up_to_block])
            job.held_from = up_to_block

    def drop(self, job: Job) -> None:
        """Stop counting what the reader will not read any more."""
        self.blocks -= job.announced - job.released
        job.released = job.announced

    def _tell(self, job: Job, up_to_block: int, is_last: bool) -> None:
        first = job.announced
        ids = tuple(job.block_ids[first:up_to_block])
        digests = tuple(job.digests[first:up_to_block])
        self._outbox.staged.append(Staged(job.request_id, first, ids, digests, is_last, max(0, job.cached_tokens)))
        self.blocks += up_to_block - first
        job.announced = up_to_block
        job.is_last_told = is_last
