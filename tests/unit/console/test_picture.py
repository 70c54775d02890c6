"""The cell, put together from what its members tell."""

import msgspec
import pytest

from armature.console.picture import Heard, Picture, Seen
from armature.console.shapes import Cell
from armature.v1.common_pb2 import (
    MEMBER_STATE_DRAINING,
    ROLE_DECODE,
    TIER_G1,
    TIER_G2,
    TIER_G4,
    Member,
    ModelCard,
    WorkerInfo,
)
from armature.v1.kv_index_pb2 import IndexStats, WorkerChange
from armature.v1.kv_offload_pb2 import StatsResponse, TierStats
from armature.v1.planner_pb2 import FleetState, LogEntry, Plan, PlannerStatus, PlannerTargets, WorkerCounts
from armature.v1.router_pb2 import RouterStats
from armature.v1.worker_pb2 import LoadReport, TierBytes, TransferStats, WorkerStats

CARD = ModelCard(name="demo", context_length=4096, block_size=16, block_bytes=1000)


def worker(worker_id: str, **fields: object) -> Member:
    info = WorkerInfo(role=ROLE_DECODE, model=CARD, num_blocks=100, max_num_seqs=8, engine="torch")
    return Member(id=worker_id, kind="decode-worker", address="host:1", node="node-1", worker=info, **fields)  # type: ignore[arg-type]


def stats(*, prefill: int = 0, cached: int = 0, read: int = 0) -> WorkerStats:
    return WorkerStats(
        load=LoadReport(running_seqs=3, waiting_seqs=1, free_blocks=60, total_blocks=100, decode_step_s=0.02),
        cached_blocks=70,
        prefill_tokens=prefill,
        cached_tokens=cached,
        transfers=[TransferStats(transport="nixl", prompts=2, size_bytes=read, seconds=0.5)],
        onboarded=[TierBytes(tier=TIER_G2, size_bytes=5)],
    )


def picture() -> Picture:
    return Picture(gateway_id="gateway-a", namespace="test", version="1.0")


def drawn(made: Picture, members: list[Member], heard: dict[str, Heard]) -> Cell:
    return made.draw(Seen(wall_s=1.0, members=members, heard=heard))


def test_a_worker_tells_its_load_and_memory() -> None:
    cell = drawn(picture(), [worker("decode-worker-1")], {"decode-worker-1": Heard(stats(), 1.0)})
    told = cell.workers["decode-worker-1"]
    assert (told.role, told.running, told.waiting, told.most_running, told.step_s) == ("decode", 3, 1, 8, 0.02)
    assert (told.used_blocks, told.cached_blocks, told.total_blocks) == (40, 70, 100)
    assert cell.models["demo"].workers == 1
    assert cell.tiers["G1"].size_bytes == 40_000


def test_rates_are_of_two_readings_and_shares_of_what_was_needed_between() -> None:
    made, members = picture(), [worker("w1"), worker("w2")]
    drawn(made, members, {"w1": Heard(stats(prefill=100, cached=900), 1.0), "w2": Heard(stats(), 1.0)})
    cell = drawn(
        made, members, {"w1": Heard(stats(prefill=130, cached=910, read=4000), 3.0), "w2": Heard(stats(), 3.0)}
    )
    one, other = cell.workers["w1"], cell.workers["w2"]
    assert one.prefill_tokens_per_s == 15.0
    assert one.cached_share == pytest.approx(0.25)
    assert other.cached_share is None
    assert cell.cached_share == pytest.approx(0.25)
    assert one.read_bytes_per_s == cell.transfers["nixl"].bytes_per_s == 2000.0
    assert (cell.transfers["nixl"].prompts, cell.transfers["nixl"].mean_s) == (4, 0.25)


def test_who_does_not_answer_keeps_what_it_told_last_beside_its_problem() -> None:
    made, members = picture(), [worker("w1"), worker("w2", state=MEMBER_STATE_DRAINING)]
    cell = drawn(made, members, {"w1": Heard(stats(), 1.0, "can't be reached"), "w2": Heard(None, 0.0, "too old")})
    assert (cell.workers["w1"].problem, cell.workers["w1"].running) == ("can't be reached", 3)
    assert (cell.workers["w2"].state, cell.workers["w2"].total_blocks, cell.workers["w2"].used_blocks) == (
        "draining",
        100,
        0,
    )


