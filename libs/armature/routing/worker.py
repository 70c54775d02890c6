"""What placement knows of a worker: what it is, and what it last said of its load."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from armature.performance.linear import LinearModel


class Role(IntEnum):
    """The numbers are the contract's (`Role` in common.proto)."""

    AGGREGATED = 1
    PREFILL = 2
    DECODE = 3


_SLOWEST, _FASTEST = 1e-9, 1e15
"""What a speed may be, far beyond all machines on either side: its reciprocal must be finite, too."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A member that serves a model; what does not change with load.

    Raises:
        ValueError: a size is below 1, or a bandwidth is no bandwidth.
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
    host_bytes_per_s: float = 0.0
    """Onboarding of blocks from host memory (G2); 0: it has none there."""
    disk_bytes_per_s: float = 0.0
    """Likewise from disk (G3)."""
    pull_bytes_per_s: float = 0.0
    """Reading a prefix from another worker's memory; 0: it can't."""

    def __post_init__(self) -> None:
        for name in ("block_size", "num_blocks", "max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"worker {self.worker_id}: {name} is {getattr(self, name)}; it must be at least 1")
        for name in ("host_bytes_per_s", "disk_bytes_per_s", "pull_bytes_per_s"):
            value = getattr(self, name)
            if value and not _SLOWEST < value < _FASTEST:
                raise ValueError(f"worker {self.worker_id}: {name} is {value}; it must be 0 or a plausible bandwidth")

    @property
    def can_pull(self) -> bool:
        return self.pull_bytes_per_s > 0


class Speeds(NamedTuple):
    """What a worker has measured of itself; 0 where it has measured nothing yet."""

    prefill_tokens_per_s: float = 0.0
    decode_step_s: float = 0.0
    transfer_bytes_per_s: float = 0.0


UNMEASURED = Speeds()


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

    def __post_init__(self) -> None:
        if min(self.running_seqs, self.waiting_seqs, self.waiting_prefill_tokens, self.free_blocks) < 0:
            raise ValueError(f"a count is negative in {self}; all must be at least 0")
        for name, value in zip(Speeds._fields, self.speeds, strict=True):
            if value and not _SLOWEST < value < _FASTEST:
                raise ValueError(f"{name} is {value}; it must be 0 or a plausible speed")
        if self.steps is not None and not self.steps.prefill_token_s > 0:
            raise ValueError("steps: prefill_token_s is 0; prompts take some time")
