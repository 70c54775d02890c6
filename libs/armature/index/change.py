"""What can happen to one worker's entry in the index; changes of a worker are in order."""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from armature.index.tiers import Tier


class ChangeKind(IntEnum):
    """The numbers are the contract's (`WorkerChange.Kind` in kv_index.proto)."""

    STORED = 1
    REMOVED = 2
    CLEARED = 3
    """It holds nothing in the tier, or in any if none is named."""
    DROPPED = 4
    """It is gone."""
    # From here on: how far its entry can be trusted, until the next word of that kind.
    STALE = 5
    """Changes of it may be missing."""
    EXACT = 6
    """None is missing any more."""
    REPAIRING = 7
    """Some are missing and on their way."""
    ASSUMED = 8
    """It tells none: what it holds is assumed from what was sent to it."""
    ATTACHED = 9
    """What it holds in lower tiers counts for these workers, and for nobody else."""


class Change(NamedTuple):
    kind: ChangeKind
    worker_id: str
    tier: Tier | None = None
    hashes: Sequence[int] = ()
    readers: Sequence[str] = ()
    """Whom it is attached to."""
