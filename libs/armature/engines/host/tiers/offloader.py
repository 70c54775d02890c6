"""Offers blocks to the node's kv-offload, which reads them out of the device's memory: one task, one call at a time.

Blocks are not held for it. One that is reused meanwhile arrives with another digest and is dropped there; so the worst
that a slow kv-offload can do is to miss blocks.
"""

import asyncio
import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import numpy as np

from armature.engines.engine import BlockEngine
from armature.engines.host import metrics
from armature.engines.host.tiers.node_tiers import NodeTiers
from armature.index.tiers import Tier
from armature.performance.linear import LinearModel
from armature.runtime.errors import NotFoundError
from armature.scheduling.lower_tiers import TierSpeed
from armature.scheduling.offloading import OffloadRun
from armature.scheduling.request import OffloadNews, SeenPrompt
from armature.transfer.transports import Transports, describe_staging
from armature.v1 import kv_offload_pb2 as contract
from armature.v1.common_pb2 import Member

log = logging.getLogger(__name__)

MAX_SEEN_PROMPTS = 1024
"""That wait to be told; beyond that the oldest are not, which only makes kv-offload choose a little worse."""
SEE_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class OffloadLimits:
    """Bounds of what one worker offloads.

    Raises:
        ValueError: one is not above 0.
    """

    bytes_per_s: float = float("inf")
    """On the long run; a run of blocks is copied at full speed, and then followed by a pause."""
    timeout_s: float = 10.0
    """For one call; the blocks of a call that takes longer are most likely reused by then."""

    def __post_init__(self) -> None:
        for name in ("bytes_per_s", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


class Offloader:
    """Passes on what the engine offers. `address` gives this worker's gRPC target once it serves."""

    def __init__(
        self,
        engine: BlockEngine,
        transports: Transports,
        node: NodeTiers,
        address: Callable[[], str],
        limits: OffloadLimits,
    ) -> None:
        self._engine = engine
        self._transports = transports
        self._node = node
        self._address = address
        self._timeout_s = limits.timeout_s
        self._bytes_per_s = limits.bytes_per_s
        self.staging_id = f"o-{uuid.uuid4().hex}"
        self._readable: frozenset[int] = frozenset()
        """Blocks that may be read at the moment."""
        # Bounded by the engine, which has only so many blocks in flight.
        self._runs: deque[OffloadRun] = deque()
        self._seen: deque[tuple[SeenPrompt, LinearModel | None]] = deque(maxlen=MAX_SEEN_PROMPTS)
        self._news = asyncio.Event()
        self._missed_blocks = 0

    def on_news(self, news: OffloadNews, costs: LinearModel | None) -> None:
        """Take what a step has told."""
        self._runs.extend(news.runs)
        self._seen.extend((prompt, costs) for prompt in news.seen)
        metrics.offload_missed_blocks.inc(news.missed_blocks - self._missed_blocks)
        self._missed_blocks = news.missed_blocks
        self._news.set()

    def blocks_to_read(self, staging_id: str, block_ids: Sequence[int]) -> Sequence[int]:
        """`block_ids` if all of them are being offloaded under this id.

        Raises:
            NotFoundError: they are not, or not any more.
        """
        if staging_id != self.staging_id or not self._readable.issuperset(block_ids):
            raise NotFoundError("these blocks are not, or no longer, being offloaded")
        return block_ids

    async def run(self) -> None:
        """Offload for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._seen or self._runs:
                member = self._node.member
                if self._seen:
                    await self._see(member)
                if self._runs:
                    await self._offload(self._runs.popleft(), member)

    async def _see(self, member: Member | None) -> None:
        prompts = [_seen(prompt, costs, self._engine.info.block_size) for prompt, costs in self._seen]
        self._seen.clear()
        if member is None:
            return
        request = contract.SeeRequest(layout=self._node.layout, prompts=prompts)
        try:
            response = await self._node.stub(member).See(request, timeout=SEE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.debug("%s was not told of %d prompts: %s", member.id, len(prompts), error.code().name)
            return
        speeds = [speed for speed in response.speeds if speed.bytes_per_s > 0 and speed.tier > Tier.G2]
        self._node.lifts({Tier(speed.tier): TierSpeed(speed.bytes_per_s, speed.latency_s) for speed in speeds})

    async def _offload(self, run: OffloadRun, member: Member | None) -> None:
        began_s = time.monotonic()
        try:
            if member is not None:
                await self._call(run, member)
            else:
                metrics.offload_blocks.labels("away").inc(len(run.digests))
        finally:
            self._engine.offloaded(run.run_id)
        if member is not None:
            least_s = len(run.digests) * self._engine.info.block_bytes / self._bytes_per_s
            await asyncio.sleep(max(0.0, began_s + least_s - time.monotonic()))

    async def _call(self, run: OffloadRun, member: Member) -> None:
        request = contract.OffloadRequest(
            layout=self._node.layout,
            address=self._address(),
            source=describe_staging(self._engine.memory, self._transports, self.staging_id, self._timeout_s),
            digests=b"".join(run.digests),
            block_ids=run.block_ids,
            tenant=run.terms.tenant,
            priority=run.terms.priority,
            keep_s=run.terms.keep_s,
        )
        self._readable = frozenset(run.block_ids)
        began_s = time.perf_counter()
        try:
            with self._transports.attending():
                response = await self._node.stub(member).Offload(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            metrics.offload_blocks.labels(error.code().name.lower()).inc(len(run.digests))
            log.info("offloading %d blocks to %s: %s", len(run.digests), member.id, error.details())
            return
        finally:
            self._readable = frozenset()
        metrics.offload_s.observe(time.perf_counter() - began_s)
        outcomes = Counter(response.outcomes)
        for outcome, count in outcomes.items():
            name = contract.OffloadResponse.Outcome.Name(outcome)
            metrics.offload_blocks.labels(name.removeprefix("OUTCOME_").lower()).inc(count)
        taken = outcomes[contract.OffloadResponse.OUTCOME_TAKEN]
        metrics.offloaded_bytes.inc(taken * self._engine.info.block_bytes)


def _seen(prompt: SeenPrompt, costs: LinearModel | None, block_size: int) -> contract.SeenPrompt:
    count = len(prompt.digests)
    worth_s = np.zeros(count)
    if costs is not None:
        before = np.arange(count) * block_size
        worth_s = block_size * (costs.prefill_token_s + costs.prefill_pair_s * (before + block_size / 2))
    return contract.SeenPrompt(
        digests=b"".join(prompt.digests), worth_s=worth_s.tolist(),
        tenant=prompt.terms.tenant, priority=prompt.terms.priority, keep_s=prompt.terms.keep_s,
    )  # fmt: skip
