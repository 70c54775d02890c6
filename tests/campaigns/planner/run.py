"""A cell of `armature up` with planners, traffic that can be changed, and the story of what they did about it."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from armature.cli.state import CellDirectory, CellState, ProcessState
from armature.runtime.channels import ChannelPool
from armature.runtime.children import tethered
from armature.v1 import planner_pb2 as pb
from armature.v1.planner_pb2_grpc import PlannerStub
from tests.support.asking import ask
from tests.support.eventually import eventually

READY_TIMEOUT_S, STEP_TIMEOUT_S = 120.0, 60.0
CHANGE, LEADERSHIP, HELD = pb.LogEntry.KIND_CHANGE, pb.LogEntry.KIND_LEADERSHIP, pb.LogEntry.KIND_HELD
WORKER_FLAGS = (
    "performance=qwen3-32b-tp2-h200", "speed_up=0.2", "block_size=64", "num_blocks=2000", "max_num_seqs=8",
    "max_num_batched_tokens=4096", "simulated_block_bytes=64",
)  # fmt: skip
"""At a fifth of its speed a prompt of 4,000 tokens takes a second: few requests make a load."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Traffic of one kind."""

    rate: float
    prompt_tokens: int
    output_tokens: int


@dataclass
class Traffic:
    """Requests come at random times, whatever becomes of the others; every answer must be whole."""

    channel: grpc.aio.Channel
    shape: Shape = field(default_factory=lambda: Shape(0.0, 1, 1))
    rng: random.Random = field(default_factory=lambda: random.Random(5))
    asked: int = 0
    answered: int = 0
    failures: list[str] = field(default_factory=list[str])

    async def run(self) -> None:
        """Until cancelled; requests on their way are then awaited."""
        async with asyncio.TaskGroup() as requests:
            try:
                while True:
                    if self.shape.rate:
                        requests.create_task(self._ask(self.shape))
                        self.asked += 1
                    await asyncio.sleep(self.rng.expovariate(self.shape.rate) if self.shape.rate else 0.05)
            except asyncio.CancelledError:
                pass

    async def _ask(self, shape: Shape) -> None:
        prompt = [self.rng.randrange(300, 4000) for _ in range(shape.prompt_tokens)]
        try:
            answer = await ask(self.channel, prompt, shape.output_tokens, timeout_s=120.0)
            assert len(answer.token_ids) == shape.output_tokens, f"{len(answer.token_ids)} tokens"
            self.answered += 1
        except (grpc.aio.AioRpcError, AssertionError) as error:
            self.failures.append(str(error))


@dataclass
class PlannedCell:
    """A running cell, as its state file tells of it."""

    directory: CellDirectory
    channels: ChannelPool

    @property
    def state(self) -> CellState:
        state = self.directory.read()
        assert state is not None, "the cell has ended"
        return state

    def planners(self) -> list[ProcessState]:
        return [one for one in self.state.processes if one.kind == "planner" and one.state == "ready"]

    def workers(self) -> list[ProcessState]:
        return [one for one in self.state.processes if one.kind.endswith("-worker")]

    async def log(self) -> list[pb.LogEntry]:
        """What all planners have done so far, as one that lives tells it."""
        for planner in self.planners():
            stub = PlannerStub(self.channels.get(planner.address))
            try:
                return list((await stub.ListLog(pb.ListLogRequest(limit=400), timeout=5)).entries)
            except grpc.aio.AioRpcError:
                continue  # it was killed, and the state file does not say so yet
        return []

    async def status(self) -> pb.PlannerStatus:
        stub = PlannerStub(self.channels.get(self.planners()[0].address))
        return await stub.GetStatus(pb.StatusRequest(), timeout=5)

    async def until(self, happened: Callable[[pb.LogEntry], bool], what: str, after: int = 0) -> pb.LogEntry:
        """The first entry after that number of which this is true, as soon as there is one."""
        found: list[pb.LogEntry] = []

        async def look() -> bool:
            found[:] = [entry for entry in await self.log() if entry.number > after and happened(entry)]
            return bool(found)

        try:
            await eventually(look, STEP_TIMEOUT_S, what)
        except AssertionError as error:
            story = [f"{entry.number} {entry.text} {list(entry.done)}" for entry in await self.log()]
            raise AssertionError("\n".join([str(error), *story, str(await self.status())])) from error
        return found[0]

    async def kill_leader(self) -> str:
        """kill -9; return who that was."""
        leader = (await self.status()).leader
        os.kill(next(one.pid for one in self.planners() if one.member_id == leader), signal.SIGKILL)
        return leader


@asynccontextmanager
async def planned_cell(folder: Path, policy: str, *flags: str) -> AsyncIterator[PlannedCell]:
    """Start `armature up` with two planners and simulated workers, and stop it."""
    (folder / "policy.yaml").write_text(policy)
    command = [sys.executable, "-c", "from armature.cli.main import main; raise SystemExit(main())", "up"]
    command += ["--engine=simulated", "--transport=grpc", "--http-port=0", "--no-offload", "--no-valkey", *flags]
    command += [f"--state-dir={folder}", f"--planner-policy={folder / 'policy.yaml'}", "--planner=local"]
    command += ["--planners=2", "--set=planner.lease_ttl_s=2", "--set=planner.rehearsal_budget_s=2"]
    command += [f"--set={kind}-worker.{flag}" for kind in ("prefill", "decode") for flag in WORKER_FLAGS]
    log = (folder / "up.log").open("wb")
    up = await asyncio.create_subprocess_exec(*tethered(command), stdout=log, stderr=log, start_new_session=True)
    channels = ChannelPool()
    try:
        cell = PlannedCell(CellDirectory(folder / "default"), channels)
        await eventually(
            lambda: b"Ctrl-C stops the cell" in (folder / "up.log").read_bytes() or up.returncode is not None,
            READY_TIMEOUT_S, "the cell is up",
        )  # fmt: skip
        assert up.returncode is None, (folder / "up.log").read_text()[-2000:]
        yield cell
    finally:
        await channels.close()
        if up.returncode is None:
            up.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(60):
                await up.wait()
        finally:
            if up.returncode is None:
                up.kill()
        log.close()


@asynccontextmanager
async def traffic_on(cell: PlannedCell) -> AsyncIterator[Traffic]:
    """Traffic that is the caller's to shape; at the end every request has been answered or has failed."""
    async with grpc.aio.insecure_channel(cell.state.grpc) as channel:
        traffic = Traffic(channel)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(traffic.run())
            try:
                yield traffic
            finally:
                running.cancel()


def did(word: str) -> Callable[[pb.LogEntry], bool]:
    """Whether an entry is of a plan that was carried out, of which something done has that word."""
    return lambda entry: entry.kind == CHANGE and any(word in done for done in entry.done)
