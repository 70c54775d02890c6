"""What gateway and router cost in CPU per request and per token, against workers that compute nothing.

Two runs differ in their output tokens alone; the slope between them is the cost of a token, the rest that of a request.
"""

import asyncio
import json
import os
import random
import statistics
import tempfile
from pathlib import Path

from armature.runtime.processes import start_etcd
from tests.bench.load import Load, stream_all
from tests.support.cell import Cell, Service, running_cell

STREAMS, REQUESTS, PROMPT_TOKENS = 32, 640, 100
FEW_TOKENS, MANY_TOKENS = 32, 128
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


def cpu_s(service: Service) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{service.pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def bodies(count: int, max_tokens: int, rng: random.Random) -> list[dict[str, object]]:
    words = ["join", "path", "value", "return", "string", "object", "list", "module", "file", "name"]
    text = {"model": "demo", "stream": True, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
    return [{**text, "prompt": " ".join(rng.choices(words, k=PROMPT_TOKENS))} for _ in range(count)]


async def measure(cell: Cell, max_tokens: int, rng: random.Random) -> dict[str, float]:
    parts = [cell.services["gateway"], cell.services["router"]]
    before = [cpu_s(part) for part in parts]
    load: Load = await stream_all(
        cell.services["gateway"].addresses["http"], bodies(REQUESTS, max_tokens, rng), STREAMS
    )
    gateway_s, router_s = (cpu_s(part) - start for part, start in zip(parts, before, strict=True))
    return {
        "gateway_cpu_us_per_request": 1e6 * gateway_s / load.requests,
        "router_cpu_us_per_request": 1e6 * router_s / load.requests,
        "requests_per_s": load.requests / load.wall_s,
        "tokens_per_s": load.requests * max_tokens / load.wall_s,
        "ttft_s_p50": statistics.median(load.ttft_s),
        "ttft_s_p99": statistics.quantiles(load.ttft_s, n=100)[98],
        "e2e_s_p50": statistics.median(load.e2e_s),
    }


async def _run() -> dict[str, object]:
    rng = random.Random(3)
    with tempfile.TemporaryDirectory() as folder:
        etcd = await start_etcd(Path(folder) / "etcd")
        workers = ("--engine", "simulated")
        async with running_cell(Path(folder), etcd.address, prefill=0, worker_flags=workers) as cell:
            await measure(cell, FEW_TOKENS, rng)  # connections, caches, interpreter specialisation
            few = await measure(cell, FEW_TOKENS, rng)
            many = await measure(cell, MANY_TOKENS, rng)
        await etcd.stop()
    both = [run["gateway_cpu_us_per_request"] + run["router_cpu_us_per_request"] for run in (few, many)]
    per_token = (both[1] - both[0]) / (MANY_TOKENS - FEW_TOKENS)
    return {
        "streams": STREAMS,
        "prompt_tokens": PROMPT_TOKENS,
        "gateway_and_router_cpu_us_per_token": per_token,
        "gateway_and_router_cpu_us_per_request_besides_tokens": both[0] - FEW_TOKENS * per_token,
        f"{FEW_TOKENS}_tokens": few,
        f"{MANY_TOKENS}_tokens": many,
    }


def run() -> dict[str, object]:
    return asyncio.run(_run())


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
