"""What lies below devices, and the devices of peers: what is read from there need not be computed."""

from dataclasses import replace
from typing import Any

import pytest

from armature.index.tiers import LOWER_TIERS, Tier
from armature.offload.admission import Frequency
from armature.offload.policy import OffloadPolicy, TierPolicy, TierShape
from armature.performance.presets import PRESETS
from armature.sim.cell import Failure
from armature.sim.simulation import TierUse
from armature.sim.summary import Summary, summarize
from armature.sim.trace import Trace, TraceRequest
from tests.unit.sim.worlds import BLOCK_SIZE, cell, check_conservation, families, simulation

BLOCK_BYTES = BLOCK_SIZE * PRESETS["qwen3-32b-tp2-h200"].token_bytes


def turns(prompts: int, rounds: int, num_blocks: int = 150) -> Trace:
    """The same prompts again and again, more of them than a device holds."""
    order = [(turn, prompt) for turn in range(rounds) for prompt in range(prompts)]
    asked = [
        TraceRequest(float(i), num_blocks * BLOCK_SIZE + 1, 5, [*range(1000 * p, 1000 * p + num_blocks), 900_000 + i])
        for i, (_, p) in enumerate(order)
    ]
    return Trace(asked, BLOCK_SIZE)


def run(trace: Trace, policy: str = "round_robin", num_workers: int = 1, **more: Any) -> Summary:
    done = simulation(trace, cell(num_workers, num_blocks=400, **more), policy)
    summary = summarize(done.run())
    check_conservation(done, trace)
    return summary


def tiers(host: int, disk: int = 0, remote: int = 0, host_bytes_per_s: float = 50e9) -> dict[Tier, TierShape]:
    """Of one node, in blocks."""
    speeds = (host_bytes_per_s, 0.0), (12e9, 1e-4), (12e9, 2e-3)
    sizes = zip(LOWER_TIERS, (host, disk, remote), speeds, strict=True)
    return {
        tier: TierShape(num_blocks=size, block_bytes=BLOCK_BYTES, read_bytes_per_s=speed, read_latency_s=latency_s)
        for tier, size, (speed, latency_s) in sizes
        if size
    }


def test_what_a_device_evicts_comes_back_from_host_memory() -> None:
    trace = turns(5, 3)
    without, with_host = run(trace), run(trace, tier_shapes=tiers(1000))
    assert (without.onboarded_blocks, without.tiers) == (0, {})
    assert without.reuse < 0.05
    assert with_host.reuse > 0.6
    assert with_host.onboarded_blocks == pytest.approx(10 * 150, rel=0.1)
    assert with_host.tiers == {"G2": TierUse(with_host.onboarded_blocks, with_host.tiers["G2"].written_blocks)}
    # Every block is written once: what is held below is not offered again.
    assert 5 * 150 <= with_host.tiers["G2"].written_blocks <= 5 * 150 + 15
    assert with_host.ttft_s.p50 < without.ttft_s.p50 / 2


@pytest.mark.parametrize(("sizes", "lowest"), [((200, 2000), "G3"), ((100, 100, 2000), "G4")])
def test_what_host_memory_is_too_small_for_comes_back_from_further_below(sizes: tuple[int, ...], lowest: str) -> None:
    trace = turns(5, 3)
    small, below = run(trace, tier_shapes=tiers(sizes[0])), run(trace, tier_shapes=tiers(*sizes))
    assert below.tiers[lowest].onboarded_blocks > 500
    assert below.reuse > small.reuse + 0.2
    # What comes through three small tiers comes hardly sooner than it is computed, and never much later.
    assert below.ttft_s.p50 < 1.05 * small.ttft_s.p50


def test_workers_of_a_node_share_what_lies_below_them_and_those_of_another_have_their_own() -> None:
    trace = turns(5, 4)
    shared = run(trace, num_workers=2, tier_shapes=tiers(2000))
    apart = run(trace, num_workers=2, tier_shapes=tiers(2000), workers_per_node=1)
    assert shared.tiers["G2"].written_blocks < 0.7 * apart.tiers["G2"].written_blocks
    assert shared.reuse > apart.reuse


def test_a_router_places_by_what_nodes_hold() -> None:
    """Each node's workers lose what they hold, not their node; routers send a prompt back there."""
    trace = turns(8, 4)
    more = {"num_workers": 4, "workers_per_node": 2, "tier_shapes": tiers(3000), "event_lag_s": 0.01}
    aware, unaware = run(trace, "seconds", **more), run(trace, "least_loaded", **more)
    assert aware.reuse > unaware.reuse
    assert aware.tiers["G2"].written_blocks < unaware.tiers["G2"].written_blocks


