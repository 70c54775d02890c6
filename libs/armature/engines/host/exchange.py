"""All by which a worker's blocks come from others and go to others: prefill, peers, tiers below the device.

Made only for engines that let others at their blocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from armature.blocks.hashing import BlockHasher
from armature.engines.engine import BlockEngine
from armature.engines.host.avoided import Avoided
from armature.engines.host.duty import Duty
from armature.engines.host.fetch import Fetcher, FetchLimits
from armature.engines.host.prefill_servicer import PrefillServicer
from armature.engines.host.remote_prompts import RemotePrompts
from armature.engines.host.staging import Stagings
from armature.engines.host.tiers.node_tiers import NodeTiers
from armature.engines.host.tiers.offloader import Offloader, OffloadLimits
from armature.engines.host.tiers.onboarder import Onboarder, OnboardReport
from armature.runtime.channels import ChannelPool
from armature.runtime.server import RpcServer
from armature.runtime.tasks import Spawn
from armature.scheduling.request import EngineLoad, Reserved, StepOutput
from armature.transfer.grpc_transport import BlocksServicer
from armature.transfer.transports import Transports
from armature.v1 import worker_pb2_grpc as stubs


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


class BlockExchange:
    """Everything about one engine's blocks that is not the engine's own business."""

    def __init__(
        self,
        engine: BlockEngine,
        transports: Transports,
        *,
        hasher: BlockHasher,
        duty: Duty,
        node: str,
        channels: ChannelPool,
        spawn: Spawn,
        limits: HostLimits,
        load: Callable[[], EngineLoad],
    ) -> None:
        self._engine = engine
        self._duty = duty
        self.transports = transports
        self._server: RpcServer | None = None
        self.tiers: NodeTiers | None = None
        """Is to be told of kv-offloads; None: blocks are kept on the device only."""
        self.offloader: Offloader | None = None
        """Is to be run."""
        if limits.offload is not None:
            self.tiers = NodeTiers(engine, node, channels, spawn)
            self.offloader = Offloader(engine, transports, self.tiers, self._address, limits.offload)
        avoided = Avoided()
        self.onboarder = Onboarder(engine, transports, channels, spawn, avoided)
        self.fetcher = Fetcher(
            engine, transports, channels, spawn, limits.fetch, lambda: load().step_costs, avoided
        )  # fmt: skip
        self.stagings = Stagings(
            engine,
            transports,
            hasher,
            lease_s=limits.lease_s,
            max_stagings=limits.max_stagings,
            onboarder=self.onboarder,
        )
        self.remote = RemotePrompts(engine, self.fetcher, self.onboarder, duty, spawn)

    def on_step(self, output: StepOutput) -> None:
        """Take what a step has staged, given up and offered."""
        for staged in output.staged:
            self.stagings.on_staged(staged)
        if output.tokens and len(self.stagings):
            self.stagings.on_failures(output.tokens)
        if output.offload is not None and self.offloader is not None:
            self.offloader.on_news(output.offload, output.load.step_costs)

    def onboard(self, reserved: Reserved, load: EngineLoad) -> OnboardReport:
        """Read a prompt's blocks from the tiers below the device into the room that there is for them now."""
        assert self.tiers is not None, "an engine without tiers below has reserved room for their blocks"
        report = self.onboarder.begin(reserved, self.tiers.keeper, load.step_costs)
        self.stagings.on_onboarding(reserved.request_id, report)
        return report

    def register(self, server: RpcServer) -> None:
        """Add the contracts by which others get blocks here."""
        self._server = server
        prefill = PrefillServicer(self._engine, self.stagings, self.transports, self._duty)
        server.add(stubs.add_PrefillServicer_to_server, prefill, "armature.v1.Prefill")
        blocks = BlocksServicer(self._engine.memory, self._blocks_to_read)
        server.add(stubs.add_BlocksServicer_to_server, blocks, "armature.v1.Blocks")

    def _blocks_to_read(self, staging_id: str, block_ids: Sequence[int]) -> Sequence[int]:
        if self.offloader is not None and staging_id == self.offloader.staging_id:
            return self.offloader.blocks_to_read(staging_id, block_ids)
        return self.stagings.blocks_to_read(staging_id, block_ids)

    def _address(self) -> str:
        assert self._server is not None, "blocks are offered by a worker that serves nobody"
        return self._server.address
