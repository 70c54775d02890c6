"""Where a KV block lives. The numbers are the contract's (`Tier` in common.proto)."""

from enum import IntEnum


class Tier(IntEnum):
    G1 = 1
    """Device memory of the engine."""
    G2 = 2
    """Host memory."""
    G3 = 3
    """Disk."""
    G4 = 4
    """Remote store."""


LOWER_TIERS = (Tier.G2, Tier.G3, Tier.G4)
"""Below the device, the fastest first."""
