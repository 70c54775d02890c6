"""A lean HTTP load generator: streamed completions over keep-alive connections, little CPU of its own."""

import asyncio
import json
import time
from dataclasses import dataclass, field


@dataclass
class Load:
    """What one run saw; times in seconds."""

    requests: int = 0
    tokens: int = 0
    wall_s: float = 0.0
    ttft_s: list[float] = field(default_factory=list)
    e2e_s: list[float] = field(default_factory=list)


class _Connection:
    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)

    def close(self) -> None:
        self._writer.close()

    async def stream(self, body: bytes, load: Load) -> None:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        began = time.perf_counter()
        self._writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        status = await self._reader.readline()
        assert b" 200 " in status, status
        while (await self._reader.readline()) != b"\r\n":
            pass
        first = 0.0
        while size := int(await self._reader.readline(), 16):
            chunk = await self._reader.readexactly(size + 2)
            first = first or time.perf_counter()
            load.tokens += chunk.count(b'"text"')
        await self._reader.readexactly(2)
        load.ttft_s.append(first - began)
        load.e2e_s.append(time.perf_counter() - began)
        load.requests += 1


async def stream_all(address: str, bodies: list[dict[str, object]], concurrency: int) -> Load:
    """Send all bodies to `/v1/completions`, `concurrency` at a time."""
    host, _, port = address.rpartition(":")
    waiting = [json.dumps(body).encode() for body in reversed(bodies)]
    load = Load()

    async def client() -> None:
        connection = _Connection(host, int(port))
        await connection.open()
        while waiting:
            await connection.stream(waiting.pop(), load)
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    load.wall_s = time.perf_counter() - began
    return load
