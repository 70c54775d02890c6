"""What a replica that is always busy does: how often it answers, and how quickly.

Batches are steady: a request comes whenever one has ended, so nobody waits. Queues are `sizing.py`'s.
"""

from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

from armature.performance.step import StepShape
from armature.planning.queueing import prefill_s_of
from armature.planning.search.replica import Replica, Workload

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Answers in a lane that are tried."""
CHUNKS = (256, 512, 1024, 2048, 4096, 8192, 16384)
"""Prompt tokens beside them in one step."""
ROOM = 0.95
"""Of KV memory, that answers may fill when they are half done: they don't all end together."""


class Rate(NamedTuple):
    """One way to run a replica."""

    requests_per_s: float
    ttft_s: float
    """Of prompts; 0 where there are none."""
    itl_s: float
    """Of answers; 0 where there are none."""
    batch: int
    chunk_tokens: int = 0


def prefill_rates(replica: Replica, work: Workload) -> Iterator[Rate]:
    """Prompts alone, one or more of them in a step: more are cheaper together, and each takes as long as all."""
    new, lanes = work.new_tokens, replica.split.lanes
    room = replica.max_num_batched_tokens // new
    if room <= 1:
        took_s = prefill_s_of(replica.lane(), new, work.cached_tokens)
        yield Rate(lanes / took_s, took_s, 0.0, 1)
        return
    for batch in [count for count in BATCHES if count <= min(room, replica.max_num_seqs)]:
        tokens = batch * new
        took_s = replica.performance.step_s(StepShape(0, 0, tokens, _pairs(tokens, work)))
        yield Rate(lanes * batch / took_s, took_s, 0.0, batch)


def decode_rates(replica: Replica, work: Workload) -> Iterator[Rate]:
    """Answers alone."""
    for batch in _batches(replica, work):
        itl_s = replica.performance.step_s(StepShape(batch, round(batch * work.context_tokens)))
        yield Rate(replica.split.lanes * batch / (itl_s * (work.osl - 1)), 0.0, itl_s, batch)


def aggregated_rates(replica: Replica, work: Workload) -> Iterator[Rate]:
    """Answers that grow while prompts are computed chunk by chunk in some of their steps.

    Per request there are `(osl - 1) / batch` steps, of which `new_tokens / chunk` carry prompt tokens. Where that would
    be more than all, so many answers can't be kept up and the batch is smaller.
    """
    new, gaps = work.new_tokens, work.osl - 1
    for batch in _batches(replica, work):
        context = round(batch * work.context_tokens)
        decode_s = replica.performance.step_s(StepShape(batch, context))
        # Whoever may compute more at once than a prompt has takes the next prompt, too.
        for chunk in [size for size in CHUNKS if size + batch <= replica.max_num_batched_tokens]:
            mixed, steps = new / chunk, gaps / batch
            if mixed > steps:
                continue
            mixed_s = replica.performance.step_s(StepShape(batch, context, chunk, _pairs(chunk, work)))
            request_s = mixed * mixed_s + (steps - mixed) * decode_s
            ttft_s = ceil(mixed) * mixed_s
            yield Rate(replica.split.lanes / request_s, ttft_s, request_s * batch / gaps, batch, chunk)


def _batches(replica: Replica, work: Workload) -> list[int]:
    most = min(replica.max_num_seqs, int(ROOM * replica.kv_tokens / work.context_tokens))
    if work.isl + work.osl > replica.kv_tokens:
        most = 0
    listed = [count for count in BATCHES if count <= most]
    # The most that fits is seldom a round number, and often the best.
    return listed if most in listed or most < 1 else [*listed, most]


def _pairs(tokens: int, work: Workload) -> float:
    """Of new tokens with those before them in the same prompt."""
    return tokens * (work.cached_tokens + work.new_tokens / 2)
