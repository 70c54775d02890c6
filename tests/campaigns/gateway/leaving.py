"""Clients that connect, read a little and leave, or hold on without reading."""

import asyncio
import contextlib
import json
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from armature.third_party.kserve.v2.inference_pb2 import ModelInferRequest
from armature.v1.common_pb2 import SamplingParams
from armature.v1.inference_pb2 import GenerateRequest, TokenIds
from tests.campaigns.gateway.bodies import MODEL
from tests.support.conformity import KEY

LONG = 3000
"""Tokens: more than fits into the buffers between a gateway and its client."""
METADATA = (("authorization", f"Bearer {KEY}"),)
GENERATE, STREAM_INFER = "/armature.v1.Inference/Generate", "/inference.GRPCInferenceService/ModelStreamInfer"
AT_ONCE = 32
_SMALL_BUFFER = 4096


@dataclass(frozen=True, slots=True)
class Doors:
    """Where a gateway is reached."""

    http: str
    grpc: str

    async def connect(self, *, small: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection over HTTP's port; `small` ones take little before they are full."""
        host, _, port = self.http.rpartition(":")
        raw = socket.socket()
        if small:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
        return await asyncio.open_connection(sock=raw, limit=_SMALL_BUFFER)


def request(*, stream: bool, tokens: int = LONG, logprobs: bool = False) -> bytes:
    """A completion over HTTP."""
    fields: dict[str, Any] = {"model": MODEL, "prompt": [300] * 40, "max_tokens": tokens, "ignore_eos": True}
    if logprobs:
        fields["logprobs"] = 20
    body = json.dumps({**fields, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {KEY}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def message(*, tokens: int = LONG, logprobs: bool = False) -> bytes:
    """The same over gRPC."""
    sampling = SamplingParams(ignore_eos=True, logprobs=logprobs, top_logprobs=20 if logprobs else 0)
    asked = GenerateRequest(model=MODEL, tokens=TokenIds(ids=[300] * 40), sampling=sampling, max_tokens=tokens)
    return asked.SerializeToString()


@contextlib.asynccontextmanager
async def holding_http(doors: Doors) -> AsyncIterator[None]:
    """A streamed answer whose client has stopped to read."""
    reader, writer = await doors.connect(small=True)
    writer.write(request(stream=True, logprobs=True))
    await reader.readline()
    yield
    writer.transport.abort()


@contextlib.asynccontextmanager
async def holding_grpc(doors: Doors) -> AsyncIterator[None]:
    """The same over gRPC, on a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(doors.grpc, options=options) as channel:
        call: Any = channel.unary_stream(GENERATE)(message(logprobs=True), metadata=METADATA)
        await call.read()
        yield
        call.cancel()


async def _leave_stream(doors: Doors, rng: random.Random, _: grpc.aio.Channel) -> None:
    reader, writer = await doors.connect()
    writer.write(request(stream=True))
    for _ in range(rng.randrange(12)):
        await reader.readline()
    writer.transport.abort()


async def _leave_whole(doors: Doors, rng: random.Random, _: grpc.aio.Channel) -> None:
    _, writer = await doors.connect()
    writer.write(request(stream=False))
    await asyncio.sleep(rng.uniform(0.0, 0.3))
    writer.transport.abort()


async def _leave_half_sent(doors: Doors, rng: random.Random, _: grpc.aio.Channel) -> None:
    _, writer = await doors.connect()
    data = request(stream=True)
    writer.write(data[: rng.randrange(len(data))])
    await asyncio.sleep(rng.uniform(0.0, 0.2))
    writer.transport.abort()


async def _leave_unread(doors: Doors, rng: random.Random, _: grpc.aio.Channel) -> None:
    async with holding_http(doors):
        await asyncio.sleep(rng.uniform(0.2, 1.5))


async def _leave_call(doors: Doors, rng: random.Random, channel: grpc.aio.Channel) -> None:
    call: Any = channel.unary_stream(GENERATE)(message(), metadata=METADATA)
    for _ in range(rng.randrange(6)):
        await call.read()
    call.cancel()


async def _leave_unread_call(doors: Doors, rng: random.Random, _: grpc.aio.Channel) -> None:
    async with holding_grpc(doors):
        await asyncio.sleep(rng.uniform(0.2, 1.5))


async def _leave_kserve(doors: Doors, rng: random.Random, channel: grpc.aio.Channel) -> None:
    asked = ModelInferRequest(model_name=MODEL)
    tensor = asked.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"Where is the block?")
    asked.parameters["stream"].bool_param = True
    asked.parameters["max_tokens"].int64_param = LONG
    asked.parameters["ignore_eos"].bool_param = True
    call: Any = channel.stream_stream(STREAM_INFER)(metadata=METADATA)
    for _ in range(3):
        await call.write(asked.SerializeToString())
    for _ in range(rng.randrange(4)):
        await call.read()
    call.cancel()


Leaver = Callable[[Doors, random.Random, grpc.aio.Channel], Awaitable[None]]
LEAVERS: dict[str, Leaver] = {
    "streamed answer": _leave_stream,
    "whole answer": _leave_whole,
    "half-sent request": _leave_half_sent,
    "unread answer": _leave_unread,
    "gRPC call": _leave_call,
    "unread gRPC call": _leave_unread_call,
    "KServe stream": _leave_kserve,
}


async def come_and_go(doors: Doors, clients: int, seed: str, told: Callable[[], None]) -> dict[str, int]:
    """So many clients come and leave, `AT_ONCE` at a time; how many of which kind. `told` for each that left."""
    rng, seats, kinds = random.Random(seed), asyncio.Semaphore(AT_ONCE), Counter[str]()

    async def one(kind: str, own: random.Random) -> None:
        async with seats:
            # A gateway that is full breaks a stream off or answers at once: either way this client leaves.
            with contextlib.suppress(OSError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await LEAVERS[kind](doors, own, channel)
        told()

    async with grpc.aio.insecure_channel(doors.grpc) as channel, asyncio.TaskGroup() as tasks:
        for _ in range(clients):
            kind = rng.choice([*LEAVERS])
            kinds[kind] += 1
            tasks.create_task(one(kind, random.Random(rng.random())))
    return dict(sorted(kinds.items()))
