"""What a block is worth in a tier: what admission and eviction are told of it."""

from collections.abc import Mapping

from armature.index.tiers import LOWER_TIERS, Tier
from armature.offload import admission, eviction
from armature.offload.admission import Offer
from armature.offload.copies import Copy
from armature.offload.eviction import Touched
from armature.offload.ledger import Ledger, Seen
from armature.offload.space import TierSpace


class Appraiser:
    """Looks at all tiers and at what the ledger remembers; changes nothing."""

    def __init__(self, spaces: Mapping[Tier, TierSpace], ledger: Ledger) -> None:
        self._spaces = spaces
        self._ledger = ledger
        self._below = {tier: [spaces[low] for low in LOWER_TIERS if low > tier and low in spaces] for tier in spaces}

    def touched(self, space: TierSpace, copy: Copy, now_s: float) -> Touched:
        """A copy that was stored or used just now."""
        if not space.policy.eviction.looks:
            return eviction.UNSEEN
        ledger, seen = self._ledger, self._ledger.get(copy.digest)
        saved_s, _ = self._saved_s(space, copy.digest, seen)
        uses = seen.uses or ledger.sketch.estimate(copy.digest)
        return Touched(seen, uses, ledger.reuse_probability(seen), saved_s, space.inflation, now_s)

    def offer(self, space: TierSpace, digest: bytes) -> Offer:
        """A block that the tier does not hold."""
        if not space.policy.admission.looks:
            return admission.UNSEEN
        ledger, seen = self._ledger, self._ledger.get(digest)
        victim = space.victim(seen.facts.tenant)
        saved_s, is_below = self._saved_s(space, digest, seen)
        return Offer(
            seen,
            ledger.sketch.estimate(digest),
            ledger.sketch.estimate(victim.digest) if victim else -1,
            ledger.reuse_probability(seen),
            saved_s,
            space.shape.block_bytes,
            is_below,
        )

    def _saved_s(self, space: TierSpace, digest: bytes, seen: Seen) -> tuple[float, bool]:
        """What a use saves against computing, or against reading from below; and whether it could be read there."""
        for lower in self._below[space.tier]:
            if lower.ready(digest) is not None:
                return min(lower.block_s, seen.worth_s) - space.block_s, True
        return seen.worth_s - space.block_s, False
