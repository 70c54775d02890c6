"""Who has had more than its share of an engine lately, and what that costs it."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from armature.scheduling.planner import CROWDED
from armature.scheduling.shares import OVER, Shares
from tests.support.scheduler_world import Client, World
from tests.unit.scheduling.test_scheduler import generate, planned, world


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30)), max_size=80))
def test_who_has_had_far_more_than_an_equal_part_of_the_window_is_over_its_share(
    computed: list[tuple[str, int]],
) -> None:
    shares, halves = Shares(100), deque([[], list[tuple[str, int]]()], maxlen=2)
    for tenant, tokens in computed:
        shares.note(tenant, tokens)
        halves[-1].append((tenant, tokens))
        if sum(count for _, count in halves[-1]) >= 100:
            halves.append([])
        counted = [one for half in halves for one in half]
        about, total = {name for name, _ in counted}, sum(count for _, count in counted)
        for name in "abc":
            own = sum(count for one, count in counted if one == name)
            assert shares.is_over(name, OVER) == (len(about) > 1 and own * len(about) > OVER * total)


def test_who_is_alone_is_never_over_its_share() -> None:
    shares = Shares(10)
    shares.note("other", 1)
    for _ in range(3):
        shares.note("only", 10)
    assert not shares.is_over("only", OVER), "the other one was here too long ago"


def test_of_a_tenant_over_its_share_a_step_computes_little_while_others_are_about() -> None:
    w = world(budget=32)
    loud = [tenant_asks(w, "loud", 40) for _ in range(2)]
    assert planned(w) == [("r0", 0, 32)], "it is alone"
    assert planned(w) == [("r0", 32, 8), ("r1", 0, 24)]
    tenant_asks(w, "quiet", 10)
    steps = [planned(w), planned(w)]
    assert steps[0][1:] == [("r2", 0, 10)], "beside another tenant's prompt of that size nothing of its own"
    assert steps[1][-1] == ("r1", 24, 32 // CROWDED)
    while any(one.end is None for one in loud):
        planned(w)


def test_a_prompt_that_is_alone_gets_full_steps_unless_its_tenant_sends_very_much() -> None:
    w = world(budget=32)
    for tenant, tokens in (("one", 40), ("other", 20)):
        served(w, tenant_asks(w, tenant, tokens))
    tenant_asks(w, "one", 40)
    assert planned(w)[-1][2] == 32, "it has had twice as much as the other one"
    w = world(budget=32)
    for tenant, tokens in (("one", 50), ("other", 4)):
        served(w, tenant_asks(w, tenant, tokens))
    tenant_asks(w, "one", 40)
    assert planned(w)[-1][2] == 32 // CROWDED


def test_tenants_that_have_had_as_much_share_full_steps() -> None:
    w = world(budget=32)
    for tenant in ("one", "other"):
        tenant_asks(w, tenant, 40)
    assert planned(w) == [("r0", 0, 32)]
    assert sum(count for _, start, count in planned(w) if start in (0, 32)) == 32


def tenant_asks(w: World, tenant: str, tokens: int) -> Client:
    """Prompts that have nothing in common."""
    return generate(w, [10 + len(w.clients)] + [9] * (tokens - 1), max_tokens=2, tenant=tenant)


def served(w: World, client: Client) -> None:
    while client.end is None:
        planned(w)
