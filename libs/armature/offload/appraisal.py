"""What a block is worth in a tier: what admission and eviction are told of it, as far as they ask."""

from collections.abc import Mapping

from armature.index.tiers import LOWER_TIERS, Tier
from armature.offload.ledger import Ledger, Seen
from armature.offload.space import TierSpace


class Appraiser:
    """Looks at all tiers and at what the ledger remembers; changes nothing."""

    def __init__(self, spaces: Mapping[Tier, TierSpace], ledger: Ledger) -> None:
        self.ledger = ledger
        self.below = {tier: [spaces[low] for low in LOWER_TIERS if low > tier and low in spaces] for tier in spaces}

    def appraise(self, space: TierSpace, digest: bytes, now_s: float = 0.0) -> "Appraisal":
        """A block that the tier has just got or could get."""
        return Appraisal(self, space, digest, now_s)


class Appraisal:
    """One block in one tier, at this moment: an `Offer` to an admission, or `Touched` to an eviction."""

    __slots__ = ("_appraiser", "_digest", "_space", "now_s")

    def __init__(self, appraiser: Appraiser, space: TierSpace, digest: bytes, now_s: float) -> None:
        self._appraiser = appraiser
        self._space = space
        self._digest = digest
        self.now_s = now_s

    @property
    def seen(self) -> Seen:
        return self._appraiser.ledger.get(self._digest)

    @property
    def estimate(self) -> int:
        return self._appraiser.ledger.sketch.estimate(self._digest)

    @property
    def victim_estimate(self) -> int:
        victim = self._space.victim(self.seen.facts.tenant)
        return self._appraiser.ledger.sketch.estimate(victim.digest) if victim else -1

    @property
    def uses(self) -> int:
        return self.seen.uses or self.estimate

    @property
    def reuse(self) -> float:
        return self._appraiser.ledger.reuse_probability(self.seen)

    @property
    def saved_s(self) -> float:
        worth_s, space = self.seen.worth_s, self._space
        for lower in self._appraiser.below[space.tier]:
            if lower.ready(self._digest) is not None:
                return min(lower.block_s, worth_s) - space.block_s
        return worth_s - space.block_s

    @property
    def is_below(self) -> bool:
        return any(lower.ready(self._digest) is not None for lower in self._appraiser.below[self._space.tier])

    @property
    def inflation(self) -> float:
        return self._space.inflation

    @property
    def block_bytes(self) -> int:
        return self._space.shape.block_bytes
