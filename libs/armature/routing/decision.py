"""What is asked of placement and what it answers: plain data with its reason."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from armature.index.tiers import Tier
from armature.routing.hints import NO_HINTS, Hints

if TYPE_CHECKING:
    from armature.routing.judge import Judgement


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
    prefill_locally: bool = False
    """Its prompt can't be computed by another worker than the one that it is placed on."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ValueError(f"request {self.request_id}: prompt_tokens is {self.prompt_tokens}; it must be at least 1")


NO_BLOCKS: Mapping[Tier, int] = MappingProxyType({})


class Candidate(NamedTuple):
    """One way to serve a query, and what it is predicted to cost."""

    decode_id: str
    prefill_id: str
    """Empty: the prompt is computed on the decode worker."""
    pull_id: str
    """Whose blocks the decode worker reads before it computes the rest, a peer's or those of another node's kv-offload;
    empty: nobody's."""
    cost: float
    """What is compared, in the policy's unit."""
    ttft_s: float
    """Predicted, whatever the policy compares."""
    terms: Mapping[str, float]
    """By scorer; they add up to the cost. A scorer that is nothing for every way is left out."""
    overlap_blocks: int
    """Blocks of the prompt that the decode worker is believed to hold."""
    prefill_overlap_blocks: int
    """Likewise the prefill worker."""
    onboard_blocks: Mapping[Tier, int] = NO_BLOCKS
    """Blocks that the decode worker reads from each of the tiers below its device."""


class Placed:
    """A request has its place."""

    def __init__(self, judgement: "Judgement", chosen: Candidate, overlap_tokens: int) -> None:
        self.judgement = judgement
        """All that was weighed, and on what."""
        self.chosen = chosen
        self.overlap_tokens = overlap_tokens
        """Prompt tokens that need not be computed or fetched."""

    @cached_property
    def reason(self) -> str:
        """For people: the terms that decided, and the next best way."""
        chosen = f"{self.overlap_tokens} of {self.judgement.snapshot.query.prompt_tokens} tokens cached"
        return f"{self._describe(self.chosen)}; {chosen}{self._comparison()}"

    @property
    def candidates(self) -> list[Candidate]:
        """All ways that were weighed. Made anew at every call."""
        return self.judgement.candidates()

    def _comparison(self) -> str:
        costs, equals = self.judgement.costs, self.judgement.pick.equals
        text = f"; best of {equals} about equal ways" if equals > 1 else ""
        if len(costs) <= equals:
            return f"{text}; no other way" if len(costs) == 1 else text
        ordered = costs.argsort(kind="stable")
        following = next(way for way in ordered[max(equals, 1) - 1 :] if way != self.judgement.pick.way)
        described = self._describe(self.judgement.candidate(int(following)))
        return f"{text}; next of {len(costs) - equals}: {described}"

    def _describe(self, way: Candidate) -> str:
        name = f"{way.decode_id} with prefill on {way.prefill_id}" if way.prefill_id else f"{way.decode_id} alone"
        if way.pull_id:
            name += f" after reading from {way.pull_id}"
        if way.onboard_blocks:
            parts = [f"{blocks} of {tier.name}" for tier, blocks in way.onboard_blocks.items()]
            name += f" with {' and '.join(parts)}"
        if not way.terms:
            return f"{name} by {self.judgement.policy.name}"
        terms = " + ".join(f"{term} {value:.3f}" for term, value in way.terms.items() if value)
        return f"{name} costs {way.cost:.3f} {self.judgement.policy.unit} ({terms or 'nothing'})"


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
