"""How quickly something goes, lately: a line through times and sizes, in which older transfers count less and less."""

_WEIGHT = 0.2
"""Of the latest transfer."""
_LEAST_SPREAD = 0.1
"""Of sizes, relative to their mean. Transfers of one size do not tell what a byte takes and what each transfer."""
_LEAST_SHARE = 0.25
"""Of the time that is put down to bytes, whatever the line says: few transfers must not make large ones seem free."""


class Speed:
    """Transferring n bytes takes `latency_s + n / bytes_per_s`, which is right at the mean of what was measured."""

    def __init__(self) -> None:
        self.bytes_per_s = 0.0
        """0 until something was measured."""
        self.latency_s = 0.0
        self._size = 0.0
        self._seconds = 0.0
        self._size_variance = 0.0
        self._covariance = 0.0

    def measured(self, size_bytes: int, taken_s: float) -> None:
        """Let one transfer count."""
        weight = _WEIGHT if self.bytes_per_s else 1.0
        size_off, seconds_off = size_bytes - self._size, max(taken_s, 1e-6) - self._seconds
        self._size += weight * size_off
        self._seconds += weight * seconds_off
        # West, "Updating mean and variance estimates: an improved method", 1979, with weights that fade.
        self._size_variance = (1 - weight) * (self._size_variance + weight * size_off**2)
        self._covariance = (1 - weight) * (self._covariance + weight * size_off * seconds_off)
        byte_s = most_s = self._seconds / self._size
        if self._size_variance > (_LEAST_SPREAD * self._size) ** 2:
            byte_s = min(max(self._covariance / self._size_variance, _LEAST_SHARE * most_s), most_s)
        self.bytes_per_s = 1 / byte_s
        self.latency_s = max(self._seconds - byte_s * self._size, 0.0)
