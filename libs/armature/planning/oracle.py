"""What somebody would do who knows every request beforehand: a bound to hold planners against.

Each slot gets the fewest workers that hold the targets for what really comes in it and shortly before; they are asked
for early enough to be ready, and kept through lulls in which letting go would cost as much as starting anew.
"""

import numpy as np
from numpy.typing import NDArray

from armature.planning.capacity import Capacity, Demand, demand_of
from armature.planning.fleet import Counts
from armature.planning.observer import Arrivals
from armature.planning.rivals import Schedule

_BEFORE_S = 15.0
"""Before a slot, that what came then can still be waiting in it."""
_MOST_REPLAYED = 2000
"""Requests of a slot, the busiest, that are replayed."""


def foresighted(
    arrivals: Arrivals, capacity: Capacity, *, slot_s: float, start_up_s: float,
    headroom: float = 1.0, share: float = 1.0, most: int = 256,
) -> Schedule:  # fmt: skip
    """The schedule of aggregated workers for arrivals with their true outputs and cached tokens.

    It has `share` of those that hold the targets times `headroom`: prediction may be too careful.
    """
    end_s = float(arrivals.arrival_s[-1]) if arrivals.num_requests else 0.0
    needed = np.ones(int(end_s / slot_s) + 1, dtype=np.int64)
    for slot in range(len(needed)):
        from_s, to_s = slot * slot_s - min(slot_s, _BEFORE_S), (slot + 1) * slot_s
        low, high = np.searchsorted(arrivals.arrival_s, [from_s, to_s])
        near = Arrivals(*(column[low:high] for column in arrivals))
        if near.num_requests and near.arrival_s[-1] >= slot * slot_s:
            demand, last = _busiest(demand_of(near, capacity.kind, 0.0)), int(needed[max(slot - 1, 0)])
            needed[slot] = capacity.least_aggregated(demand, most, headroom=headroom, near=last)
    needed = np.maximum(np.ceil(needed * share - 1e-9), 1).astype(np.int64)
    slots = max(-(-int(start_up_s) // int(max(slot_s, 1))), 0)
    kept = _through_lulls(needed, slots)
    # What is needed within a start-up must have been asked for by now.
    asked = [int(kept[slot : slot + slots + 1].max()) for slot in range(len(kept))]
    changes = [(slot * slot_s, Counts(count)) for slot, count in enumerate(asked)]
    return Schedule([one for i, one in enumerate(changes) if not i or one[1] != changes[i - 1][1]])


def _busiest(demand: Demand) -> Demand:
    """As many requests in a row as are replayed, where they bring most work in least time."""
    jobs, work = demand
    if len(work) <= _MOST_REPLAYED:
        return demand
    done = np.concatenate(([0.0], np.cumsum(work)))
    rates = (done[_MOST_REPLAYED:-1] - done[: -_MOST_REPLAYED - 1]) / np.maximum(
        jobs.arrival_s[_MOST_REPLAYED:] - jobs.arrival_s[:-_MOST_REPLAYED], 1e-3
    )
    first = int(np.argmax(rates))
    chosen = slice(first, first + _MOST_REPLAYED)
    return Demand(type(jobs)(*(column[chosen] for column in jobs)), work[chosen])


def _through_lulls(needed: NDArray[np.int64], slots: int) -> NDArray[np.int64]:
    """No worker leaves for so few slots that its next start would cost as much."""
    kept = needed.copy()
    for slot in range(1, len(needed)):
        ahead = needed[slot : slot + slots + 1].max(initial=0)
        kept[slot] = max(needed[slot], min(kept[slot - 1], ahead))
    return kept
