"""Small cells and made-up traffic."""

import random
from typing import Any

from armature.performance.presets import PRESETS
from armature.routing.router import RoutingCore
from armature.runtime.policies import load_policy
from armature.sim.cell import CellShape
from armature.sim.simulation import Simulation
from armature.sim.trace import Trace, TraceRequest
from armature.sim.worker import WorkerShape

BLOCK_SIZE = 32


def families(requests: int, *, rate: float, seed: int = 1, num_families: int = 12) -> Trace:
    """Requests that share a long beginning with others of their family, and end in something of their own."""
    rng, made, arrival_s = random.Random(seed), list[TraceRequest](), 0.0
    for number in range(requests):
        arrival_s += rng.expovariate(rate)
        family, shared, own = rng.randrange(num_families), 100, rng.randrange(1, 9)
        contents = [1000 * family + i for i in range(shared)] + [100_000 + 100 * number + i for i in range(own)]
        prompt_tokens = len(contents) * BLOCK_SIZE - rng.randrange(BLOCK_SIZE)
        made.append(TraceRequest(arrival_s, prompt_tokens, rng.randrange(1, 120), contents))
    return Trace(made, BLOCK_SIZE)


def cell(num_workers: int = 4, *, num_blocks: int = 700, **more: Any) -> CellShape:
    preset = PRESETS["qwen3-32b-tp2-h200"]
    return CellShape(
        num_workers=num_workers,
        worker=WorkerShape(block_size=BLOCK_SIZE, num_blocks=num_blocks, max_num_seqs=16, max_num_batched_tokens=2048),
        performance=preset.performance,
        block_bytes=BLOCK_SIZE * preset.token_bytes,
        **more,
    )


def simulation(
    trace: Trace, shape: CellShape, policy: str = "seconds", seed: int = 0, *, routers: int = 1, concurrency: int = 0
) -> Simulation:
    cores = [RoutingCore(load_policy(policy), random.Random(seed + i)) for i in range(routers)]
    return Simulation(trace, shape, cores, concurrency=concurrency)


def check_conservation(done: Simulation, trace: Trace) -> None:
    """Every request has ended as it should, and every block is back."""
    for asked, got in zip(trace.requests, done.outcomes, strict=True):
        assert not got.error
        assert got.output_tokens == asked.output_tokens
        assert got.arrival_s < got.first_token_s <= got.finish_s
        assert got.cached_tokens < asked.prompt_tokens
        assert (got.finish_s == got.first_token_s) == (asked.output_tokens == 1)
    for engine in done.engines:
        engine.pool.check()
        assert not engine.has_work
        assert engine.pool.free_blocks == engine.pool.total_blocks
