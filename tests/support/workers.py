"""A worker host with a real gRPC server, in this process or in a child that a test may stop or kill."""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from armature.blocks.hashing import BlockHasher
from armature.engines.host.fetch import FetchLimits
from armature.engines.host.host import HostLimits, Identity, WorkerHost
from armature.engines.host.tiers.offloader import OffloadLimits
from armature.engines.local import LocalEngine
from armature.engines.simulated import SimulatedModel, SimulatedRunner
from armature.runtime.channels import ChannelPool
from armature.runtime.children import tethered
from armature.runtime.server import RpcServer
from armature.scheduling.offloading import OffloadTiming
from armature.transfer.transports import open_transports
from armature.v1 import common_pb2 as common
from armature.v1.worker_pb2 import PrefillTarget

SECRET = b"test"
"""Of every setup that says nothing else."""
READY_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything about a worker of these tests; the same in a child, so it must survive JSON."""

    role: str = "decode"
    transport: str = "nixl"
    member_id: str = "worker"
    torch_model: str = ""
    num_blocks: int = 512
    block_size: int = 16
    block_bytes: int = 4096
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 256
    step_s: float = 0.0
    """How long a simulated step pretends to compute."""
    lease_s: float = 30.0
    read_timeout_s: float = 5.0
    prefill_timeout_s: float = 20.0
    max_waiting: int = 1024
    max_stagings: int = 256
    secret: str = "test"
    offload: bool = False
    """Whether it uses the kv-offload of its node, which is called `here`."""


ROLES = {"decode": common.ROLE_DECODE, "prefill": common.ROLE_PREFILL, "aggregated": common.ROLE_AGGREGATED}


class SlowRunner(SimulatedRunner):
    """Takes its time, so that a test can act while a prompt is being computed, and can spoil a block."""

    def __init__(self, model: SimulatedModel, step_s: float) -> None:
        super().__init__(model)
        self.step_s = step_s
        self.steps = 0
        self.spoiled = 0
        """How many sealed blocks from now on, the last of these gets the digest of something else; 0: none."""

    def execute(self, plan: Any) -> Any:
        self.steps += 1
        time.sleep(self.step_s)
        sampled = super().execute(plan)
        for block_id, _ in plan.sealed:
            if self.spoiled:
                self.spoiled -= 1
                if not self.spoiled:
                    self.memory.set_digest(block_id, b"something else!!")
        return sampled


@dataclass
class Worker:
    """A running worker host."""

    host: WorkerHost
    engine: LocalEngine
    runner: Any
    server: RpcServer
    channels: ChannelPool
    address: str = ""
    records: list[common.WorkerInfo] = field(default_factory=list)
    """What it has told the cell since its start."""

    @property
    def load(self) -> Any:
        return self.host.board.load

    def target(self) -> PrefillTarget:
        return target_of(self.address, self.host.worker_info.kv_fingerprint)


def target_of(address: str, fingerprint: bytes) -> PrefillTarget:
    return PrefillTarget(worker_id="prefill", address=address, handoff=common.HANDOFF_PULL, kv_fingerprint=fingerprint)


def make_engine(setup: Setup) -> tuple[LocalEngine, Any]:
    runner: Any
    if setup.torch_model:
        from armature.engines.torch.runner import torch_engine_runner

        runner = torch_engine_runner(
            Path(setup.torch_model), model_name="m", num_blocks=setup.num_blocks, block_size=setup.block_size,
            max_num_seqs=setup.max_num_seqs, max_num_batched_tokens=setup.max_num_batched_tokens, threads=1,
        )  # fmt: skip
    else:
        model = SimulatedModel(
            name="m", num_blocks=setup.num_blocks, block_size=setup.block_size, block_bytes=setup.block_bytes,
            max_num_seqs=setup.max_num_seqs, max_num_batched_tokens=setup.max_num_batched_tokens,
        )  # fmt: skip
        runner = SlowRunner(model, setup.step_s)
    return LocalEngine(
        runner, BlockHasher(setup.secret.encode(), setup.block_size), max_waiting=setup.max_waiting,
        offload=OffloadTiming() if setup.offload else None,
    ), runner  # fmt: skip


@asynccontextmanager
async def worker(setup: Setup) -> AsyncIterator[Worker]:
    """A worker in this process, on loopback."""
    engine, runner = make_engine(setup)
    channels, server = ChannelPool(), RpcServer("127.0.0.1")
    running = asyncio.TaskGroup()
    async with running:
        transports = await open_transports(
            setup.transport, engine.memory, channels=channels, spawn=running.create_task,
            host="127.0.0.1", read_timeout_s=setup.read_timeout_s,
        )  # fmt: skip
        host = WorkerHost(
            engine, transports, identity=Identity(setup.member_id, 7, ROLES[setup.role], node="here"),
            cluster_secret=setup.secret.encode(), channels=channels, spawn=running.create_task,
            limits=HostLimits(
                lease_s=setup.lease_s,
                max_stagings=setup.max_stagings,
                fetch=FetchLimits(read_timeout_s=setup.read_timeout_s, prefill_timeout_s=setup.prefill_timeout_s),
                offload=OffloadLimits() if setup.offload else None,
            ),
        )  # fmt: skip
        records: list[common.WorkerInfo] = []
        host.register(server, lambda record: asyncio.sleep(0, records.append(record)))
        await server.start()
        await engine.start(host.on_step)
        endless: list[asyncio.Task[None]] = []
        if host.exchange.offloader is not None:
            endless.append(running.create_task(host.exchange.offloader.run()))
        try:
            yield Worker(host, engine, runner, server, channels, server.address, records)
        finally:
            for task in endless:
                task.cancel()
            await server.stop(0)
            await channels.close()
            await engine.stop()
            await transports.close()


@dataclass
class Child:
    """A worker in a process of its own."""

    process: asyncio.subprocess.Process
    address: str
    fingerprint: bytes

    def target(self) -> PrefillTarget:
        return target_of(self.address, self.fingerprint)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.signal(signal.SIGKILL)
        await self.process.wait()

    async def load(self) -> dict[str, Any]:
        """What the child's engine and stagings report now."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(b"load\n")
        async with asyncio.timeout(10):
            return json.loads(await self.process.stdout.readline())


@asynccontextmanager
async def child_worker(setup: Setup, env: dict[str, str] | None = None) -> AsyncIterator[Child]:
    """A worker in a child process, killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *tethered([sys.executable, "-m", "tests.support.workers", json.dumps(setup.__dict__)]), start_new_session=True,
        env={**os.environ, **(env or {})}, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_TIMEOUT_S):
            ready = json.loads(await process.stdout.readline())
        child = Child(process, ready["address"], bytes.fromhex(ready["fingerprint"]))
        yield child
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _serve(setup: Setup) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with worker(setup) as running:
        ready = {"address": running.address, "fingerprint": running.host.worker_info.kv_fingerprint.hex()}
        print(json.dumps(ready), flush=True)
        while await reader.readline():
            costs = running.load.step_costs
            report = running.load._asdict() | {"step_costs": costs and asdict(costs)}
            print(json.dumps(report | {"stagings": len(running.host.exchange.stagings)}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("setup")
    asyncio.run(_serve(Setup(**json.loads(parser.parse_args().setup))))