def test_a_policy_that_admits_what_came_twice_writes_less() -> None:
    trace = turns(5, 4)
    frequency = OffloadPolicy(g2=TierPolicy(admission=Frequency(min_uses=2)))
    everything = run(trace, tier_shapes=tiers(1000))
    picky = run(trace, tier_shapes=tiers(1000), offload_policy=frequency)
    assert 0 < picky.onboarded_blocks < everything.onboarded_blocks
    assert run(turns(5, 1), tier_shapes=tiers(1000), offload_policy=frequency).tiers["G2"].written_blocks == 0


def test_onboarding_that_takes_longer_than_computing_is_left() -> None:
    slow = run(turns(5, 3), tier_shapes=tiers(1000, host_bytes_per_s=1e7))
    assert slow.onboarded_blocks == 0
    assert slow.ttft_s.mean == run(turns(5, 3)).ttft_s.mean


def test_blocks_are_waited_for_no_longer_than_computing_them_takes() -> None:
    """Readers of one disk are slower than one alone: they give up and compute."""
    together = Trace([replace(one, arrival_s=one.arrival_s // 5 * 30) for one in turns(5, 3).requests], BLOCK_SIZE)
    disk = tiers(200, 2000)
    disk[Tier.G3] = replace(disk[Tier.G3], read_bytes_per_s=1e9)
    crowded = run(together, num_workers=5, tier_shapes=disk)
    assert crowded.ttft_s.most < 2.2 * run(together, num_workers=5).ttft_s.most


def test_what_is_kept_below_outlives_a_worker() -> None:
    failures = (Failure("w0", 5.5, 0.2),)
    alone, dead = (run(turns(5, 3), tier_shapes=shapes, failures=failures) for shapes in ({}, tiers(1000)))
    assert dead.reuse > alone.reuse + 0.3


@pytest.mark.parametrize("seed", [1, 2])
def test_everything_at_once_loses_nothing(seed: int) -> None:
    trace = families(150, rate=20.0, seed=seed)
    shape = cell(
        2, num_blocks=250, num_prefill=2, num_decode=2, tier_shapes=tiers(150, 300), can_pull=True, workers_per_node=3,
        link_bytes_per_s=5e9,
        event_lag_s=0.05, report_interval_s=0.2, share_lag_s=0.01, detection_s=0.5, lease_s=1.0,
        failures=(Failure("w0", 1.0, 1.0), Failure("p0", 2.0, 1.0), Failure("d0", 4.0, 1.0)),
    )  # fmt: skip
    done = simulation(trace, shape, routers=2, seed=seed)
    done.run()
    check_conservation(done, trace)
    for node in done.nodes:
        node.store.check()
        assert not len(node.store.readers) and not node.num_under_way


def test_a_prefix_is_read_from_a_peer_where_the_policy_says_so() -> None:
    """The holder is busy, so a peer that can read its blocks beats waiting for it, and computing them."""
    shared = list(range(400))
    asked = [TraceRequest(0.0, 400 * BLOCK_SIZE + 1, 5, [*shared, 5000])]
    asked += [TraceRequest(3.0 + 0.02 * i, 400 * BLOCK_SIZE + 1, 100, [*shared, 6000 + i]) for i in range(35)]
    trace = Trace(asked, BLOCK_SIZE)
    shape = replace(cell(3, num_blocks=1200), link_bytes_per_s=100e9)
    apart = summarize(simulation(trace, shape).run())
    done = simulation(trace, replace(shape, can_pull=True))
    pulling = summarize(done.run())
    check_conservation(done, trace)
    assert apart.pulled_blocks == 0
    assert pulling.pulled_blocks > 0


def test_a_prefix_that_another_node_keeps_is_read_over_the_network() -> None:
    """Its own worker is dead by the time that the prompt returns."""
    asked = [TraceRequest(at_s, 150 * BLOCK_SIZE + 1, 5, [*range(150), 5000 + int(at_s)]) for at_s in (0.0, 30.0)]
    trace, more = Trace(asked, BLOCK_SIZE), {"num_workers": 2, "workers_per_node": 1, "tier_shapes": tiers(1000)}
    dead = [(Failure(name, 20.0),) for name in ("w0", "w1")]
    computing = [run(trace, "seconds", failures=failures, **more) for failures in dead]
    pulling = [run(trace, "seconds", failures=failures, can_pull=True, **more) for failures in dead]
    assert [one.pulled_blocks for one in computing] == [0, 0]
    # Where the other one dies there is nothing to pull.
    assert sorted(one.pulled_blocks for one in pulling) == [0, 150]
    pulled, alone = max(zip(pulling, computing, strict=True), key=lambda pair: pair[0].pulled_blocks)
    assert pulled.reuse > alone.reuse + 0.4
    assert pulled.ttft_s.p50 < alone.ttft_s.p50 / 2
    slow = run(trace, "seconds", failures=dead[0], can_pull=True, link_bytes_per_s=1e7, **more)
    assert slow.pulled_blocks == 0
