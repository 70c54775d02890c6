"""Which workers a policy leaves out. Those that can't serve the prompt at all are out under every policy.

A filter says of every worker of a model whether it may stay. One that is soft is passed over when it would leave
nobody: it is about quality, and any answer is better than none.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from armature.routing import columns as at
from armature.routing.checks import check_numbers
from armature.routing.columns import Flags
from armature.routing.snapshot import Snapshot


class Filter(Protocol):
    """One reason to leave a worker out."""

    is_soft: ClassVar[bool]

    def keep(self, snapshot: Snapshot) -> Flags | None:
        """Whether each worker may stay; None: all may."""
        ...


def able(snapshot: Snapshot) -> Flags:
    """Who can serve the prompt: has blocks for it, does not drain, has not just failed it."""
    flags = snapshot.needed_blocks <= snapshot.state[at.CAPACITY]
    for worker_id in snapshot.query.excluded:
        slot = snapshot.roster.slots.get(worker_id)
        if slot is not None:
            flags[slot] = False
    return flags


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Leaves out who has too much waiting, so that the cell refuses instead of letting queues grow."""

    max_waiting_seqs: int = 64
    """Requests that may wait on one worker. Lower it to reject earlier."""
    kv_overcommit: float = 0.5
    """Share of a pool that waiting requests may ask for beyond what is free. Lower it to reject earlier."""

    is_soft: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("max_waiting_seqs",))

    def keep(self, snapshot: Snapshot) -> Flags | None:
        state = snapshot.state
        short_blocks = snapshot.needed_blocks - snapshot.overlap - state[at.FREE_BLOCKS]
        fits = short_blocks <= self.kv_overcommit * state[at.NUM_BLOCKS]
        return fits & (state[at.WAITING] < self.max_waiting_seqs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """Leaves out who computes much slower than its peers do, by the steps it has measured itself.

    Now and then it gets a request all the same, or nobody would learn that it has recovered.
    """

    factor: float = 3.0
    """How many times slower than the median. Lower it to tolerate less."""
    probe_s: float = 20.0
    """How long a straggler gets nothing. Lower it to notice sooner that one has recovered."""

    is_soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("probe_s",))
        if self.factor < 1:
            raise ValueError(f"factor is {self.factor}; it must be at least 1")

    def keep(self, snapshot: Snapshot) -> Flags | None:
        state = snapshot.state
        reference_s = state[at.REFERENCE_S]
        if 0.0 < np.maximum.reduce(reference_s) <= self.factor * np.minimum.reduce(reference_s):
            return None  # as nearly always: all have measured themselves, and none is slow
        measured = reference_s[reference_s > 0]
        if not len(measured):
            return None
        measured.sort()
        # The lower median: of two workers the faster one is the measure.
        bound_s = self.factor * measured[(len(measured) - 1) // 2]
        if measured[-1] <= bound_s:
            return None
        return (reference_s <= bound_s) | (state[at.LAST_PLACED_S] <= snapshot.now_s - self.probe_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class HotSpot:
    """Leaves out who has a far longer queue than the others, whatever it has cached.

    The cost alone would let a worker that holds a popular prefix run ahead of idle ones as long as waiting is cheaper
    than computing anew.
    """

    factor: float = 4.0
    """Queue of a worker, in multiples of the mean. Lower it to spread popular prefixes sooner."""
    slack_s: float = 2.0
    """Queue that any worker may have."""

    is_soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.factor < 1:
            raise ValueError(f"factor is {self.factor}; it must be at least 1, or those that are just average go")

    def keep(self, snapshot: Snapshot) -> Flags | None:
        busy_until_s = snapshot.state[at.BUSY_UNTIL_S]
        if np.maximum.reduce(busy_until_s) - snapshot.now_s <= self.slack_s:
            return None
        queue_s = np.maximum(busy_until_s - snapshot.now_s, 0.0)
        decoders, kept = snapshot.roster.num_decoders, np.empty(len(queue_s), np.bool_)
        for part in (slice(0, decoders), slice(decoders, None)):
            if len(queue_s[part]):
                mean_s = np.add.reduce(queue_s[part]) / len(queue_s[part])
                kept[part] = queue_s[part] <= self.slack_s + self.factor * mean_s
        return kept


FILTERS = {"room": Room, "straggler": Straggler, "hot_spot": HotSpot}
"""By the name that a policy file has for them."""
