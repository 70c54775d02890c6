"""What it costs a lone request to have its prompt computed elsewhere: time to first token, with and without.

A prefill and a decode worker as real processes, one thread each, otherwise idle. Every prompt is new, and the two ways
take turns. What is extra: the call and its announcements, the read of the last chunk, and a step for the prompt's tail.
"""

import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from armature.engines.demo_model import DEMO_MODEL_PATH
from armature.v1 import common_pb2 as common
from tests.support.decode_client import DecodeClient, decode_client
from tests.support.models import SPEED_SHAPE, make_model
from tests.support.workers import Child, Setup, child_worker

PROMPT_TOKENS = (500, 1500)
REPEATS = 9
VOCABULARY = 1000
"""Every model here knows so many tokens."""


async def ttft_s(client: DecodeClient, prompt: list[int], far: Child | None) -> tuple[float, common.ServingInfo]:
    started_s = time.perf_counter()
    answer = await client.ask(prompt, 1, prefill=far.target() if far else None)
    await answer.first_token()
    taken_s = time.perf_counter() - started_s
    await answer.wait()
    assert bool(answer.info.transferred_tokens) == bool(far), answer.info
    return taken_s, answer.info


async def measure(client: DecodeClient, far: Child, prompt_tokens: int, rng: random.Random) -> dict[str, float]:
    here: list[float] = []
    elsewhere: list[float] = []
    reading: list[float] = []
    size_bytes = 0
    for _ in range(REPEATS):
        prompts = [[rng.randrange(3, VOCABULARY) for _ in range(prompt_tokens)] for _ in range(2)]
        here.append((await ttft_s(client, prompts[0], None))[0])
        taken_s, info = await ttft_s(client, prompts[1], far)
        elsewhere.append(taken_s)
        reading.append(info.transfer_s)
        size_bytes = info.transferred_bytes
    return {
        "here_ms": 1e3 * min(here),
        "elsewhere_ms": 1e3 * min(elsewhere),
        "extra_ms": 1e3 * (min(elsewhere) - min(here)),
        "extra_ms_median": 1e3 * (statistics.median(elsewhere) - statistics.median(here)),
        "reading_ms": 1e3 * min(reading),
        "transferred_bytes": float(size_bytes),
    }


async def compare(model: Path) -> dict[str, Any]:
    rng = random.Random(5)
    setup: dict[str, Any] = {
        "torch_model": str(model),
        "num_blocks": 1024,
        "max_num_batched_tokens": 512,
        "secret": "handoff",
    }
    async with (
        child_worker(Setup(role="prefill", **setup)) as far,
        child_worker(Setup(role="decode", **setup)) as near,
        decode_client(near.address) as client,
    ):
        await measure(client, far, PROMPT_TOKENS[-1], rng)  # memory, connections
        found = {str(tokens): await measure(client, far, tokens, rng) for tokens in PROMPT_TOKENS}
    return {tokens: {key: round(value, 2) for key, value in values.items()} for tokens, values in found.items()}


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        speed = make_model(folder, **vars(SPEED_SHAPE))
        return {name: asyncio.run(compare(path)) for name, path in (("demo", DEMO_MODEL_PATH), ("32M", speed))}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
