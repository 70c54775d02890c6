"""What placement knows of a worker: what it is, and what it last said of its load."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from armature.index.tiers import Tier
from armature.performance.linear import LinearModel
from armature.scheduling.lower_tiers import TierSpeed


class Role(IntEnum):
    """The numbers are the contract's (`Role` in common.proto)."""

    AGGREGATED = 1
    PREFILL = 2
    DECODE = 3


_SLOWEST, _FASTEST, _LONGEST_S = 1e-9, 1e15, 3600.0
"""What a speed may be, far beyond all machines on either side: its reciprocal must be finite, too."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A member that serves a model; what does not change with load.

    Raises:
        ValueError: a size is below 1.
    """

    worker_id: str
    role: Role
    model: str
    block_size: int
    """Tokens in one KV block."""
    block_bytes: int
    """Bytes of one KV block as transferred."""
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    fingerprint: bytes = b""
    """Blocks move only between workers whose fingerprints are equal."""
    is_draining: bool = False

    def __post_init__(self) -> None:
        for name in ("block_size", "num_blocks", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"worker {self.worker_id}: {name} is {getattr(self, name)}; it must be at least 1")


class Store(NamedTuple):
    """A kv-offload. What it keeps for the workers of its node, those of others can read, too."""

    store_id: str
    """As in the index."""
    fingerprint: bytes = b""
    """Of its blocks, as of workers."""


class Speeds(NamedTuple):
    """What a worker has measured of itself; 0 where it has measured nothing yet."""

    prefill_tokens_per_s: float = 0.0
    decode_step_s: float = 0.0
    transfer_bytes_per_s: float = 0.0


UNMEASURED = Speeds()


class Reading(NamedTuple):
    """How quickly blocks come that are kept elsewhere, as measured by the worker."""

    pull_bytes_per_s: float = 0.0
    """From another worker's memory, or that of another node; 0: it can't."""
    tiers: Mapping[Tier, TierSpeed] = MappingProxyType({})
    """From the tiers below the device that it reaches."""


NO_READING = Reading()


@dataclass(frozen=True, slots=True)
class Load:
    """What a worker reports (`LoadReport` in worker.proto).

    Raises:
        ValueError: a count is negative or a speed no speed. One that is not finite would make every comparison of
            costs false.
    """

    running_seqs: int = 0
    waiting_seqs: int = 0
    waiting_prefill_tokens: int = 0
    free_blocks: int = 0
    speeds: Speeds = UNMEASURED
    steps: LinearModel | None = None
    """The worker's own step times, once it has seen enough of them; tells more than `speeds`."""
    reading: Reading = NO_READING

    def __post_init__(self) -> None:
        if min(self.running_seqs, self.waiting_seqs, self.waiting_prefill_tokens, self.free_blocks) < 0:
            raise ValueError(f"a count is negative in {self}; all must be at least 0")
        for value in self.speeds:
            if value and not _SLOWEST < value < _FASTEST:
                _check_speeds(self.speeds._asdict())
        if self.reading is not NO_READING:
            tiers = self.reading.tiers.items()
            _check_speeds({"pull_bytes_per_s": self.reading.pull_bytes_per_s})
            _check_speeds({f"onboarding from {tier.name}": speed.bytes_per_s for tier, speed in tiers})
            if Tier.G1 in self.reading.tiers:
                raise ValueError("onboarding: G1 is the device; tiers are G2, G3 and G4")
            if not all(0 <= speed.latency_s < _LONGEST_S for _, speed in tiers):
                raise ValueError(f"a latency is out of range in {self.reading}; it must be from 0 to {_LONGEST_S} s")
        if self.steps is not None and not self.steps.prefill_token_s > 0:
            raise ValueError("steps: prefill_token_s is 0; prompts take some time")


def _check_speeds(speeds: Mapping[str, float]) -> None:
    for name, value in speeds.items():
        if value and not _SLOWEST < value < _FASTEST:
            raise ValueError(f"{name} is {value}; it must be 0 or a plausible speed")