def test_trust_comes_from_the_index_and_belief_from_the_router_that_believes_least() -> None:
    index = IndexStats(
        indexed_blocks=7,
        sources=[
            IndexStats.Source(id="w1", trust=WorkerChange.KIND_EXACT, blocks=7),
            IndexStats.Source(id="w2", trust=WorkerChange.KIND_STALE, blocks=1),
        ],
    )
    beliefs = (RouterStats(beliefs=[RouterStats.Belief(worker_id="w1", share=share)]) for share in (0.9, 0.4))
    members = [
        worker("w1"), worker("w2"), Member(id="i", kind="kv-index"),
        *(Member(id=f"r{number}", kind="router") for number in range(2)),
    ]  # fmt: skip
    heard = {"i": Heard(index, 1.0)} | {f"r{number}": Heard(one, 1.0) for number, one in enumerate(beliefs)}
    cell = drawn(picture(), members, heard)
    assert (cell.workers["w1"].index_trust, cell.workers["w1"].indexed_blocks) == ("exact", 7)
    assert (cell.workers["w1"].believed_share, cell.workers["w2"].believed_share) == (0.4, None)
    assert cell.indexes["i"].sources == {"exact": 1, "stale": 1}


def test_tiers_add_up_over_nodes() -> None:
    told = StatsResponse(
        tiers=[
            TierStats(tier=TIER_G2, capacity_blocks=50, used_blocks=20, hit_blocks=3),
            TierStats(tier=TIER_G4),
        ]
    )
    told.layout.block_bytes = 1000
    members = [Member(id=f"o{number}", kind="kv-offload") for number in range(2)]
    cell = drawn(picture(), members, {"o0": Heard(told, 1.0), "o1": Heard(told, 1.0)})
    assert cell.tiers["G2"].used_blocks == 40
    assert cell.tiers["G2"].size_bytes == 40_000
    assert set(cell.tiers) == {"G2"}, "a tier without room is no tier"
    assert set(cell.offloads["o0"].tiers) == {"G2"}


def test_a_planner_tells_its_plan_and_why() -> None:
    status = PlannerStatus(
        leader="planner-1",
        connector="local",
        targets=PlannerTargets(ttft_s=1.0, itl_s=0.05, quantile=0.95),
        fleet=FleetState(ready=WorkerCounts(decode=2), wanted=WorkerCounts(decode=3)),
        plan=Plan(reason="demand", text="3 workers: 2 would be too slow"),
        log=[LogEntry(at_s=5.0, text="one more was started")],
    )
    cell = drawn(picture(), [Member(id="planner-1", kind="planner")], {"planner-1": Heard(status, 1.0)})
    told = cell.planners["planner-1"]
    assert (told.leader, told.reason, told.text) == ("planner-1", "demand", "3 workers: 2 would be too slow")
    assert (told.ready.decode, told.wanted.decode) == (2, 3)
    assert [(entry.at, entry.text) for entry in told.log] == [(5.0, "one more was started")]


def test_members_that_have_left_are_forgotten_with_their_rates() -> None:
    made = picture()
    drawn(made, [worker("w1")], {"w1": Heard(stats(prefill=100), 1.0)})
    drawn(made, [], {})
    cell = drawn(made, [worker("w1")], {"w1": Heard(stats(prefill=500), 9.0)})
    assert cell.workers["w1"].prefill_tokens_per_s is None


def test_a_picture_is_json_as_its_shape_says() -> None:
    cell = drawn(picture(), [worker("w1"), Member(id="gateway-a", kind="gateway")], {"w1": Heard(stats(), 1.0)})
    assert msgspec.json.decode(msgspec.json.encode(cell), type=Cell) == cell
    assert cell.gateways["gateway-a"].is_this
    assert TIER_G1 == 1
