"""Hears vLLM's KV events over ZeroMQ: in order, and with what was missed asked for again.

The publisher numbers its batches from 0 and keeps the latest for a replay. What it does not keep any more is lost: then
nothing is known of the cache until its blocks are stored anew.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
import zmq
import zmq.asyncio

from armature.blocks.events import KvEvent
from armature.engines.vllm.kv_events import EventTranslator, decode

log = logging.getLogger(__name__)

REPLAY_TIMEOUT_S = 5.0
"""The publisher looks for requests ten times a second."""


class KvFeed:
    """One publisher. `endpoint` and `replay_endpoint` are ZeroMQ addresses that it binds."""

    def __init__(self, endpoint: str, replay_endpoint: str, translator: EventTranslator) -> None:
        self._endpoint = endpoint
        self._replay_endpoint = replay_endpoint
        self._translator = translator
        self._next_seq = 0

    def __len__(self) -> int:
        """Blocks that can be found."""
        return len(self._translator)

    async def run(self, on_events: Callable[[Sequence[KvEvent]], None]) -> None:
        """Tell all events, until cancelled."""
        context = zmq.asyncio.Context.instance()
        with context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.connect(self._endpoint)
            while True:
                _, number, payload = await socket.recv_multipart()
                if events := await self._take(int.from_bytes(number, "big"), payload):
                    on_events(events)

    async def _take(self, seq: int, payload: bytes) -> list[KvEvent]:
        events: list[KvEvent] = []
        if seq > self._next_seq:
            events += await self._catch_up(seq)
        if seq == self._next_seq:
            events += self._translate(payload)
        return events

    async def _catch_up(self, upto: int) -> list[KvEvent]:
        """What was published before batch `upto` and not heard; if that is lost, that nothing is known."""
        events: list[KvEvent] = []
        try:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                async for seq, payload in self._replay():
                    if seq == self._next_seq and seq < upto:
                        events += self._translate(payload)
        except TimeoutError:
            log.warning("vLLM replays no KV events")
        if self._next_seq < upto:
            log.warning("KV events %d to %d of vLLM are lost", self._next_seq, upto - 1)
            events += self._translator.forget()
            self._next_seq = upto
        return events

    async def _replay(self) -> AsyncIterator[tuple[int, bytes]]:
        with zmq.asyncio.Context.instance().socket(zmq.DEALER) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.connect(self._replay_endpoint)
            await socket.send_multipart([b"", self._next_seq.to_bytes(8, "big")])
            while True:
                *_, number, payload = await socket.recv_multipart()
                seq = int.from_bytes(number, "big", signed=True)
                if seq < 0:
                    return
                yield seq, payload

    def _translate(self, payload: bytes) -> list[KvEvent]:
        self._next_seq += 1
        try:
            return self._translator.translate(decode(payload))
        except msgspec.DecodeError as error:
            log.warning("vLLM tells a KV event that can't be read: %s", error)
            return self._translator.forget()
