"""The traffic replayed on a deployment in simulated time: what its users get, with queues, caches and placement."""

import random
from dataclasses import replace

import numpy as np

from armature.cli.deployment.request import Asked
from armature.planning.search.replica import Point, Pool
from armature.routing.policy import Disaggregation
from armature.routing.router import RoutingCore
from armature.runtime.policies import DEFAULT_POLICY, load_policy
from armature.sim.attainment import windows_of
from armature.sim.cell import CellShape, Engine
from armature.sim.simulation import Simulation
from armature.sim.summary import summarize
from armature.sim.worker import WorkerShape


def rehearse(asked: Asked, winner: Point, seed: int = 0) -> dict[str, float]:
    """TTFT and ITL at the targets' quantile, the share of prompts that was cached, and requests that failed.

    A lane is a simulated worker. Where prefill is apart, every prompt goes there, as it was sized.
    """
    assert asked.trace is not None
    policy = load_policy(DEFAULT_POLICY)
    if winner.mode == "disaggregated":
        policy = replace(policy, disaggregation=Disaggregation.ALWAYS)
    core = RoutingCore(policy, random.Random(seed))
    run = Simulation(asked.trace, cell_of(asked, winner), [core]).run()
    everything = windows_of(run.outcomes, asked.targets, float(np.max(run.outcomes.times("arrival_s"))) + 1)
    summary = summarize(run)
    (window,) = everything
    return {
        "ttft_s": window.ttft_s,
        "itl_s": window.itl_s,
        "ttft_s_mean": summary.ttft_s.mean,
        "itl_s_mean": summary.itl_s.mean,
        "reuse": summary.reuse,
        "unserved": float(summary.errors),
    }


def cell_of(asked: Asked, winner: Point) -> CellShape:
    """The deployment as a cell of the simulator."""
    assert asked.trace is not None
    block_size, last = asked.trace.block_size, winner.pools[-1]
    engines = [_engine(pool, block_size) for pool in winner.pools]
    lanes = [pool.num_replicas * pool.replica.split.lanes for pool in winner.pools]
    is_split = winner.mode == "disaggregated"
    return CellShape(
        num_workers=0 if is_split else lanes[0],
        num_prefill=lanes[0] if is_split else 0,
        num_decode=lanes[1] if is_split else 0,
        worker=engines[-1].shape,
        performance=engines[-1].performance,
        prefill=engines[0] if is_split else None,
        model=asked.model,
        block_bytes=max(block_size * last.replica.token_bytes, 1),
        link_bytes_per_s=asked.bounds.link_bytes_per_s * min([pool.replica.split.tp for pool in winner.pools]),
    )


def _engine(pool: Pool, block_size: int) -> Engine:
    replica = pool.replica
    shape = WorkerShape(
        block_size=block_size,
        num_blocks=max(replica.kv_tokens // block_size, 1),
        max_num_seqs=replica.max_num_seqs,
        max_num_batched_tokens=pool.chunk_tokens + pool.batch if pool.chunk_tokens else replica.max_num_batched_tokens,
    )
    return Engine(shape, replica.performance)
