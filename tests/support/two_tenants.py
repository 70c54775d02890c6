"""Two tenants on one simulated cell: what one that sends far more than its share does to the other.

What is compared: `fair`, both tenants send their share at the same time, which the cell has room for together, against
`flooded`, where the quiet one sends the very same requests and the loud one `times` as many as its share.
"""

import random
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from armature.performance.presets import PRESETS
from armature.routing.router import RoutingCore
from armature.runtime.policies import load_policy
from armature.sim.cell import CellShape
from armature.sim.simulation import Simulation
from armature.sim.trace import Trace, TraceRequest
from armature.sim.worker import WorkerShape

PRESET = "qwen3-32b-tp2-h200"
QUIET, LOUD = "quiet", "loud"
WORKERS, STEP_TOKENS, OUTPUT_TOKENS = 2, 2048, 24
PROMPT_TOKENS = (1000, 4000)
_BLOCK_SIZE = 16


class Served(NamedTuple):
    """What became of one tenant's requests."""

    ttft_s: np.ndarray
    itl_s: float
    prompt_tokens_per_s: float
    """Of prompts that had their first token while requests came."""

    def figures(self) -> dict[str, float]:
        p50, p99 = np.quantile(self.ttft_s, (0.5, 0.99))
        return {
            "samples": len(self.ttft_s),
            "ttft_s_p50": round(float(p50), 4),
            "ttft_s_p99": round(float(p99), 4),
            "itl_s_mean": round(self.itl_s, 4),
            "prompt_tokens_per_s": round(self.prompt_tokens_per_s),
        }


def both_ways(share: float, times: float, seconds: float) -> dict[str, dict[str, Served]]:
    """Requests come for `seconds`, `share` in a second; all are served to their end. By way and tenant."""
    return {
        way: simulate({QUIET: share, LOUD: share * factor}, seconds)
        for way, factor in (("fair", 1.0), ("flooded", times))
    }


def ratio(both: Mapping[str, Mapping[str, Served]], quantile: float) -> float:
    """How many times as long the quiet tenant waits when the other one floods."""
    fair, flooded = (np.quantile(both[way][QUIET].ttft_s, quantile) for way in ("fair", "flooded"))
    return round(float(flooded / fair), 3)


def simulate(per_s: Mapping[str, float], seconds: float) -> dict[str, Served]:
    """Send so much; what became of it, by tenant."""
    trace, preset = Trace(_requests(per_s, seconds), _BLOCK_SIZE), PRESETS[PRESET]
    shape = WorkerShape(
        block_size=_BLOCK_SIZE,
        num_blocks=preset.kv_tokens // _BLOCK_SIZE,
        max_num_seqs=256,
        max_num_batched_tokens=STEP_TOKENS,
    )
    cell = CellShape(num_workers=WORKERS, worker=shape, performance=preset.performance, model=preset.model)
    done = Simulation(trace, cell, [RoutingCore(load_policy("seconds"), random.Random(0))]).run().outcomes
    arrival_s, first_s, finish_s = (done.times(name) for name in ("arrival_s", "first_token_s", "finish_s"))
    tenants, tokens = np.array([one.tenant for one in trace.requests]), done.counts("prompt_tokens")
    return {
        tenant: Served(
            (first_s - arrival_s)[own],
            float((finish_s - first_s)[own].mean()) / (OUTPUT_TOKENS - 1),
            float(tokens[own & (first_s < seconds)].sum()) / seconds,
        )
        for tenant in per_s
        for own in [tenants == tenant]
    }


def _requests(per_s: Mapping[str, float], seconds: float) -> list[TraceRequest]:
    """Each tenant's requests are the same whatever the other one sends; prompts have nothing in common."""
    coming: list[tuple[float, str, int]] = []
    for tenant, rate in per_s.items():
        rng, now_s = random.Random(tenant), 0.0
        while (now_s := now_s + rng.expovariate(rate)) < seconds:
            coming.append((now_s, tenant, rng.randint(*PROMPT_TOKENS)))
    requests, contents = list[TraceRequest](), 0
    for arrival_s, tenant, tokens in sorted(coming):
        blocks = -(-tokens // _BLOCK_SIZE)
        own = range(contents, contents + blocks)
        requests.append(TraceRequest(arrival_s, tokens, OUTPUT_TOKENS, own, tenant=tenant))
        contents += blocks
    return requests
