"""What an engine step costs outside the model: scheduling, blocks, outputs; and what a block costs the pool."""

from time import perf_counter

from armature.blocks.hashing import BlockHasher
from armature.blocks.pool import BlockPool
from armature.performance.fit import StepFit
from armature.scheduling.limits import Limits
from armature.scheduling.plan import SampledToken
from armature.scheduling.request import Request
from armature.scheduling.scheduler import Scheduler

BLOCK_SIZE = 16
STEPS, ROUNDS = 200, 5
"""Decode steps in a round; of the rounds the best counts, since other work on the machine only ever adds."""


def run() -> dict[str, dict[str, float]]:
    return {
        "scheduler_us_per_step": {f"{seqs}_decodes": step_us(seqs) for seqs in (1, 8, 32, 64, 256)},
        "pool_us_per_block": pool_us(),
    }


def step_us(num_seqs: int) -> float:
    """Microseconds of one step of `num_seqs` running answers: plan, completion, output and load."""
    limits = Limits(max_num_seqs=num_seqs, max_num_batched_tokens=8192, context_length=100_000, vocab_size=32_000)
    hasher, fit = BlockHasher(b"secret", BLOCK_SIZE), StepFit()
    scheduler = Scheduler(limits, BlockPool(65_536), hasher)
    for number in range(num_seqs):
        scheduler.submit(Request(str(number), [number] * 100, 100, 100_000, hasher.root("model")))
    tokens = [SampledToken(number) for number in range(num_seqs)]

    def step() -> int:
        plan = scheduler.schedule()
        assert plan is not None
        scheduler.complete(plan, tokens[: plan.num_samples])
        scheduler.take(scheduler.load(fit))
        return len(plan.decodes)

    while step() < num_seqs:
        pass
    best_s = float("inf")
    for _ in range(ROUNDS):
        started_s = perf_counter()
        for _ in range(STEPS):
            step()
        best_s = min(best_s, (perf_counter() - started_s) / STEPS)
    return round(best_s * 1e6, 1)


def pool_us(num_blocks: int = 65_536) -> dict[str, float]:
    """Microseconds per block of what the pool does."""
    hasher, pool = BlockHasher(b"secret", BLOCK_SIZE), BlockPool(num_blocks + 1)
    figures: dict[str, float] = {}
    started_s = perf_counter()

    def lap(name: str) -> None:
        nonlocal started_s
        figures[name] = round((perf_counter() - started_s) / num_blocks * 1e6, 3)
        started_s = perf_counter()

    digests = hasher.extend(hasher.root("model"), range(BLOCK_SIZE * num_blocks))
    lap("digest")
    block_ids = pool.allocate(num_blocks) or []
    lap("allocate")
    for block_id, digest in zip(block_ids, digests, strict=True):
        pool.commit(block_id, digest)
    lap("commit")
    pool.release(block_ids)
    lap("release")
    pool.match(digests)
    lap("match")
    pool.release(block_ids)
    started_s = perf_counter()
    for _ in range(num_blocks):
        pool.allocate(1)
    lap("allocate_by_eviction")
    return figures
