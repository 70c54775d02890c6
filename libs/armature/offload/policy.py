"""Policies as data: for each tier what it lets in, when it is offered, what goes first, and what it may cost.

A policy is made of a plain mapping, as a YAML file gives it. Sizes and speeds are no policy: `TierShape`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from armature.index.tiers import LOWER_TIERS, Tier
from armature.offload.admission import ADMISSIONS, Admission, All
from armature.offload.eviction import EVICTIONS, Eviction, Lru
from armature.routing.checks import check_numbers
from armature.routing.parts import PolicyError, part_of, parts_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TierShape:
    """What a tier is.

    Raises:
        ValueError: a number is out of its range.
    """

    num_blocks: int
    block_bytes: int
    read_bytes_per_s: float
    read_latency_s: float = 0.0
    """Until the first byte comes."""

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("num_blocks", "block_bytes", "read_bytes_per_s"))

    def read_s(self, num_blocks: int) -> float:
        """Time to read so many blocks at once."""
        return self.read_latency_s + num_blocks * self.block_bytes / self.read_bytes_per_s if num_blocks else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TierPolicy:
    """How one tier is kept.

    Raises:
        ValueError: a number is out of its range.
    """

    admission: Admission = field(default_factory=All)
    offered: Literal["evicted", "used"] = "evicted"
    """When blocks of the tier above are offered: shortly before they would go there, or at every use of them."""
    eviction: Eviction = field(default_factory=Lru)
    write_bytes_per_s: float = 0.0
    """What may be written on the long run, against wear; 0: no limit."""
    burst_s: float = 60.0
    """What was not written in so much time may be made up for."""
    pinned_share: float = 0.25
    """Of the tier, that pins may hold at most."""
    tenant_share: float = 1.0
    """Of the tier, that one tenant may hold; a tenant that has so much evicts its own blocks only."""
    tenants: Mapping[str, float] = field(default_factory=dict[str, float])
    """Likewise for single tenants."""

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("burst_s",))
        shares = {"pinned_share": self.pinned_share, "tenant_share": self.tenant_share}
        shares |= {f"tenants: {tenant}": share for tenant, share in self.tenants.items()}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; it must be from 0 to 1")

    def share_of(self, tenant: str) -> float:
        return self.tenants.get(tenant, self.tenant_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadPolicy:
    """One policy for each tier below the device."""

    name: str = "policy"
    g2: TierPolicy = field(default_factory=TierPolicy)
    g3: TierPolicy = field(default_factory=TierPolicy)
    g4: TierPolicy = field(default_factory=TierPolicy)

    def of(self, tier: Tier) -> TierPolicy:
        """The policy of a tier below the device."""
        return {Tier.G2: self.g2, Tier.G3: self.g3, Tier.G4: self.g4}[tier]


def offload_policy_of(given: Mapping[str, Any], name: str = "policy") -> OffloadPolicy:
    """The policy that a mapping describes; what it leaves out has its default.

    Raises:
        PolicyError: a key or a name is unknown, or a value is of the wrong type or out of range; the message says
            which and what to write.
    """
    try:
        tiers = {key: _tier_policy(value, key) if key in _TIER_KEYS else value for key, value in given.items()}
        return part_of(OffloadPolicy, tiers, "", _TIER_KEYS, name=name)
    except PolicyError as error:
        raise PolicyError(f"policy {name}: {error}") from error


_TIER_KEYS = tuple(tier.name.lower() for tier in LOWER_TIERS)


def _tier_policy(given: Any, where: str) -> TierPolicy:
    if not isinstance(given, Mapping):
        return part_of(TierPolicy, given, where)
    values = dict(given)
    for key, kinds in (("admission", ADMISSIONS), ("eviction", EVICTIONS)):
        if key in values:
            values[key] = _one_of(kinds, values[key], f"{where}: {key}")
    values["tenants"] = _shares(values.get("tenants"), f"{where}: tenants")
    return part_of(TierPolicy, values, where)


def _one_of(kinds: Mapping[str, type[Any]], given: Any, where: str) -> Any:
    if isinstance(given, list):
        raise PolicyError(f"{where} is {given!r}; it must be one name, with its options if it has any")
    return next(iter(parts_of(kinds, [given], where).values()))


def _shares(given: Any, where: str) -> dict[str, float]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise PolicyError(f"{where} is {given!r}; it must be tenants with their shares, such as `acme: 0.5`")
    for tenant, share in given.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            raise PolicyError(f"{where}: {tenant} is {share!r}; it must be a number")
    return {str(tenant): float(share) for tenant, share in given.items()}
