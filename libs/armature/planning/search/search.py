"""Every deployment of given replicas within a number of GPUs, and which of them nothing beats.

Replicas of one role are alike; prefill and decode may be split differently, on the same type of GPU.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, floor

from armature.planning.search.replica import Point, Pool, Replica, Workload, point_of
from armature.planning.search.steady import Rate, aggregated_rates, decode_rates, prefill_rates
from armature.routing.checks import check_numbers

AGGREGATED, DISAGGREGATED = "aggregated", "disaggregated"
MODES = (AGGREGATED, DISAGGREGATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a deployment must keep to.

    Raises:
        ValueError: a number is out of its range.
    """

    gpus: int
    """No more than these."""
    ttft_s: float
    link_bytes_per_s: float = 40e9
    """Of each GPU, for KV on its way from prefill to decode."""

    def __post_init__(self) -> None:
        check_numbers(self, above_zero=("gpus", "ttft_s", "link_bytes_per_s"))


def points(
    replicas: Sequence[Replica], work: Workload, bounds: Bounds, modes: Sequence[str] = MODES
) -> Iterator[Point]:
    """Every deployment within the bounds; of disaggregated ones, for each way to run both sides, the best counts."""
    if AGGREGATED in modes:
        for replica in replicas:
            yield from _aggregated(replica, work, bounds)
    if DISAGGREGATED in modes:
        prefills = [(one, [*prefill_rates(one, work)]) for one in replicas]
        decodes = [(one, [*undominated(decode_rates(one, work))]) for one in replicas]
        for prefill, prompts in prefills:
            quick = [rate for rate in prompts if rate.ttft_s + handoff_s(prefill, work, bounds) <= bounds.ttft_s]
            if not quick:
                continue
            prompt = max(quick, key=lambda rate: rate.requests_per_s)
            for decode, answers in decodes:
                if decode.gpu == prefill.gpu:
                    for answer in answers:
                        yield from _disaggregated((prefill, prompt), (decode, answer), work, bounds)


def frontier(found: Iterable[Point]) -> list[Point]:
    """Those that no other one beats in both speed for a user and throughput of a GPU; quickest for users first."""
    best: list[Point] = []
    ranked = sorted(found, key=lambda one: (one.itl_s, -one.tokens_per_s_per_gpu, one.ttft_s, one.gpus, str(one)))
    for one in ranked:
        if not best or one.tokens_per_s_per_gpu > best[-1].tokens_per_s_per_gpu:
            best.append(one)
    return best


def best_within(found: Iterable[Point], itl_s: float) -> Point | None:
    """The most throughput of a GPU at which answers are as quick as that."""
    quick = [one for one in found if one.itl_s <= itl_s]
    if not quick:
        return None
    return min(quick, key=lambda one: (-one.tokens_per_s_per_gpu, one.gpus, one.ttft_s, str(one)))


def handoff_s(prefill: Replica, work: Workload, bounds: Bounds) -> float:
    """A prompt's KV on its way; the GPUs of a lane send their shares at the same time."""
    return work.isl * prefill.token_bytes / (bounds.link_bytes_per_s * prefill.split.tp)


def undominated(rates: Iterable[Rate]) -> list[Rate]:
    """Ways to run a replica, without those that another one beats in rate, TTFT and ITL."""
    kept: list[Rate] = []
    ranked = sorted(rates, key=lambda one: (one.itl_s, one.ttft_s, -one.requests_per_s))
    for _, group in groupby(ranked, key=lambda one: one.itl_s):
        for one in group:
            if not any(other.requests_per_s >= one.requests_per_s and other.ttft_s <= one.ttft_s for other in kept):
                kept.append(one)
    return kept


def _aggregated(replica: Replica, work: Workload, bounds: Bounds) -> Iterator[Point]:
    count = bounds.gpus // replica.split.gpus
    if not count:
        return
    fitting = [rate for rate in aggregated_rates(replica, work) if rate.ttft_s <= bounds.ttft_s]
    for rate in undominated(fitting):
        pool = Pool(AGGREGATED, replica, count, rate.batch, rate.requests_per_s, rate.chunk_tokens)
        yield point_of(AGGREGATED, (pool,), rate.ttft_s, rate.itl_s, work)


def _disaggregated(
    prefill: tuple[Replica, Rate], decode: tuple[Replica, Rate], work: Workload, bounds: Bounds
) -> Iterator[Point]:
    """The counts with the most throughput of a GPU: for each number of prefill replicas, few numbers make sense."""
    (prefills, prompt), (decodes, answer) = prefill, decode
    ratio = prompt.requests_per_s / answer.requests_per_s
    ttft_s = prompt.ttft_s + handoff_s(prefills, work, bounds)
    best: Point | None = None
    for num_prefill in range(1, (bounds.gpus - decodes.split.gpus) // prefills.split.gpus + 1):
        left = (bounds.gpus - num_prefill * prefills.split.gpus) // decodes.split.gpus
        for num_decode in sorted({min(max(round_to(num_prefill * ratio), 1), left) for round_to in (floor, ceil)}):
            pools = (
                Pool("prefill", prefills, num_prefill, prompt.batch, prompt.requests_per_s),
                Pool("decode", decodes, num_decode, answer.batch, answer.requests_per_s),
            )
            one = point_of(DISAGGREGATED, pools, ttft_s, answer.itl_s, work)
            if best is None or (one.tokens_per_s_per_gpu, -one.gpus) > (best.tokens_per_s_per_gpu, -best.gpus):
                best = one
    if best is not None:
        yield best
