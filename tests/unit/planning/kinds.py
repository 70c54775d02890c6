"""Workers and arrivals that tests reckon with."""

import random

import numpy as np

from armature.performance.linear import LinearModel
from armature.planning.fleet import WorkerKind
from armature.planning.observer import Arrivals

EASY = LinearModel(fixed_s=0.0, decode_s=0.001, context_token_s=0.0, prefill_token_s=0.001, prefill_pair_s=0.0)
"""A millisecond for each prompt token and for each answer in a step."""


def kind(**more: object) -> WorkerKind:
    """A worker of 100,000 tokens of memory; a prompt of 1,000 tokens takes it a second."""
    return WorkerKind(**{"performance": EASY, "kv_tokens": 100_000, "max_num_batched_tokens": 1000, **more})  # pyright: ignore[reportArgumentType]


def poisson(rate: float, count: int, *, seed: int = 1, tokens: int = 1000, output_tokens: int = 1) -> Arrivals:
    """Requests that know nothing of each other."""
    rng = random.Random(seed)
    times = np.cumsum([rng.expovariate(rate) for _ in range(count)])
    return arrivals(times.tolist(), tokens, output_tokens)


def arrivals(times: list[float], tokens: int = 1000, output_tokens: int = 1) -> Arrivals:
    """Equal requests at these times."""
    columns = (np.full(len(times), float(value)) for value in (tokens, 0, output_tokens))
    return Arrivals(np.array(times, dtype=np.float64), *columns)
