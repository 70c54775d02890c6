"""Host memory and the devices of peers: what is read from there need not be computed."""

from dataclasses import replace
from typing import Any

import pytest

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import BlockDigest
from armature.sim.cell import Failure
from armature.sim.host import HostTier
from armature.sim.summary import Summary, summarize
from armature.sim.trace import Trace, TraceRequest
from tests.unit.sim.worlds import BLOCK_SIZE, cell, check_conservation, families, simulation


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


def test_what_the_device_evicts_comes_back_from_host_memory() -> None:
    trace = turns(5, 3)
    without, with_host = run(trace), run(trace, host_blocks=1000)
    assert without.reuse < 0.05
    assert with_host.reuse > 0.6
    assert with_host.onboarded_blocks == pytest.approx(10 * 150, rel=0.1)
    assert with_host.ttft_s.p50 < without.ttft_s.p50 / 2


def test_onboarding_that_takes_longer_than_computing_is_left() -> None:
    slow = run(turns(5, 3), host_blocks=1000, host_bytes_per_s=1e7)
    assert slow.onboarded_blocks == 0
    assert slow.ttft_s.mean == run(turns(5, 3)).ttft_s.mean


def test_host_memory_dies_with_its_worker() -> None:
    failures = (Failure("w0", 9.5, 0.2),)
    hit, dead = (run(turns(5, 3), host_blocks=1000, failures=failed) for failed in ((), failures))
    assert dead.onboarded_blocks < hit.onboarded_blocks


@pytest.mark.parametrize("seed", [1, 2])
def test_everything_at_once_loses_nothing(seed: int) -> None:
    trace = families(150, rate=20.0, seed=seed)
    shape = cell(
        2, num_blocks=250, num_prefill=2, num_decode=2, host_blocks=300, can_pull=True, link_bytes_per_s=5e9,
        event_lag_s=0.05, report_interval_s=0.2, share_lag_s=0.01, detection_s=0.5, lease_s=1.0,
        failures=(Failure("w0", 1.0, 1.0), Failure("p0", 2.0, 1.0), Failure("d0", 4.0, 1.0)),
    )  # fmt: skip
    done = simulation(trace, shape, routers=2, seed=seed)
    done.run()
    check_conservation(done, trace)


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


def test_host_memory_holds_what_was_used_last() -> None:
    digests = [BlockDigest(bytes([i]) * 16) for i in range(6)]
    host = HostTier(4)
    first = host.offload([KvEvent(1, KvEventKind.REMOVED, tuple(digests[:4]))])
    assert (list(first.stored), list(first.removed)) == (digests[:4], [])
    host.read(digests[2:4])
    change = host.offload([KvEvent(2, KvEventKind.STORED, ()), KvEvent(3, KvEventKind.REMOVED, tuple(digests[4:]))])
    assert (list(change.stored), list(change.removed)) == (digests[4:], digests[:2])
    assert (host.run(digests[2:]), host.run(digests)) == (4, 0)
