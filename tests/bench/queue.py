"""The router's queue: one tenant floods an overloaded cell, simulated; and what the queue's own work costs.

Four workers get more than twice what they can compute for a minute, three quarters of it from one tenant; no prompts
have anything in common. The same requests go through every way of queueing, so ratios within the run mean something.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from armature.performance.presets import PRESETS
from armature.routing.decision import Query
from armature.routing.policy import Policy
from armature.routing.queueing.drain_rate import DrainRate
from armature.routing.queueing.gates import Always
from armature.routing.queueing.line import Line
from armature.routing.queueing.orders import Fcfs
from armature.routing.queueing.settings import QueuePolicy
from armature.routing.queueing.waiting import Waiting, Work
from armature.routing.router import RoutingCore
from armature.runtime.policies import load_policy
from armature.sim.cell import CellShape
from armature.sim.simulation import Simulation
from armature.sim.trace import Trace, TraceRequest
from armature.sim.worker import WorkerShape

BLOCK_SIZE = 512
SECONDS = 60.0
REQUESTS_PER_S = 25.0
FLOOD_SHARE = 0.75
QUIET_TENANTS = 5


def run() -> dict[str, object]:
    trace = Trace(list(_requests(random.Random(1))), BLOCK_SIZE)
    flooded = {name: _replay(trace, policy) for name, policy in _policies().items()}
    sizes = {f"{size}_waiting": _bench_line(size) for size in (1_000, 16_000)}
    return {"flood": flooded, "cpu_us_per_request": sizes}


def _policies() -> dict[str, Policy]:
    ours = load_policy("seconds")
    plain = replace(ours.queue, order=Fcfs(), tenants=False, floor=0.0)
    return {
        "seconds": ours,
        "seconds_fcfs": replace(ours, queue=plain),
        "seconds_without_turns": replace(ours, queue=replace(ours.queue, tenants=False)),
        "seconds_without_gate": replace(ours, queue=replace(ours.queue, gate=Always())),
        "dynamo": load_policy("dynamo"),
        "dynamo_wspt": load_policy("dynamo_wspt"),
    }


def _requests(rng: random.Random) -> Iterator[TraceRequest]:
    now_s, contents = 0.0, 0
    while (now_s := now_s + rng.expovariate(REQUESTS_PER_S)) < SECONDS:
        tenant = "flood" if rng.random() < FLOOD_SHARE else f"quiet{int(rng.random() * QUIET_TENANTS)}"
        prompt_tokens = int(min(max(rng.lognormvariate(8.5, 1.0), 100), 60_000))
        output_tokens = int(min(max(rng.lognormvariate(5.0, 0.7), 10), 1_000))
        blocks = -(-prompt_tokens // BLOCK_SIZE)
        own = range(contents, contents + blocks)
        yield TraceRequest(now_s, prompt_tokens, output_tokens, own, tenant=tenant)
        contents += blocks


def _replay(trace: Trace, policy: Policy) -> dict[str, Any]:
    preset = PRESETS["qwen3-32b-tp2-h200"]
    shape = WorkerShape(
        block_size=BLOCK_SIZE, num_blocks=preset.kv_tokens // BLOCK_SIZE, max_num_seqs=256, max_num_batched_tokens=8192
    )
    cell = CellShape(num_workers=4, worker=shape, performance=preset.performance, model=preset.model)
    record = Simulation(trace, cell, [RoutingCore(policy, random.Random(0))]).run().outcomes
    first_s = record.times("first_token_s")
    ttft_s = first_s - record.times("arrival_s")
    floods = np.array([request.tenant == "flood" for request in trace.requests])
    return {
        "ttft_s": _spread(ttft_s),
        "ttft_s_quiet": _spread(ttft_s[~floods]),
        "ttft_s_flood": _spread(ttft_s[floods]),
        "jain_index": round(_jain_index(trace, first_s < SECONDS), 3),
        "refusals": int(record.counts("refusals").sum()),
    }


def _jain_index(trace: Trace, is_served: Any) -> float:
    """Jain's index of the prompt tokens served per tenant while the overload lasted; 1 is equal (Jain et al. 1984)."""
    tokens: dict[str, int] = {}
    for request, served in zip(trace.requests, is_served, strict=True):
        tokens[request.tenant] = tokens.get(request.tenant, 0) + request.prompt_tokens * bool(served)
    shares = np.array(list(tokens.values()), dtype=np.float64)
    return float(shares.sum() ** 2 / (len(shares) * (shares**2).sum()))


def _spread(values: Any) -> dict[str, float]:
    p50, p99 = np.quantile(values, (0.5, 0.99))
    return {"mean": round(float(values.mean()), 2), "p50": round(float(p50), 2), "p99": round(float(p99), 2)}


def _bench_line(size: int, operations: int = 20_000) -> float:
    """CPU of one request's way through a queue in which `size` others wait."""
    policy: QueuePolicy = load_policy("seconds").queue
    line, rng = Line(policy, DrainRate(1.0, 0.0)), random.Random(3)

    def add(number: int) -> None:
        work = Work(rng.uniform(0.01, 5.0), 1000)
        one = Waiting(Query("r", "m", 1000), work, float(number), number)
        one.tenant, one.band = f"t{number % 50}", number % 3
        one.key = policy.order.key(one.query.hints, work, one.arrival_s)
        one.expires_s = one.arrival_s + 1e9
        line.add(one, one.arrival_s)

    for number in range(size):
        add(number)
    started_s = time.process_time()
    for number in range(operations):
        add(size + number)
        owed = line.owed()
        one = owed or line.pop()
        assert one is not None
        line.place(one, float(number), is_owed=owed is not None)
    return round((time.process_time() - started_s) / operations * 1e6, 2)
