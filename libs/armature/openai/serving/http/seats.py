"""Who may be connected: how many at once, in all and from one address.

Who comes when all is taken gets one of a few spare seats, where he is told so and the machine's own questions (is it
alive, how is it doing) are answered; when these are taken too, none. An address never has more than a few of them.
"""

import ipaddress
from dataclasses import dataclass, field
from typing import Literal

SPARE_SEATS = 64
SPARE_SEATS_OF_ONE = 4

Reason = Literal["all_taken", "address"]


@dataclass(frozen=True, slots=True)
class SeatOptions:
    """Raises ValueError for values that can't work."""

    max_connections: int = 8192
    max_connections_per_address: int = 0
    """0: as many as there are; behind a proxy all clients have the same."""

    def __post_init__(self) -> None:
        if self.max_connections < 1:
            raise ValueError(f"max_connections is {self.max_connections}; it must be above 0")
        if self.max_connections_per_address < 0:
            raise ValueError("max_connections_per_address must be 0, which means no limit, or above")


class Seats:
    """All connections of one port."""

    def __init__(self, options: SeatOptions) -> None:
        self.options = options
        self._usual = _Taken()
        self._spare = _Taken()

    @property
    def num_taken(self) -> int:
        return self._usual.num_all + self._spare.num_all

    def take(self, host: str) -> "Seat | Reason":
        """A seat for somebody at this IP address, or why there is none. It is to be left."""
        address, most = _network(host), self.options
        of_one = most.max_connections_per_address
        if self._usual.num_all >= most.max_connections:
            reason: Reason = "all_taken"
        elif of_one and self._usual.by_address.get(address, 0) >= of_one:
            reason = "address"
        else:
            return Seat(self._usual, address, None)
        spare = self._spare
        if spare.num_all >= SPARE_SEATS or spare.by_address.get(address, 0) >= SPARE_SEATS_OF_ONE:
            return reason
        return Seat(spare, address, reason)


@dataclass(slots=True)
class _Taken:
    num_all: int = 0
    by_address: dict[str, int] = field(default_factory=dict[str, int])


class Seat:
    """One connection's. `reason` says why it is only a spare one, if it is."""

    __slots__ = ("_address", "_taken", "reason")

    def __init__(self, taken: _Taken, address: str, reason: Reason | None) -> None:
        self._address = address
        self._taken: _Taken | None = taken
        self.reason: Reason | None = reason
        taken.num_all += 1
        taken.by_address[address] = taken.by_address.get(address, 0) + 1

    def leave(self) -> bool:
        """Whether it was still taken; a second time does nothing."""
        taken, self._taken = self._taken, None
        if taken is None:
            return False
        taken.num_all -= 1
        taken.by_address[self._address] -= 1
        if not taken.by_address[self._address]:
            del taken.by_address[self._address]
        return True


def _network(host: str) -> str:
    """An IPv6 client has a whole /64 for itself; an IPv4 one that comes over IPv6 is who it is."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
