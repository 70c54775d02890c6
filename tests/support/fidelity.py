"""The same trace, policy and performance model once in the simulator and once in a live cell of simulated workers.

`armature.sim` is given engines that are `speed_up` times as fast, as the live ones are, so that whatever the policy
counts in seconds means the same; all times are then told as of the engines at their real speed.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from armature.cli.trace_files import read_trace
from armature.performance.faster import Faster
from armature.performance.presets import PRESETS
from armature.routing.router import RoutingCore
from armature.runtime.policies import load_policy
from armature.runtime.processes import start_etcd
from armature.sim.simulation import CellShape, Outcome, Simulation
from armature.sim.summary import spread
from armature.sim.trace import Trace, TraceRequest
from armature.sim.worker import WorkerShape
from tests.support.cell import running_cell
from tests.support.replay import Served, long_context_model, replay

SAMPLE = Path(__file__).parents[1] / "data" / "mooncake_conversation_200.jsonl"
PRESET = "qwen3-32b-tp2-h200"
LOAD_INTERVAL_S, EVENT_LAG_S = 0.05, 0.01
"""As live: the router's default, and two hops that gather what comes within 5 ms."""
MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS = 256, 8192


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One comparison. Wall time is about the trace's 72 s, over `rate` and `speed_up`, and the last answers."""

    trace: Path = SAMPLE
    limit: int = 200
    workers: int = 8
    rate: float = 2.4
    """Arrivals, times the trace's."""
    speed_up: float = 1.0
    """Of the engines. Lower it if CPU is the bottleneck, which `late_s` shows."""
    policy: str = "seconds"
    num_blocks: int = 0

    def load_trace(self) -> Trace:
        sample = read_trace(self.trace).cut_out(num_requests=self.limit)
        return spread_out(sample).sped_up(self.rate * self.speed_up)

    @property
    def blocks(self) -> int:
        return self.num_blocks or PRESETS[PRESET].kv_tokens // 512


def spread_out(trace: Trace) -> Trace:
    """Requests of one instant evenly until the next one.

    The trace's clock ticks every three seconds. In which order the requests of a tick get to the router is chance in a
    live cell, and that alone moves the mean time to first token by a tenth.
    """
    instants = sorted({one.arrival_s for one in trace.requests})
    following_s = dict(pairwise(instants))
    crowd, seen = Counter(one.arrival_s for one in trace.requests), Counter[float]()
    requests: list[TraceRequest] = []
    for one in trace.requests:
        start_s = one.arrival_s
        step_s = (following_s.get(start_s, start_s + 1.0) - start_s) / crowd[start_s]
        requests.append(replace(one, arrival_s=start_s + seen[start_s] * step_s))
        seen[start_s] += 1
    return Trace(requests, trace.block_size)


def simulate(setting: Setting, trace: Trace) -> list[Outcome]:
    preset = PRESETS[PRESET]
    shape = WorkerShape(
        block_size=trace.block_size, num_blocks=setting.blocks, max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
    )  # fmt: skip
    cell = CellShape(
        num_workers=setting.workers, worker=shape, performance=Faster(preset.performance, setting.speed_up),
        block_bytes=trace.block_size * preset.token_bytes,
        report_interval_s=LOAD_INTERVAL_S,
        event_lag_s=EVENT_LAG_S,
    )  # fmt: skip
    core = RoutingCore(load_policy(setting.policy), random.Random(0))
    return list(Simulation(trace, cell, [core]).run().outcomes)


async def live(setting: Setting, trace: Trace, folder: Path) -> tuple[list[Served], float]:
    """What clients saw, and how late the engines were on average when they began a step."""
    etcd = await start_etcd(folder / "etcd")
    # One block more: the pool's first one is never handed out.
    flags = (
        "--model", str(long_context_model(folder / "model")), "--context-length", "1000000",
        "--performance", PRESET, "--speed-up", str(setting.speed_up), "--block-size", str(trace.block_size),
        "--num-blocks", str(setting.blocks + 1), "--simulated-block-bytes", "64",
        "--max-num-seqs", str(MAX_NUM_SEQS), "--max-num-batched-tokens", str(MAX_NUM_BATCHED_TOKENS),
    )  # fmt: skip
    try:
        async with running_cell(
            folder / "cell",
            etcd.address,
            prefill=0,
            decode=0,
            fleets=(setting.workers,),
            worker_flags=flags,
            flags={"router": ("--policy", setting.policy)},
        ) as cell:
            served = await replay(cell.grpc, trace)
            metrics = await cell.services["fleet-0"].metrics()
    finally:
        await etcd.stop()
    lag = "armature_worker_simulated_lag_seconds"
    return served, metrics[f"{lag}_sum"] / max(metrics[f"{lag}_count"], 1)


def figures(outcomes: Sequence[Outcome | Served], speed_up: float) -> dict[str, float]:
    """Seconds of engines at their real speed."""
    answered = [one for one in outcomes if not one.error]
    ttft = spread([(one.first_token_s - one.arrival_s) * speed_up for one in answered])
    gaps = [
        (one.finish_s - one.first_token_s) * speed_up / (one.output_tokens - 1)
        for one in answered
        if one.output_tokens > 1
    ]
    itl, e2e = spread(gaps), spread([(one.finish_s - one.arrival_s) * speed_up for one in answered])
    return {
        "ttft_s_mean": ttft.mean, "ttft_s_p50": ttft.p50, "ttft_s_p90": ttft.p90, "ttft_s_p99": ttft.p99,
        "itl_s_mean": itl.mean, "itl_s_p50": itl.p50, "itl_s_p99": itl.p99, "e2e_s_mean": e2e.mean,
        "reuse": sum(one.cached_tokens for one in answered) / max(1, sum(one.prompt_tokens for one in answered)),
    }  # fmt: skip
