"""How well an engine's live fit foretells its next step and a whole prompt, and what fitting costs.

Traffic first: prompts and answers of mixed lengths, several at a time; each step is foretold by the fit of those
before it. Then prompts alone, each foretold before it starts, by the fit and by the last rate of tokens. The torch
engine computes the demo model on one thread, and its steps are timed in CPU time, since wall-clock times would show
what else the machine does; the roofline says what steps of a 32B model on two H200 take, and 5 % noise is added.
"""

import time
from collections.abc import Callable, Iterator
from random import Random
from statistics import median, quantiles

from armature.blocks.hashing import BlockHasher
from armature.blocks.pool import BlockPool
from armature.engines.demo_model import DEMO_MODEL_PATH
from armature.engines.torch.runner import torch_engine_runner
from armature.performance.fit import StepFit
from armature.performance.presets import PRESETS
from armature.performance.shape import shape_of
from armature.performance.step import StepShape
from armature.scheduling.limits import Limits
from armature.scheduling.plan import SampledToken, StepPlan
from armature.scheduling.request import Request
from armature.scheduling.scheduler import Scheduler

BLOCK_SIZE, CHUNK, SEQS = 16, 512, 8
REQUESTS, WARM_STEPS = 60, 50
PROMPTS = (128, 300, 700, 1500, 3000)
"""Tokens of the prompts that are computed alone."""

Compute = Callable[[StepPlan], tuple[list[SampledToken], float]]
"""Computes a step; what it sampled, and how long it took."""


class Engine:
    """A scheduler and something that computes, step by step."""

    def __init__(self, compute: Compute, num_blocks: int) -> None:
        limits = Limits(max_num_seqs=SEQS, max_num_batched_tokens=CHUNK, context_length=8192, vocab_size=4000)
        self.fit = StepFit()
        self._hasher = BlockHasher(b"secret", BLOCK_SIZE)
        self._scheduler = Scheduler(limits, BlockPool(num_blocks), self._hasher)
        self._compute = compute
        self._rng = Random(1)
        self._number = 0

    def submit(self, prompt_tokens: int, max_tokens: int) -> None:
        self._number += 1
        tokens = [self._rng.randrange(10, 4000) for _ in range(prompt_tokens)]
        request = Request(str(self._number), tokens, prompt_tokens, max_tokens, self._hasher.root("model"))
        self._scheduler.submit(request)

    def steps(self) -> Iterator[tuple[StepShape, float]]:
        while (plan := self._scheduler.schedule()) is not None:
            sampled, elapsed_s = self._compute(plan)
            yield shape_of(plan), elapsed_s
            self._scheduler.complete(plan, sampled)
            self._scheduler.take(self._scheduler.load(self.fit))


def run() -> dict[str, dict[str, object]]:
    return {"torch_cpu_demo_model": measure(*torch_engine()), "h200_roofline": measure(*roofline())}


def measure(compute: Compute, num_blocks: int) -> dict[str, object]:
    engine, rng = Engine(compute, num_blocks), Random(2)
    fit, off, fitting_s = engine.fit, {"decode": [], "prefill": []}, []
    for _ in range(REQUESTS):
        engine.submit(rng.choice([30, 100, 400, 1000, 2500]), rng.randint(5, 60))
    for number, (shape, elapsed_s) in enumerate(engine.steps()):
        if fit.model is not None and number > WARM_STEPS:
            kind = "prefill" if shape.prefill_tokens else "decode"
            off[kind].append(abs(fit.model.step_s(shape) / elapsed_s - 1))
        started_s = time.thread_time()
        fit.observe(shape, elapsed_s)
        fitting_s.append(time.thread_time() - started_s)
    return {
        "steps": len(fitting_s),
        "step_error": {kind: spread(errors) for kind, errors in off.items()},
        "prompt_error": alone(engine),
        "fitting_us_per_step": round(sum(fitting_s) / len(fitting_s) * 1e6, 1),
    }


def alone(engine: Engine) -> dict[str, dict[str, float]]:
    """Errors for whole prompts: of the fit, and of dividing by a rate."""
    fit, by_fit, by_rate = engine.fit, [], []
    for _ in range(5):
        for tokens in PROMPTS:
            assert fit.model is not None
            foretold_s, rate_s = fit.model.prefill_s(tokens, 0, CHUNK), tokens / fit.prefill_tokens_per_s
            engine.submit(tokens, 1)
            took_s = 0.0
            for shape, elapsed_s in engine.steps():
                took_s += elapsed_s
                fit.observe(shape, elapsed_s)
            by_fit.append(abs(foretold_s / took_s - 1))
            by_rate.append(abs(rate_s / took_s - 1))
    return {"fit": spread(by_fit), "rate": spread(by_rate)}


def spread(errors: list[float]) -> dict[str, float]:
    return {"median": round(median(errors), 3), "p90": round(quantiles(errors, n=10)[-1], 3)}


def torch_engine() -> tuple[Compute, int]:
    limits = {"num_blocks": 2048, "max_num_seqs": SEQS, "max_num_batched_tokens": CHUNK, "threads": 1}
    runner = torch_engine_runner(DEMO_MODEL_PATH, model_name="demo", device="cpu", **limits)

    def compute(plan: StepPlan) -> tuple[list[SampledToken], float]:
        started_s = time.thread_time()
        sampled = list(runner.execute(plan))
        return sampled, time.thread_time() - started_s

    return compute, runner.info.num_blocks


def roofline() -> tuple[Compute, int]:
    model, rng = PRESETS["qwen3-32b-tp2-h200"].performance, Random(3)

    def compute(plan: StepPlan) -> tuple[list[SampledToken], float]:
        sampled = [SampledToken(7)] * plan.num_samples
        return sampled, model.step_s(shape_of(plan)) * rng.lognormvariate(0.0, 0.05)

    return compute, 4096
