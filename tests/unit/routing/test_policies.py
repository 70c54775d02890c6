"""What each policy does, and that a decision can be judged again by another one."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.index.tiers import LOWER_TIERS, Tier
from armature.performance.linear import LinearModel
from armature.routing.decision import Placed, Query
from armature.routing.filters import HotSpot, Straggler
from armature.routing.judge import judge
from armature.routing.pickers import Softmax
from armature.routing.policy import Disaggregation
from armature.routing.router import RoutingCore
from armature.routing.worker import NO_READING, Load, Reading
from armature.runtime.policies import load_policy, shipped_policies
from armature.scheduling.lower_tiers import TierSpeed
from tests.unit.routing.cell import BLOCK_SIZE, POLICY, account, cell, load, placed, prompt, query, worker

FAST = LinearModel(0.01, 0.0, 0.0, 1e-3, 0.0)
SLOW = LinearModel(0.04, 0.0, 0.0, 4e-3, 0.0)


def homes(core: RoutingCore, number: int, now_s: float = 0.0) -> list[str]:
    return [placed(core.place(query(f"r{n}", seed=n), now_s))[0] for n in range(number)]


def test_round_robin_takes_turns_and_newcomers_go_first() -> None:
    core = cell("a1", "a2", "a3", policy=load_policy("round_robin"))
    assert homes(core, 5) == ["a1", "a2", "a3", "a1", "a2"]
    core.put_worker(worker("a0"))
    assert homes(core, 3) == ["a0", "a3", "a1"]


def test_least_loaded_counts_requests_and_draws_among_equals() -> None:
    core = cell("a1", "a2", "a3", policy=load_policy("least_loaded"))
    assert sorted(homes(core, 3)) == ["a1", "a2", "a3"]
    core.finish("gateway", "r1")
    assert Counter(homes(core, 6)).most_common(1)[0][1] == 2


def test_power_of_two_never_takes_the_busiest() -> None:
    core = cell("a1", "a2", "a3", policy=load_policy("power_of_two"))
    for number in range(50):
        requests = {name: account(core, name).requests for name in ("a1", "a2", "a3")}
        chosen = placed(core.place(query(f"r{number}", seed=number), 0.0))[0]
        assert requests[chosen] < max(requests.values()) or len(set(requests.values())) < 3


def test_random_is_random_and_repeatable() -> None:
    def drawn(seed: int) -> list[str]:
        core = RoutingCore(load_policy("random"), random.Random(seed))
        for name in ("a1", "a2", "a3"):
            core.put_worker(worker(name))
        return homes(core, 60)

    assert drawn(1) == drawn(1) != drawn(2)
    assert min(Counter(drawn(1)).values()) > 5


def test_softmax_prefers_the_best_and_tries_the_others() -> None:
    core = cell("a1", "a2", policy=replace(POLICY, picker=Softmax(temperature=0.5)))
    core.report("a1", load(waiting_prefill_tokens=5000), now_s=0.0)
    chosen: Counter[str] = Counter()
    for number in range(200):
        chosen[placed(core.place(query("r", seed=number), 0.0))[0]] += 1
        core.finish("gateway", "r")
    assert 5 < chosen["a1"] < 60


PROMPTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 90), st.sampled_from(["", "first", "finish"])), min_size=1, max_size=25
)


@settings(max_examples=60, deadline=None)
@given(PROMPTS)
def test_dynamos_cost_is_the_published_one(events: list[tuple[int, int, str]]) -> None:
    """Against a naive sum over everything in flight."""
    names = ("a1", "a2", "a3")
    core = cell(*names, policy=load_policy("dynamo"))
    flying: dict[str, tuple[str, Query, float, bool]] = {}
    for number, (seed, tokens, what) in enumerate(events):
        asked = query(f"r{number}", tokens, seed=seed)
        depths = core.index.match(asked.hashes)
        outcome = core.place(asked, float(number))
        assert isinstance(outcome, Placed)
        for way in outcome.candidates:
            here = [one for one in flying.values() if one[0] == way.decode_id]
            waiting = sum(uncached for _, _, uncached, is_waiting in here if is_waiting)
            own = max(tokens - depths.get(way.decode_id, 0) * BLOCK_SIZE, 0)
            active = {block for _, one, _, _ in here for block in one.hashes} | set(asked.hashes)
            tails = sum(one.prompt_tokens % BLOCK_SIZE > 0 for _, one, _, _ in here) + (tokens % BLOCK_SIZE > 0)
            assert way.cost == pytest.approx((waiting + own) / BLOCK_SIZE + len(active) + tails)
        chosen = outcome.chosen.decode_id
        uncached = max(tokens - depths.get(chosen, 0) * BLOCK_SIZE, 0)
        flying[asked.request_id] = (chosen, asked, uncached, True)
        core.index.store(chosen, asked.hashes)
        oldest = next(iter(flying))
        if what:
            core.first_token("gateway", oldest)
            flying[oldest] = (*flying[oldest][:3], False)
        if what == "finish":
            core.finish("gateway", oldest)
            del flying[oldest]


@pytest.mark.parametrize("name", shipped_policies())
def test_every_policy_places_both_halves_of_a_request(name: str) -> None:
    core = cell("d1", "d2", "p1", "p2", policy=load_policy(name))
    ways = [placed(core.place(query(f"r{n}", 2000, seed=n), 0.0)) for n in range(8)]
    assert {decode for decode, _ in ways} <= {"d1", "d2"}
    assert {prefill for _, prefill in ways} <= {"", "p1", "p2"}
    assert any(prefill for _, prefill in ways)
    never = cell("d1", "p1", policy=load_policy(name), mode=Disaggregation.NEVER)
    assert placed(never.place(query(tokens=2000), 0.0)) == ("d1", "")


@pytest.mark.parametrize("name", shipped_policies())
def test_no_policy_sends_anybody_to_who_drains_or_has_failed_or_is_too_small(name: str) -> None:
    core = cell(worker("a1", is_draining=True), "a2", worker("a3", num_blocks=20), "a4", policy=load_policy(name))
    for number in range(10):
        assert placed(core.place(query(f"r{number}", excluded=["a4"]), 0.0))[0] == "a2"


# Filters.


def test_a_straggler_gets_nothing_but_a_probe_now_and_then() -> None:
    core = cell("a1", "a2", "a3", "a4", policy=replace(POLICY, filters={"straggler": Straggler(probe_s=30.0)}))
    for name in ("a1", "a2", "a3"):
        core.report(name, load(steps=FAST), now_s=0.0)
    core.report("a4", load(steps=SLOW), now_s=0.0)
    core.index.store("a4", prompt(500))
    core.place(query("seen", 500), now_s=0.0)
    assert account(core, "a4").requests == 1
    core.finish("gateway", "seen")
    assert placed(core.place(query("again", 500), now_s=10.0))[0] != "a4"
    core.finish("gateway", "again")
    assert placed(core.place(query("probe", 500), now_s=31.0))[0] == "a4"
    core.finish("gateway", "probe")
    core.report("a4", load(steps=FAST), now_s=40.0)
    assert placed(core.place(query("recovered", 500), now_s=41.0))[0] == "a4"


def test_stragglers_alone_are_better_than_nobody() -> None:
    core = cell("a1", "a2", "a3")
    for name, steps in (("a1", FAST), ("a2", FAST), ("a3", SLOW)):
        core.report(name, load(steps=steps), now_s=0.0)
    for number in range(3):
        assert placed(core.place(query(f"r{number}", excluded=["a1", "a2"]), 1.0))[0] == "a3"


def test_nobody_runs_far_ahead_of_the_others_whatever_is_cached_there() -> None:
    shared = prompt(9000)

    def longest_queue_s(filters: dict[str, HotSpot]) -> float:
        core = cell("a1", "a2", "a3", "a4", policy=replace(POLICY, filters=filters))
        core.index.store("a1", shared)
        for number in range(60):
            own = [10_000_000 + 100 * number + block for block in range(60)]
            core.place(query(f"r{number}", 9600, hashes=[*shared, *own]), now_s=0.0)
        return max(account(core, f"a{n}").busy_until_s for n in range(1, 5))

    bounded_s = longest_queue_s({"hot_spot": HotSpot(factor=2.0, slack_s=2.0)})
    assert longest_queue_s({}) > 8.0
    total_s = 60 * 0.6 + 3 * 9.0
    assert bounded_s <= 2.0 + 2.0 * total_s / 4


# Where a part of the prompt comes from.


PULLS = Reading(pull_bytes_per_s=1e10)


def test_a_prefix_is_read_from_a_peer_where_that_is_faster_than_computing_it() -> None:
    core = cell("a1", "a2")
    core.index.store("a1", prompt(900))
    core.report("a1", load(waiting_prefill_tokens=5000, reading=PULLS), now_s=0.0)
    core.report("a2", load(reading=PULLS), now_s=0.0)
    outcome = core.place(query(tokens=1000), now_s=0.0)
    assert isinstance(outcome, Placed)
    chosen = outcome.chosen
    assert (chosen.decode_id, chosen.pull_id) == ("a2", "a1")
    # 90 blocks of 1 MB at 10 GB/s and 10 ms besides; 100 tokens are left to compute.
    assert chosen.terms["peer_pull"] == pytest.approx(0.01 + 0.009)
    assert chosen.terms["prefill"] == pytest.approx(0.1)
    assert "a2 alone after reading from a1" in outcome.reason


@pytest.mark.parametrize(
    ("reading", "fingerprint"), [(NO_READING, b"same"), (Reading(1e6), b"same"), (PULLS, b"other")]
)
def test_a_prefix_is_not_read_where_nobody_can_or_that_is_slower(reading: Reading, fingerprint: bytes) -> None:
    core = cell(worker("a2", fingerprint=fingerprint), "a1")
    core.index.store("a1", prompt(900))
    for name in ("a1", "a2"):
        core.report(name, load(reading=reading), now_s=0.0)
    outcome = core.place(query(tokens=1000, excluded=["a1"]), now_s=0.0)
    assert isinstance(outcome, Placed)
    assert (outcome.chosen.pull_id, outcome.chosen.terms["prefill"]) == ("", pytest.approx(1.0))


def reads(host: float, disk: float = 0.0, remote: float = 0.0, latency_s: float = 0.0) -> Reading:
    """Bytes a second from the tiers that are there."""
    speeds = zip(LOWER_TIERS, (host, disk, remote), strict=True)
    return Reading(0.0, {tier: TierSpeed(speed, latency_s) for tier, speed in speeds if speed})


def test_blocks_that_a_node_keeps_are_onboarded_where_that_is_faster() -> None:
    core = cell("a1", "a2", "a3")
    core.index.store("a1", prompt(200))
    for tier, tokens in zip(LOWER_TIERS, (400, 600, 900), strict=True):
        core.index.store("node", prompt(tokens), tier)
    core.index.attach("node", ["a1", "a2"])
    core.index.add("a2")
    core.report("a1", load(reading=reads(1e10, 2e9, 1e9, latency_s=0.001)), now_s=0.0)
    core.report("a2", load(reading=reads(1e10)), now_s=0.0)
    outcome = core.place(query(tokens=1000), now_s=0.0)
    assert isinstance(outcome, Placed)
    assert outcome.chosen.decode_id == "a1"
    # 20, 20 and 30 blocks of 1 MB, each part after a millisecond.
    assert outcome.chosen.terms["onboard"] == pytest.approx(0.003 + 0.002 + 0.010 + 0.030)
    assert outcome.chosen.terms["prefill"] == pytest.approx(0.1)
    assert outcome.chosen.onboard_blocks == {Tier.G2: 20, Tier.G3: 20, Tier.G4: 30}
    assert "a1 alone with 20 of G2 and 20 of G3 and 30 of G4" in outcome.reason
    by_id = {candidate.decode_id: candidate for candidate in outcome.candidates}
    # What is on disk is out of reach of the one, and nothing of the node's counts for who is elsewhere.
    assert by_id["a2"].onboard_blocks == {Tier.G2: 40}
    assert by_id["a2"].terms["prefill"] == pytest.approx(0.6)
    assert (by_id["a3"].onboard_blocks, by_id["a3"].terms["prefill"]) == ({}, pytest.approx(1.0))


def test_blocks_are_computed_where_reading_them_takes_longer() -> None:
    for reading in (reads(1e10), reads(0.0, 1e7), reads(0.0, 1e10, latency_s=2.0)):
        core = cell("a1")
        core.index.add("a1")
        core.index.store("node", prompt(900), Tier.G3)
        core.index.attach("node", ["a1"])
        core.report("a1", load(reading=reading), now_s=0.0)
        outcome = core.place(query(tokens=1000), now_s=0.0)
        assert isinstance(outcome, Placed)
        assert (outcome.chosen.onboard_blocks, outcome.chosen.terms["prefill"]) == ({}, pytest.approx(1.0))


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        (Reading(float("inf")), "pull_bytes_per_s"),
        (Reading(0.0, {Tier.G2: TierSpeed(-1.0)}), "onboarding from G2"),
        (Reading(0.0, {Tier.G3: TierSpeed(1e9, float("nan"))}), "latency"),
        (Reading(0.0, {Tier.G1: TierSpeed(1e9)}), "G1 is the device"),
    ],
)  # fmt: skip
def test_a_report_of_impossible_reading_is_refused(reading: Reading, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Load(reading=reading)


# Judging again.


def test_a_decision_can_be_judged_again_whatever_has_happened_since() -> None:
    core = cell("a1", "a2", "a3", "p1")
    core.index.store("a2", prompt(400))
    core.report("a1", load(running_seqs=4), now_s=0.0)
    outcome = core.place(query(), now_s=0.0)
    assert isinstance(outcome, Placed)
    before = outcome.candidates
    core.report("a2", load(waiting_prefill_tokens=9000), now_s=1.0)
    core.remove_worker("a3")
    again = judge(outcome.judgement.snapshot, core.policy)
    assert again is not None
    assert (again.chosen, again.candidates()) == (outcome.chosen, before)
    assert outcome.chosen.decode_id == "a2"
    for name in shipped_policies():
        other = judge(outcome.judgement.snapshot, load_policy(name))
        assert other is not None and other.policy.name == name
        assert other.chosen.ttft_s > 0
    turn = judge(outcome.judgement.snapshot, load_policy("round_robin"))
    assert turn is not None and turn.chosen.decode_id == "a1"


def test_a_thousand_workers_are_no_trouble() -> None:
    core = cell(*[f"d{n:03}" for n in range(700)], *[f"p{n:03}" for n in range(300)])
    chosen = [placed(core.place(query(f"r{n}", 2000, seed=n), 0.0)) for n in range(50)]
    assert len({prefill for _, prefill in chosen}) == 50
    assert len({decode for decode, _ in chosen}) == 50
