"""How placement weighs things: plain numbers, each with when to change it. Nothing here decides."""

from dataclasses import dataclass, fields
from enum import Enum

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
class Policy:
    """Weights, bounds and first guesses of one cell.

    Raises:
        ValueError: a number is negative, or zero where something is divided by it.
    """

    disaggregation: Disaggregation = Disaggregation.AUTO
    interference: float = 0.5
    """What a second by which running streams are stalled weighs against a second of one request's time to first token.
    Raise it if inter-token latency suffers from prompts computed on decode workers."""
    work: float = 0.25
    """What a second of computing weighs by itself, since it delays whoever comes next. Raise it to recompute less."""
    crowding: float = 0.5
    """Decode steps that each running stream loses over its life to one more stream beside it. Raise it to spread
    requests more evenly over decode workers, at the price of fewer cache hits."""
    ride_along_tokens: int = 64
    """Uncached tokens that ride along in a decode step without lengthening it."""
    remote_overhead_s: float = 0.01
    """What having a prompt computed elsewhere costs besides bytes: two more messages and a lease."""
    turnover_s: float = 10.0
    """About how long a request occupies a worker: the time in which a full pool becomes free once."""
    max_waiting_seqs: int = 64
    """Requests that may wait on one worker; beyond it is full."""
    kv_overcommit: float = 0.5
    """Share of a pool that waiting requests may ask for beyond what is free; beyond it a worker is full."""
    expected_ttl_s: float = 10.0
    """How long a placed prompt counts as held by its worker without an event that says so."""
    settle_s: float = 0.05
    """A load report does not yet show what was placed so shortly before it."""
    prefill_tokens_per_s: float = 4000.0
    """Assumed until a worker of the model has measured it, like the two that follow."""
    decode_step_s: float = 0.02
    transfer_bytes_per_s: float = 1e9

    def __post_init__(self) -> None:
        positive = {"expected_ttl_s", "turnover_s", "max_waiting_seqs", *Speeds._fields}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and (not value >= 0 or (value == 0 and field.name in positive)):
                raise ValueError(f"{field.name} is {value}; it must be {'above' if value == 0 else 'at least'} 0")

    @property
    def speeds(self) -> Speeds:
        """What is assumed of a model that nobody has measured."""
        return Speeds(self.prefill_tokens_per_s, self.decode_step_s, self.transfer_bytes_per_s)
