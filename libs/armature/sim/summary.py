"""What a run comes to, in numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from armature.sim.record import Column
from armature.sim.simulation import Run, TierUse


@dataclass(frozen=True, slots=True)
class Spread:
    """A quantity over requests; all 0 if there are none."""

    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    most: float = 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """One policy's run. Seconds, from the request's arrival at the router."""

    requests: int
    served: int
    refusals: int
    """Answers "overloaded" on the way to being served."""
    migrations: int
    errors: int
    onboarded_blocks: int
    """Read from the tiers below devices; likewise `pulled_blocks` from other workers and nodes."""
    pulled_blocks: int
    failed_fetches: int
    """Prompts of which not all blocks came from the prefill worker."""
    ttft_s: Spread
    itl_s: Spread
    """Of each request's mean between its tokens; requests of one token have none."""
    e2e_s: Spread
    reuse: float
    """Share of prompt tokens that were found in a worker's cache, or read from another memory."""
    prompt_tokens: int
    output_tokens: int
    duration_s: float
    """From the start of the trace to the end of the last request."""
    preemptions: int
    requests_imbalance: float
    """Requests of the worker with most, over the mean of those that answer."""
    tiers: Mapping[str, TierUse]
    """Of those blocks, and of what was written, by tier."""


def summarize(run: Run) -> Summary:
    """The numbers of a run."""
    record, served = run.outcomes, run.outcomes.is_served()
    arrival_s, first_s, finish_s = (record.times(f"{name}_s")[served] for name in ("arrival", "first_token", "finish"))
    prompt, output, cached = (record.counts(f"{name}_tokens")[served] for name in ("prompt", "output", "cached"))
    several = output > 1
    requests = [worker.requests for worker in run.workers if worker.requests]
    return Summary(
        requests=len(record),
        served=int(served.sum()),
        refusals=int(record.counts("refusals").sum()),
        migrations=int(record.counts("migrations").sum()),
        errors=len(record) - int(served.sum()),
        onboarded_blocks=sum([one.onboarded_blocks for one in run.tiers.values()]),
        pulled_blocks=run.pulled_blocks,
        failed_fetches=run.failed_fetches,
        ttft_s=spread(first_s - arrival_s),
        itl_s=spread((finish_s - first_s)[several] / (output[several] - 1)),
        e2e_s=spread(finish_s - arrival_s),
        reuse=float(cached.sum() / prompt.sum()) if len(prompt) else 0.0,
        prompt_tokens=int(prompt.sum()),
        output_tokens=int(output.sum()),
        duration_s=float(record.times("finish_s").max(initial=0.0)),
        preemptions=sum([worker.preemptions for worker in run.workers]),
        requests_imbalance=max(requests) * len(requests) / sum(requests) if requests else 1.0,
        tiers={tier.name: use for tier, use in run.tiers.items()},
    )


def spread(values: Sequence[float] | Column) -> Spread:
    """Mean and quantiles; a quantile is the smallest value that so large a share does not exceed."""
    if not len(values):
        return Spread()
    ordered = np.sort(np.asarray(values, dtype=np.float64))

    def quantile(percent: int) -> float:
        return float(ordered[-(-len(ordered) * percent // 100) - 1])

    # Exactly rounded: the same on every machine.
    return Spread(math.fsum(ordered) / len(ordered), quantile(50), quantile(90), quantile(99), float(ordered[-1]))
