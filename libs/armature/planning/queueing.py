"""What requests would meet on so many workers: a queue replayed arrival by arrival, without an engine's detail.

Prompts wait for the worker that is free first, one prompt at a time, as placement by predicted time does it. Answers
grow by a token a step: on a worker of their own as fast as the batch allows, beside prompts only once a chunk. There is
no chance in it, and nothing is fitted: arrivals bring their bursts with them.
"""

import heapq
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from armature.performance.step import StepShape
from armature.planning.fleet import WorkerKind
from armature.planning.observer import Arrivals

Floats = NDArray[np.float64]

_MOST_ROUNDS = 10
"""In which batch size and step time are brought together; where they run apart, there are too few workers."""
_CLOSE = 0.01
_LONG_S = 1e7


class Jobs(NamedTuple):
    """Arrivals as work, in columns: what their prompts take alone on a worker."""

    arrival_s: Floats
    prefill_s: Floats
    chunks: Floats
    """Steps that a prompt is computed in."""
    context_tokens: Floats
    """Of an answer half done."""
    output_tokens: Floats


class Met(NamedTuple):
    """What every request would meet."""

    ttft_s: Floats
    itl_s: Floats
    """NaN for answers of one token."""
    load: float
    """Share of the time that is spent on prompts, or on prefill workers."""
    kv_share: float
    """Of KV memory that is in use at the busiest time, if answers are spread evenly."""


def jobs_of(arrivals: Arrivals, kind: WorkerKind) -> Jobs:
    """What arrivals ask of workers of a kind."""
    rows = zip(arrivals.new_tokens.tolist(), arrivals.cached_tokens.tolist(), strict=True)
    prefill_s = np.array([prefill_s_of(kind, max(int(new), 1), cached) for new, cached in rows])
    chunks = np.maximum(np.ceil(arrivals.new_tokens / kind.max_num_batched_tokens), 1.0)
    context = arrivals.new_tokens + arrivals.cached_tokens + arrivals.output_tokens / 2
    return Jobs(arrivals.arrival_s, prefill_s, chunks, context, arrivals.output_tokens)


def prefill_s_of(kind: WorkerKind, new_tokens: int, cached_tokens: float) -> float:
    """A prompt alone on a worker, chunk by chunk."""
    took_s, done = 0.0, 0
    while done < new_tokens:
        chunk = min(new_tokens - done, kind.max_num_batched_tokens)
        took_s += kind.performance.step_s(StepShape(0, 0, chunk, chunk * (cached_tokens + done + chunk / 2)))
        done += chunk
    return took_s


def wait(arrival_s: Floats, service_s: Floats, num_servers: int) -> tuple[Floats, NDArray[np.int64]]:
    """When each of these would begin, in order, and at which server: whichever is free first.

    Raises:
        ValueError: there is no server.
    """
    if num_servers < 1:
        raise ValueError(f"num_servers is {num_servers}; it must be at least 1")
    free = [(0.0, server) for server in range(num_servers)]
    begins, servers = np.empty(len(arrival_s)), np.empty(len(arrival_s), dtype=np.int64)
    for i, (came_s, takes_s) in enumerate(zip(arrival_s.tolist(), service_s.tolist(), strict=True)):
        free_s, server = free[0]
        begin_s = max(free_s, came_s)
        begins[i], servers[i] = begin_s, server
        heapq.heapreplace(free, (begin_s + takes_s, server))
    return begins, servers


def meet_aggregated(jobs: Jobs, kind: WorkerKind, num_workers: int) -> Met:
    """Workers that compute prompts and answers in the same steps."""
    took_s = span_s(jobs)
    growing = jobs.output_tokens > 1
    slow, begins, servers = 1.0, np.empty(0), np.empty(0, dtype=np.int64)
    itl_s = np.full(len(jobs.arrival_s), np.nan)
    batch, context = 1.0, float(jobs.context_tokens.mean())
    for _ in range(_MOST_ROUNDS):
        begins, servers = wait(jobs.arrival_s, jobs.prefill_s * slow, num_workers)
        itl_s = _beside_prompts(jobs, begins, servers, slow, _decode_step_s(kind, batch, batch * context))
        decode_s = np.where(growing, np.nan_to_num(itl_s) * (jobs.output_tokens - 1), 0.0)
        last, batch = batch, float(decode_s.sum()) / took_s / num_workers
        slow = _slowed(kind, batch, batch * context)
        if abs(batch - last) <= _CLOSE * max(last, 1.0):
            break
    first_s = begins + jobs.prefill_s * slow
    load = float(jobs.prefill_s.sum()) * slow / (took_s * num_workers)
    decode_s = np.where(growing, np.nan_to_num(itl_s) * (jobs.output_tokens - 1), 0.0)
    answers, tokens = _most(first_s, first_s + decode_s, jobs.context_tokens)
    return Met(first_s - jobs.arrival_s, itl_s, load, _share(kind, answers, tokens, num_workers))


def meet_disaggregated(jobs: Jobs, kind: WorkerKind, num_prefill: int, num_decode: int) -> Met:
    """Prompts on some workers, answers on others."""
    took_s = span_s(jobs)
    begins, _ = wait(jobs.arrival_s, jobs.prefill_s, num_prefill)
    first_s = begins + jobs.prefill_s + kind.handoff_s
    itl_s = np.full(len(first_s), _decode_step_s(kind, 1.0, float(jobs.context_tokens.mean())))
    steps = np.maximum(jobs.output_tokens - 1, 0.0)
    end_s = first_s
    for _ in range(_MOST_ROUNDS):
        end_s = first_s + itl_s * steps
        answers, tokens = _beside(first_s, end_s, jobs.context_tokens)
        last_s, itl_s = itl_s, _decode_step_s(kind, answers / num_decode, tokens / num_decode)
        if float(np.abs(itl_s - last_s).max()) <= _CLOSE * float(last_s.max()):
            break
    answers, tokens = _most(first_s, end_s, jobs.context_tokens)
    load = float(jobs.prefill_s.sum()) / (took_s * num_prefill)
    first_itl_s = itl_s.copy()
    itl_s[steps < 1] = np.nan
    return Met(first_s - jobs.arrival_s + first_itl_s, itl_s, load, _share(kind, answers, tokens, num_decode))


