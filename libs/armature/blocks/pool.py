"""The block pool: who uses which block of KV memory, and which blocks may be found again by their digest.

It moves no bytes and knows no requests. A block is always in exactly one place: free, active (at least one user),
inactive (no user, but cached: the least recently used is evicted when room is needed) or quarantined. Block 0 is
scratch for padding and is never handed out. Every operation takes constant time per block.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import BlockDigest


class BlockPool:
    """Hands out blocks and keeps what they hold findable for as long as there is room.

    Raises:
        ValueError: fewer than 2 blocks, which leaves none besides the scratch block.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"a pool of {num_blocks} blocks has none to hand out; block 0 is scratch")
        self.total_blocks = num_blocks - 1
        """Blocks that can be handed out."""
        self._users = [0] * num_blocks
        self._digests: list[BlockDigest | None] = [None] * num_blocks
        self._cached: dict[BlockDigest, int] = {}
        # A stack: the block freed last is the one most likely still in the processor's caches.
        self._free = list(range(num_blocks - 1, 0, -1))
        # Evicted from the front.
        self._inactive: OrderedDict[int, None] = OrderedDict()
        self._quarantined: dict[int, None] = {}
        self._events: list[KvEvent] = []
        self._changes: list[BlockDigest] = []
        self._changes_kind = KvEventKind.STORED
        self._last_seq = 0

    @property
    def free_blocks(self) -> int:
        """Blocks that `allocate` could give."""
        return len(self._free) + len(self._inactive)

    @property
    def cached_blocks(self) -> int:
        return len(self._cached)

    @property
    def quarantined_blocks(self) -> int:
        return len(self._quarantined)

    def find(self, digests: Sequence[BlockDigest]) -> list[int]:
        """The cached blocks of the longest known prefix of `digests`, not pinned."""
        cached = self._cached
        found: list[int] = []
        for digest in digests:
            block_id = cached.get(digest)
            if block_id is None:
                break
            found.append(block_id)
        return found

    def block_of(self, digest: BlockDigest) -> int | None:
        """The cached block with this content, not pinned."""
        return self._cached.get(digest)

    def num_inactive(self, block_ids: Sequence[int]) -> int:
        """How many of these blocks nobody uses: pinning them lowers `free_blocks` by as much."""
        users = self._users
        return sum([not users[block_id] for block_id in block_ids])

    def pin(self, block_ids: Sequence[int]) -> None:
        """Add a user to cached blocks."""
        users = self._users
        for block_id in block_ids:
            if not users[block_id]:
                del self._inactive[block_id]
            users[block_id] += 1

    def match(self, digests: Sequence[BlockDigest]) -> list[int]:
        """Find the longest known prefix and pin it; give it back with `release`."""
        found = self.find(digests)
        self.pin(found)
        return found

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Blocks with one user and nothing worth reading in them, or None (and no change) if there are too few."""
        if num_blocks > self.free_blocks:
            return None
        while len(self._free) < num_blocks:
            self._evict()
        allocated = [self._free.pop() for _ in range(num_blocks)]
        for block_id in allocated:
            self._users[block_id] = 1
        return allocated

    def commit(self, block_id: int, digest: BlockDigest) -> bool:
        """Let a complete block be found. False: another block with the same content already is, and stays it."""
        assert self._users[block_id] > 0, f"block {block_id} is committed by nobody"
        known = self._cached.setdefault(digest, block_id)
        if known != block_id:
            if not self._users[known]:
                self._inactive.move_to_end(known)
            return False
        self._digests[block_id] = digest
        self._note(KvEventKind.STORED, digest)
        return True

    def release(self, block_ids: Sequence[int]) -> None:
        """Take one user from each block. In prompt order: a prefix is evicted from its tail."""
        users, digests = self._users, self._digests
        for block_id in reversed(block_ids):
            assert users[block_id] > 0, f"block {block_id} is released by nobody"
            users[block_id] -= 1
            if not users[block_id]:
                if digests[block_id] is None:
                    self._free.append(block_id)
                else:
                    self._inactive[block_id] = None

    def touch(self, digests: Sequence[BlockDigest]) -> None:
        """Make inactive blocks the most recently used, the first digest's last: heads stay longer than tails."""
        for digest in reversed(digests):
            block_id = self._cached.get(digest)
            if block_id is not None and not self._users[block_id]:
                self._inactive.move_to_end(block_id)

    def quarantine(self, block_ids: Sequence[int]) -> None:
        """Take blocks from their only user and give them to nobody until `unquarantine`. Cached blocks can't be."""
        for block_id in block_ids:
            assert self._users[block_id] == 1, f"block {block_id} has {self._users[block_id]} users"
            assert self._digests[block_id] is None, f"block {block_id} is cached"
            self._users[block_id] = 0
            self._quarantined[block_id] = None

    def unquarantine(self, block_ids: Sequence[int]) -> None:
        """Make quarantined blocks free; others are left as they are."""
        for block_id in block_ids:
            if block_id in self._quarantined:
                del self._quarantined[block_id]
                self._free.append(block_id)

    def clear(self) -> None:
        """Forget all cached content. Blocks in use stay in use, but nobody else will find them."""
        for block_id in self._cached.values():
            self._digests[block_id] = None
        self._cached.clear()
        self._free.extend(self._inactive)
        self._inactive.clear()
        self._close_changes()
        self._events.append(KvEvent(self._next_seq(), KvEventKind.CLEARED))

    def take_events(self) -> tuple[KvEvent, ...]:
        """What has changed in the cache since the last call; changes of one kind in a row are one event."""
        self._close_changes()
        if not self._events:
            return ()
        taken = tuple(self._events)
        self._events.clear()
        return taken

    def check(self) -> None:
        """Assert that every block is in exactly one place. For tests; takes time proportional to the pool."""
        active = [block_id for block_id, users in enumerate(self._users) if users]
        places = Counter([*active, *self._free, *self._inactive, *self._quarantined])
        assert places == Counter(range(1, self.total_blocks + 1)), "a block is lost or in two places"
        assert all(users >= 0 for users in self._users)
        held = {digest: block_id for block_id, digest in enumerate(self._digests) if digest is not None}
        assert held == self._cached, "the cache and the blocks disagree"
        assert all(self._digests[block_id] is not None for block_id in self._inactive)
        assert all(self._digests[block_id] is None for block_id in [*self._free, *self._quarantined])

    def _evict(self) -> None:
        block_id, _ = self._inactive.popitem(last=False)
        digest = self._digests[block_id]
        assert digest is not None
        del self._cached[digest]
        self._digests[block_id] = None
        self._free.append(block_id)
        self._note(KvEventKind.REMOVED, digest)

    def _note(self, kind: KvEventKind, digest: BlockDigest) -> None:
        if kind is not self._changes_kind:
            self._close_changes()
            self._changes_kind = kind
        self._changes.append(digest)

    def _close_changes(self) -> None:
        if self._changes:
            self._events.append(KvEvent(self._next_seq(), self._changes_kind, tuple(self._changes)))
            self._changes.clear()

    def _next_seq(self) -> int:
        self._last_seq += 1
        return self._last_seq
