"""What a worker's node keeps below its device, and how much of a prompt had better be read than computed. Pure.

It follows the events of the node's kv-offload, so a prompt that nobody keeps costs no question to anybody. It may lag:
a block that is gone by the time it is asked for is computed after all.
"""

from collections.abc import Sequence
from typing import NamedTuple

from armature.blocks.events import KvEventKind
from armature.blocks.hashing import BlockDigest
from armature.index.tiers import Tier
from armature.performance.fit import StepFit
from armature.performance.linear import LinearModel

HASH_BYTES = 8
_TRUST_AGAIN = 0.9
"""A tier that was too slow seems quicker by this each time it is not asked, so that it is tried again now and then."""


class TierSpeed(NamedTuple):
    """Reading n bytes takes `latency_s + n / bytes_per_s`."""

    bytes_per_s: float
    latency_s: float = 0.0


class TierChange(NamedTuple):
    """Blocks have come into a tier or left it."""

    kind: KvEventKind
    tier: Tier | None
    """For CLEARED, None: all of them."""
    hashes: bytes = b""
    """Sequence hashes as they travel, 8 bytes each."""


class LowerTiers:
    """Which blocks lie in which lower tiers of the node, by sequence hash: a few dozen bytes of memory for each.

    Args:
        fit: what this worker's steps cost; until it knows, reading is taken to be worth it.
        chunk_tokens: of a prompt, in one step.
    """

    def __init__(self, fit: StepFit, *, block_size: int, block_bytes: int, chunk_tokens: int) -> None:
        self._fit = fit
        self._block_size = block_size
        self._block_bytes = block_bytes
        self._chunk_tokens = chunk_tokens
        self._held: dict[bytes, int] = {}
        """Bit t of a block's number: it is in tier t."""
        self._speeds: dict[Tier, TierSpeed] = {}
        self._doubt = 1.0

    def __len__(self) -> int:
        return len(self._held)

    def apply(self, changes: Sequence[TierChange]) -> None:
        """Take in changes, in order."""
        for kind, tier, hashes in changes:
            keys = [hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)]
            if tier is None:
                self._held.clear()
            elif kind is KvEventKind.STORED:
                for key in keys:
                    self._held[key] = self._held.get(key, 0) | 1 << tier
            else:
                if kind is KvEventKind.CLEARED:
                    keys = [key for key, tiers in self._held.items() if tiers >> tier & 1]
                for key in keys:
                    self._take(key, 1 << tier)

    def measured(self, tier: Tier, speed: TierSpeed) -> None:
        """How quickly blocks come from a tier to the device by now."""
        self._speeds[tier] = speed
        self._doubt = 1.0

    def holds(self, digest: BlockDigest) -> bool:
        """Whether a block is in any of the tiers."""
        return digest[:HASH_BYTES] in self._held

    def num_worth_reading(self, digests: Sequence[BlockDigest], first_block: int) -> int:
        """How many of a prompt's blocks to read, the first of them at index `first_block`; the others are computed.

        The number that saves the most time, by what tiers and steps have taken so far.
        """
        costs = self._fit.model
        best, best_s, read_s = 0, 0.0, 0.0
        reached = 0
        for count, digest in enumerate(digests, 1):
            tiers = self._held.get(digest[:HASH_BYTES])
            if tiers is None:
                break
            tier = Tier((tiers & -tiers).bit_length() - 1)
            speed = self._speeds.get(tier)
            if speed is not None:
                read_s += self._doubt * self._block_bytes / speed.bytes_per_s
                if not reached >> tier & 1:
                    read_s += self._doubt * speed.latency_s
            reached |= 1 << tier
            saved_s = self._compute_s(costs, first_block, count) - read_s if costs else count
            if saved_s > best_s:
                best, best_s = count, saved_s
        if reached and not best:
            self._doubt *= _TRUST_AGAIN
        return best

    def _compute_s(self, costs: LinearModel, first_block: int, num_blocks: int) -> float:
        """Computing so many blocks behind the first ones, as parts of steps that are made for the prompt anyway."""
        tokens = num_blocks * self._block_size
        token_s = costs.prefill_token_s + costs.fixed_s / self._chunk_tokens
        return tokens * (token_s + costs.prefill_pair_s * (first_block * self._block_size + tokens / 2))

    def _take(self, key: bytes, bit: int) -> None:
        left = self._held.get(key, 0) & ~bit
        if left:
            self._held[key] = left
        else:
            self._held.pop(key, None)
