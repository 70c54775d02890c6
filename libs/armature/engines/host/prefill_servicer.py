"""Serves `armature.v1.Prefill`: announces blocks as they are computed."""

import asyncio
from collections.abc import AsyncIterator

from armature.engines.engine import BlockEngine
from armature.engines.host.duty import Duty
from armature.engines.host.staging import StagedPrompt, Stagings
from armature.runtime import telemetry
from armature.runtime.errors import CallerError, OverloadedError, UnavailableError
from armature.runtime.tasks import forget_outcome
from armature.scheduling.request import Staged
from armature.transfer.transports import Transports, describe_staging
from armature.v1 import worker_pb2_grpc
from armature.v1.worker_pb2 import (
    PrefillDone,
    PrefillRequest,
    PrefillUpdate,
    StagedBlocks,
)

START_TIMEOUT_S = 10.0
"""A caller has its first message ready when it calls."""


class PrefillServicer(worker_pb2_grpc.PrefillServicer):
    """One call for each prompt."""

    def __init__(self, engine: BlockEngine, stagings: Stagings, transports: Transports, duty: Duty) -> None:
        self._duty = duty
        self._memory = engine.memory
        self._block_size = engine.info.block_size
        self._stagings = stagings
        self._transports = transports

    async def Prefill(
        self, request_iterator: AsyncIterator[PrefillRequest], context: object
    ) -> AsyncIterator[PrefillUpdate]:
        requests = aiter(request_iterator)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                first = await anext(requests, None)
        except TimeoutError:
            raise CallerError(f"no `start` came within {START_TIMEOUT_S:g} s") from None
        if first is None or first.WhichOneof("step") != "start":
            raise CallerError("the first message must be `start`")
        start = first.start
        if not (self._duty.computes_for_others or start.cached_only):
            raise UnavailableError("this worker computes no prompts for others; set cached_only for what it has")
        prompt = self._stagings.open(start)
        obeying = asyncio.create_task(self._obey(requests, prompt), name=f"releases of {prompt.staging_id}")
        obeying.add_done_callback(forget_outcome)  # a call that breaks ends its handler too
        try:
            with telemetry.span("prefill", request_id=start.request_id, blocks=prompt.num_blocks) as span:
                staging = describe_staging(self._memory, self._transports, prompt.staging_id, self._stagings.lease_s)
                yield PrefillUpdate(staging=staging)
                while (staged := await _next(prompt)) is not None:
                    if staged.block_ids:
                        blocks = _announcement(staged)
                        if prompt.onboarding is not None:
                            prompt.onboarding.describe(blocks, self._block_size)
                        yield PrefillUpdate(blocks=blocks)
                    if staged.is_last:
                        span.set_attribute("cached_tokens", staged.cached_tokens)
                        break
            yield PrefillUpdate(done=PrefillDone())
            # A reader that has gone silent must not hold blocks for longer than one that has gone.
            await asyncio.wait({obeying}, timeout=self._stagings.lease_s)
        finally:
            obeying.cancel()
            self._stagings.close(prompt)

    async def _obey(self, requests: AsyncIterator[PrefillRequest], prompt: StagedPrompt) -> None:
        """Take the reader's releases until it has nothing more to release, or to say."""
        async for request in requests:
            if request.WhichOneof("step") == "release":
                self._stagings.release(prompt, request.release.up_to_block)
            if prompt.released:
                return


async def _next(prompt: StagedPrompt) -> Staged | None:
    """The next blocks; None if nobody wants them any more."""
    news = await prompt.news.get()
    if isinstance(news, str):
        kind = OverloadedError if news.startswith("queue full") else UnavailableError
        raise kind(news)
    return news


def _announcement(staged: Staged) -> StagedBlocks:
    return StagedBlocks(
        first_block=staged.first_block,
        block_ids=staged.block_ids,
        digests=b"".join(staged.digests),
        cached_tokens=staged.cached_tokens,
    )
