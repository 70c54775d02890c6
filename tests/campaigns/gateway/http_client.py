"""Writes a case to a connection of its own and judges what comes back."""

import asyncio
import json
import re

from tests.campaigns.gateway.http_cases import HttpCase

ALLOWED_5XX = frozenset({501, 503, 504, 529})
"""What says that it is not now, or not at all; any other is the gateway's own failure."""
TIMEOUT_S = 60.0
_SIZE = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


async def verdict(host: str, port: int, case: HttpCase) -> tuple[int, str]:
    """The status of the answer, 0 if there is none, and what is wrong with it, empty if nothing is."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            data = await _exchange(host, port, case)
    except TimeoutError:
        return 0, f"no end within {TIMEOUT_S:g} s"
    except OSError:  # it has closed the connection while we wrote
        return 0, "the connection was broken off" if case.must_answer else ""
    if not data:
        return 0, "no answer" if case.must_answer else ""
    if case.kind == "broken framing" and not data.startswith(b"HTTP/1.1 "):
        return 0, "not HTTP"
    return judged(data)


def judged(data: bytes) -> tuple[int, str]:
    """What is wrong with an answer as it came over the connection, the first if there are several."""
    head, _, body = data.partition(b"\r\n\r\n")
    status = int(head[9:12])
    if status == 100:
        return judged(body)
    if status >= 500 and status not in ALLOWED_5XX:
        return status, body[:300].decode(errors="replace")
    if b'"internal_error"' in body or b"api_error" in body:
        return status, f"failed inside: {body[-300:].decode(errors='replace')}"
    sized = _SIZE.search(head)
    if sized is not None and b"json" in head and body:  # none to HEAD
        try:
            answer = json.loads(body[: int(sized[1])])
        except ValueError:
            return status, f"no JSON: {body[:200]!r}"
        if status >= 400 and not isinstance(answer.get("error", answer), dict):
            return status, f"no error in shape: {body[:200]!r}"
    if b"text/event-stream" in head and not body.endswith(b"0\r\n\r\n"):
        return status, "the stream was broken off"
    return status, ""


async def _exchange(host: str, port: int, case: HttpCase) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(case.data)
        await writer.drain()
        if not case.must_answer:
            writer.write_eof()
        return await reader.read()
    finally:
        writer.transport.abort()
