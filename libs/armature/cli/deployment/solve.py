"""The search itself, and what it has come to."""

from collections.abc import Callable
from dataclasses import dataclass

from armature.cli.deployment.replicas import Found
from armature.cli.deployment.request import Asked
from armature.planning.search.replica import Point
from armature.planning.search.search import best_within, frontier, points
from armature.planning.search.sizing import Fitted, cheapest, fit, shortlist

_EACH = 4
"""Deployments of each type of GPU and mode, that are sized for the traffic."""

Group = tuple[str, str]
"""Type of GPU, and mode."""


@dataclass(frozen=True, slots=True)
class Solved:
    """All that is told."""

    frontiers: dict[Group, list[Point]]
    best: dict[Group, Point]
    """Of each frontier, what carries most within the ITL; groups without any are left out."""
    fitted: list[Fitted]
    """Sized for the traffic, the cheapest first; empty if there is none to size for."""
    winner: Point | None
    missing: list[str]

    def gain(self, gpu: str) -> float | None:
        """How many times as much a GPU carries disaggregated."""
        one, other = self.best.get((gpu, "disaggregated")), self.best.get((gpu, "aggregated"))
        return one.tokens_per_s_per_gpu / other.tokens_per_s_per_gpu if one and other else None


def solve(asked: Asked, found: Found, progress: Callable[[int, int, str], None]) -> Solved:
    """Search; `progress` hears how many of how many deployments have been sized, and which one comes next."""
    frontiers: dict[Group, list[Point]] = {}
    listed: list[Point] = []
    for gpu in asked.gpus:
        replicas = [one for one in found.replicas if one.gpu == gpu]
        for mode in asked.modes:
            every = [*points(replicas, asked.work, asked.bounds, [mode])]
            frontiers[gpu, mode] = frontier(every)
            listed += shortlist(every, asked.targets.itl_s, _EACH)
    best = {group: one for group, line in frontiers.items() if (one := best_within(line, asked.targets.itl_s))}
    arrivals = asked.arrivals()
    if arrivals is None:
        winner = min(best.values(), key=lambda one: _cost_of_a_token(one, asked), default=None)
        return Solved(frontiers, best, [], winner, found.missing)
    fitted: list[Fitted] = []
    for i, one in enumerate(listed):
        progress(i, len(listed), f"{one.gpu} {one}")
        price = asked.prices.get(one.gpu, 0.0)
        fitted.append(fit(one, arrivals, asked.targets, asked.bounds, asked.work, price))
    progress(len(listed), len(listed), "")
    ranked = sorted(fitted, key=lambda one: (not one.holds, one.cost_per_hour, one.point.gpus, one.predicted.ttft_s))
    cheap = cheapest(ranked)
    return Solved(frontiers, best, ranked, cheap.point if cheap else None, found.missing)


def _cost_of_a_token(one: Point, asked: Asked) -> float:
    return asked.prices.get(one.gpu, 1.0) / one.tokens_per_s_per_gpu
