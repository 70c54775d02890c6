"""One block in one tier, from the moment its room is taken until that room is free again."""

from enum import Enum
from typing import NamedTuple

from armature.index.tiers import Tier


class Place(NamedTuple):
    """Where a block's bytes are, or shall be."""

    tier: Tier
    slot: int
    """Which of the tier's equal parts, from 0."""


class Found(NamedTuple):
    """A block that an earlier process has left."""

    digest: bytes
    tenant: str = ""
    """Whose quota it counts against; nobody's where that isn't known."""


class CopyState(Enum):
    WRITING = "writing"
    """Its bytes are on their way; nobody may read it."""
    READY = "ready"
    DOOMED = "doomed"
    """Nobody finds it any more; its room is free when the last reader has gone."""


# Looked up once, for there are many copies.
_WRITING, _READY = CopyState.WRITING, CopyState.READY
_NEVER_S = float("inf")


class Copy:
    """A block's presence in a tier. Invariant: it may be evicted only if it is ready, unread and not pinned."""

    __slots__ = (
        "digest",
        "expires_s",
        "is_above",
        "is_pinned",
        "is_queued",
        "number",
        "readers",
        "slot",
        "state",
        "tenant",
        "ticket",
    )

    def __init__(self, digest: bytes, slot: int, tenant: str) -> None:
        self.digest = digest
        self.slot = slot
        self.tenant = tenant
        """Whose quota it counts against: who brought it."""
        self.state = _WRITING
        self.readers = 0
        self.is_pinned = False
        self.is_above = False
        """A device holds it, too: whoever needs room takes it from such a block first."""
        self.number = 0.0
        """Of its eviction order; likewise `ticket`, which changes with every touch."""
        self.ticket = -1
        self.is_queued = False
        """Its entries stand in all of the space's queues."""
        self.expires_s = _NEVER_S

    @property
    def is_evictable(self) -> bool:
        return not self.readers and self.state is _READY and not self.is_pinned
