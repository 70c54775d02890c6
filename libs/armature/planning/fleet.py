"""Workers by role, and what one of them is and costs."""

from dataclasses import dataclass, field
from typing import NamedTuple

from armature.performance.step import PerformanceModel
from armature.routing.checks import check_numbers


class Counts(NamedTuple):
    """Workers by role."""

    aggregated: int = 0
    prefill: int = 0
    decode: int = 0

    @property
    def total(self) -> int:
        return self.aggregated + self.prefill + self.decode

    def __str__(self) -> str:
        split = f"{self.prefill} prefill + {self.decode} decode"
        if not self.prefill and not self.decode:
            return f"{self.aggregated} aggregated" if self.aggregated else "none"
        return f"{split} + {self.aggregated} aggregated" if self.aggregated else split


NOBODY = Counts()


@dataclass(frozen=True, slots=True)
class Fleet:
    """Who is there now."""

    ready: Counts = NOBODY
    starting: Counts = NOBODY
    """Asked for, and not ready yet."""
    draining: int = 0
    """Take nothing new, and end what they have."""

    @property
    def wanted(self) -> Counts:
        """What there will be if nothing is decided."""
        return Counts(*(ready + starting for ready, starting in zip(self.ready, self.starting, strict=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerKind:
    """One worker of the fleet: how fast it is, what it holds, what it costs.

    Raises:
        ValueError: a number is out of its range.
    """

    performance: PerformanceModel = field(repr=False)
    kv_tokens: int
    """Tokens whose KV fits on it."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    gpus: int = 1
    cost_per_hour: float = 0.0
    """In any currency; likewise `watts`. 0: nobody asks."""
    watts: float = 0.0
    handoff_s: float = 0.0
    """Between the end of a prompt on a prefill worker and its first use on a decode worker."""

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("kv_tokens", "max_num_seqs", "max_num_batched_tokens", "gpus"))
