"""What a tier lets in. Writing costs bandwidth and, on disks, life: most blocks are never asked for again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from armature.offload.ledger import UNKNOWN, Seen
from armature.routing.checks import check_numbers

_GIB = 1 << 30


class Offer(NamedTuple):
    """A block that a tier could take in."""

    seen: Seen
    estimate: int
    """Times that it was seen lately, by the sketch."""
    victim_estimate: int
    """Likewise the block that would go for it; -1: there is room."""
    reuse: float
    """How likely it is used again."""
    saved_s: float
    """Time that the tier would save whoever uses it."""
    block_bytes: int
    is_below: bool
    """Whether a lower tier holds it."""


UNSEEN = Offer(UNKNOWN, 0, -1, 0.0, 0.0, 0, is_below=False)
"""For who does not look."""


class Admission(Protocol):
    """A rule."""

    looks: ClassVar[bool]
    """Whether it looks at what is offered; if not, nobody has to find that out."""

    def admits(self, offer: Offer) -> bool: ...


@dataclass(frozen=True, slots=True)
class All:
    """Everything."""

    looks: ClassVar[bool] = False

    def admits(self, offer: Offer) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Presence:
    """What no lower tier holds: nothing is kept twice."""

    looks: ClassVar[bool] = True

    def admits(self, offer: Offer) -> bool:
        return not offer.is_below


@dataclass(frozen=True, slots=True, kw_only=True)
class Frequency:
    """What so many requests have used, as far back as the ledger remembers.

    Raises:
        ValueError: `min_uses` is 0.
    """

    looks: ClassVar[bool] = True

    min_uses: int = 2

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("min_uses",))

    def admits(self, offer: Offer) -> bool:
        return offer.seen.uses >= self.min_uses


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyLfu:
    """What was seen lately at least `min_uses` times, and more often than the block that would go for it.

    Raises:
        ValueError: `min_uses` is 0, or more than the sketch can count.
    """

    looks: ClassVar[bool] = True

    min_uses: int = 2

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("min_uses",))
        if self.min_uses > 15:
            raise ValueError(f"min_uses is {self.min_uses}; the sketch counts to 15")

    def admits(self, offer: Offer) -> bool:
        return offer.estimate >= self.min_uses and offer.estimate > offer.victim_estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What is likely to save enough for what it costs: seconds saved at a use, times how likely one is, a GiB written.

    Raises:
        ValueError: the limit is negative.
    """

    looks: ClassVar[bool] = True

    min_s_per_gib: float = 0.05

    def __post_init__(self) -> None:
        check_numbers(self)

    def admits(self, offer: Offer) -> bool:
        return offer.reuse * offer.saved_s * _GIB >= self.min_s_per_gib * offer.block_bytes


ADMISSIONS: Mapping[str, type[Admission]] = {
    "all": All, "presence": Presence, "frequency": Frequency, "tinylfu": TinyLfu, "cost": Cost,
}  # fmt: skip
