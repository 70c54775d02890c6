"""Tokens per second of the torch engine's runner against transformers' `generate`, same weights, same threads.

The two take turns within one process and each case keeps its best of several runs, so that other work on the machine
hits both alike. The ratio is what to look at.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging

from armature.engines.torch.runner import torch_engine_runner
from armature.scheduling.plan import Slice
from tests.support.models import SPEED_SHAPE, make_model
from tests.support.stepping import Driver

CONTEXT, PROMPT, STEPS = 128, 512, 16
"""Context that decode starts from, prompt of the prefill case, decode steps that are timed."""


class Clock(StoppingCriteria):
    """Notes when each token was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Ours:
    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        self.driver = Driver(
            torch_engine_runner(
                path, model_name="bench", device="cpu", dtype=dtype, num_blocks=512, max_num_seqs=16, threads=threads
            )
        )

    def __call__(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        driver = self.driver
        start = time.perf_counter()
        sequences = [driver.sequence(one, room=tokens) for one in prompts]
        driver.step(*[Slice(one, 0, len(one.token_ids), samples=True) for one in sequences])
        first = time.perf_counter()
        driver.decode(sequences, tokens - 1)
        end = time.perf_counter()
        for one in sequences:
            driver.runner.forget(one.request.request_id)
            driver.free += one.block_ids
        return first - start, end - first


class Theirs:
    def __init__(self, path: Path, dtype: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="sdpa")
        self.model.generation_config.eos_token_id = None

    def __call__(self, prompts: list[list[int]], tokens: int) -> tuple[float, float]:
        clock = Clock()
        ids = torch.tensor(prompts)
        start = time.perf_counter()
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        return clock.times[0] - start, clock.times[-1] - clock.times[0]


def run(threads: int = 2, repeats: int = 3, dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> dict[str, Any]:
    """Tokens per second by case: `ours`, `hf` and their `ratio`."""
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    numbers = torch.Generator().manual_seed(0)
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        path = make_model(directory, **vars(SPEED_SHAPE))
        for dtype in dtypes:
            engines = {"ours": Ours(path, dtype, threads), "hf": Theirs(path, dtype)}
            for name, batch, length, tokens in (
                ("prefill_512", 1, PROMPT, 1),
                ("decode_batch_1", 1, CONTEXT, STEPS + 1),
                ("decode_batch_16", 16, CONTEXT, STEPS + 1),
            ):
                prompts = torch.randint(3, SPEED_SHAPE.vocab, (batch, length), generator=numbers).tolist()
                amount = batch * (length if tokens == 1 else STEPS)
                cases[f"{dtype}_{name}"] = _compare(engines, prompts, tokens, amount, repeats)
    return {"threads": threads, "parameters": "32M", "torch": torch.__version__, "tokens_per_s": cases}


def _compare(
    engines: dict[str, Callable[[list[list[int]], int], tuple[float, float]]],
    prompts: list[list[int]],
    tokens: int,
    amount: int,
    repeats: int,
) -> dict[str, float]:
    best = dict.fromkeys(engines, float("inf"))
    for _ in range(repeats):
        for name, engine in engines.items():
            prefill_s, decode_s = engine(prompts, tokens)
            best[name] = min(best[name], prefill_s if tokens == 1 else decode_s)
    speeds = {name: round(amount / seconds, 1) for name, seconds in best.items()}
    return speeds | {"ratio": round(best["hf"] / best["ours"], 2)}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
