"""What kv-offloads keep is read by workers of other nodes, where that is quicker than anything else."""

from collections.abc import Sequence

import pytest

from armature.index.tiers import LOWER_TIERS, Tier
from armature.index.trust import Answered, TrustState
from armature.routing.decision import Candidate, Placed
from armature.routing.router import RoutingCore
from armature.routing.worker import Reading, Store
from armature.scheduling.lower_tiers import TierSpeed
from tests.unit.routing.cell import cell, load, prompt, query, worker

PULLS = Reading(pull_bytes_per_s=1e10)
"""A block of 1 MB takes 0.1 ms, and a prompt's first one 10 ms more."""


def stored(core: RoutingCore, store_id: str, readers: list[str], *tokens: int, fingerprint: bytes = b"same") -> None:
    """A kv-offload of some workers' node with so much of the prompt in each tier and those above it."""
    core.stores.put(Store(store_id, fingerprint))
    first = 0
    for tier, upto in zip(LOWER_TIERS, tokens, strict=False):
        core.index.store(store_id, prompt(upto)[first:], tier)
        first = upto // 10
    for name in readers:
        core.index.add(name)
    core.index.attach(store_id, readers)


def chosen(core: RoutingCore, excluded: Sequence[str] = ()) -> Candidate:
    outcome = core.place(query(tokens=1000, excluded=excluded), now_s=0.0)
    assert isinstance(outcome, Placed)
    return outcome.chosen


def two_nodes(*tokens: int, home: Reading = PULLS, fingerprint: bytes = b"same") -> RoutingCore:
    """`a1` is busy on the node that keeps the prompt, `a2` is free on another one."""
    core = cell("a1", "a2")
    stored(core, "n1", ["a1"], *tokens, fingerprint=fingerprint)
    core.report("a1", load(waiting_prefill_tokens=5000, reading=home), now_s=0.0)
    core.report("a2", load(reading=PULLS), now_s=0.0)
    return core


def test_a_prefix_is_read_from_another_nodes_host_memory_where_that_is_faster_than_computing_it() -> None:
    core = two_nodes(900)
    outcome = core.place(query(tokens=1000), now_s=0.0)
    assert isinstance(outcome, Placed)
    best = outcome.chosen
    assert (best.decode_id, best.prefill_id, best.pull_id, best.onboard_blocks) == ("a2", "", "n1", {})
    assert best.terms["peer_pull"] == pytest.approx(0.01 + 90 * 1e-4)
    assert best.terms["prefill"] == pytest.approx(0.1)
    assert "a2 alone after reading from n1" in outcome.reason
    # Who reads from its own node does so without a pull.
    assert {one.pull_id for one in outcome.candidates if one.decode_id == "a1"} == {""}


def test_a_store_counts_only_while_it_is_known_and_for_blocks_like_its_own() -> None:
    assert chosen(two_nodes(900, fingerprint=b"other")).pull_id == ""
    assert chosen(two_nodes(900)).pull_id == "n1"
    for leave in (lambda core: core.stores.remove("n1"), lambda core: core.index.drop("n1")):
        core = two_nodes(900)
        leave(core)
        assert chosen(core).pull_id == ""


@pytest.mark.parametrize("reading", [Reading(), Reading(1e6)])
def test_a_prefix_is_computed_by_who_can_not_read_or_reads_slowly(reading: Reading) -> None:
    core = two_nodes(900)
    core.report("a2", load(reading=reading), now_s=0.0)
    assert chosen(core, excluded=["a1"]).pull_id == ""


def test_what_lies_below_another_nodes_host_memory_is_read_as_fast_as_its_workers_have_measured() -> None:
    # On disk 1 MB takes its workers a millisecond, and each run 5 ms more; of the remote store nobody knows anything.
    home = replace_tiers(PULLS, {Tier.G2: TierSpeed(1e10), Tier.G3: TierSpeed(1e9, 0.005)})
    best = chosen(two_nodes(400, 800, 900, home=home))
    assert (best.decode_id, best.pull_id) == ("a2", "n1")
    assert best.terms["peer_pull"] == pytest.approx(0.01 + 40 * 1e-4 + 40 * 1e-3 + 0.005)
    assert best.terms["prefill"] == pytest.approx(0.2)
    unmeasured = chosen(two_nodes(400, 800, 900))
    assert unmeasured.terms["prefill"] == pytest.approx(0.6)


