"""Bytes between workers: each worker has one link out and one in, shared equally by its concurrent transfers.

A transfer goes as fast as the slower of its two shares. What it leaves of the other goes unused: a simplification that
is on the safe side of max-min fairness.
"""

from collections.abc import Callable
from dataclasses import dataclass

from armature.sim.clock import Clock

_FASTEST = 1e14


@dataclass(slots=True, eq=False)
class Transfer:
    """Bytes on their way."""

    source_id: str
    target_id: str
    left_bytes: float
    on_done: Callable[[float], None]
    started_s: float
    bytes_per_s: float = 0.0
    updated_s: float = 0.0
    version: int = 0
    """Of its speed: an end that was foreseen for another one is void."""


class Links:
    """All transfers of a cell.

    Raises:
        ValueError: the bandwidth is no plausible one.
    """

    def __init__(self, clock: Clock, bytes_per_s: float) -> None:
        if not 1 <= bytes_per_s <= _FASTEST:
            raise ValueError(f"link_bytes_per_s is {bytes_per_s}; it must be from 1 to {_FASTEST:g}")
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        # Dicts as ordered sets: whose speeds change first must not depend on addresses.
        self._out: dict[str, dict[Transfer, None]] = {}
        self._in: dict[str, dict[Transfer, None]] = {}

    def start(
        self, source_id: str, target_id: str, size_bytes: float, on_done: Callable[[float], None], now_s: float
    ) -> Transfer:  # fmt: skip
        """Send; `on_done` is called when the last byte is there, unless the transfer is cancelled."""
        transfer = Transfer(source_id, target_id, size_bytes, on_done, now_s, updated_s=now_s)
        self._out.setdefault(source_id, {})[transfer] = None
        self._in.setdefault(target_id, {})[transfer] = None
        self._share(transfer, now_s)
        return transfer

    def cancel(self, transfer: Transfer, now_s: float) -> None:
        """Stop it; one that has ended stays as it is."""
        if transfer in self._out[transfer.source_id]:
            self._end(transfer, now_s)

    def _end(self, transfer: Transfer, now_s: float) -> None:
        transfer.version += 1
        del self._out[transfer.source_id][transfer]
        del self._in[transfer.target_id][transfer]
        self._share(transfer, now_s)

    def _share(self, changed: Transfer, now_s: float) -> None:
        """Set the speeds of all that share a link with a transfer that has come or gone."""
        for transfer in {**self._out[changed.source_id], **self._in[changed.target_id]}:
            rivals = max(len(self._out[transfer.source_id]), len(self._in[transfer.target_id]))
            bytes_per_s = self._bytes_per_s / rivals
            if bytes_per_s != transfer.bytes_per_s:
                transfer.left_bytes -= transfer.bytes_per_s * (now_s - transfer.updated_s)
                transfer.bytes_per_s, transfer.updated_s = bytes_per_s, now_s
                self._foresee(transfer)

    def _foresee(self, transfer: Transfer) -> None:
        transfer.version += 1
        version = transfer.version

        def do(now_s: float) -> None:
            if transfer.version == version:
                self._end(transfer, now_s)
                transfer.on_done(now_s)

        self._clock.at(transfer.updated_s + max(transfer.left_bytes, 0.0) / transfer.bytes_per_s, do)
