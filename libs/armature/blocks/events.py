"""What a block pool tells about its prefix cache: blocks stored, removed, or all of them gone."""

from dataclasses import dataclass
from enum import Enum

from armature.blocks.hashing import BlockDigest


class KvEventKind(Enum):
    STORED = "stored"
    REMOVED = "removed"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class KvEvent:
    """A change in what the pool's prefix cache holds. Events are numbered one by one from 1 within an epoch."""

    seq: int
    kind: KvEventKind
    digests: tuple[BlockDigest, ...] = ()
