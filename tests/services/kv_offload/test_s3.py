"""Tier G4 in an S3 store: blocks go there and come back, its room is kept, and whatever becomes of it is survived."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from armature.index.tiers import Tier
from services.kv_offload.settings import KvOffloadSettings
from tests.support.eventually import eventually
from tests.support.offloading import Node, Tiers, WorkerMemory, node, worker_memory
from tests.support.s3 import S3Server, s3_server

EVERYTHING = {tier: {"admission": "all"} for tier in ("g2", "g3", "g4")}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[S3Server]:
    async with s3_server(tmp_path / "data") as found:
        yield found


def problems(reason: str) -> float:
    found = REGISTRY.get_sample_value("armature_kv_offload_problems_total", {"tier": "g4", "reason": reason})
    return found or 0.0


async def put(here: Node, worker: WorkerMemory, *numbers: int) -> None:
    """One by one, until each has made room."""
    for number in numbers:
        assert await worker.put([number]) == ["taken"]
        await eventually(lambda: not here.store.tiers.spaces[Tier.G2].leaving_blocks)


async def test_blocks_come_back_from_s3_and_its_room_is_kept(server: S3Server) -> None:
    async with node(Tiers(host=2, remote=6, s3=server, policy=EVERYTHING)) as here, worker_memory(here) as worker:
        await put(here, worker, *range(20))
        await eventually(lambda: here.has(Tier.G4, [14, 15, 16, 17]))
        assert await worker.onboard([15, 16], here.address) == ([Tier.G4] * 2, [15, 16], "complete")
        await eventually(lambda: len(server.objects()) == len(here.store.tiers.spaces[Tier.G4]) <= 6)
        assert here.store.mover.reading[Tier.G4].bytes_per_s > 0
        here.store.tiers.check()


async def test_what_was_in_s3_is_there_after_a_restart_for_its_node_and_for_a_new_one(server: S3Server) -> None:
    tiers = Tiers(host=2, remote=64, s3=server, policy=EVERYTHING)
    async with node(tiers) as here, worker_memory(here) as worker:
        await put(here, worker, *range(8))
        await eventually(lambda: here.has(Tier.G4, range(6)))
    for name in ("here", "new"):
        again = Tiers(host=2, remote=64, s3=server, policy=EVERYTHING, name=name)
        async with node(again) as here, worker_memory(here) as worker:
            await eventually(lambda here=here: here.has(Tier.G4, range(6)))
            assert await worker.onboard([0, 1], here.address) == ([Tier.G4] * 2, [0, 1], "complete")
            events = here.store.log
            assert events.next_seq > 1, "the cell is told what was found"


async def test_two_nodes_share_a_bucket_and_neither_costs_the_other_a_block(server: S3Server) -> None:
    def tiers(name: str, remote: int) -> Tiers:
        return Tiers(host=2, remote=remote, s3=server, policy=EVERYTHING, name=name)

    async with node(tiers("one", 64)) as one, worker_memory(one) as worker:
        await put(one, worker, *range(8))
        await eventually(lambda: one.has(Tier.G4, range(6)))
        async with node(tiers("two", 4)) as two, worker_memory(two) as other:
            await eventually(lambda: len(two.store.tiers.spaces[Tier.G4]) == 4)
            await put(two, other, *range(100, 110))
            assert (await other.onboard([107], two.address))[1] == [107]
        assert await worker.onboard([0, 1], one.address) == ([Tier.G4] * 2, [0, 1], "complete")
        one.store.tiers.check()


async def test_a_flipped_byte_in_s3_is_counted_and_the_block_forgotten(server: S3Server) -> None:
    async with node(Tiers(host=4, remote=64, s3=server, policy=EVERYTHING)) as here, worker_memory(here) as worker:
        await put(here, worker, *range(8))
        await eventually(lambda: here.has(Tier.G4, [0, 1, 2]))
        (path,) = [one for one in server.objects() if one.name.startswith("01")]
        held = bytearray(path.read_bytes())
        held[1000] ^= 1
        await server.client().put(str(path.relative_to(server.folder / "tests")), bytes(held))
        before = problems("damaged")
        assert await worker.onboard([0, 1, 2], here.address) == ([Tier.G4] * 3, [0], "lost")
        assert problems("damaged") == before + 1
        await eventually(lambda: path not in server.objects(), what="it is deleted")
        assert await worker.put([1]) == ["taken"]
        assert (await worker.onboard([0, 1, 2], here.address))[1] == [0, 1, 2]


async def test_without_s3_everything_else_goes_on_and_it_is_used_again_when_it_is_back(server: S3Server) -> None:
    async with node(Tiers(host=2, remote=64, s3=server, policy=EVERYTHING)) as here, worker_memory(here) as worker:
        await put(here, worker, *range(4))
        await eventually(lambda: here.has(Tier.G4, [0, 1]))
        await server.kill()
        before = problems("away")
        assert await worker.onboard([0], here.address) == ([Tier.G4], [], "lost")
        assert await worker.put([7]) == ["taken"]
        assert await worker.put([8]) == ["taken"]
        assert (await worker.onboard([7], here.address))[1] == [7]
        assert problems("away") > before
        await server.start()

        async def is_back() -> bool:
            return await worker.onboard([0], here.address) == ([Tier.G4], [0], "complete")

        await eventually(is_back)
        here.store.tiers.check()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"remote": "s3://bucket"}, "remote_bytes is the room in remote"),
        ({"remote_bytes": 1}, "remote_bytes needs remote or redis"),
        ({"remote": "http://b", "remote_bytes": 1}, "remote must begin with s3://"),
        ({"remote": "s3://bucket", "remote_bytes": 1, "s3_endpoint": "minio"}, "s3_endpoint must begin with"),
        ({"remote": "s3://bucket", "remote_bytes": 1, "s3_access_key": "k"}, "must be set together"),
    ],
    ids=["no room", "no place", "scheme", "endpoint", "half a key"],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        KvOffloadSettings(**settings)  # pyright: ignore[reportArgumentType]


def test_a_store_that_others_can_listen_to_is_a_risk() -> None:
    def risks(endpoint: str) -> str:
        return " ".join(KvOffloadSettings(remote="s3://bucket", remote_bytes=1, s3_endpoint=endpoint).risks)

    assert "in the clear" in risks("http://minio:9000")
    assert "in the clear" not in risks("http://127.0.0.1:9000") + risks("https://minio:9000") + risks("")
