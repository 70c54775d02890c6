"""The worker host: one engine, and between it and the contracts everything that is the same for all engines."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from armature.blocks.hashing import BlockHasher
from armature.engines.engine import BlockEngine, Engine
from armature.engines.host import metrics
from armature.engines.host.decode_servicer import DecodeServicer
from armature.engines.host.duty import Duty
from armature.engines.host.embedding import Embeddings
from armature.engines.host.exchange import BlockExchange, HostLimits
from armature.engines.host.generation import Generations
from armature.engines.host.worker_servicer import Board, WorkerServicer
from armature.runtime.channels import ChannelPool
from armature.runtime.errors import CallerError
from armature.runtime.server import RpcServer
from armature.runtime.tasks import Spawn
from armature.scheduling.request import EngineLoad, Reserved, StepOutput
from armature.transfer.transports import Transports
from armature.v1 import common_pb2 as common
from armature.v1 import worker_pb2_grpc as stubs
from armature.v1.worker_pb2 import DecodeFrame

MAX_FAILED_STEPS = 20
"""In a row: then it is not one poisonous request."""

UpdateRecord = Callable[[common.WorkerInfo], Awaitable[None]]
"""Tells the cell what a worker is now."""


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
        transports: Transports | None,
        *,
        identity: Identity,
        cluster_secret: bytes,
        channels: ChannelPool,
        spawn: Spawn,
        limits: HostLimits | None = None,
    ) -> None:
        """`transports`: how a `BlockEngine`'s blocks move; None: the engine keeps its blocks to itself."""
        self._engine = engine
        self._identity = identity
        self.duty = Duty(identity.role)
        hasher = BlockHasher(cluster_secret, engine.info.block_size)
        self.board = Board(identity.epoch)
        self.exchange: BlockExchange | None = None
        """None: blocks neither come from others nor go to them."""
        if transports is not None:
            assert isinstance(engine, BlockEngine), "there are transports for blocks that nobody can get at"
            self.exchange = BlockExchange(
                engine, transports, hasher=hasher, duty=self.duty, node=identity.node, channels=channels,
                spawn=spawn, limits=limits or HostLimits(), load=lambda: self.board.load,
            )  # fmt: skip
        remote = self.exchange.remote if self.exchange is not None else None
        self.generations = Generations(
            engine, hasher, remote, duty=self.duty, member_id=identity.member_id, spawn=spawn
        )  # fmt: skip
        self.embeddings = Embeddings(engine)
        self.failed = asyncio.Event()
        """Set when the engine computes nothing any more."""
        self._preemptions = 0
        self._prefill_tokens = 0
        metrics.watch(lambda: self.board.load, lambda: len(self.exchange.stagings) if self.exchange else 0)

    def on_step(self, output: StepOutput) -> None:
        """What the engine calls after each step."""
        for reserved in output.reserved:
            self._on_reserved(reserved, output.load)
        if self.exchange is not None:
            self.exchange.on_step(output)
        if output.tokens:
            self.generations.on_tokens(output.tokens)
            self.embeddings.on_tokens(output.tokens)
        load = output.load
        self.board.update(output.kv_events if self._engine.info.publishes_kv_events else (), load)
        metrics.steps.inc()
        self._count(load)
        # An engine that has died reports a pool without blocks.
        if load.failed_steps_in_a_row and (load.failed_steps_in_a_row >= MAX_FAILED_STEPS or not load.total_blocks):
            self.failed.set()

    def _on_reserved(self, reserved: Reserved, load: EngineLoad) -> None:
        assert self.exchange is not None, "an engine that keeps its blocks to itself has reserved room for others'"
        if reserved.is_onboarding:
            self.generations.on_onboarding(reserved.request_id, self.exchange.onboard(reserved, load))
        else:
            self.generations.on_reserved(reserved)

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
        decode = DecodeServicer(self.generations, self.embeddings)
        server.add(stubs.add_DecodeServicer_to_server, decode, "armature.v1.Decode")
        server.stream_lean("/armature.v1.Decode/Stream", decode.Stream, DecodeFrame.FromString)
        exchange = self.exchange
        if exchange is not None:
            exchange.register(server)

        async def set_role(role: "common.Role.ValueType") -> "common.Role.ValueType":
            if exchange is None and role == common.ROLE_PREFILL:
                raise CallerError(f"the {self._engine.info.name} engine computes no prompts for others")
            former = self.duty.change(role)
            if former != role:
                await update(self.worker_info)
            return former

        worker = WorkerServicer(
            self.board,
            lambda: exchange.fetcher.bytes_per_s if exchange else 0.0,
            lambda: exchange.tiers.speeds if exchange and exchange.tiers else {},
            lambda: exchange.fetcher.pull_bytes_per_s if exchange else 0.0,
            set_role,
        )
        server.add(stubs.add_WorkerServicer_to_server, worker, "armature.v1.Worker")

    async def drain(self) -> None:
        """Take nothing new; return when everything is answered and no reader needs a block any more."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.generations.drain())
            tasks.create_task(self.embeddings.drain())
            if self.exchange is not None:
                tasks.create_task(self.exchange.stagings.drain())

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
            handoff=common.HANDOFF_PULL if self.exchange else common.HANDOFF_UNSPECIFIED,
            transports=self.exchange.transports.names if self.exchange else (),
            kv_fingerprint=info.kv_fingerprint,
            lacks_kv_events=not info.publishes_kv_events,
        )
