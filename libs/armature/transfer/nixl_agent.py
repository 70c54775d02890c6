"""NIXL for code on an event loop: starts it with a deadline, reads blocks, keeps it attentive.

Agents live as long as the process, under names that were never used before: a peer that has restarted can't be taken
for its predecessor. NIXL has no deadlines and no way to take a read back; see `NixlAgent.read`.

On one machine NIXL has whoever posts a read copy the bytes, at what one processor can do. So a large read is cut into
parts for several agents, each with a thread of its own. Only the first is known to peers and read from.
"""

import asyncio
import importlib.util
import os
import tempfile
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

from armature.runtime.addresses import is_loopback
from armature.runtime.errors import StartError
from armature.transfer.nixl_metadata import seal, unseal
from armature.transfer.nixl_thread import NixlThread
from armature.transfer.region import ReadError, Region

_CLOSE_TIMEOUT_S = 5.0
"""Closing takes milliseconds; a frozen peer must not hold up the end of the process."""
_READERS = 2
"""Two copy 1.5 times as much as one; memory is hardly quicker for more, and processors have other work."""
_PART_BYTES = 1024 * 1024
"""At least, of a read that is cut: copying them takes twice as long as waking a thread."""


class NixlAgent:
    """Reads peers' blocks into one local region, and lets peers read from it.

    Args:
        threads: all read, and peers read from the first.
        metadata: of the first.
    """

    def __init__(self, threads: Sequence[NixlThread], local: Region, metadata: bytes) -> None:
        self._threads = threads
        self._local = local
        self.metadata = metadata
        """What a peer must be given to read from here."""

    @classmethod
    async def start(cls, local: Region, *, host: str = "127.0.0.1", timeout_s: float = 30.0) -> "NixlAgent":
        """Register the region and start NIXL.

        Args:
            host: where this process serves; a loopback address keeps NIXL off every other interface.
            timeout_s: NIXL has been seen to hang in its first seconds, on a busy machine.

        Raises:
            StartError: NIXL is not installed, found no transport, or did not start in time.
        """
        if importlib.util.find_spec("nixl_cu12") is None:
            raise StartError("NIXL is not installed (extra `nixl`); install it or use --transport grpc")
        _prepare_environment(host)
        count = min(_READERS, len(os.sched_getaffinity(0))) if local.memory_kind == "DRAM" else 1
        threads = [NixlThread(f"armature-{uuid.uuid4().hex}", local) for _ in range(count)]
        try:
            async with asyncio.timeout(timeout_s):
                metadata = [await asyncio.wrap_future(thread.start()) for thread in threads]
        except TimeoutError:
            raise StartError(f"NIXL did not start within {timeout_s:g} s; try --transport grpc") from None
        except Exception as error:
            detail = f"{type(error).__name__}: {error}"
            raise StartError(f"NIXL did not start ({detail}); try --transport grpc") from error
        return cls(threads, local, seal(threads[0].name, metadata[0]))

    def read(
        self, metadata: bytes, remote: Region, local_ids: Sequence[int], remote_ids: Sequence[int]
    ) -> asyncio.Future[None]:
        """Read the peer's blocks `remote_ids` into `local_ids`, pairwise.

        The future ends when NIXL can't write to the local blocks any more, with `ReadError` if they were not all
        read. There is no deadline and no way to stop: a frozen peer keeps the future open until it wakes or dies. A
        caller that stops waiting must keep everybody away from the blocks until then.
        """
        try:
            peer = unseal(metadata)
            if not (self._local.holds(local_ids) and remote.holds(remote_ids) and len(local_ids) == len(remote_ids)):
                raise ValueError("block ids lie outside of the pool, or are not as many here as there")
            if remote.block_bytes != self._local.block_bytes:
                raise ValueError(f"a block has {remote.block_bytes} bytes there, {self._local.block_bytes} here")
        except ValueError as error:
            failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            failed.set_exception(ReadError("invalid", str(error)))
            return failed
        count = len(local_ids)
        num_parts = min(len(self._threads), count, count * remote.block_bytes // _PART_BYTES) or 1
        cuts = pairwise([count * part // num_parts for part in range(num_parts + 1)])
        return _together(
            [
                asyncio.wrap_future(thread.read(peer, remote, local_ids[start:end], remote_ids[start:end]))
                for thread, (start, end) in zip(self._threads, cuts, strict=False)
            ]
        )

    @contextmanager
    def attending(self) -> Generator[None]:
        """Answer peers quickly while inside: they may be connecting to this agent or reading from it."""
        self._threads[0].attend(1)
        try:
            yield
        finally:
            self._threads[0].attend(-1)

    async def close(self) -> None:
        """End NIXL. The region must stay mapped until the process ends: peers may still be reading."""
        with suppress(TimeoutError):
            stopped = [asyncio.wrap_future(thread.stop()) for thread in self._threads]
            await asyncio.wait_for(asyncio.gather(*stopped), _CLOSE_TIMEOUT_S)


def _together(parts: "Sequence[asyncio.Future[None]]") -> "asyncio.Future[None]":
    """Ends when all parts have ended, as the first that has failed, if one has."""
    if len(parts) == 1:
        return parts[0]
    whole: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(_: "asyncio.Future[None]") -> None:
        if whole.done() or not all(part.done() for part in parts):
            return
        errors = [error for part in parts if not part.cancelled() and (error := part.exception()) is not None]
        if errors:
            whole.set_exception(errors[0])
        else:
            whole.set_result(None)

    for part in parts:
        part.add_done_callback(settle)
    return whole


def _prepare_environment(host: str) -> None:
    """UCX and NIXL read these when the first agent is made. What the operator has set is left alone."""
    os.environ.setdefault("NIXL_LOG_LEVEL", "FATAL")  # what fails is raised, and logged by whoever asked
    os.environ.setdefault("UCX_LOG_LEVEL", "fatal")  # UCX writes to stdout
    if is_loopback(host):
        os.environ.setdefault("UCX_NET_DEVICES", "lo")
    home = Path(os.environ.get("HOME", ""))
    if not os.access(home, os.R_OK | os.X_OK):
        os.environ["HOME"] = tempfile.gettempdir()  # NIXL looks for ~/.nixl.cfg and fails if it may not
