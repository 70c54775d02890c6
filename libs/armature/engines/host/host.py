"""The worker host: one engine, and between it and the contracts everything that is the same for all engines."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from armature.blocks.hashing import BlockHasher
from armature.engines.engine import Engine
from armature.engines.host import metrics
from armature.engines.host.avoided import Avoided
from armature.engines.host.decode_servicer import DecodeServicer
from armature.engines.host.duty import Duty
from armature.engines.host.embedding import Embeddings
from armature.engines.host.fetch import Fetcher, FetchLimits
from armature.engines.host.generation import Generations
from armature.engines.host.prefill_servicer import PrefillServicer
from armature.engines.host.staging import Stagings
from armature.engines.host.tiers.node_tiers import NodeTiers
from armature.engines.host.tiers.offloader import Offloader, OffloadLimits
from armature.engines.host.tiers.onboarder import Onboarder
from armature.engines.host.worker_servicer import Board, WorkerServicer
from armature.runtime.channels import ChannelPool
from armature.runtime.server import RpcServer
from armature.runtime.tasks import Spawn
from armature.scheduling.request import EngineLoad, Reserved, StepOutput
from armature.transfer.grpc_transport import BlocksServicer
from armature.transfer.transports import Transports
from armature.v1 import common_pb2 as common
from armature.v1 import worker_pb2_grpc as stubs
from armature.v1.worker_pb2 import DecodeFrame

MAX_FAILED_STEPS = 20
"""In a row: then it is not one poisonous request."""

UpdateRecord = Callable[[common.WorkerInfo], Awaitable[None]]
"""Tells the cell what a worker is now."""


@dataclass(frozen=True, kw_only=True)
class HostLimits:
    """The bounds of a worker host."""

    lease_s: float = 30.0
    """How long staged blocks outlive their call."""
    max_stagings: int = 256
    """Prompts staged for readers at the same time; further ones are refused."""
    fetch: FetchLimits = field(default_factory=FetchLimits)
    offload: OffloadLimits | None = None
    """None: blocks are neither offered to tiers below the device nor looked for there."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this worker is in its cell, and what it was told of its model."""

    member_id: str
    epoch: int
    role: "common.Role.ValueType"
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    node: str = ""
    """The machine: its kv-offload keeps what the device can't."""


