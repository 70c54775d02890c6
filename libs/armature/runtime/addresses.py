"""Under which host a process is reached by the others."""

import ipaddress
import socket

from armature.runtime.errors import StartError

EVERY_INTERFACE = {"", "0.0.0.0", "::"}


def join_host_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(address: str) -> tuple[str, int]:
    """The parts of `host:port`.

    Raises:
        ValueError: that is not what `address` is.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ValueError(f"{address!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether nobody outside of this machine reaches `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reachable_host(host: str, advertise_host: str, peer: str) -> str:
    """The host to advertise for a server that listens on `host`: `advertise_host` if it is set.

    One that listens on every interface is reached by the interface that leads to `peer` (`host:port`), something that
    all members talk to. Nothing is sent there.

    Raises:
        StartError: there is no way to `peer`.
    """
    if advertise_host or host not in EVERY_INTERFACE:
        return advertise_host or host
    try:
        target = split_host_port(peer)
        family, kind, protocol, _, address = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except (OSError, ValueError) as error:
        raise StartError(f"can't tell which address leads to {peer} ({error}): set --advertise-host") from error
