"""What a run comes to, in numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from armature.sim.simulation import Run


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
    errors: int
    ttft_s: Spread
    itl_s: Spread
    """Of each request's mean between its tokens; requests of one token have none."""
    e2e_s: Spread
    reuse: float
    """Share of prompt tokens that were found in a worker's cache."""
    prompt_tokens: int
    output_tokens: int
    duration_s: float
    """From the start of the trace to the end of the last request."""
    preemptions: int
    requests_imbalance: float
    """Requests of the worker with most, over the mean."""


def summarize(run: Run) -> Summary:
    """The numbers of a run."""
    served = [outcome for outcome in run.outcomes if not outcome.error]
    prompt_tokens = sum([outcome.prompt_tokens for outcome in served])
    requests = [worker.requests for worker in run.workers]
    return Summary(
        requests=len(run.outcomes),
        served=len(served),
        refusals=sum([outcome.refusals for outcome in run.outcomes]),
        errors=len(run.outcomes) - len(served),
        ttft_s=spread([outcome.first_token_s - outcome.arrival_s for outcome in served]),
        itl_s=spread(
            [(one.finish_s - one.first_token_s) / (one.output_tokens - 1) for one in served if one.output_tokens > 1]
        ),
        e2e_s=spread([outcome.finish_s - outcome.arrival_s for outcome in served]),
        reuse=sum([outcome.cached_tokens for outcome in served]) / prompt_tokens if prompt_tokens else 0.0,
        prompt_tokens=prompt_tokens,
        output_tokens=sum([outcome.output_tokens for outcome in served]),
        duration_s=max([outcome.finish_s for outcome in run.outcomes], default=0.0),
        preemptions=sum([worker.preemptions for worker in run.workers]),
        requests_imbalance=max(requests) * len(requests) / sum(requests) if sum(requests) else 1.0,
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and quantiles; a quantile is the smallest value that so large a share does not exceed."""
    if not values:
        return Spread()
    ordered = sorted(values)

    def quantile(percent: int) -> float:
        return ordered[-(-len(ordered) * percent // 100) - 1]

    return Spread(sum(ordered) / len(ordered), quantile(50), quantile(90), quantile(99), ordered[-1])
