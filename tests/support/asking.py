"""Asking a cell: token ids in, token ids out, over gRPC."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc

from armature.v1 import common_pb2, inference_pb2
from armature.v1.inference_pb2_grpc import InferenceStub
from tests.support.cell import Cell

MODEL = "demo"


@dataclass
class Answer:
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: int = 0
    info: common_pb2.ServingInfo = field(default_factory=common_pb2.ServingInfo)
    usage: inference_pb2.Usage = field(default_factory=inference_pb2.Usage)


def greedy(**more: object) -> common_pb2.SamplingParams:
    return common_pb2.SamplingParams(temperature=0.0, **more)  # pyright: ignore


async def ask(
    channel: grpc.aio.Channel,
    token_ids: Sequence[int],
    max_tokens: int,
    *,
    sampling: common_pb2.SamplingParams | None = None,
    grammar: common_pb2.Grammar | None = None,
    on_tokens: Callable[[Answer], object] | None = None,
    timeout_s: float = 90.0,
) -> Answer:
    """Generate from token ids; `on_tokens` sees the answer as it grows."""
    request = inference_pb2.GenerateRequest(
        model=MODEL,
        tokens=inference_pb2.TokenIds(ids=token_ids),
        sampling=sampling or greedy(ignore_eos=True),
        max_tokens=max_tokens,
        include_info=True,
        grammar=grammar,
    )
    answer = Answer()
    call = InferenceStub(channel).Generate(request, timeout=timeout_s)
    async for part in call:
        answer.text += part.text
        answer.token_ids += part.token_ids
        answer.finish_reason = part.finish_reason or answer.finish_reason
        if part.HasField("info"):
            answer.info = part.info
        if part.HasField("usage"):
            answer.usage = part.usage
        if on_tokens is not None:
            on_tokens(answer)
    return answer


@contextlib.asynccontextmanager
async def channel_to(cell: Cell):
    async with grpc.aio.insecure_channel(cell.grpc) as channel:
        yield channel
