"""When a request that could be placed waits all the same: while every worker has enough to do.

Work given to a worker can't be taken back and runs in the order in which it came, so what is beyond a little is better
kept where it can still be reordered, and go to whoever is free first.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from armature.routing import columns as at
from armature.routing.checks import check_numbers
from armature.routing.columns import Floats

if TYPE_CHECKING:
    from armature.routing.judge import Judgement


class Gate(Protocol):
    """One measure of enough to do."""

    def is_open(self, judgement: "Judgement") -> bool:
        """Whether a judged request may be placed now."""
        ...

    def opens_s(self, state: Floats, now_s: float) -> float:
        """Not open for anybody before then, by the table of all workers of a model; infinity: not by time alone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Always:
    """Whoever fits somewhere goes there."""

    def is_open(self, judgement: "Judgement") -> bool:
        return True

    def opens_s(self, state: Floats, now_s: float) -> float:
        return now_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Open while somebody could begin to compute within `below_s`.

    Not the chosen worker, but any that serves the prompt in the same way, with a prefill worker or without: a request
    may well want to wait for the worker that has its prefix, and then others must not wait for it.
    """

    below_s: float = 10.0
    """Enough that no worker runs dry before the router hears of it. Raise it if reports come seldom, lower it to leave
    more to the queue's order."""

    def __post_init__(self) -> None:
        check_numbers(self)

    def is_open(self, judgement: "Judgement") -> bool:
        ways = judgement.ways
        # Not the wait for room: it is longest for the largest prompts, which everybody else would overtake.
        wait_s = ways.queue_s
        assert wait_s is not None
        if ways.prefill is not None:
            is_remote = ways.prefill >= 0
            wait_s = wait_s[is_remote == is_remote[judgement.pick.way]]
        # What was open at `opens_s` is open here, whatever rounding does.
        return float(np.minimum.reduce(wait_s)) <= self.below_s + 1e-9

    def opens_s(self, state: Floats, now_s: float) -> float:
        return float(np.minimum.reduce(state[at.BUSY_UNTIL_S])) - self.below_s


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillBatches:
    """Open while a worker has no more prompt tokens to compute than a multiple of its largest step, by what was placed
    on it: NVIDIA Dynamo 1.6's queue threshold."""

    below: float = 4.0

    def __post_init__(self) -> None:
        check_numbers(self)

    def is_open(self, judgement: "Judgement") -> bool:
        return bool(np.any(self._batches(judgement.ways.rows) <= self.below))

    def opens_s(self, state: Floats, now_s: float) -> float:
        return now_s if np.any(self._batches(state) <= self.below) else math.inf

    def _batches(self, rows: Floats) -> Floats:
        return rows[at.PREFILL_TOKENS] / rows[at.MAX_BATCH_TOKENS]


GATES = {"always": Always, "wait": Wait, "prefill_batches": PrefillBatches}
"""By the name that a policy file has for them."""