def alone(jobs: Jobs, kind: WorkerKind) -> Met:
    """Every request on a worker of its own: no number of workers does better."""
    step_s = float(_decode_step_s(kind, 1.0, float(jobs.context_tokens.mean()))[0])
    itl_s = np.where(jobs.output_tokens > 1, step_s, np.nan)
    return Met(jobs.prefill_s + kind.handoff_s, itl_s, 0.0, 0.0)


def span_s(jobs: Jobs) -> float:
    """The time that arrivals stand for: one gap more than there are between them."""
    between_s = max(float(jobs.arrival_s[-1] - jobs.arrival_s[0]), float(jobs.prefill_s.max()), 1e-3)
    return between_s * (len(jobs.arrival_s) + 1) / len(jobs.arrival_s)


def _decode_step_s(kind: WorkerKind, batch: "Floats | float", context_tokens: "Floats | float") -> Floats:
    """Steps of running answers alone; performance models take whole numbers one at a time, so points are joined."""
    batches, contexts = np.atleast_1d(np.maximum(batch, 1.0)), np.atleast_1d(context_tokens)
    if len(batches) <= 4:
        return np.array([_one_step_s(kind, b, c) for b, c in zip(batches.tolist(), contexts.tolist(), strict=True)])
    each = float(contexts.sum() / batches.sum())
    grid = np.unique(np.geomspace(1.0, max(float(batches.max()), 2.0), 24))
    lone = np.array([_one_step_s(kind, b, b * each) for b in grid.tolist()])
    per_token = (_one_step_s(kind, grid[-1], 2 * grid[-1] * each) - lone[-1]) / max(grid[-1] * each, 1.0)
    return np.interp(batches, grid, lone) + per_token * (contexts - batches * each)


def _one_step_s(kind: WorkerKind, batch: float, context_tokens: float) -> float:
    return kind.performance.step_s(StepShape(max(round(batch), 1), round(context_tokens)))


def _slowed(kind: WorkerKind, batch: float, context_tokens: float) -> float:
    """How much longer a step of prompts takes because answers grow in it."""
    chunk = kind.max_num_batched_tokens
    alone = StepShape(0, 0, chunk, chunk * chunk / 2)
    beside = StepShape(round(batch), round(context_tokens), max(chunk - round(batch), 1), chunk * chunk / 2)
    return max(kind.performance.step_s(beside) / kind.performance.step_s(alone), 1.0)


def _beside_prompts(jobs: Jobs, begins: Floats, servers: NDArray[np.int64], slow: float, step_s: Floats) -> Floats:
    """Mean seconds between tokens of each answer on a worker that goes on with prompts: one token a chunk meanwhile."""
    itl_s = np.full(len(begins), np.nan)
    if not (jobs.output_tokens > 1).any():
        return itl_s
    for server in range(int(servers.max()) + 1):
        mine = np.flatnonzero(servers == server)
        starts = begins[mine]
        ends = starts + jobs.prefill_s[mine] * slow
        times = np.empty(2 * len(mine) + 1)
        times[0:-1:2], times[1:-1:2] = starts, ends
        times[-1] = times[-2] + _LONG_S if len(mine) else 0.0
        if not len(mine):
            continue
        gained = np.empty(2 * len(mine))
        gained[0::2] = jobs.chunks[mine]
        gained[1:-1:2] = (starts[1:] - ends[:-1]) / step_s[0]
        gained[-1] = _LONG_S / step_s[0]
        tokens = np.concatenate(([0.0], np.cumsum(gained)))
        steps = jobs.output_tokens[mine] - 1
        finish = np.interp(tokens[1:-1:2] + steps, tokens, times)
        # An answer on the way gains at least what the batch allows: interpolation across idle spans is exact.
        itl_s[mine] = np.where(steps > 0, (finish - ends) / np.maximum(steps, 1.0), np.nan)
    return itl_s


def _beside(start_s: Floats, end_s: Floats, context_tokens: Floats) -> tuple[Floats, Floats]:
    """Answers that grow, and their tokens, in the middle of each answer's time."""
    middle_s = (start_s + end_s) / 2
    by_start, by_end = np.argsort(start_s, kind="stable"), np.argsort(end_s, kind="stable")
    begun = np.searchsorted(start_s[by_start], middle_s, side="right")
    ended = np.searchsorted(end_s[by_end], middle_s, side="right")
    begun_tokens = np.concatenate(([0.0], np.cumsum(context_tokens[by_start])))
    ended_tokens = np.concatenate(([0.0], np.cumsum(context_tokens[by_end])))
    return np.maximum(begun - ended, 1.0).astype(np.float64), begun_tokens[begun] - ended_tokens[ended]


def _most(start_s: Floats, end_s: Floats, context_tokens: Floats) -> tuple[float, float]:
    """The most answers that grow at a time, and their tokens."""
    answers, tokens = _beside(start_s, np.maximum(end_s, start_s), context_tokens)
    return float(answers.max()), float(tokens.max())


def _share(kind: WorkerKind, answers: float, tokens: float, num_workers: int) -> float:
    return max(answers / kind.max_num_seqs, tokens / kind.kv_tokens) / num_workers
