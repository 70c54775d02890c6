"""How quickly blocks come from each tier to the device, from what the worker and its kv-offload measure apart. Pure."""

from armature.index.tiers import Tier
from armature.scheduling.lower_tiers import TierSpeed

_NEW = 0.2
"""What the latest measurement counts."""
_WARM_UP_READS = 1
"""The first read connects two processes; it says nothing about further ones."""


class TierSpeeds:
    """Host memory is read by the worker itself; blocks from further below pass through it."""

    def __init__(self) -> None:
        self.lifts: dict[Tier, TierSpeed] = {}
        """From the tiers below host memory up to it, as told by who does that."""
        self._reads = 0
        self._read_bytes_per_s = 0.0
        self._latency_s = 0.0

    def read(self, size_bytes: int, seconds: float) -> None:
        """So much was read out of host memory."""
        self._reads += 1
        if self._reads > _WARM_UP_READS and size_bytes and seconds > 0:
            self._read_bytes_per_s = _smoothed(self._read_bytes_per_s, size_bytes / seconds)

    def answered(self, seconds: float) -> None:
        """So long it took until blocks were promised."""
        self._latency_s = _smoothed(self._latency_s, seconds)

    @property
    def to_device(self) -> dict[Tier, TierSpeed]:
        """By tier; empty until host memory has been read."""
        rate = self._read_bytes_per_s
        if not rate:
            return {}
        speeds = {Tier.G2: TierSpeed(rate, self._latency_s)}
        for tier, lift in self.lifts.items():
            if lift.bytes_per_s > 0:
                both = 1 / (1 / rate + 1 / lift.bytes_per_s)
                speeds[tier] = TierSpeed(both, self._latency_s + lift.latency_s)
        return speeds


def _smoothed(known: float, new: float) -> float:
    return new if not known else (1 - _NEW) * known + _NEW * new
