"""What ways cost: what must grow with what, and that pairs are chosen as if all had been tried."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.performance.linear import LinearModel
from armature.routing.decision import Candidate, Placed
from armature.routing.hints import Hints
from armature.routing.policy import Disaggregation
from armature.routing.router import RoutingCore
from armature.routing.scorers import Crowding, Interference
from armature.routing.worker import Load, Speeds
from tests.unit.routing.cell import POLICY, cell, load, placed, prompt, query, worker

LOADS = st.builds(
    Load,
    running_seqs=st.integers(0, 40),
    waiting_seqs=st.integers(0, 60),
    waiting_prefill_tokens=st.integers(0, 3000),
    free_blocks=st.integers(500, 1000),
    speeds=st.builds(Speeds, st.floats(200, 9000), st.floats(0.001, 0.1), st.floats(1e7, 1e10)),
)
SIDE = st.tuples(LOADS, st.integers(0, 60))


def core_of(sides: dict[str, tuple[Load, int]], tokens: int, mode: Disaggregation) -> RoutingCore:
    core = cell(*sides, mode=mode)
    for name, (reported, overlap) in sides.items():
        core.report(name, reported, now_s=0.0)
        core.index.store(name, prompt(tokens)[:overlap])
    return core


def ways(reported: Load, tokens: int = 400, overlap: int = 0) -> list[Candidate]:
    """Of a decode worker that a prefill worker can help."""
    core = core_of({"d1": (reported, overlap), "p1": (load(), 0)}, tokens, Disaggregation.AUTO)
    outcome = core.place(query(tokens=tokens), now_s=0.0)
    assert isinstance(outcome, Placed), outcome
    return outcome.candidates


def local(reported: Load, tokens: int = 400, overlap: int = 0) -> Candidate:
    return next(way for way in ways(reported, tokens, overlap) if not way.prefill_id)


def remote(reported: Load, tokens: int = 400, overlap: int = 0) -> Candidate:
    return next(way for way in ways(reported, tokens, overlap) if way.prefill_id)


@settings(max_examples=100, deadline=None)
@given(
    decoders=st.lists(SIDE, min_size=1, max_size=4),
    prefillers=st.lists(SIDE, min_size=1, max_size=5),
    tokens=st.integers(700, 4000),
)
def test_the_pair_is_the_one_that_trying_all_pairs_finds(
    decoders: list[tuple[Load, int]], prefillers: list[tuple[Load, int]], tokens: int
) -> None:
    """What filters leave out is not the point here."""
    policy = replace(POLICY, filters={}, disaggregation=Disaggregation.ALWAYS)
    decode = {f"d{n}": side for n, side in enumerate(decoders)}
    prefill = {f"p{n}": side for n, side in enumerate(prefillers)}

    def best(*names: str) -> float:
        core = RoutingCore(policy, random.Random(0))
        for name in decode | prefill:
            core.put_worker(worker(name, is_draining=bool(names) and name not in names))
        for name, (reported, overlap) in (decode | prefill).items():
            core.report(name, reported, now_s=0.0)
            core.index.store(name, prompt(tokens)[:overlap])
        outcome = core.place(query(tokens=tokens), now_s=0.0)
        assert isinstance(outcome, Placed), outcome
        return float(outcome.judgement.costs.min())

    of_all = min(best(one, other) for one in decode for other in prefill)
    # The number of chunks is the one thing in which more computing may cost less; it moves a cost by a chunk's read.
    assert best() == pytest.approx(of_all, rel=0.02)


@settings(deadline=None)
@given(LOADS, st.integers(0, 60), st.integers(700, 4000))
def test_more_overlap_never_costs_more(reported: Load, overlap: int, tokens: int) -> None:
    rounding_s = 1e-9
    for kind in (local, remote):
        less, more = (kind(replace(reported, waiting_seqs=0), tokens, blocks).cost for blocks in (overlap, overlap + 1))
        assert more <= less + rounding_s


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
    assert remote(load(transfer_bytes_per_s=bandwidth), tokens).terms["transfer"] == pytest.approx(transfer_s)


def test_interference_grows_with_the_streams_that_are_stalled() -> None:
    stalls, crowds = POLICY.scorers["interference"], POLICY.scorers["crowding"]
    assert isinstance(stalls, Interference) and isinstance(crowds, Crowding)
    interference, crowding = stalls.decode_weight, crowds.weight
    idle, busy = (local(load(running_seqs=n), 1064).terms for n in (0, 10))
    # 1,000 tokens beyond those that ride along: a second for one stream to come, then for ten more, and a share of a
    # step of 10 ms for each of the ten.
    assert idle["interference"] == pytest.approx(interference * 1.0)
    assert busy["interference"] == pytest.approx(interference * 11.0)
    assert (idle["crowding"], busy["crowding"]) == pytest.approx((0.0, crowding * 0.01 * 10))
    # Those in line before it will stream when its turn comes.
    waited_for = local(load(running_seqs=6, waiting_seqs=4), 1064).terms
    assert waited_for["interference"] == pytest.approx(busy["interference"])


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
    assert local(reported).terms["room"] == pytest.approx(room_s)


def test_an_answer_that_is_expected_to_be_long_needs_more_room_and_crowds_more() -> None:
    def terms(expected: int) -> dict[str, float]:
        core = cell("a1")
        core.report("a1", load(running_seqs=10, free_blocks=60), now_s=0.0)
        hints = Hints(expected_output_tokens=expected)
        outcome = core.place(query(tokens=400, hints=hints), now_s=0.0)
        assert isinstance(outcome, Placed)
        return dict(outcome.chosen.terms)

    short, long = terms(100), terms(1024)
    assert (short["room"], long["room"]) == pytest.approx((0.0, 10.0 * (143 - 60) / 1000))
    assert long["crowding"] == pytest.approx(4 * short["crowding"])


STEPS = LinearModel(0.01, 0.001, 1e-6, 1e-3, 1e-6)


def test_attention_makes_long_prompts_cost_more_than_their_length() -> None:
    way = local(load(steps=STEPS), tokens=4000, overlap=100)
    # 3,000 tokens in six steps of 500, each of them attending to 1,000 cached ones and half of the others.
    assert way.terms["prefill"] == pytest.approx(3000 * 1e-3 + 1e-6 * 3000 * (1000 + 1500) + 6 * 0.01)


def test_steps_are_longer_where_answers_grow() -> None:
    # 10 answers, 500 used blocks of 10 tokens.
    way = local(load(steps=STEPS, running_seqs=10, free_blocks=500), tokens=400)
    assert way.terms["prefill"] == pytest.approx(0.4 + 1e-6 * 400 * 200 + 0.01 + 0.01 + 0.005)


def test_the_queue_is_made_of_prompts_and_not_of_tokens() -> None:
    core = cell("a1")
    core.report("a1", load(steps=STEPS), now_s=0.0)
    for number, tokens in enumerate((4000, 100)):
        core.place(query(f"r{number}", tokens, seed=number), now_s=0.0)
    # The long one is half done; what is left of it attends to the first half.
    core.report("a1", load(steps=STEPS, waiting_prefill_tokens=2100), now_s=5.0)
    outcome = core.place(query("next", 10, seed=9), now_s=5.0)
    assert isinstance(outcome, Placed)
    left_s = 2000 * 1e-3 + 1e-6 * 2000 * 3000 + 4 * 0.01
    short_s = 100 * 1e-3 + 1e-6 * 100 * 50 + 0.01
    assert outcome.chosen.terms["queue"] == pytest.approx(left_s + short_s)


def test_whoever_does_not_care_for_his_own_latency_does_the_least_harm() -> None:
    def choice(sensitivity: float) -> tuple[str, str]:
        core = cell("d1", "p1")
        core.report("d1", load(running_seqs=2), now_s=0.0)
        core.report("p1", load(waiting_prefill_tokens=8000), now_s=0.0)
        return placed(core.place(query(hints=Hints(latency_sensitivity=sensitivity)), now_s=0.0))

    assert choice(1.0) == ("d1", "")
    assert choice(0.0) == ("d1", "p1")


def test_a_session_stays_for_a_while_where_its_last_turn_was() -> None:
    core = cell("a1", "a2")
    assert placed(core.place(query("one", 50, session_id="s"), now_s=0.0)) == ("a1", "")
    core.finish("gateway", "one")
    for number in range(4):
        turn = query(f"turn-{number}", 50, seed=number + 1, session_id="s")
        assert placed(core.place(turn, now_s=float(number))) == ("a1", "")
        core.finish("gateway", f"turn-{number}")
    assert placed(core.place(query("stranger", 50, seed=8), now_s=5.0)) == ("a2", "")
    core.finish("gateway", "stranger")
    assert placed(core.place(query("much later", 50, seed=9, session_id="s"), now_s=3000.0)) == ("a1", "")
