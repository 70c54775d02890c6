"""How quickly something goes, lately."""

_WEIGHT = 0.2
"""Of the latest measurement."""


class Speed:
    """A smoothed rate."""

    def __init__(self) -> None:
        self.bytes_per_s = 0.0
        """0 until something was measured."""

    def measured(self, size_bytes: int, taken_s: float) -> None:
        """Let one transfer count."""
        rate = size_bytes / max(taken_s, 1e-6)
        self.bytes_per_s += (rate - self.bytes_per_s) * (_WEIGHT if self.bytes_per_s else 1.0)
