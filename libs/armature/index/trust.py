"""How far the index can be believed about each worker: what its source says, corrected by what requests found.

A worker that was predicted to hold blocks and did not costs a whole prefill that the prediction left out. So predicted
overlap is multiplied by a factor: a prior that follows from the state of the worker's event stream, and the share of
predicted tokens that turned out to be cached. It opens nothing and reads no clock.

A kv-offload serves a whole node and others beside, so one that says it keeps what it does not makes all of them wait in
vain. What workers ask it for on its own word is compared with what it then has; when less than half can be believed,
nothing counts until its events have been taken in anew.

Invariant: the factor is in [0, 1], and exactly 1 for a source that is exact and hardly ever seen to be wrong.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from armature.index.change import Change, ChangeKind


class TrustState(IntEnum):
    """What is known of a source. The numbers are the contract's (`WorkerChange.Kind` in kv_index.proto)."""

    STALE = 5
    """Its events are not heard: what it holds was true once."""
    EXACT = 6
    """Everything that the worker has told is known."""
    REPAIRING = 7
    """Something is missing and on its way: a gap's replay, a dump, what happened since a snapshot."""
    ASSUMED = 8
    """It tells nothing: what it holds is assumed from what was sent to it."""


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """How fast belief is lost and regained.

    Raises:
        ValueError: a value is out of its range.
    """

    repairing_factor: float = 0.9
    """Before anything is measured. What is missing is what happened within one outage, a small part of a pool."""
    assumed_factor: float = 0.9
    stale_half_life_s: float = 120.0
    """After this long half of what a silent worker held counts as evicted; about a pool's turnover time."""
    prior_tokens: float = 4096.0
    """The weight of the prior against predicted tokens that were checked."""
    tolerance: float = 0.01
    """A share of missing tokens that an exact source is not blamed for: what is evicted while a request waits."""
    least_factor: float = 0.5
    """What a kv-offload keeps counts only while its factor is no lower."""
    memory_tokens: float = 65536.0
    """Checked tokens that are remembered; older ones fade, so that a worker that was cured is believed again."""

    def __post_init__(self) -> None:
        for name in ("repairing_factor", "assumed_factor", "tolerance", "least_factor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        for name in ("stale_half_life_s", "prior_tokens", "memory_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


class Accuracy(NamedTuple):
    """Sums over checked requests, in tokens: `predicted - missing + unforeseen = actual`."""

    requests: int = 0
    predicted: int = 0
    actual: int = 0
    missing: int = 0
    """Predicted to be cached, and not."""
    unforeseen: int = 0
    """Cached, and not predicted."""


class Answered(NamedTuple):
    """What a kv-offload has said when a worker came to read."""

    asked_tokens: int
    """That it was asked for."""
    found_tokens: int
    """Of those, from the first on, that it had; whether they came in time is another matter."""


class _Source:
    __slots__ = ("checked", "found", "since_s", "state")

    def __init__(self, state: TrustState, now_s: float) -> None:
        self.state = state
        self.since_s = now_s
        """Since when its events are not heard; of use while stale."""
        self.checked = 0.0
        self.found = 0.0


# In which the factor of a silent source hardly changes.
_COUNT_INTERVAL_S = 1.0

_NOBODY: frozenset[str] = frozenset()

_STATES = {state.value: state for state in TrustState}


class Trust:
    """The trust in every source, and how predictions have fared."""

    def __init__(self, policy: TrustPolicy | None = None) -> None:
        self._policy = policy or TrustPolicy()
        self._sources: dict[str, _Source] = {}
        self._doubts: dict[str, float] = {}
        """Factors of those who are not believed wholly: in a healthy cell none, so that placement pays nothing."""
        self._counted_s = 0.0
        """As of when the factors of silent sources are."""
        self.accuracy = Accuracy()
        """Of all workers since the start."""

    @property
    def worker_ids(self) -> list[str]:
        """Every source that is known, oldest first."""
        return list(self._sources)

    def state(self, worker_id: str) -> TrustState:
        """A source's state; STALE if it is unknown."""
        source = self._sources.get(worker_id)
        return source.state if source else TrustState.STALE

    def count(self, state: TrustState) -> int:
        """How many sources are in a state."""
        return sum(source.state is state for source in self._sources.values())

    def apply(self, change: Change, now_s: float) -> None:
        """Follow a change of the index; those of holdings only make the worker known."""
        if change.kind is ChangeKind.DROPPED:
            self.forget(change.worker_id)
        elif state := _STATES.get(change.kind.value):
            self.mark(change.worker_id, state, now_s)

    def mark(self, worker_id: str, state: TrustState, now_s: float) -> None:
        """Note a source's state. What was measured in another state says nothing about this one."""
        source = self._sources.get(worker_id)
        if source is None:
            source = self._sources[worker_id] = _Source(state, now_s)
        elif source.state is not state:
            # A repair that fails does not make what is held any younger.
            was_heard = source.state is not TrustState.STALE
            source.state, source.checked, source.found = state, 0.0, 0.0
            if was_heard:
                source.since_s = now_s
        if state is TrustState.EXACT:
            self._doubts.pop(worker_id, None)
        else:
            self._doubts[worker_id] = self._factor(source, now_s)

    def silence(self, now_s: float) -> None:
        """Nobody tells changes any more: all that was heard is stale."""
        for worker_id, source in self._sources.items():
            if source.state is not TrustState.ASSUMED:
                self.mark(worker_id, TrustState.STALE, now_s)

    def forget(self, worker_id: str) -> None:
        """A worker is gone; unknown ones are ignored."""
        self._sources.pop(worker_id, None)
        self._doubts.pop(worker_id, None)

    def observe(self, worker_id: str, predicted_tokens: int, actual_tokens: int) -> None:
        """A request has shown how many of its tokens were cached, of `predicted_tokens` before any discount.

        What was found without having been predicted is counted and does not make up for what was missing.

        Raises:
            ValueError: a number is negative.
        """
        if predicted_tokens < 0 or actual_tokens < 0:
            raise ValueError(f"{predicted_tokens} predicted and {actual_tokens} actual tokens: neither may be negative")
        found = min(predicted_tokens, actual_tokens)
        requests, predicted, actual, missing, unforeseen = self.accuracy
        self.accuracy = Accuracy(
            requests + 1, predicted + predicted_tokens, actual + actual_tokens,
            missing + predicted_tokens - found, unforeseen + actual_tokens - found,
        )  # fmt: skip
        self._check(worker_id, predicted_tokens, found)

    def answered(self, store_id: str, expected_tokens: int, found_tokens: int) -> None:
        """A kv-offload was asked for `expected_tokens` that it has told to keep, and had only so many of them.

        Raises:
            ValueError: a number is negative.
        """
        if min(expected_tokens, found_tokens) < 0:
            raise ValueError(f"{expected_tokens} expected and {found_tokens} found tokens: neither may be negative")
        self._check(store_id, expected_tokens, min(expected_tokens, found_tokens))

    def distrusted(self, store_ids: Collection[str], now_s: float) -> frozenset[str]:
        """Of these kv-offloads those that can't be believed."""
        doubts = self.doubts(now_s)
        if not doubts:
            return _NOBODY
        least = self._policy.least_factor
        return frozenset([store_id for store_id in store_ids if doubts.get(store_id, 1.0) < least])

    def _check(self, worker_id: str, predicted_tokens: int, found: int) -> None:
        source = self._sources.get(worker_id)
        if source is None or not predicted_tokens:
            return
        checked = source.checked + predicted_tokens
        fading = min(1.0, self._policy.memory_tokens / checked)
        source.checked, source.found = checked * fading, (source.found + found) * fading
        if source.state is TrustState.EXACT and source.found >= source.checked * (1 - self._policy.tolerance):
            self._doubts.pop(worker_id, None)
        else:
            self._doubts[worker_id] = self._factor(source, self._counted_s)

    def factor(self, worker_id: str, now_s: float) -> float:
        """What share of its predicted overlap a worker is believed to hold; of an unknown one nothing is predicted."""
        return self._factor(self._sources[worker_id], now_s) if worker_id in self._doubts else 1.0

    def doubts(self, now_s: float) -> Mapping[str, float]:
        """The factors of all that are not believed wholly; those of silent sources may be a second old."""
        if now_s >= self._counted_s + _COUNT_INTERVAL_S:
            self._counted_s = now_s
            for worker_id in self._doubts:
                source = self._sources[worker_id]
                if source.state is TrustState.STALE:
                    self._doubts[worker_id] = self._factor(source, now_s)
        return self._doubts

    def _factor(self, source: _Source, now_s: float) -> float:
        weight = self._policy.prior_tokens
        return (self._prior(source, now_s) * weight + source.found) / (weight + source.checked)

    def _prior(self, source: _Source, now_s: float) -> float:
        policy, state = self._policy, source.state
        if state is TrustState.EXACT:
            return 1.0
        if state is TrustState.ASSUMED:
            return policy.assumed_factor
        if state is TrustState.REPAIRING:
            return policy.repairing_factor
        silent_s = max(0.0, now_s - source.since_s)
        return policy.repairing_factor * 0.5 ** (silent_s / policy.stale_half_life_s)
