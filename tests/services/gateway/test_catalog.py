"""Which models there are, as workers come, change and go."""

from pathlib import Path

import pytest

from armature.openai.errors import ApiError
from armature.openai.serving.catalog import ModelCatalog
from armature.openai.serving.options import ServingOptions
from armature.runtime.roster import MemberChange
from armature.v1.common_pb2 import ROLE_DECODE, ROLE_PREFILL, Member, ModelCard, PlannerInfo, WorkerInfo
from tests.services.gateway.harness import Tasks, card, model_directory


def member(worker_id: str, model: ModelCard, role: int = ROLE_DECODE) -> Member:
    return Member(id=worker_id, kind="decode-worker", worker=WorkerInfo(role=role, model=model))  # pyright: ignore


class World:
    def __init__(self, tasks: Tasks, **tokenizers: Path) -> None:
        self.catalog = ModelCatalog(tasks, b"secret", ServingOptions(), tokenizers)

    def join(self, worker_id: str, role: int = ROLE_DECODE, **changes: object) -> None:
        self.catalog.member_changed(MemberChange("joined", member(worker_id, card(**changes), role)), 1000.5)

    def leave(self, worker_id: str) -> None:
        self.catalog.member_changed(MemberChange("left", member(worker_id, card())), 1001.5)

    async def context_length(self) -> int:
        return (await self.catalog.get("tiny")).card.context_length


async def test_the_longest_known_worker_describes_the_model() -> None:
    async with Tasks() as tasks:
        world = World(tasks)
        world.join("a", context_length=100)
        world.join("b", context_length=200)
        assert await world.context_length() == 100
        world.leave("a")
        assert await world.context_length() == 200
        world.leave("b")
        with pytest.raises(ApiError):
            await world.context_length()
        world.join("c", context_length=300)
        assert await world.context_length() == 300


async def test_a_worker_that_changes_its_description_changes_the_model() -> None:
    async with Tasks() as tasks:
        world = World(tasks)
        world.join("a", context_length=100)
        assert await world.context_length() == 100
        world.join("a", context_length=150)
        assert await world.context_length() == 150


async def test_prefill_workers_alone_serve_nothing() -> None:
    async with Tasks() as tasks:
        world = World(tasks)
        world.join("p", role=ROLE_PREFILL)
        assert world.catalog.served() == {}
        world.join("a")
        assert [(name, since) for name, (_, since) in world.catalog.served().items()] == [("tiny", 1000)]


async def test_a_tokenizer_may_lie_elsewhere_on_this_machine() -> None:
    async with Tasks() as tasks:
        world = World(tasks, tiny=model_directory())
        world.join("a", path="/not/here")
        assert (await world.catalog.get("tiny")).tokenizer is not None


async def test_a_tokenizer_is_loaded_once() -> None:
    async with Tasks() as tasks:
        world = World(tasks)
        for worker_id in "abc":
            world.join(worker_id)
        first = await world.catalog.get("tiny")
        assert await world.catalog.get("tiny") is first
        assert len(tasks.made) == 1


async def test_a_directory_with_nonsense_is_the_models_problem_only(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("not json")
    (tmp_path / "tokenizer_config.json").write_text("not json either")
    async with Tasks() as tasks:
        world = World(tasks)
        world.join("a", path=str(tmp_path))
        with pytest.raises(ApiError) as caught:
            await world.catalog.get("tiny")
        assert caught.value.code == "tokenizer_unavailable"


async def test_a_model_whose_last_worker_turns_to_prefill_is_not_served() -> None:
    async with Tasks() as tasks:
        world = World(tasks)
        world.join("w")
        assert list(world.catalog.served()) == ["tiny"]
        world.join("w", role=ROLE_PREFILL)
        assert not world.catalog.served()


async def test_a_model_without_workers_is_served_while_a_planner_starts_some_for_who_asks() -> None:
    async with Tasks() as tasks:
        world = World(tasks)
        planner = Member(id="p", kind="planner", planner=PlannerInfo(wakes=card(context_length=100)))
        world.catalog.member_changed(MemberChange("joined", planner), 1000.5)
        assert list(world.catalog.served()) == ["tiny"] and await world.context_length() == 100
        world.join("a", context_length=200)
        assert await world.context_length() == 200
        world.leave("a")
        assert await world.context_length() == 200
        world.catalog.member_changed(MemberChange("updated", Member(id="p", kind="planner")), 1002.5)
        assert world.catalog.served() == {} and world.catalog.loaded("tiny") is None
        world.catalog.member_changed(MemberChange("updated", planner), 1003.5)
        assert list(world.catalog.served()) == ["tiny"]
        world.catalog.member_changed(MemberChange("left", planner), 1004.5)
        with pytest.raises(ApiError, match="No worker serves"):
            await world.context_length()
