"""Clients of a server on this machine that read little, and whether it still has its end of their connections."""

import asyncio
import socket
from pathlib import Path

ESTABLISHED = "01"


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that takes little before it is full."""
    raw = socket.create_connection(("127.0.0.1", port))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # or the kernel would take megabytes
    return await asyncio.open_connection(sock=raw, limit=1024)


def port_of(writer: asyncio.StreamWriter) -> int:
    """The client's."""
    return writer.get_extra_info("sockname")[1]


def is_connected(server_port: int, client_port: int) -> bool:
    """Whether the server still has its end of a connection: what the kernel has yet to send is no matter of ours."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if state == ESTABLISHED and [int(end[-4:], 16) for end in (local, remote)] == [server_port, client_port]:
            return True
    return False
