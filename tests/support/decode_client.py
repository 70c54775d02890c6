"""A client of `Decode.Stream` that keeps what it is told, request by request, and checks that nothing is missing."""

import asyncio
import itertools
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc

from armature.runtime.channels import CHANNEL_OPTIONS
from armature.v1 import common_pb2 as common
from armature.v1.worker_pb2 import DecodeFrame, DecodeRequest, PrefillTarget, TokenDelta, WorkerError
from armature.v1.worker_pb2_grpc import DecodeStub

ANSWER_TIMEOUT_S = 20.0


@dataclass
class Answer:
    """All deltas of one request."""

    stream_id: int
    first_index: int = 0
    tokens: list[int] = field(default_factory=list)
    deltas: list[TokenDelta] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, delta: TokenDelta) -> None:
        assert not self.ended.is_set(), f"a delta after the last one: {delta}"
        if delta.token_ids:
            assert delta.output_index == self.first_index + len(self.tokens), "a gap or a repetition"
            self.started.set()
        self.tokens.extend(delta.token_ids)
        self.deltas.append(delta)
        if delta.finish_reason:
            self.ended.set()

    @property
    def finish_reason(self) -> int:
        return self.deltas[-1].finish_reason

    @property
    def error(self) -> WorkerError:
        return self.deltas[-1].error

    @property
    def info(self) -> common.ServingInfo:
        return next(delta.info for delta in self.deltas if delta.HasField("info"))

    async def wait(self, timeout_s: float = ANSWER_TIMEOUT_S) -> "Answer":
        async with asyncio.timeout(timeout_s):
            await self.ended.wait()
        return self

    async def first_token(self, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        async with asyncio.timeout(timeout_s):
            await self.started.wait()


class DecodeClient:
    """One open stream."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.answers: dict[int, Answer] = {}
        self.frames = 0
        self._ids = itertools.count(1)
        self._writing = asyncio.Lock()

    async def ask(
        self,
        tokens: Sequence[int],
        max_tokens: int = 4,
        prefill: PrefillTarget | None = None,
        **fields: Any,
    ) -> Answer:
        """Send one request; the answer fills up by itself."""
        stream_id = fields.pop("stream_id", None) or next(self._ids)
        request = DecodeRequest(
            stream_id=stream_id,
            request_id=fields.pop("request_id", f"request-{stream_id}"),
            model=fields.pop("model", "m"),
            token_ids=array("I", tokens).tobytes(),
            max_tokens=max_tokens,
            sampling=fields.pop("sampling", None) or common.SamplingParams(temperature=0.0),
            **fields,
        )
        if prefill is not None:
            request.prefill.CopyFrom(prefill)
        prompt_tokens = request.prompt_tokens or len(tokens)
        answer = self.answers[stream_id] = Answer(stream_id, len(tokens) - prompt_tokens)
        await self._write(DecodeFrame(requests=[request]))
        return answer

    async def cancel(self, answer: Answer) -> None:
        await self._write(DecodeFrame(cancels=[answer.stream_id]))

    async def _write(self, frame: DecodeFrame) -> None:
        # A call breaks if a message is sent while another one is on its way.
        async with self._writing:
            await self.call.write(frame)

    async def collect(self) -> None:
        while (frame := await self.call.read()) is not grpc.aio.EOF:
            self.frames += 1
            for delta in frame.deltas:
                self.answers[delta.stream_id].take(delta)


@asynccontextmanager
async def decode_client(address: str) -> AsyncIterator[DecodeClient]:
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        client = DecodeClient(DecodeStub(channel).Stream())
        collecting = asyncio.create_task(client.collect())
        try:
            yield client
            if collecting.done() and not collecting.cancelled():
                collecting.result()
        finally:
            client.call.cancel()
            collecting.cancel()
            with suppress(BaseException):
                await collecting
