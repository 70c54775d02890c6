"""What every connector does: tells which workers there are, and makes them what is wanted.

A connector decides nothing and remembers nothing that it can't see again: `apply` is given the whole fleet as it shall
be, compares it with what is there now and does what is missing. So an order may be given twice, and a planner that
takes over gives the same orders as the one that is gone. What goes wrong is data, told in words for the audit log.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from armature.planning.decision import NO_FLIPS, Flips
from armature.planning.fleet import Counts, Fleet
from armature.v1.common_pb2 import Member


class ProblemKind(Enum):
    """What an operator does about it."""

    AWAY = "away"
    """Whoever carries orders out does not answer. The next step tries again."""
    DENIED = "denied"
    """We have no right to. Somebody has to give it."""
    CONFLICT = "conflict"
    """Somebody else changed the same thing meanwhile. The next step looks again."""
    REFUSED = "refused"
    """It can't be done as asked, however often: there is no such deployment, no room, no such role."""
    FAILED = "failed"
    """It was tried and went wrong: a worker ended at its start, for example."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that stands between an order and the fleet."""

    kind: ProblemKind
    text: str
    """For people: names what, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The fleet as the connector sees it."""

    fleet: Fleet
    problems: tuple[Problem, ...] = ()
    is_stale: bool = False
    """The fleet is the last that was known, not the present one: nothing should be decided on it."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the fleet shall be."""

    counts: Counts
    """Workers by role, ready and starting together, after `flips`."""
    flips: Flips = NO_FLIPS
    """Workers that change their role, before any starts or leaves."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of an order; workers may still be starting or draining."""

    done: tuple[str, ...] = ()
    """In words, one for each thing that was done; empty if all was as ordered."""
    problems: tuple[Problem, ...] = ()


class Workers(Protocol):
    """The workers of the model as the cell sees them: connectors that need to know who is who are made with it."""

    def members(self) -> Sequence[Member]:
        """Their records, also of those that drain, the longest registered first.

        `member.kind` is the service that a worker was started as, `member.worker.role` what it is now: a flip changes
        the role and leaves the kind.
        """
        ...

    def in_flight(self, member_id: str) -> int:
        """Requests that it runs or has waiting, as it last reported: of several the idlest go first."""
        ...


class Reach(Enum):
    """What a connector can do; plans go no further."""

    TELLS = "tells"
    """Nothing: people read the plans."""
    FLIPS = "flips"
    """It changes roles; how many workers there are is somebody else's business."""
    SCALES = "scales"
    """It starts and drains workers, too."""


class Connector(Protocol):
    """A way to change the fleet of one model.

    Neither call raises for what is outside of our process, and each ends within a deadline of its own.
    """

    @property
    def name(self) -> str:
        """As in the planner's settings."""
        ...

    @property
    def reach(self) -> Reach:
        """What it can do about a plan."""
        ...

    async def observe(self) -> Observed:
        """Look who is there: ready, starting (asked for, by whomever) and draining."""
        ...

    async def apply(self, order: Order) -> Outcome:
        """Flip, start and drain workers until the fleet will be as ordered; don't wait for it.

        Workers that leave drain first. Of those that start, the youngest go before any that works.
        """
        ...

    async def close(self) -> None:
        """Let go of connections; the fleet stays as it is."""
        ...
