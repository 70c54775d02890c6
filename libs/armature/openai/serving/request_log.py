"""One JSON line for every request that has ended, in a file that the simulator replays.

The keys of Mooncake's traces (`timestamp`, `input_length`, `output_length`, `hash_ids`) and what else is known; no
text; in the order in which requests ended. The log never makes a request wait or fail: lines are written in batches on
a thread, those beyond `MAX_WAITING` or that a full disk refuses are counted and left out. The file is bounded: when it
is full it becomes `FILE.1`, in the place of the one before.
"""

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from armature.blocks.hashing import BlockDigest
from armature.openai.serving.generation import Generation
from armature.openai.serving.metrics import LOG_LOST
from armature.runtime.errors import StartError

log = logging.getLogger(__name__)

MAX_WAITING = 8192
"""Entries that wait to be written; each holds the digests of one prompt."""
WRITE_INTERVAL_S = 0.5


class Entry(NamedTuple):
    """One request."""

    received_unix_s: float
    model: str
    tenant: str
    session_id: str
    priority: int
    input_length: int
    output_length: int
    cached_tokens: int
    digests: Sequence[BlockDigest]
    """Of the prompt's whole blocks."""
    block_size: int
    ttft_s: float | None
    """None: there was no token."""
    e2e_s: float
    finish_reason: str
    """`stop`, `length`, `cancelled` (the client left) or `error`."""

    def line(self) -> bytes:
        """The entry as a line. `timestamp` is when the request came, in milliseconds of Unix time."""
        fields = {
            "timestamp": round(1000 * self.received_unix_s),
            "input_length": self.input_length,
            "output_length": self.output_length,
            "hash_ids": [int.from_bytes(digest[:8], "little") for digest in self.digests],
            "block_size": self.block_size,
            "model": self.model,
            "tenant": self.tenant,
            "session_id": self.session_id,
            "priority": self.priority,
            "ttft_s": None if self.ttft_s is None else round(self.ttft_s, 6),
            "e2e_s": round(self.e2e_s, 6),
            "cached_tokens": self.cached_tokens,
            "finish_reason": self.finish_reason,
        }
        return msgspec.json.encode(fields) + b"\n"


def entry_of(generation: Generation, now_s: float, now_unix_s: float) -> Entry:
    """What is logged of a request that ends now; `now_s` as the event loop counts."""
    job, usage = generation.job, generation.usage
    e2e_s = now_s - job.received_s
    return Entry(
        received_unix_s=now_unix_s - e2e_s,
        model=job.model.name,
        tenant=job.tenant,
        session_id=job.session_id,
        priority=job.hints.priority,
        input_length=usage.prompt_tokens,
        output_length=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        digests=job.digests,
        block_size=job.model.hasher.block_size,
        ttft_s=generation.info.ttft_s if usage.completion_tokens else None,
        e2e_s=e2e_s,
        finish_reason=generation.finish_reason,
    )


class RequestLog:
    """Appends to `path`, which one process writes.

    Raises:
        OSError: it can't be written at all.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._waiting: deque[Entry] = deque()
        self._writing = threading.Lock()
        self._is_failing = False
        self._file = _open(path)

    def ended(self, generation: Generation) -> None:
        """A request has ended; called on the event loop."""
        self.add(entry_of(generation, asyncio.get_running_loop().time(), time.time()))

    def add(self, entry: Entry) -> None:
        """Have `entry` written soon."""
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(entry)
        else:
            LOG_LOST.inc()

    async def run(self) -> None:
        """Write what is there, again and again; when cancelled, once more."""
        try:
            while True:
                await asyncio.sleep(WRITE_INTERVAL_S)
                if self._waiting:
                    await asyncio.to_thread(self._write)
        finally:
            self._write()  # the thread may still be at it, or never have begun
            os.close(self._file)

    def _write(self) -> None:
        with self._writing:
            self._write_lines([self._waiting.popleft().line() for _ in range(len(self._waiting))])

    def _write_lines(self, lines: list[bytes]) -> None:
        start = 0
        while start < len(lines):
            try:
                start += self._append(lines[start:])
                self._is_failing = False
            except OSError as error:
                LOG_LOST.inc(len(lines) - start)
                if not self._is_failing:
                    log.error("%s can't be written, requests go on without it: %s", self._path, error)
                self._is_failing = True
                return

    def _append(self, lines: list[bytes]) -> int:
        """Write as many lines as the file takes, one at least; how many."""
        size_bytes = os.fstat(self._file).st_size
        if size_bytes and size_bytes + len(lines[0]) > self._max_bytes:
            self._rotate()
            size_bytes = 0
        end, room = 1, self._max_bytes - size_bytes - len(lines[0])
        while end < len(lines) and room >= len(lines[end]):
            room -= len(lines[end])
            end += 1
        data = b"".join(lines[:end])
        try:
            written = os.write(self._file, data)
            if written < len(data):
                raise OSError(f"only {written} of {len(data)} bytes could be written")
        except OSError:
            with suppress(OSError):  # half a line would spoil the file for its readers
                os.ftruncate(self._file, size_bytes)
            raise
        return end

    def _rotate(self) -> None:
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        full, self._file = self._file, _open(self._path)
        os.close(full)


def open_request_log(path: Path, max_bytes: int) -> RequestLog:
    """A log at `path`.

    Raises:
        StartError: the file can't be written.
    """
    try:
        return RequestLog(path, max_bytes)
    except OSError as error:
        raise StartError(f"can't write {path} ({error.strerror}): set another --request-log") from error


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
