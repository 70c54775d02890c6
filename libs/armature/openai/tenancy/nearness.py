"""Whether a request comes from this very machine, and was meant for it."""

import ipaddress

from starlette.types import Scope

_FORWARDED = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via"})


def is_local(scope: Scope) -> bool:
    """Whether both ends are this machine's loopback and nobody stands between them, as far as can be told.

    A page of another site that makes a browser here ask us names that site: as the `Host`, if it had its name point
    here, or in the headers by which browsers tell who asks.
    """
    client = scope.get("client")
    if not client or not _is_loopback(client[0]):
        return False
    headers: dict[bytes, bytes] = dict(scope["headers"])
    if not _FORWARDED.isdisjoint(headers) or headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin"):
        return False
    host = headers.get(b"host", b"").decode("latin-1").lower()
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return name == "localhost" or _is_loopback(name.strip("[]"))


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
