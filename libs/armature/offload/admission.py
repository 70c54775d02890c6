"""What a tier lets in. Writing costs bandwidth and, on disks, life: most blocks are never asked for again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from armature.offload.ledger import Seen
from armature.routing.checks import check_numbers

_GIB = 1 << 30


class Offer(Protocol):
    """A block that a tier could take in. What a rule does not ask for is not found out."""

    @property
    def seen(self) -> Seen: ...
    @property
    def estimate(self) -> int:
        """Times that it was seen lately, by the sketch."""
        ...

    @property
    def victim_estimate(self) -> int:
        """Likewise the block that would go for it; -1: there is room."""
        ...

    @property
    def reuse(self) -> float:
        """How likely it is used again."""
        ...

    @property
    def saved_s(self) -> float:
        """Time that the tier would save whoever uses it."""
        ...

    @property
    def block_bytes(self) -> int: ...
    @property
    def is_below(self) -> bool:
        """Whether a lower tier holds it."""
        ...


class Admission(Protocol):
    """A rule."""

    def admits(self, offer: Offer) -> bool: ...


@dataclass(frozen=True, slots=True)
class All:
    """Everything."""

    def admits(self, offer: Offer) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Presence:
    """What no lower tier holds: nothing is kept twice."""

    def admits(self, offer: Offer) -> bool:
        return not offer.is_below


@dataclass(frozen=True, slots=True, kw_only=True)
class Frequency:
    """What so many requests have used, as far back as the ledger remembers.

    Raises:
        ValueError: `min_uses` is 0.
    """

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

    min_s_per_gib: float = 0.05

    def __post_init__(self) -> None:
        check_numbers(self)

    def admits(self, offer: Offer) -> bool:
        return offer.reuse * offer.saved_s * _GIB >= self.min_s_per_gib * offer.block_bytes


ADMISSIONS: Mapping[str, type[Admission]] = {
    "all": All, "presence": Presence, "frequency": Frequency, "tinylfu": TinyLfu, "cost": Cost,
}  # fmt: skip
