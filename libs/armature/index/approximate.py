"""What engines that publish no KV events are assumed to hold: the prompts that were sent to them a while ago.

A prompt's blocks count as held until they have not been asked for within the time to live, or until the worker's pool
would be full of blocks that were asked for later. It is a guess, and `trust.py` measures how good.

Invariant: of a worker no more blocks are assumed than its pool has, and of every assumed prompt a beginning.
"""

from collections.abc import Sequence
from itertools import islice

from armature.index.change import Change, ChangeKind
from armature.index.tiers import Tier


class _Pool:
    __slots__ = ("blocks", "num_blocks")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.blocks: dict[int, float] = {}
        """When each block was asked for last, longest ago first."""


class ApproximateHoldings:
    """Turns prompts into changes of an index. Blocks are in G1: nobody tells of any other tier.

    Raises:
        ValueError: `ttl_s` is not above 0.
    """

    def __init__(self, ttl_s: float) -> None:
        if not ttl_s > 0:
            raise ValueError(f"ttl_s is {ttl_s}; it must be above 0")
        self._ttl_s = ttl_s
        self._pools: dict[str, _Pool] = {}

    def __contains__(self, worker_id: str) -> bool:
        return worker_id in self._pools

    def put_worker(self, worker_id: str, num_blocks: int) -> None:
        """A worker has come, or its pool has another size; what is beyond it goes with the next note."""
        pool = self._pools.get(worker_id)
        if pool is None:
            self._pools[worker_id] = _Pool(num_blocks)
        else:
            pool.num_blocks = num_blocks

    def remove_worker(self, worker_id: str) -> None:
        """A worker is gone; unknown ones are ignored."""
        self._pools.pop(worker_id, None)

    def held(self, worker_id: str) -> list[int]:
        """What a worker is assumed to hold, what was asked for last first: noted again, all stands as it was."""
        pool = self._pools.get(worker_id)
        return list(reversed(pool.blocks)) if pool else []

    def note(self, worker_id: str, hashes: Sequence[int], now_s: float) -> list[Change]:
        """A prompt was sent to a worker: what is now held and no longer held. Unknown workers are ignored.

        `hashes` are those of the prompt's blocks, from the first; `now_s` never goes back.
        """
        pool = self._pools.get(worker_id)
        if pool is None:
            return []
        blocks, prompt = pool.blocks, hashes[: pool.num_blocks]
        stored = [block for block in prompt if block not in blocks]
        # A prompt's last block goes first, as in engines: without the one before it it would be of no use.
        for block in reversed(prompt):
            blocks.pop(block, None)
            blocks[block] = now_s
        evicted = list(islice(blocks, max(0, len(blocks) - pool.num_blocks)))
        for block in evicted:
            del blocks[block]
        return [*_changes(ChangeKind.REMOVED, worker_id, evicted), *_changes(ChangeKind.STORED, worker_id, stored)]

    def expire(self, now_s: float) -> list[Change]:
        """What nobody has asked for within the time to live is no longer held."""
        oldest_s = now_s - self._ttl_s
        changes: list[Change] = []
        for worker_id, pool in self._pools.items():
            expired: list[int] = []
            for block, asked_s in pool.blocks.items():
                if asked_s > oldest_s:
                    break
                expired.append(block)
            for block in expired:
                del pool.blocks[block]
            changes += _changes(ChangeKind.REMOVED, worker_id, expired)
        return changes


def _changes(kind: ChangeKind, worker_id: str, hashes: Sequence[int]) -> list[Change]:
    return [Change(kind, worker_id, Tier.G1, hashes)] if hashes else []
