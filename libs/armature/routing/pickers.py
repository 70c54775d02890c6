"""How a policy picks one of the ways. Lots come with the snapshot, so a pick can be repeated."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from armature.routing import columns as at
from armature.routing.checks import check_numbers
from armature.routing.columns import Floats, Slots
from armature.routing.forecast import Ways
from armature.routing.snapshot import Snapshot


class Pick(NamedTuple):
    """The position of a way, and how many were as good."""

    way: int
    equals: int = 1


class Picker(Protocol):
    """Chooses a way by the costs."""

    def pick(self, snapshot: Snapshot, ways: Ways, costs: Floats) -> Pick: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowest:
    """The lowest cost."""

    tie_ratio: float = 1.01
    """Costs that differ by less are equal. No more than a little, since the terms that are the same for all ways are
    most of a high cost."""
    tie: float = 0.001
    """Likewise, as a difference."""
    among_equals: Literal["spread", "random"] = "spread"
    """`spread`: the least busy, then local, the most overlap, the one placed on longest ago, the first by id."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.tie_ratio < 1:
            raise ValueError(f"tie_ratio is {self.tie_ratio}; it must be at least 1")

    def pick(self, snapshot: Snapshot, ways: Ways, costs: Floats) -> Pick:
        best = float(np.minimum.reduce(costs))
        (equals,) = (costs <= max(best * self.tie_ratio, best + self.tie)).nonzero()
        count = len(equals)
        if count == 1:
            return Pick(int(equals[0]))
        if self.among_equals == "random":
            return Pick(int(equals[int(snapshot.lots[0] * count)]), count)
        return Pick(_least_busy(snapshot, ways, equals), count)


def _least_busy(snapshot: Snapshot, ways: Ways, equals: Slots) -> int:
    state, requests = snapshot.state, ways.rows[at.REQUESTS][equals]
    if ways.prefill is not None:
        helpers = ways.prefill[equals]
        requests = requests + np.where(helpers >= 0, state[at.REQUESTS, helpers], 0.0)
    equals = equals[requests == np.minimum.reduce(requests)]
    if len(equals) > 1 and ways.prefill is not None:
        is_remote = ways.prefill[equals] >= 0
        if not is_remote.all():
            equals = equals[~is_remote]
    if len(equals) > 1:
        overlap = ways.overlap[equals]
        equals = equals[overlap == np.maximum.reduce(overlap)]
    return int(equals[ways.rows[at.TURN][equals].argmin()])


@dataclass(frozen=True, slots=True, kw_only=True)
class Softmax:
    """Draws, the better the cost the likelier; costs are scaled to 0 (best) to 1 (worst)."""

    temperature: float = 0.1
    """Raise it to spread more."""

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("temperature",))

    def pick(self, snapshot: Snapshot, ways: Ways, costs: Floats) -> Pick:
        best, worst = float(costs.min()), float(costs.max())
        scaled = (costs - best) / (worst - best) if worst > best else np.zeros(len(costs))
        sums = np.cumsum(np.exp(-scaled / self.temperature))
        return Pick(min(int(np.searchsorted(sums, snapshot.lots[0] * sums[-1], side="right")), len(costs) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """The one placed on longest ago; whoever has never been goes first."""

    def pick(self, snapshot: Snapshot, ways: Ways, costs: Floats) -> Pick:
        return Pick(int(ways.rows[at.TURN].argmin()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """Anyone."""

    def pick(self, snapshot: Snapshot, ways: Ways, costs: Floats) -> Pick:
        return Pick(int(snapshot.lots[0] * len(costs)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerOfTwo:
    """The better of two drawn at random (Mitzenmacher 2001)."""

    def pick(self, snapshot: Snapshot, ways: Ways, costs: Floats) -> Pick:
        count = len(costs)
        first = math.floor(snapshot.lots[0] * count)
        if count == 1:
            return Pick(first)
        second = (first + 1 + math.floor(snapshot.lots[1] * (count - 1))) % count
        return Pick(first if costs[first] <= costs[second] else second)


PICKERS = {
    "lowest": Lowest,
    "softmax": Softmax,
    "round_robin": RoundRobin,
    "random": Random,
    "power_of_two": PowerOfTwo,
}
"""By the name that a policy file has for them."""
