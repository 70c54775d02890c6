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
    """Whether the server still has its end of a connection."""
    return client_port in clients_of(server_port)


def clients_of(server_port: int) -> list[int]:
    """The ports of clients whose connections a server has: what the kernel has yet to send is no matter of ours."""
    tables = (path.read_text() for path in Path("/proc/net").glob("tcp*") if path.name in ("tcp", "tcp6"))
    lines = [line.split() for table in tables for line in table.splitlines()[1:]]
    ends = [[int(end[-4:], 16) for end in line[1:3]] for line in lines if line[3] == ESTABLISHED]
    return [remote for local, remote in ends if local == server_port]
