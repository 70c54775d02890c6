"""Small cells and made-up traffic."""

import random

from armature.performance.presets import PRESETS
from armature.routing.router import RoutingCore
from armature.runtime.policies import load_policy
from armature.sim.simulation import CellShape, Simulation
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


def cell(num_workers: int = 4, *, num_blocks: int = 700, stretches: bool = True, event_lag_s: float = 0.0) -> CellShape:
    preset = PRESETS["qwen3-32b-tp2-h200"]
    return CellShape(
        num_workers=num_workers,
        worker=WorkerShape(block_size=BLOCK_SIZE, num_blocks=num_blocks, max_num_seqs=16, max_num_batched_tokens=2048),
        performance=preset.performance,
        stretches=stretches,
        event_lag_s=event_lag_s,
    )


def simulation(trace: Trace, shape: CellShape, policy: str = "seconds", seed: int = 0) -> Simulation:
    return Simulation(trace, shape, RoutingCore(load_policy(policy), random.Random(seed)))
