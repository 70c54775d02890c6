"""How the planner plans, as data: targets, limits, and how fast it changes its mind.

A policy is made of a plain mapping, as a YAML file gives it. What workers are is no policy: `WorkerKind`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from armature.planning.capacity import Targets
from armature.planning.fleet import WorkerKind
from armature.planning.forecast import FORECASTERS, Forecaster
from armature.routing.checks import check_numbers
from armature.routing.parts import PolicyError, part_of, parts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the fleet may be. 0: no such limit.

    Raises:
        ValueError: a number is out of its range, or less is allowed than demanded.
    """

    min_workers: int = 1
    """0 lets the fleet vanish after `idle_after_s`; requests that come then are held until a worker is ready."""
    max_workers: int = 64
    gpus: int = 0
    cost_per_hour: float = 0.0
    """In the currency of a worker's cost."""
    watts: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("max_workers",))
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers is {self.min_workers}; it must be at most max_workers, {self.max_workers}")

    def most(self, kind: WorkerKind) -> int:
        """Workers that all limits together allow."""
        allowed = [self.max_workers]
        for limit, each in ((self.gpus, kind.gpus), (self.cost_per_hour, kind.cost_per_hour), (self.watts, kind.watts)):
            if limit and each:
                allowed.append(int(limit // each))
        return min(allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastPolicy:
    """How demand is foreseen.

    Raises:
        ValueError: the quantile is no share.
    """

    quantile: float = 0.95
    """Of the highest demand until a new worker would be ready. Higher: dearer, and fewer bursts come as a surprise."""
    forecasters: Mapping[str, Forecaster] = field(default_factory=dict[str, Forecaster])
    """Candidates; the first is followed until another has clearly erred less."""

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile is {self.quantile}; it must be above 0 and below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerPolicy:
    """All settings of the planner.

    Raises:
        ValueError: a number is out of its range.
    """

    name: str = "policy"
    mode: Literal["aggregated", "disaggregated"] = "aggregated"
    """Disaggregated where long prompts disturb answers too much: `armature rehearse` tells."""
    targets: Targets
    headroom: float = 0.9
    """Share of the targets that is planned with: what models and placement are off by."""
    interval_s: float = 15.0
    """Between decisions. Shorter follows faster."""
    window_s: float = 60.0
    """Over which targets are promised."""
    demand_s: float = 0.0
    """Over which demand is averaged: bursts within it are what queues are for. 0: half of `window_s`."""
    pattern_s: float = 300.0
    """Of recent arrivals, whose busiest windows are replayed on candidates."""
    start_up_s: float = 60.0
    """Of a worker, until start-ups have been measured."""
    down_after_s: float = 120.0
    """Workers leave only if so long nobody has wanted them: at least a start-up, or leaving costs more than staying."""
    flip_after_s: float = 30.0
    """Likewise for a change of role, which is quick."""
    hysteresis: float = 0.05
    """Share of the fleet; a surplus below that is left alone."""
    idle_after_s: float = 600.0
    """Without a request, until a fleet of `min_workers: 0` vanishes."""
    forecast: ForecastPolicy = field(default_factory=ForecastPolicy)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("headroom", "interval_s", "window_s", "pattern_s"))
        if self.headroom > 1:
            raise ValueError(f"headroom is {self.headroom}; it must be at most 1: 0.9 plans with 90 % of the targets")
        for name, value in (("window_s", self.window_s), ("demand_s", self.averaged_s)):
            if value < self.interval_s:
                raise ValueError(f"{name} is {value}; it must be at least interval_s, {self.interval_s}")
            if self.pattern_s < value:
                raise ValueError(f"pattern_s is {self.pattern_s}; it must be at least {name}, {value}")

    @property
    def averaged_s(self) -> float:
        """Over which demand is averaged."""
        return self.demand_s or max(self.window_s / 2, self.interval_s)


def planner_policy_of(given: Mapping[str, Any], name: str = "policy") -> PlannerPolicy:
    """The policy that a mapping describes; what it leaves out has its default.

    Raises:
        PolicyError: targets are missing, a key or a name is unknown, or a value is of the wrong type or out of range;
            the message says which and what to write.
    """
    try:
        values = dict(given)
        if "targets" not in values:
            raise PolicyError("there are no targets; write such as `targets: {ttft_s: 2.0, itl_s: 0.05}`")
        values["targets"] = _targets(values["targets"])
        values["limits"] = part_of(Limits, values.get("limits"), "limits")
        values["forecast"] = _forecast(values.get("forecast"), values.get("interval_s", PlannerPolicy.interval_s))
        return part_of(PlannerPolicy, values, "", _KEYS, name=name)
    except PolicyError as error:
        raise PolicyError(f"policy {name}: {error}") from error


_KEYS = tuple(key for key in PlannerPolicy.__slots__ if key != "name")


def _targets(given: Any) -> Targets:
    if isinstance(given, Mapping):
        for key in ("ttft_s", "itl_s"):
            if key not in given:
                raise PolicyError(f"targets: there is no {key}; write seconds, such as `{key}: 0.5`")
    return part_of(Targets, given, "targets")


def _forecast(given: Any, interval_s: Any) -> ForecastPolicy:
    if not isinstance(given, Mapping):
        return part_of(ForecastPolicy, given, "forecast")
    values = dict(given)
    if "forecasters" in values:
        found = parts_of(FORECASTERS, _with_window(values["forecasters"], interval_s), "forecast: forecasters")
        values["forecasters"] = found
    return part_of(ForecastPolicy, values, "forecast")


def _with_window(given: Any, interval_s: Any) -> Any:
    """Seasons are told in seconds: they must know how long a window is."""
    if not isinstance(given, list):
        return given
    told: list[Any] = []
    for item in given:
        options = item.get("seasonal") if isinstance(item, Mapping) and len(item) == 1 else None
        is_seasonal = item == "seasonal" or (isinstance(item, Mapping) and "seasonal" in item)
        plain = options is None or isinstance(options, Mapping)
        told.append({"seasonal": {**(options or {}), "window_s": interval_s}} if is_seasonal and plain else item)
    return told
