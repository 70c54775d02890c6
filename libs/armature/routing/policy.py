"""Policies as data: which workers are left out, what is added up, how one is picked.

A policy is made of a plain mapping, as a YAML file gives it. Nothing here reads files or decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from armature.routing.checks import check_numbers
from armature.routing.filters import FILTERS, Filter
from armature.routing.forecast import Forecast
from armature.routing.parts import PolicyError, part_of, parts_of
from armature.routing.pickers import PICKERS, Lowest, Picker
from armature.routing.queueing.gates import GATES
from armature.routing.queueing.orders import ORDERS
from armature.routing.queueing.settings import QueuePolicy
from armature.routing.scorers import SCORERS, ActiveBlocks, Scorer
from armature.routing.worker import Speeds


class Disaggregation(Enum):
    """Where prompts are computed."""

    AUTO = "auto"
    """Wherever it costs less."""
    ALWAYS = "always"
    """On a prefill worker, unless there is none or nothing to fetch."""
    NEVER = "never"
    """On the worker that decodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """First guesses, until a worker of the model has measured it.

    Raises:
        ValueError: a number is not above 0.
    """

    prefill_tokens_per_s: float = 4000.0
    decode_step_s: float = 0.02
    transfer_bytes_per_s: float = 1e9

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=Speeds._fields)

    @property
    def speeds(self) -> Speeds:
        return Speeds(self.prefill_tokens_per_s, self.decode_step_s, self.transfer_bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Filter, score, pick.

    Raises:
        ValueError: terms of different units would be added up, or a number is negative.
    """

    name: str = "policy"
    filters: Mapping[str, Filter] = field(default_factory=dict[str, Filter])
    scorers: Mapping[str, Scorer] = field(default_factory=dict[str, Scorer])
    picker: Picker = field(default_factory=Lowest)
    prefiller: Literal["joint", "own"] = "joint"
    """`joint`: the decode worker and the prefill worker that are cheapest together. `own`: first a prefill worker by
    this policy, if there is any, then a decode worker by this policy: for costs that don't add up over both."""
    disaggregation: Disaggregation = Disaggregation.AUTO
    queue: QueuePolicy = field(default_factory=QueuePolicy)
    forecast: Forecast = field(default_factory=Forecast)
    assume: Assumed = field(default_factory=Assumed)
    expected_ttl_s: float = 10.0
    """How long a placed prompt counts as held by its worker without an event that says so; 0: not at all. Lower it if
    prompts are evicted within seconds."""
    settle_s: float = 0.05
    """A load report does not yet show what was placed so shortly before it."""

    def __post_init__(self) -> None:
        check_numbers(self)
        units = {scorer.unit: name for name, scorer in self.scorers.items()}
        if len(units) > 1:
            listed = ", ".join(f"{name} in {unit}" for unit, name in units.items())
            raise ValueError(f"scorers: terms of different units can't be added up: {listed}")

    @property
    def unit(self) -> str:
        """Of its costs; empty if there are none."""
        return next((scorer.unit for scorer in self.scorers.values()), "")

    @property
    def counts_active_blocks(self) -> bool:
        return any(isinstance(scorer, ActiveBlocks) for scorer in self.scorers.values())


_KEYS = (
    "filters", "scorers", "picker", "prefiller", "disaggregation", "queue", "forecast", "assume", "expected_ttl_s",
    "settle_s",
)  # fmt: skip


def policy_of(given: Mapping[str, Any], name: str = "policy") -> Policy:
    """The policy that a mapping describes; what it leaves out has its default.

    Raises:
        PolicyError: a key or a name is unknown, or a value is of the wrong type or out of range; the message says
            which and what to write.
    """
    values = dict(given)
    try:
        values["filters"] = parts_of(FILTERS, values.get("filters"), "filters")
        values["scorers"] = parts_of(SCORERS, values.get("scorers"), "scorers")
        values["picker"] = _one_of(PICKERS, values.get("picker", "lowest"), "picker")
        values["queue"] = _queue(values.get("queue"))
        values["forecast"] = part_of(Forecast, values.get("forecast"), "forecast")
        values["assume"] = part_of(Assumed, values.get("assume"), "assume")
        mode = values.get("disaggregation", "auto")
        modes = [one.value for one in Disaggregation]
        if mode not in modes:
            raise PolicyError(f"disaggregation is {mode!r}; it must be one of {', '.join(modes)}")
        values["disaggregation"] = Disaggregation(mode)
        return part_of(Policy, values, "", _KEYS, name=name)
    except PolicyError as error:
        raise PolicyError(f"policy {name}: {error}") from error


def _queue(given: Any) -> QueuePolicy:
    if not isinstance(given, Mapping):
        return part_of(QueuePolicy, given, "queue")
    values = dict(given)
    for name, kinds in (("order", ORDERS), ("gate", GATES)):
        if name in values:
            values[name] = _one_of(kinds, values[name], f"queue: {name}")
    return part_of(QueuePolicy, values, "queue")


def _one_of(kinds: Mapping[str, type[Any]], given: Any, where: str) -> Any:
    parts = parts_of(kinds, [given], where)
    return next(iter(parts.values()))


def with_option(given: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The same mapping with one value changed: `expected_ttl_s`, `forecast.turnover_s`, or an option of a part that it
    has, by the part's name: `interference.weight`.

    Raises:
        PolicyError: the mapping has no such part.
    """
    changed = dict(given)
    part, _, option = path.partition(".")
    if not option:
        changed[path] = value
        return changed
    if part in ("forecast", "assume", "queue"):
        changed[part] = {**(changed.get(part) or {}), option: value}
        return changed
    for section in ("filters", "scorers", "picker"):
        if (items := _with_part(changed.get(section), part, option, value)) is not None:
            changed[section] = items
            return changed
    queue = dict(changed.get("queue") or {})
    for section in ("order", "gate"):
        if (items := _with_part(queue.get(section), part, option, value)) is not None:
            changed["queue"] = {**queue, section: items}
            return changed
    raise PolicyError(f"{path}: the policy has no part {part!r}")


def _with_part(items: Any, part: str, option: str, value: Any) -> Any:
    """A list of parts, or a single one, with an option of one of them changed; None: it is not there."""
    listed: list[Any] = items if isinstance(items, list) else [items]
    for position, item in enumerate(listed):
        name = item if isinstance(item, str) else next(iter(item or {}), "")
        if name == part:
            options = (item[name] or {}) if isinstance(item, dict) else {}
            listed = [*listed[:position], {name: {**options, option: value}}, *listed[position + 1 :]]
            return listed if isinstance(items, list) else listed[0]
    return None
