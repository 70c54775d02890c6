"""Prompts that are placed and not computed: what a tenant has before it on each worker."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.routing import columns as at
from armature.routing.columns import roster_of
from armature.routing.unstarted import Unstarted
from tests.unit.routing.cell import cell, load, placed, query, worker

WORKERS, TENANTS = ("a1", "a2", "a3"), ("x", "y", "z")
PLACEMENTS = st.lists(
    st.tuples(st.sampled_from(TENANTS), st.sampled_from(WORKERS), st.integers(1, 9), st.booleans()), max_size=40
)


@given(PLACEMENTS)
def test_of_each_other_tenant_as_much_counts_as_of_its_own(placements: list[tuple[str, str, int, bool]]) -> None:
    unstarted, left = Unstarted(), list[tuple[str, str, int]]()
    for tenant, name, seconds, is_computed in placements:
        unstarted.add(tenant, name, seconds)
        if is_computed:
            unstarted.remove(tenant, name, seconds)
        else:
            left.append((tenant, name, seconds))
    roster = roster_of([worker(name) for name in WORKERS])
    state = np.zeros((at.NUM_ROWS, len(WORKERS)))
    state[at.MAX_BATCH_TOKENS], state[at.TOKEN_S], state[at.CHUNK_S] = 500, 0.001, 0.1

    def has(tenant: str, name: str) -> int:
        return sum(seconds for one, there, seconds in left if (one, there) == (tenant, name))

    for tenant in TENANTS:
        found = unstarted.queue_s(tenant, roster, state, np.full(len(WORKERS), 20.0))
        for name, got in zip(roster.worker_ids, found, strict=True):
            own, known = has(tenant, name), sum(has(other, name) for other in TENANTS)
            theirs = sum(min(has(other, name), own) for other in TENANTS)
            assert got == pytest.approx(min(20.0, 0.3 + max(20.0 - known, 0.0) + theirs))
        assert unstarted.has_others(tenant) == any(other != tenant for other, _, _ in left)
    expected = {tenant: [one for one, _, _ in left].count(tenant) for tenant in TENANTS}
    assert unstarted.requests() == {tenant: count for tenant, count in expected.items() if count}


def test_workers_come_and_go_without_end() -> None:
    unstarted = Unstarted()
    state = np.zeros((at.NUM_ROWS, 100))
    for generation in range(5):
        names = [f"w{generation}-{number:02}" for number in range(100)]
        roster = roster_of([worker(name) for name in names])
        for name in names:
            unstarted.add("x", name, 3.0)
            unstarted.add("y", name, 1.0)
        assert set(unstarted.queue_s("x", roster, state, np.full(100, 10.0))) == {10.0}
        assert set(unstarted.queue_s("y", roster, state, np.full(100, 4.0))) == {2.0}
        for name in names:
            unstarted.remove("x", name, 3.0)
        assert set(unstarted.queue_s("x", roster, state, np.full(100, 4.0))) == {3.0}
        for name in names:
            unstarted.remove("y", name, 1.0)
        assert set(unstarted.queue_s("y", roster, state, np.full(100, 4.0))) == {4.0}


def test_a_tenant_goes_where_it_has_little_itself_whatever_others_have_there() -> None:
    core = cell("a1", "a2")
    for tokens, elsewhere in ((6000, "a2"), (9000, "a1")):
        core.place(query(elsewhere, tokens, hashes=(), tenant="loud", excluded=(elsewhere,)), 0.0)
    asked = [query(f"quiet {n}", 500, hashes=(), tenant="quiet") for n in range(2)]
    assert {placed(core.place(one, 1.0))[0] for one in asked} == {"a1", "a2"}, "though a1 has less to do by far"


def test_what_is_nobodys_counts_in_full() -> None:
    core = cell("a1", "a2")
    for name, tokens in (("a1", 6000), ("a2", 9000)):
        core.report(name, load(waiting_prefill_tokens=tokens), now_s=0.0)
    core.place(query("loud", 100, hashes=(), tenant="loud"), 1.0)
    asked = [query(f"quiet {n}", 500, hashes=(), tenant="quiet") for n in range(3)]
    assert {placed(core.place(one, 1.0))[0] for one in asked} == {"a1"}


def test_with_one_tenant_all_that_is_to_be_computed_is_before_it() -> None:
    core = cell("a1", "a2")
    for name, tokens in (("a1", 6000), ("a2", 9000)):
        core.report(name, load(waiting_prefill_tokens=tokens), now_s=0.0)
    placements = [core.place(query(f"{n}", 500, hashes=(), tenant="only"), 1.0) for n in range(3)]
    assert {placed(one)[0] for one in placements} == {"a1"}
