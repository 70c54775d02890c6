"""Affinity and balance together, on a small day of traffic: siblings meet their cache, and nobody is run over."""

import random

import pytest

from armature.routing.decision import Placed
from tests.unit.routing.cell import BLOCK_SIZE, cell, query

PREFIX_TOKENS, OWN_TOKENS, RATE = 600, 100, 1000.0


def serve(popularity: list[float], seconds_between: float, number: int = 400) -> tuple[float, list[float]]:
    """Requests of groups that share a prefix, on four workers that keep all they compute; events come at once.

    Returns the share of prompt tokens found in a cache, and the seconds that each worker has computed.
    """
    rng, core = random.Random(3), cell("a1", "a2", "a3", "a4")
    held: dict[str, set[int]] = {f"a{n}": set() for n in range(1, 5)}
    busy_s = dict.fromkeys(held, 0.0)
    cached_tokens = 0
    for n in range(number):
        now_s = n * seconds_between
        (group,) = rng.choices(range(len(popularity)), popularity)
        own = [10_000_000 + n * 100 + block for block in range(OWN_TOKENS // BLOCK_SIZE)]
        hashes = [*(group * 1000 + block for block in range(PREFIX_TOKENS // BLOCK_SIZE)), *own]
        outcome = core.place(query(f"r{n}", PREFIX_TOKENS + OWN_TOKENS + 1, hashes=hashes), now_s)
        assert isinstance(outcome, Placed)
        worker_id = outcome.chosen.decode_id
        cached = sum(block in held[worker_id] for block in hashes) * BLOCK_SIZE
        cached_tokens += cached
        busy_s[worker_id] += (PREFIX_TOKENS + OWN_TOKENS + 1 - cached) / RATE
        held[worker_id].update(hashes)
        core.index.store(worker_id, hashes)
        core.first_token("gateway", f"r{n}")
        core.finish("gateway", f"r{n - 20}")
    return cached_tokens / number / (PREFIX_TOKENS + OWN_TOKENS), list(busy_s.values())


@pytest.mark.parametrize(
    ("popularity", "least_hits"),
    [
        pytest.param([1.0] * 16, 0.8, id="sixteen groups alike"),
        pytest.param([1 / (n + 1) for n in range(40)], 0.75, id="forty groups, few of them popular"),
        pytest.param([1.0], 0.83, id="one group for all"),
    ],
)
def test_siblings_find_their_prefix_and_no_worker_is_run_over(popularity: list[float], least_hits: float) -> None:
    """Each request has 100 tokens of its own to compute, so 0.857 is the bound, and at 0.03 s apart all must work."""
    hits, busy_s = serve(popularity, seconds_between=0.03)
    assert hits >= least_hits
    assert max(busy_s) <= 1.2 * sum(busy_s) / len(busy_s)


def test_one_worker_alone_serves_what_it_holds_as_long_as_it_keeps_up() -> None:
    hits, busy_s = serve([1.0], seconds_between=0.3)
    assert hits > 0.85
    assert sorted(busy_s)[:3] == [0.0, 0.0, 0.0]
