"""The one thread that owns a NIXL agent: it posts reads, polls all of them together and pumps the agent.

NIXL agents are not locked, so nobody else may touch one. NIXL's own progress thread spins and stays off; instead this
thread naps between rounds: shortest while a read is young, a millisecond while a peer may be reading from here
(handshakes and every read over TCP need the owner's help), long when there is nothing to do. A command ends a nap.

Nothing here stops a read: NIXL may write to its blocks until it reports the end, whatever else is done. So a read's
future ends exactly when nothing can be written any more, however late.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import numpy as np

from armature.transfer.region import ReadError, Region

log = logging.getLogger(__name__)

_FIRST_NAP_S = 20e-6
_LONGEST_NAP_S = 1e-3
"""Between polls of reads in flight; also the round while a peer may be reading from here."""
_OLD_READ_S = 2.0
_OLD_NAP_S = 10e-3
"""Once every read is older than `_OLD_READ_S`, its peer is most likely frozen and soon dead."""
_IDLE_NAP_S = 0.25
_FORGET_PEER_S = 600.0
"""Peers that have gone without an error leave a connection behind; it is closed when unused for so long."""


@dataclass(slots=True, eq=False)
class _Peer:
    name: str
    metadata: bytes
    dlists: dict[Region, Any] = field(default_factory=dict[Region, Any])
    active: int = 0
    is_gone: bool = False
    last_used_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Read:
    future: Future[None]
    peer: _Peer
    handle: Any
    posted_s: float


class NixlThread:
    """Runs a NIXL agent over one region of local memory."""

    def __init__(self, name: str, local: Region) -> None:
        self.name = name
        self._local = local
        self._agent: Any = None
        self._local_dlist: Any = None
        self._registration: Any = None
        # Bounded by who asks: a fetch has one read in flight, a staged prompt one call for attention.
        self._commands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._reads: list[_Read] = []
        self._peers: dict[str, _Peer] = {}
        self._attended = 0
        self._nap_s = _FIRST_NAP_S
        self._is_closed = False
        self._is_ending = False
        self._started: Future[bytes] = Future()
        self._stopped: Future[None] = Future()
        for future in (self._started, self._stopped):
            future.set_running_or_notify_cancel()  # who gives up waiting does not change what happens here

    def start(self) -> Future[bytes]:
        """Make the agent; the future holds its metadata, or what kept it from starting."""
        Thread(target=self._run, name=f"nixl {self.name}", daemon=True).start()
        return self._started

    def stop(self) -> Future[None]:
        """End the agent. Reads in flight fail, although their blocks may still be written to."""

        def stop() -> None:
            self._is_ending = True

        self._is_closed = True
        self._commands.put(stop)
        return self._stopped

    def attend(self, change: int) -> None:
        """Add to the number of reasons to expect reads from this region; above 0 the agent is pumped quickly."""

        def attend() -> None:
            self._attended += change

        self._commands.put(attend)

    def read(
        self, peer: tuple[str, bytes], remote: Region, local_ids: Sequence[int], remote_ids: Sequence[int]
    ) -> Future[None]:
        """Read remote blocks into local ones, pairwise; `peer` is (name, metadata). Fails with `ReadError`."""
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # the outcome can't be cancelled, since the read can't
        if self._is_closed:
            future.set_exception(ReadError("unavailable", "the agent has stopped"))
        else:
            self._commands.put(lambda: self._post(future, peer, remote, local_ids, remote_ids))
        return future

    # Everything below runs on the thread.

    def _run(self) -> None:
        try:
            metadata = self._open()
        except Exception as error:
            self._started.set_exception(error)
            self._stopped.set_result(None)
            return
        self._started.set_result(metadata)
        last_scan_s = time.monotonic()
        while not self._is_ending:
            self._obey(self._choose_nap())
            self._progress()
            if time.monotonic() - last_scan_s > _FORGET_PEER_S / 10:
                last_scan_s = time.monotonic()
                self._forget_idle_peers(last_scan_s)
        self._close()
        self._stopped.set_result(None)

    def _open(self) -> bytes:
        from nixl_cu12._api import nixl_agent, nixl_agent_config  # not `nixl`: that imports torch to look for CUDA

        agent: Any = nixl_agent(self.name, nixl_agent_config(enable_prog_thread=False))
        local = self._local
        region = (local.base_address, local.size_bytes, local.device_id, "")
        self._registration = agent.register_memory([region], local.memory_kind)
        self._agent = agent
        self._local_dlist = agent.prep_xfer_dlist("", _every_block(local), local.memory_kind)
        return agent.get_agent_metadata()

    def _choose_nap(self) -> float:
        longest_s = _LONGEST_NAP_S if self._attended > 0 else _IDLE_NAP_S
        if not self._reads:
            return longest_s
        is_old = time.monotonic() - max(read.posted_s for read in self._reads) > _OLD_READ_S
        self._nap_s = min(self._nap_s * 2, _OLD_NAP_S if is_old else _LONGEST_NAP_S)
        return min(self._nap_s, longest_s)

    def _obey(self, nap_s: float) -> None:
        try:
            command = self._commands.get(timeout=nap_s)
            while True:
                command()
                command = self._commands.get_nowait()
        except Empty:
            pass

    def _post(
        self,
        future: Future[None],
        peer_key: tuple[str, bytes],
        remote: Region,
        local_ids: Sequence[int],
        remote_ids: Sequence[int],
    ) -> None:
        self._nap_s = _FIRST_NAP_S
        peer: _Peer | None = None
        try:
            peer = self._peer(*peer_key)
            handle = self._agent.make_prepped_xfer(
                "READ",
                self._local_dlist,
                np.array(local_ids, np.int32),
                self._dlist(peer, remote),
                np.array(remote_ids, np.int32),
            )
        except Exception as error:
            future.set_exception(_translated(error))
            if peer is not None:
                self._settle(peer, error)
            return
        now_s = time.monotonic()
        peer.active += 1
        peer.last_used_s = now_s
        read = _Read(future, peer, handle, now_s)
        if not self._is_over(read, self._agent.transfer):
            self._reads.append(read)

    def _peer(self, name: str, metadata: bytes) -> _Peer:
        peer = self._peers.get(name)
        if peer is None:
            self._agent.add_remote_agent(metadata)
            peer = self._peers[name] = _Peer(name, metadata)
        elif peer.metadata != metadata:
            raise ReadError("invalid", f"agent {name} has sent two different metadata")
        return peer

    def _dlist(self, peer: _Peer, remote: Region) -> Any:
        dlist = peer.dlists.get(remote)
        if dlist is None:
            dlist = self._agent.prep_xfer_dlist(peer.name, _every_block(remote), remote.memory_kind)
            peer.dlists[remote] = dlist
        return dlist

    def _progress(self) -> None:
        try:
            self._agent.get_new_notifs()
        except Exception:
            log.exception("pumping NIXL failed")
        if not self._reads:
            return
        still_active = [read for read in self._reads if not self._is_over(read, self._agent.check_xfer_state)]
        if len(still_active) < len(self._reads):
            self._nap_s = _FIRST_NAP_S
        self._reads = still_active

    def _is_over(self, read: _Read, ask: Callable[[Any], str]) -> bool:
        """Post or poll a read; when it has ended, say so to whoever waits."""
        error: Exception | None = None
        try:
            state = ask(read.handle)
            if state == "PROC":
                return False
            if state != "DONE":
                error = ReadError("transport", state)
        except Exception as raised:
            error = raised
        _release(read.handle)
        read.peer.active -= 1
        if error is None:
            read.future.set_result(None)
        else:
            read.future.set_exception(_translated(error))
        self._settle(read.peer, error)
        return True

    def _settle(self, peer: _Peer, error: Exception | None) -> None:
        """Forget a peer that has broken, once none of its reads is in flight: a new read then starts afresh."""
        if error is not None and not isinstance(error, ReadError):
            peer.is_gone = True
        if peer.is_gone and peer.active == 0:
            self._forget(peer)

    def _forget_idle_peers(self, now_s: float) -> None:
        for peer in list(self._peers.values()):
            if peer.active == 0 and now_s - peer.last_used_s > _FORGET_PEER_S:
                self._forget(peer)

    def _forget(self, peer: _Peer) -> None:
        if self._peers.pop(peer.name, None) is None:
            return
        for dlist in peer.dlists.values():
            _release(dlist)
        try:
            self._agent.remove_remote_agent(peer.name)
        except Exception as error:
            log.warning("NIXL could not forget agent %s: %s", peer.name, error)

    def _close(self) -> None:
        for read in self._reads:
            _release(read.handle)
            read.future.set_exception(ReadError("unavailable", "the agent has stopped"))
        self._reads.clear()
        for peer in list(self._peers.values()):
            self._forget(peer)
        _release(self._local_dlist)
        try:
            self._agent.deregister_memory(self._registration)
        except Exception as error:
            log.warning("NIXL could not let go of the pool: %s", error)
        self._agent = None


def _every_block(region: Region) -> Any:
    """A strided descriptor: NIXL indexes the region's blocks as if each had a descriptor of its own."""
    row = (region.base_address, region.block_bytes, region.device_id, region.block_bytes, region.num_blocks)
    return np.array([row], np.uint64)


def _release(handle: Any) -> None:
    try:
        handle.release()
    except Exception as error:
        log.debug("NIXL could not release a handle: %s", error)


def _translated(error: Exception) -> ReadError:
    if isinstance(error, ReadError):
        return error
    name = type(error).__name__
    reason = "disconnected" if "Disconnect" in name else "invalid" if "Mismatch" in name else "transport"
    return ReadError(reason, f"{name}: {error}")
