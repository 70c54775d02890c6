"""Prompts whose blocks a request here gets from others: prefill workers, peers, other nodes' kv-offloads."""

import asyncio

from armature.engines.engine import BlockEngine
from armature.engines.host import metrics
from armature.engines.host.client_stream import Generation
from armature.engines.host.conversion import TOKEN_ID_BYTES
from armature.engines.host.duty import Duty
from armature.engines.host.fetch import Fetcher, FetchOrder, FetchReport, count
from armature.engines.host.tiers.onboarder import Keeper, Onboarder
from armature.runtime import telemetry
from armature.runtime.tasks import Spawn
from armature.scheduling.request import Reserved
from armature.v1 import common_pb2 as common
from armature.v1.worker_pb2 import DecodeRequest, PrefillStart, PrefillTarget


class RemotePrompts:
    """Fetches for the requests of one engine."""

    def __init__(self, engine: BlockEngine, fetcher: Fetcher, onboarder: Onboarder, duty: Duty, spawn: Spawn) -> None:
        self._engine = engine
        self._fetcher = fetcher
        self._onboarder = onboarder
        self._duty = duty
        self._spawn = spawn

    def wants(self, request: DecodeRequest, prompt_tokens: int) -> bool:
        """Whether somebody else is to compute the prompt, and can."""
        info, target = self._engine.info, request.prefill
        if not request.HasField("prefill") or prompt_tokens <= info.block_size:
            return False
        if not (self._duty.has_helpers or target.cached_only):
            return False
        if request.sampling.HasField("prompt_logprobs"):  # of fetched tokens nobody has any
            return False
        if target.handoff != common.HANDOFF_PULL:
            metrics.fetch_failures.labels("handoff").inc()
            return False
        if target.kv_fingerprint != info.kv_fingerprint:
            metrics.fetch_failures.labels("fingerprint").inc()
            return False
        if target.address in self._fetcher.avoided:
            metrics.fetch_failures.labels("avoided").inc()
            return False
        return True

    def begin(self, generation: Generation | None, reserved: Reserved) -> None:
        """There is room for a prompt's blocks: fetch them, if they are still wanted."""
        if not reserved.block_ids:
            return
        if generation is None or generation.stream is None:
            self._engine.finish_remote(reserved.request_id, 0)
            return
        request = generation.request
        if request.prefill.is_offload:
            generation.report = self._onboarder.begin(reserved, self._keeper(request.prefill), self._fetcher.costs())
            return
        start = PrefillStart(
            request_id=request.request_id,
            model=request.model,
            token_ids=request.token_ids[: TOKEN_ID_BYTES * generation.prompt_tokens],
            cache_namespace=request.cache_namespace,
            first_block=reserved.first_block,
            transport=self._fetcher.transports.names[0],
            kv_fingerprint=self._engine.info.kv_fingerprint,
            priority=request.priority,
            tenant=request.tenant,
            cached_only=request.prefill.cached_only,
            keep_s=request.keep_s,
        )
        order = FetchOrder(request.prefill.address, start, reserved, telemetry.traceparent_of(generation.span))
        generation.report = report = FetchReport()
        self._spawn(self._fetch(generation, order, report))

    def cancel(self, engine_id: str) -> None:
        """What is read for a request from below the device is not wanted any more."""
        self._onboarder.cancel(engine_id)

    def _keeper(self, target: PrefillTarget) -> Keeper:
        """Another node's kv-offload; reading from there is like reading from a peer."""
        return Keeper(
            target.worker_id,
            target.address,
            read=self._fetcher.measured,
            answered=lambda _: None,
            ended=count,
            is_asked_for_all=True,
        )

    async def _fetch(self, generation: Generation, order: FetchOrder, report: FetchReport) -> None:
        if generation.has_ended:
            # Ended before this task began; a task that is cancelled so early would never come to its `finally`.
            self._engine.finish_remote(order.reserved.request_id, 0)
            return
        generation.fetching = asyncio.current_task()
        try:
            await self._fetcher.fetch(order, report)
        finally:
            generation.fetching = None
            if generation.has_ended:
                self._engine.abort(generation.engine_id)