class WorkerHost:
    """Serves one engine in one role."""

    def __init__(
        self,
        engine: Engine,
        transports: Transports,
        *,
        identity: Identity,
        cluster_secret: bytes,
        channels: ChannelPool,
        spawn: Spawn,
        limits: HostLimits = HostLimits(),
    ) -> None:
        self._engine = engine
        self._transports = transports
        self._identity = identity
        self.duty = Duty(identity.role)
        hasher = BlockHasher(cluster_secret, engine.info.block_size)
        self.board = Board(identity.epoch)
        self._server: RpcServer | None = None
        self.tiers: NodeTiers | None = None
        """Is to be told of kv-offloads; None: blocks are kept on the device only."""
        self.offloader: Offloader | None = None
        """Is to be run."""
        if limits.offload is not None:
            self.tiers = NodeTiers(engine, identity.node, channels, spawn)
            self.offloader = Offloader(engine, transports, self.tiers, self._address, limits.offload)
        avoided = Avoided()
        self.onboarder = Onboarder(engine, transports, channels, spawn, avoided)
        self.fetcher = Fetcher(
            engine, transports, channels, spawn, limits.fetch, lambda: self.board.load.step_costs, avoided
        )
        self.stagings = Stagings(
            engine,
            transports,
            hasher,
            lease_s=limits.lease_s,
            max_stagings=limits.max_stagings,
            onboarder=self.onboarder,
        )
        self.generations = Generations(
            engine, hasher, self.fetcher, self.onboarder, duty=self.duty, member_id=identity.member_id, spawn=spawn
        )  # fmt: skip
        self.embeddings = Embeddings(engine)
        self.failed = asyncio.Event()
        """Set when the engine computes nothing any more."""
        self._preemptions = 0
        self._prefill_tokens = 0
        metrics.watch(lambda: self.board.load, lambda: len(self.stagings))

    def on_step(self, output: StepOutput) -> None:
        """What the engine calls after each step."""
        for reserved in output.reserved:
            if reserved.is_onboarding:
                self._onboard(reserved, output.load)
            else:
                self.generations.on_reserved(reserved)
        for staged in output.staged:
            self.stagings.on_staged(staged)
        if output.tokens:
            if len(self.stagings):
                self.stagings.on_failures(output.tokens)
            self.generations.on_tokens(output.tokens)
            self.embeddings.on_tokens(output.tokens)
        load = output.load
        if output.offload is not None and self.offloader is not None:
            self.offloader.on_news(output.offload, load.step_costs)
        self.board.update(output.kv_events if self._engine.info.publishes_kv_events else (), load)
        metrics.steps.inc()
        self._count(load)
        # An engine that has died reports a pool without blocks.
        if load.failed_steps_in_a_row and (load.failed_steps_in_a_row >= MAX_FAILED_STEPS or not load.total_blocks):
            self.failed.set()

    def _onboard(self, reserved: Reserved, load: EngineLoad) -> None:
        assert self.tiers is not None, "an engine without tiers below has reserved room for their blocks"
        report = self.onboarder.begin(reserved, self.tiers.keeper, load.step_costs)
        self.generations.on_onboarding(reserved.request_id, report)
        self.stagings.on_onboarding(reserved.request_id, report)

    def _count(self, load: EngineLoad) -> None:
        if load.computed_prefill_tokens > self._prefill_tokens:
            metrics.prefill_tokens.inc(load.computed_prefill_tokens - self._prefill_tokens)
            self._prefill_tokens = load.computed_prefill_tokens
        if load.preemptions > self._preemptions:
            metrics.preemptions.inc(load.preemptions - self._preemptions)
            self._preemptions = load.preemptions

    def register(self, server: RpcServer, update: UpdateRecord) -> None:
        """Add all contracts of workers: what the role leaves out is refused, since roles change.

        `update` replaces the worker's record in the cell when its role has changed.
        """
        prefill = PrefillServicer(self._engine, self.stagings, self._transports, self.duty)
        server.add(stubs.add_PrefillServicer_to_server, prefill, "armature.v1.Prefill")
        decode = DecodeServicer(self.generations, self.embeddings)
        server.add(stubs.add_DecodeServicer_to_server, decode, "armature.v1.Decode")
        server.stream_lean("/armature.v1.Decode/Stream", decode.Stream, DecodeFrame.FromString)
        self._server = server
        blocks = BlocksServicer(self._engine.memory, self._blocks_to_read)
        server.add(stubs.add_BlocksServicer_to_server, blocks, "armature.v1.Blocks")

        async def set_role(role: "common.Role.ValueType") -> "common.Role.ValueType":
            former = self.duty.change(role)
            if former != role:
                await update(self.worker_info)
            return former

        worker = WorkerServicer(
            self.board,
            lambda: self.fetcher.bytes_per_s,
            lambda: self.tiers.speeds if self.tiers else {},
            lambda: self.fetcher.pull_bytes_per_s,
            set_role,
        )
        server.add(stubs.add_WorkerServicer_to_server, worker, "armature.v1.Worker")

    def _blocks_to_read(self, staging_id: str, block_ids: Sequence[int]) -> Sequence[int]:
        if self.offloader is not None and staging_id == self.offloader.staging_id:
            return self.offloader.blocks_to_read(staging_id, block_ids)
        return self.stagings.blocks_to_read(staging_id, block_ids)

    def _address(self) -> str:
        assert self._server is not None, "blocks are offered by a worker that serves nobody"
        return self._server.address

    async def drain(self) -> None:
        """Take nothing new; return when everything is answered and no reader needs a block any more."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.generations.drain())
            tasks.create_task(self.embeddings.drain())
            tasks.create_task(self.stagings.drain())

    @property
    def worker_info(self) -> common.WorkerInfo:
        """What the cell has to know of this worker."""
        info = self._engine.info
        return common.WorkerInfo(
            role=self.duty.role,
            model=common.ModelCard(
                name=info.model,
                path=info.model_path,
                context_length=info.context_length,
                block_size=info.block_size,
                vocab_size=info.vocab_size,
                eos_token_ids=info.eos_token_ids,
                block_bytes=info.block_bytes,
                tool_call_parser=self._identity.tool_call_parser,
                reasoning_parser=self._identity.reasoning_parser,
                embedding_size=info.embedding_size,
            ),
            num_blocks=info.num_blocks,
            max_num_seqs=info.max_num_seqs,
            max_num_batched_tokens=info.max_num_batched_tokens,
            engine=info.name,
            handoff=common.HANDOFF_PULL,
            transports=self._transports.names,
            kv_fingerprint=info.kv_fingerprint,
            lacks_kv_events=not info.publishes_kv_events,
        )
