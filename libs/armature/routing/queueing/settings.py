"""The queue's part of a policy: plain data."""

from dataclasses import dataclass, field

from armature.routing.checks import check_numbers
from armature.routing.queueing.gates import Always, Gate
from armature.routing.queueing.orders import Fcfs, Order


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy:
    """How requests wait in the router; by default, in the order in which they come and only when nobody can take them.

    Raises:
        ValueError: a number is out of its range.
    """

    order: Order = field(default_factory=Fcfs)
    gate: Gate = field(default_factory=Always)
    bands: bool = True
    """Requests of higher priority go before all others."""
    tenants: bool = True
    """Tenants of one band take turns, by the work that their prompts are, and what others have on a worker counts only
    as far as it goes before a tenant's own there: so who has little on the workers passes the queue. No for engines
    that compute prompts in the order in which they come."""
    floor: float = 0.1
    """Share of the placed work that goes to whoever has waited longest, whatever its band, tenant and size. It bounds
    everybody's wait: with W seconds of work waiting when a request comes, itself included, and L the most that one
    request is, at most W + L + (W + L) / `floor` seconds of work are placed until it is, as long as it fits somewhere.
    0: no such bound."""
    max_requests: int = 4096
    """Requests that may wait for a model."""
    max_wait_s: float = 60.0
    """The longest that a request may wait. The queue is full with as much work as is placed in this time."""

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("max_requests", "max_wait_s"))
        if self.floor > 1:
            raise ValueError(f"floor is {self.floor}; it is a share, from 0 to 1")
