"""A lean HTTP load generator: streamed chats over keep-alive connections, little CPU of its own."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

CHAT = "/v1/chat/completions"


@dataclass
class Load:
    """What one run saw; times in seconds."""

    requests: int = 0
    tokens: int = 0
    """As the answers' usage says."""
    prompt_tokens: int = 0
    events: int = 0
    """Server-sent events with text."""
    wall_s: float = 0.0
    ttft_s: list[float] = field(default_factory=list)
    e2e_s: list[float] = field(default_factory=list)

    def __iadd__(self, other: "Load") -> "Load":
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


class _Connection:
    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)

    def close(self) -> None:
        self._writer.close()

    async def stream(self, body: bytes, load: Load) -> None:
        """Send a body that asks for a stream with usage at its end, and take the answer."""
        head = f"POST {CHAT} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        began = time.perf_counter()
        self._writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        status = await self._reader.readline()
        assert b" 200 " in status, status + await self._reader.read(2000)
        while (await self._reader.readline()) != b"\r\n":
            pass
        first, events, tail = 0.0, 0, b""
        while size := int(await self._reader.readline(), 16):
            chunk = await self._reader.readexactly(size + 2)
            with_text = chunk.count(b'"content":"') - chunk.count(b'"content":""')
            if with_text and not first:
                first = time.perf_counter()
            events += with_text
            tail = (tail + chunk)[-4096:]
        await self._reader.readexactly(2)
        load.e2e_s.append(time.perf_counter() - began)
        load.ttft_s.append(first - began)
        usage = json.loads(tail[: tail.rindex(b"data: [DONE]")].rpartition(b"data: ")[2])["usage"]
        load.requests += 1
        load.events += events
        load.tokens += usage["completion_tokens"]
        load.prompt_tokens += usage["prompt_tokens"]


def chat_bodies(model: str, prompts: Sequence[str], max_tokens: int) -> list[bytes]:
    """One streamed chat of one message for each prompt, with answers of exactly `max_tokens`."""
    shared = {
        "model": model, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": max_tokens,
        "min_tokens": max_tokens, "ignore_eos": True,
    }  # fmt: skip
    return [json.dumps({**shared, "messages": [{"role": "user", "content": text}]}).encode() for text in prompts]


async def stream_all(address: str, bodies: Sequence[bytes], concurrency: int) -> Load:
    """Send all bodies, `concurrency` at a time."""
    host, _, port = address.rpartition(":")
    waiting = [*reversed(bodies)]
    load = Load()

    async def client() -> None:
        connection = _Connection(host, int(port))
        await connection.open()
        while waiting:
            await connection.stream(waiting.pop(), load)
        connection.close()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as clients:
        for _ in range(concurrency):
            clients.create_task(client())
    load.wall_s = time.perf_counter() - began
    return load
