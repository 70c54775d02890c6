"""Replays a trace on a live cell, as clients of its gateway, and tells what they saw."""

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import grpc

from armature.engines.demo_model import DEMO_MODEL_PATH
from armature.sim.trace import Trace, TraceRequest
from armature.v1 import common_pb2, inference_pb2
from armature.v1.inference_pb2_grpc import InferenceStub

TIMEOUT_S = 300.0
# The demo vocabulary has 4,096 tokens, the first of which are special ones and bytes.
_FIRST_TOKEN, _DIGITS = 300, 3700


@dataclass(slots=True)
class Served:
    """What a client saw of its request; times in seconds from the trace's start."""

    arrival_s: float
    """When the trace has it come."""
    sent_s: float = 0.0
    first_token_s: float = 0.0
    finish_s: float = 0.0
    output_tokens: int = 0
    cached_tokens: int = 0
    prompt_tokens: int = 0
    worker_id: str = ""
    migrations: int = 0
    error: str = ""


def long_context_model(folder: Path) -> Path:
    """The demo model's tokenizer with room for any prompt, without weights: for simulated engines only."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO_MODEL_PATH / name, folder / name)
    config = json.loads((DEMO_MODEL_PATH / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1 << 20}))
    return folder


def token_ids(request: TraceRequest, block_size: int) -> list[int]:
    """The prompt in the demo vocabulary: each block repeats the two digits of its content's number."""
    ids: list[int] = []
    for content in request.contents:
        high, low = divmod(content, _DIGITS)
        if high >= _DIGITS:
            raise ValueError(f"content {content} is too large a number; below {_DIGITS**2} it can be written in tokens")
        ids += [_FIRST_TOKEN + high, _FIRST_TOKEN + low] * (block_size // 2)
    return ids[: request.prompt_tokens]


async def replay(address: str, trace: Trace, model: str = "demo") -> list[Served]:
    """Send every request when it is due, whatever has become of the others; the outcomes in the trace's order."""
    messages = [_message(trace, position, model) for position in range(len(trace.requests))]
    loop = asyncio.get_running_loop()
    async with grpc.aio.insecure_channel(address) as channel:
        stub, started_s = InferenceStub(channel), loop.time() + 0.2

        async def one(position: int) -> Served:
            request = trace.requests[position]
            served = Served(request.arrival_s, prompt_tokens=request.prompt_tokens)
            await asyncio.sleep(started_s + request.arrival_s - loop.time())
            served.sent_s = loop.time() - started_s
            try:
                async for part in stub.Generate(messages[position], timeout=TIMEOUT_S):
                    if part.token_ids and not served.output_tokens:
                        served.first_token_s = loop.time() - started_s
                    served.output_tokens += len(part.token_ids)
                    if part.HasField("info"):
                        served.worker_id, served.migrations = part.info.decode_worker, part.info.migrations
                        served.cached_tokens = part.info.cached_tokens
            except grpc.aio.AioRpcError as error:
                served.error = f"{error.code().name} {error.details()}"
            served.finish_s = loop.time() - started_s
            return served

        return list(await asyncio.gather(*(one(position) for position in range(len(messages)))))


def _message(trace: Trace, position: int, model: str) -> inference_pb2.GenerateRequest:
    request = trace.requests[position]
    return inference_pb2.GenerateRequest(
        model=model,
        tokens=inference_pb2.TokenIds(ids=token_ids(request, trace.block_size)),
        # A seed of its own, so that equal prompts get different answers, as in the simulator.
        sampling=common_pb2.SamplingParams(temperature=1.0, seed=position + 1, ignore_eos=True),
        max_tokens=request.output_tokens,
        include_info=True,
    )