def test_a_disk_that_is_slower_than_computing_leaves_what_host_memory_holds() -> None:
    home = replace_tiers(PULLS, {Tier.G3: TierSpeed(1e7)})
    best = chosen(two_nodes(400, 800, home=home))
    assert (best.pull_id, best.terms["prefill"]) == ("n1", pytest.approx(0.6))


@pytest.mark.parametrize(("gone", "source"), [("", "n2"), ("n2", "a1"), ("n2 a1", "n1"), ("n2 a1 n1", "")])
def test_of_all_sources_the_one_that_saves_most_is_read(gone: str, source: str) -> None:
    core = cell("a1", "a2", "a3")
    for store_id, reader, tokens in (("n1", "a1", 500), ("n2", "a2", 900), ("n3", "a3", 100)):
        stored(core, store_id, [reader], tokens)
    core.index.store("a1", prompt(700))
    for name in gone.split():
        core.index.drop(name)
    core.report("a3", load(reading=replace_tiers(PULLS, {Tier.G2: TierSpeed(1e10)})), now_s=0.0)
    best = chosen(core, excluded=["a1", "a2"])
    # Nothing of what its own node keeps is onboarded besides.
    assert (best.pull_id, best.onboard_blocks) == (source, {} if source else {Tier.G2: 10})


def test_what_the_own_node_keeps_is_onboarded_where_that_is_as_deep() -> None:
    core = two_nodes(900)
    stored(core, "n2", ["a2"], 900)
    core.report("a2", load(reading=replace_tiers(PULLS, {Tier.G2: TierSpeed(1e10)})), now_s=0.0)
    best = chosen(core)
    assert (best.decode_id, best.pull_id, best.onboard_blocks) == ("a2", "", {Tier.G2: 90})


def test_a_worker_on_its_own_can_read_from_another_node() -> None:
    core = cell(worker("a2"))
    stored(core, "n1", [], 900)
    core.report("a2", load(reading=PULLS), now_s=0.0)
    assert chosen(core).pull_id == "n1"


def replace_tiers(reading: Reading, tiers: dict[Tier, TierSpeed]) -> Reading:
    return reading._replace(tiers=tiers)


def asked(core: RoutingCore, number: int, found_tokens: int, excluded: Sequence[str] = ()) -> Candidate:
    """Place a prompt of 1,000 tokens; a kv-offload that is asked for all of it has so many."""
    outcome = core.place(query(f"r{number}", 1000, excluded=excluded), now_s=100.0 * number)
    assert isinstance(outcome, Placed)
    best = outcome.chosen
    if best.pull_id or best.onboard_blocks:
        wanted = 990 if best.pull_id else 10 * sum(best.onboard_blocks.values())
        core.first_token("gateway", f"r{number}", 0, Answered(wanted, found_tokens))
    core.finish("gateway", f"r{number}")
    return best


@pytest.mark.parametrize("excluded", ["a1", "a2"], ids=["another node's", "the own node's"])
def test_a_store_that_has_not_what_it_tells_counts_for_nothing_until_it_is_taken_in_anew(excluded: str) -> None:
    core = two_nodes(900, home=replace_tiers(PULLS, {Tier.G2: TierSpeed(1e10)}))
    core.trust.mark("n1", TrustState.EXACT, 0.0)
    believed = [asked(core, number, 0, [excluded]).terms["prefill"] == pytest.approx(0.1) for number in range(10)]
    # 900 tokens each time, against 4,096 by which it is believed at first.
    assert believed == [True] * 5 + [False] * 5
    assert core.distrusted_stores(2000.0) == {"n1"}
    for state in (TrustState.REPAIRING, TrustState.EXACT):
        core.trust.mark("n1", state, 2000.0)
    assert asked(core, 30, 900, [excluded]).terms["prefill"] == pytest.approx(0.1)
    assert core.distrusted_stores(4000.0) == frozenset()


def test_a_store_is_not_blamed_for_what_it_never_told_to_keep() -> None:
    core = two_nodes(900)
    core.trust.mark("n1", TrustState.EXACT, 0.0)
    # A pull asks for the whole prompt, of which it has told to keep nine tenths.
    assert [asked(core, number, 900, ["a1"]).pull_id for number in range(20)] == ["n1"] * 20
    assert core.trust.factor("n1", 0.0) == 1.0
