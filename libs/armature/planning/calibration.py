"""How far prediction and measurement are apart, learned while the fleet is left alone."""

from armature.planning.capacity import Capacity, Correction, Demand
from armature.planning.fleet import Counts
from armature.planning.observer import Seen
from armature.planning.sketch import Sketch

_LEAST, _MOST = 0.6, 1.6
"""What is believed: beyond it something else is wrong."""
_WEIGHT = 0.3
_LEAST_REQUESTS = 30
_NEAR = 0.6
"""Share of the target from which on it matters: how far a light load is off says nothing of a heavy one."""
_BUSIEST = 0.9
"""Above this load queues say more of what was before than of the model."""


class Calibration:
    """Compares stretches of `span_s` in which the fleet was one and the same."""

    def __init__(self, capacity: Capacity, span_s: float) -> None:
        self._capacity = capacity
        self._span_s = span_s
        self._counts = Counts()
        self._since_s = 0.0
        self._ttft_s, self._itl_s = Sketch(), Sketch()
        self.correction = Correction()

    def adopt(self, capacity: Capacity) -> None:
        """Compare with another model from now on."""
        self._capacity = capacity

    def add(self, seen: Seen) -> bool:
        """Take in what was measured; whether it is time to compare, which `learn` does."""
        if seen.fleet.ready != self._counts or seen.fleet.draining:
            self._restart(seen.now_s, seen.fleet.ready)
            return False
        self._ttft_s.merge(seen.ttft_s)
        self._itl_s.merge(seen.itl_s)
        is_long = seen.now_s - self._since_s >= self._span_s
        return is_long and self._ttft_s.count >= _LEAST_REQUESTS and self._counts.total > 0

    @property
    def since_s(self) -> float:
        """From when on arrivals belong to the stretch."""
        return self._since_s

    def learn(self, demand: Demand, now_s: float) -> None:
        """Compare the stretch with what it should have been under `demand`."""
        expected = self._capacity.predict(demand, self._counts)
        targets, old = self._capacity.targets, self.correction
        if expected.load < _BUSIEST:
            ttft = _towards(old.ttft, _at(self._ttft_s, targets.quantile), expected.ttft_s, targets.ttft_s)
            itl = _towards(old.itl, _at(self._itl_s, targets.quantile), expected.itl_s, targets.itl_s)
            self.correction = Correction(ttft, itl)
        self._restart(now_s, self._counts)

    def _restart(self, now_s: float, counts: Counts) -> None:
        self._counts, self._since_s = counts, now_s
        self._ttft_s, self._itl_s = Sketch(), Sketch()


def _at(measured: Sketch, share: float) -> float:
    """The quantile; 0 of too few."""
    return measured.quantile(share) if measured.count >= _LEAST_REQUESTS else 0.0


def _towards(old: float, measured_s: float, expected_s: float, target_s: float) -> float:
    if not (measured_s > 0 and expected_s > 0) or max(measured_s, expected_s * old) < _NEAR * target_s:
        return old
    ratio = min(max(measured_s / expected_s, _LEAST), _MOST)
    return old + _WEIGHT * (ratio - old)
