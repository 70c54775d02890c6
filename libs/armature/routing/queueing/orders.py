"""In which order the requests of one tenant and band go.

The key of a request is set once, when it comes, so that a heap can hold it: whatever ages, ages by having come earlier.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from armature.routing.checks import check_numbers
from armature.routing.hints import Hints
from armature.routing.queueing.waiting import Work


class Order(Protocol):
    """One way to line up."""

    is_by_size: ClassVar[bool]
    """Whether less work goes first, of requests that come together."""

    def key(self, hints: Hints, work: Work, arrival_s: float) -> float:
        """The lowest goes first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Aged:
    """The earliest due first; the less there is to compute, the earlier a request is due, and never later than its
    client wants to see the first token.

    A request is due at most `patience_s` after it came. So it is overtaken only by what comes before that, and
    somebody who has waited so long is overtaken by nobody any more.
    """

    stretch: float = 100.0
    """How many times its own computing a request can wait until it is due. Raise it to favour short prompts more, for
    a better mean and a worse tail."""
    patience_s: float = 60.0
    """The latest that a request is due after it came. Lower it for a better tail."""

    is_by_size: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_numbers(self)

    def key(self, hints: Hints, work: Work, arrival_s: float) -> float:
        slack_s = self.patience_s
        if hints.latency_sensitivity:
            slack_s = min(slack_s, self.stretch * work.seconds / hints.latency_sensitivity)
        if hints.ttft_target_s:
            slack_s = min(slack_s, max(hints.ttft_target_s - work.seconds, 0.0))
        return arrival_s + slack_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Fcfs:
    """First come, first served; a request of positive priority counts as having come so many seconds earlier."""

    is_by_size: ClassVar[bool] = False

    def key(self, hints: Hints, work: Work, arrival_s: float) -> float:
        return arrival_s - max(hints.priority, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wspt:
    """Weighted shortest processing time (Smith 1956), as NVIDIA Dynamo 1.6 has it: uncached tokens over one more than
    the priority, and nothing ages."""

    is_by_size: ClassVar[bool] = True

    def key(self, hints: Hints, work: Work, arrival_s: float) -> float:
        return -(1 + max(hints.priority, 0)) / max(work.tokens, 1)


ORDERS = {"aged": Aged, "fcfs": Fcfs, "wspt": Wspt}
"""By the name that a policy file has for them."""
