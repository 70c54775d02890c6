"""What becomes of a request that was submitted."""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from armature.routing.decision import Placed, Query, Rejected


@dataclass(frozen=True, slots=True)
class Queued:
    """It waits; another outcome follows."""

    expected_wait_s: float
    """By how fast the queue drains."""
    within_s: float
    """Something final is said of it by then."""
    reason: str


class Shed(Enum):
    """Why a request that could have waited was refused."""

    FULL = "full"
    """The queue has no room for it."""
    PUSHED_OUT = "pushed out"
    """A more valuable one has taken its place."""
    TOO_LATE = "too late"
    """Its first token would come after it is of use."""
    EXPIRED = "expired"
    """It has waited as long as it could."""
    REPLACED = "replaced"
    """The same request was submitted again."""


class Outcome(NamedTuple):
    """Of each request that is submitted exactly one is final, unless its client leaves first."""

    query: Query
    answer: Placed | Queued | Rejected
    waited_s: float = 0.0
    shed: Shed | None = None
    """Set if it was refused by the queue, not by the cell."""

    @property
    def is_final(self) -> bool:
        return not isinstance(self.answer, Queued)

    @property
    def reason(self) -> str:
        """For people. Made anew at every call."""
        return f"{self.answer.reason}; waited {self.waited_s:.3f} s" if self.waited_s else self.answer.reason
