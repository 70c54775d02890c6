"""What is asked of placement and what it answers: plain data with its reason."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from armature.routing.hints import NO_HINTS, Hints


@dataclass(frozen=True, slots=True)
class Query:
    """A request that wants a place.

    Raises:
        ValueError: there is no prompt.
    """

    request_id: str
    model: str
    prompt_tokens: int
    hashes: Sequence[int] = ()
    """Sequence hashes of the prompt's whole blocks, from the start."""
    excluded: Collection[str] = ()
    """Workers that have just failed this request."""
    owner: str = ""
    """On whose behalf; everything of an owner is forgotten at once when it goes away."""
    tenant: str = ""
    """Who pays; waiting requests of different tenants take turns."""
    session_id: str = ""
    """Equal for requests of one conversation."""
    hints: Hints = NO_HINTS

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ValueError(f"request {self.request_id}: prompt_tokens is {self.prompt_tokens}; it must be at least 1")


class Candidate(NamedTuple):
    """One way to serve a query, and what it is predicted to cost, in seconds: the terms add up to the cost."""

    decode_id: str
    prefill_id: str
    """Empty: the prompt is computed on the decode worker."""
    cost_s: float
    """Time to first token and harm: what is compared."""
    ttft_s: float
    """All terms but the harm."""
    queue_s: float
    """Behind prompts that came before."""
    room_s: float
    """Until blocks and a place in the batch are free."""
    prefill_s: float
    transfer_s: float
    """What reading the blocks adds, the part hidden behind their computation left out."""
    step_s: float
    """The first token's decode step, and with it the tail of the prompt that is not transferred."""
    harm_s: float
    """What the others lose, weighed."""
    overlap_blocks: int
    """Blocks of the prompt that the decode worker is believed to hold."""
    prefill_overlap_blocks: int
    """Likewise the prefill worker."""


@dataclass(frozen=True, slots=True)
class Placed:
    chosen: Candidate
    overlap_tokens: int
    """Prompt tokens that need not be computed or fetched."""
    reason: str
    candidates: tuple[Candidate, ...]
    """All that were weighed, one decode worker after the other."""


class RejectionCode(Enum):
    """The names are the contract's (`Rejection.Code` in router.proto)."""

    NO_WORKERS = "no workers"
    OVERLOADED = "overloaded"


@dataclass(frozen=True, slots=True)
class Rejected:
    code: RejectionCode
    reason: str
    retry_after_s: float = 0.0
    """0: trying again is of no use before the cell has changed."""
