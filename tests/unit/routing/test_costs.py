"""The cost model: what must grow with what, and that pairs are chosen as if all had been tried."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.routing.costs import CostModel, frontier
from armature.routing.decision import Candidate
from armature.routing.ledger import Account
from armature.routing.policy import Policy
from armature.routing.worker import Load, Speeds
from tests.unit.routing.cell import POLICY, load, worker

LOADS = st.builds(
    Load,
    running_seqs=st.integers(0, 40),
    waiting_seqs=st.integers(0, 70),
    waiting_prefill_tokens=st.integers(0, 9000),
    free_blocks=st.integers(0, 1000),
    speeds=st.builds(Speeds, st.floats(200, 9000), st.floats(0.001, 0.1), st.floats(1e7, 1e10)),
)


def account(name: str, reported: Load | None = None) -> Account:
    made = Account(worker(name), POLICY.speeds)
    made.report(reported or load(), 0.0, 0.0)
    return made


@settings(max_examples=150, deadline=None)
@given(
    decoders=st.lists(st.tuples(LOADS, st.integers(0, 60)), min_size=1, max_size=4),
    prefillers=st.lists(st.tuples(LOADS, st.integers(0, 60)), min_size=1, max_size=5),
    tokens=st.integers(700, 4000),
)
def test_the_frontier_finds_the_pair_that_trying_all_pairs_finds(
    decoders: list[tuple[Load, int]], prefillers: list[tuple[Load, int]], tokens: int
) -> None:
    costs = CostModel(POLICY)
    helpers = [
        costs.prefiller(account(f"p{number}", reported), overlap, tokens, 0.0)
        for number, (reported, overlap) in enumerate(prefillers)
    ]
    sides = [(account(f"d{number}", reported), overlap) for number, (reported, overlap) in enumerate(decoders)]

    def best(ways: list[Candidate | None]) -> float:
        return min(way.cost_s for way in ways if way is not None)

    of_all = best([costs.remote(side, overlap, tokens, [one], 0.0) for (side, overlap), one in product(sides, helpers)])
    kept = frontier(helpers)
    of_frontier = best([costs.remote(side, overlap, tokens, kept, 0.0) for side, overlap in sides])
    # The number of chunks is the one thing in which more computing may cost less; it moves a cost by a chunk's read.
    assert of_frontier == pytest.approx(of_all, rel=0.02)
    assert of_frontier >= of_all


@given(LOADS, st.integers(0, 60), st.integers(700, 4000))
def test_more_overlap_never_costs_more(reported: Load, overlap: int, tokens: int) -> None:
    costs, side = CostModel(POLICY), account("d1", reported)
    ways = [costs.local(side, blocks, tokens, 0.0) for blocks in (overlap, overlap + 1)]
    rounding_s = 1e-9
    assert ways[1].cost_s <= ways[0].cost_s + rounding_s
    helper = [costs.prefiller(account("p1"), 0, tokens, 0.0)]
    reads = [costs.remote(side, blocks, tokens, helper, 0.0) for blocks in (overlap, overlap + 1)]
    assert reads[0] is not None and reads[1] is not None
    assert reads[1].cost_s <= reads[0].cost_s + rounding_s


@pytest.mark.parametrize(
    ("tokens", "bandwidth", "transfer_s"),
    [
        # One chunk: nothing is read while it is computed. 40 blocks of 1 MB.
        (401, 1e9, 0.040 + 0.01),
        # Four chunks of 500 tokens: three quarters of the read are hidden.
        (2001, 1e9, 0.050 + 0.01),
        # A slow link: 200 MB at 50 MB/s take 4 s, of which all but a chunk of the computing's 2 s show.
        (2001, 5e7, 4.0 - 2.0 + 0.5 + 0.01),
    ],
)
def test_reading_is_hidden_behind_computing_but_for_a_chunk(tokens: int, bandwidth: float, transfer_s: float) -> None:
    costs = CostModel(POLICY)
    helper = costs.prefiller(account("p1"), 0, tokens, 0.0)
    way = costs.remote(account("d1", load(transfer_bytes_per_s=bandwidth)), 0, tokens, [helper], 0.0)
    assert way is not None
    assert way.transfer_s == pytest.approx(transfer_s)


def test_harm_grows_with_the_streams_that_are_stalled() -> None:
    costs = CostModel(POLICY)
    idle, busy = (costs.local(account("d1", load(running_seqs=n)), 0, 1064, 0.0) for n in (0, 10))
    # 1,000 tokens beyond those that ride along: a second for one stream to come, then for ten more, at half weight,
    # and half a step of 10 ms for each of the ten.
    assert idle.harm_s == pytest.approx(0.25 * 1.064 + 0.5 * 1.0)
    assert busy.harm_s == pytest.approx(0.25 * 1.064 + 0.5 * 11.0 + 0.5 * 0.01 * 10)
    # Those in line before it will stream when its turn comes.
    waited_for = costs.local(account("d1", load(running_seqs=6, waiting_seqs=4)), 0, 1064, 0.0)
    assert waited_for.harm_s == pytest.approx(busy.harm_s)


@pytest.mark.parametrize(
    ("reported", "room_s"),
    [
        (load(), 0.0),
        (load(free_blocks=41), 0.0),
        (load(free_blocks=0), 10.0 * 41 / 1000),
        (load(running_seqs=31), 0.0),
        (load(running_seqs=32), 10.0 / 32),
        (load(running_seqs=32, waiting_seqs=7), 10.0 * 8 / 32),
        (load(running_seqs=32, free_blocks=0), 10.0 * 41 / 1000),
    ],
)
def test_room_is_waited_for(reported: Load, room_s: float) -> None:
    assert CostModel(POLICY).local(account("d1", reported), 0, 400, 0.0).room_s == pytest.approx(room_s)


@pytest.mark.parametrize(
    ("name", "value"),
    [("work", -0.1), ("prefill_tokens_per_s", 0.0), ("expected_ttl_s", 0.0), ("max_waiting_seqs", 0)],
)
def test_a_wrong_policy_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Policy(**{name: value})  # type: ignore[arg-type]
