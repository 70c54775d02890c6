"""How well a fleet was sized: the windows in which users got what they were promised, and what that cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from armature.planning.capacity import Targets
from armature.sim.elastic import Level
from armature.sim.record import Record

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Window:
    """The requests that came in a span of time; of no request, nothing is said."""

    from_s: float
    requests: int
    ttft_s: float
    """At the targets' quantile."""
    itl_s: float
    is_met: bool


@dataclass(frozen=True, slots=True)
class Sizing:
    """One planner's run."""

    windows: Sequence[Window]
    gpu_hours: float
    changes: int
    """Of the number of workers that were wanted, or of roles."""
    most_workers: int
    mean_workers: float
    unserved: int

    @property
    def attained(self) -> float:
        """Share of the windows with requests in which all targets were met; 1 if there are none."""
        return sum(window.is_met for window in self.windows) / len(self.windows) if self.windows else 1.0


def windows_of(record: Record, targets: Targets, window_s: float) -> list[Window]:
    """By time of arrival; a request that was not served has missed every target."""
    served = record.is_served()
    arrival_s, first_s, finish_s = (record.times(f"{name}_s") for name in ("arrival", "first_token", "finish"))
    output = record.counts("output_tokens")
    ttft_s = np.where(served, first_s - arrival_s, np.inf)
    itl_s = np.where(served, (finish_s - first_s) / np.maximum(output - 1, 1), np.inf)
    has_itl = ~served | (output > 1)
    edges = np.searchsorted(arrival_s, np.arange(0.0, float(arrival_s.max(initial=0.0)) + 2 * window_s, window_s))
    windows: list[Window] = []
    for number, (low, high) in enumerate(pairwise(edges.tolist())):
        if high == low:
            continue
        ttft = _quantile(ttft_s[low:high], targets.quantile)
        itl = _quantile(itl_s[low:high][has_itl[low:high]], targets.quantile)
        is_met = ttft <= targets.ttft_s and itl <= targets.itl_s
        windows.append(Window(number * window_s, high - low, ttft, itl, is_met))
    return windows


def sizing_of(
    record: Record,
    course: Sequence[Level],
    targets: Targets,
    *,
    window_s: float,
    gpus: int,
    changes: int,
    from_s: float = 0.0,
) -> Sizing:
    """From the first whole window after `from_s` to the last arrival: what happens afterwards is nobody's choice."""
    from_s = -(-from_s // window_s) * window_s
    end_s = max(float(record.times("arrival_s").max(initial=0.0)), 1e-9)
    totals = [level.total for level in course]
    ends_s = [level.at_s for level in course[1:]] + [end_s]
    held_s = [
        max(min(until_s, end_s) - max(level.at_s, from_s), 0.0) * total
        for level, total, until_s in zip(course, totals, ends_s, strict=True)
    ]
    worker_s = sum(held_s)
    return Sizing(
        [window for window in windows_of(record, targets, window_s) if window.from_s >= from_s],
        worker_s * gpus / 3600,
        changes,
        max(totals, default=0),
        worker_s / max(end_s - from_s, 1e-9),
        len(record) - int(record.is_served().sum()),
    )


def _quantile(values: Floats, share: float) -> float:
    if not len(values):
        return 0.0
    return float(np.sort(values)[max(int(np.ceil(share * len(values))), 1) - 1])
