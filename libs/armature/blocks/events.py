"""What a holder of blocks tells about them: blocks stored, removed, or a tier emptied."""

from dataclasses import dataclass
from enum import Enum

from armature.blocks.hashing import BlockDigest
from armature.index.tiers import Tier


class KvEventKind(Enum):
    STORED = "stored"
    REMOVED = "removed"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class KvEvent:
    """A change in what can be found in a tier. Events are numbered one by one from 1 within an epoch."""

    seq: int
    kind: KvEventKind
    digests: tuple[BlockDigest, ...] = ()
    tier: Tier = Tier.G1
