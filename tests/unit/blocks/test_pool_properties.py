"""Whatever is done to a block pool, it agrees with a pool that keeps plain lists and searches them."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from armature.blocks.events import KvEventKind
from armature.blocks.hashing import BlockDigest
from armature.blocks.pool import BlockPool

NUM_BLOCKS = 9
CHAINS = [[BlockDigest(bytes([chain, depth]) * 8) for depth in range(5)] for chain in range(3)]


class PoolMachine(RuleBasedStateMachine):
    """Users take prefixes of a few chains, commit some of their blocks and let them go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.users: list[list[int]] = []
        self.quarantined: list[int] = []
        self.cached: dict[BlockDigest, int] = {}
        self.told: dict[BlockDigest, None] = {}
        self.last_seq = 0

    @rule(chain=st.sampled_from(CHAINS), depth=st.integers(1, 5), committed=st.integers(0, 5))
    def use(self, chain: list[BlockDigest], depth: int, committed: int) -> None:
        found = self.pool.match(chain[:depth])
        expected: list[int] = []
        for digest in chain[:depth]:
            if digest not in self.cached:
                break
            expected.append(self.cached[digest])
        assert found == expected
        free_before = self.pool.free_blocks
        missing = depth - len(found)
        fresh = self.pool.allocate(missing)
        assert (fresh is None) == (missing > free_before)
        if fresh is None:
            self.pool.release(found)
            return
        self.forget_evicted()
        block_ids = found + fresh
        for block_id, digest in list(zip(block_ids, chain, strict=False))[len(found) : committed]:
            assert self.pool.commit(block_id, digest) == (digest not in self.cached)
            self.cached.setdefault(digest, block_id)
        self.users.append(block_ids)

    @rule(index=st.integers(0, 20), split=st.integers(0, 5))
    def let_go(self, index: int, split: int) -> None:
        if self.users:
            block_ids = self.users.pop(index % len(self.users))
            self.pool.release(block_ids[:split])
            self.pool.release(block_ids[split:])

    @rule(index=st.integers(0, 20))
    def quarantine(self, index: int) -> None:
        if self.users:
            block_ids = self.users.pop(index % len(self.users))
            shared = {block_id for used in self.users for block_id in used} | set(self.cached.values())
            unsafe = [block_id for block_id in block_ids if block_id not in shared]
            self.pool.quarantine(unsafe)
            self.quarantined += unsafe
            self.pool.release([block_id for block_id in block_ids if block_id not in unsafe])

    @rule()
    def unquarantine(self) -> None:
        self.pool.unquarantine(self.quarantined)
        self.quarantined.clear()

    @rule(chain=st.sampled_from(CHAINS))
    def touch(self, chain: list[BlockDigest]) -> None:
        self.pool.touch(chain)

    @rule()
    def clear(self) -> None:
        self.pool.clear()
        self.cached.clear()

    def forget_evicted(self) -> None:
        self.follow_events()
        for digest in [digest for digest in self.cached if digest not in self.told]:
            block_id = self.cached.pop(digest)
            assert all(block_id not in used for used in self.users), "a block in use was evicted"

    def follow_events(self) -> None:
        for event in self.pool.take_events():
            self.last_seq += 1
            assert event.seq == self.last_seq
            if event.kind is KvEventKind.CLEARED:
                self.told.clear()
            for digest in event.digests:
                if event.kind is KvEventKind.STORED:
                    assert digest not in self.told
                    self.told[digest] = None
                else:
                    del self.told[digest]

    @invariant()
    def agrees_with_plain_lists(self) -> None:
        self.pool.check()
        self.follow_events()
        assert set(self.told) == set(self.cached)
        used = Counter(block_id for block_ids in self.users for block_id in block_ids)
        assert self.pool.free_blocks == self.pool.total_blocks - len(used) - len(self.quarantined)
        assert self.pool.quarantined_blocks == len(self.quarantined)
        assert not set(used) & set(self.quarantined)

    def teardown(self) -> None:
        for block_ids in self.users:
            self.pool.release(block_ids)
        self.pool.unquarantine(self.quarantined)
        self.pool.check()
        assert self.pool.free_blocks == self.pool.total_blocks


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
