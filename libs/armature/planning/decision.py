"""What a planner decides, and why: plain data, for the audit log and for whoever acts on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from armature.planning.backtest import Forecast
from armature.planning.capacity import Predicted
from armature.planning.fleet import Counts
from armature.planning.observer import Seen


class Reason(Enum):
    """Why the fleet is to be what it is."""

    STEADY = "steady"
    """It holds the targets, and no fewer would."""
    DEMAND = "demand"
    """More is expected than it can carry."""
    BACKLOG = "backlog"
    """More waits than it can answer in time."""
    SURPLUS = "surplus"
    """Fewer have sufficed for long enough."""
    SETTLING = "settling"
    """Fewer would do, but not for long enough yet, or the surplus is too small to bother."""
    SPLIT = "split"
    """Some are of more use in another role."""
    LIMIT = "limit"
    """More is needed than the limits allow."""
    IDLE = "idle"
    """Nobody has asked for long."""
    WAKE = "wake"
    """Somebody asks, and nobody is there."""
    UNKNOWN = "unknown"
    """Nothing has been seen yet: it stays."""
    GIVEN = "given"
    """Somebody else has said so."""


class Flips(NamedTuple):
    """Workers that change their role, before any starts or leaves."""

    to_prefill: int = 0
    to_decode: int = 0


NO_FLIPS = Flips()


@dataclass(frozen=True, slots=True)
class Alternative:
    """What was not chosen."""

    counts: Counts
    why_not: str
    predicted: Predicted | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the fleet is to be."""

    at_s: float
    counts: Counts
    reason: Reason
    text: str
    """The reason for people."""
    flips: Flips = NO_FLIPS
    is_change: bool = False
    holds_requests: bool = False
    """Requests that come now are to wait for a worker."""
    next_s: float = 0.0
    """When to ask again."""
    demand: float = 0.0
    """Foreseen, in workers that would be busy all the time."""
    forecast: Forecast | None = None
    predicted: Predicted | None = None
    """With the chosen counts, under the foreseen demand."""
    rejected: tuple[Alternative, ...] = ()
    notes: Mapping[str, float] = field(default_factory=dict[str, float])
    """Numbers that the decision used."""


class Plans(Protocol):
    """Anything that sizes a fleet; simulations compare them."""

    def step(self, seen: Seen) -> Decision: ...
