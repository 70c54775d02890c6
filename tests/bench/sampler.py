"""What choosing tokens costs: 16 answers at once over a vocabulary of 152 thousand, by what is asked of the choice.

Milliseconds of CPU for a step, the least of several, on one thread.
"""

import time
from typing import Any

import torch

from armature.blocks.hashing import BlockDigest
from armature.engines.torch.sampler import Sampler
from armature.scheduling.plan import Sequence, Slice
from armature.scheduling.request import Request, Sampling

ROWS, VOCAB, LIKELY = 16, 151_936, 40
TIMES = 8
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {},
    "top_k": {"top_k": 50},
    "top_p": {"top_p": 0.9},
    "top_k and top_p": {"top_k": 50, "top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "log probabilities": {"temperature": 0.0, "top_logprobs": 5},
}


def run() -> dict[str, object]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        logits = _logits()
        sampler = Sampler(VOCAB, (2,), torch.device("cpu"))
        return {name: {"step_ms": _step_ms(sampler, logits, asked)} for name, asked in ASKED.items()}
    finally:
        torch.set_num_threads(threads)


def _logits() -> torch.Tensor:
    """A few likely tokens far above the many others, as a trained model's are."""
    numbers = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, VOCAB, generator=numbers) * 2
    logits[:, :LIKELY] += torch.randn(ROWS, LIKELY, generator=numbers) * 3 + 18
    return logits


def _step_ms(sampler: Sampler, logits: torch.Tensor, asked: dict[str, Any]) -> float:
    rows = [_row(Sampling(seed=seed, **asked)) for seed in range(ROWS)]
    least = float("inf")
    for _ in range(TIMES):
        own = logits.clone()
        started_s = time.thread_time()
        sampler.sample(own, rows)
        least = min(least, time.thread_time() - started_s)
    return round(1000 * least, 2)


def _row(sampling: Sampling) -> Slice:
    tokens = [1, 2, 3]
    return Slice(Sequence(Request("r", tokens, 3, 100, BlockDigest(bytes(16)), sampling), tokens, []), 2, 1, True)
