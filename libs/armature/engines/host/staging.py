"""Prompts that are computed for readers elsewhere, and the leases under which their blocks are held.

A staging lives as long as its call, and after that until its reader has released it or its lease has run out. Blocks
are never handed to anybody else before; whoever reads later finds other digests behind the bytes.
"""

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from armature.blocks.hashing import BlockHasher
from armature.blocks.leases import LeaseTable
from armature.engines.engine import BlockEngine
from armature.engines.host import metrics
from armature.engines.host.conversion import check_model, check_prompt, unpack_tokens
from armature.engines.host.tiers.onboarder import Onboarder, OnboardReport
from armature.runtime.errors import CallerError, NotFoundError, OverloadedError, UnavailableError
from armature.runtime.pulse import Pulse
from armature.scheduling.request import Request, Staged, TokenOutput, Work
from armature.transfer.transports import Transports
from armature.v1.worker_pb2 import PrefillStart


@dataclass(slots=True, eq=False)
class StagedPrompt:
    """One prompt, from its request until its last block is released."""

    staging_id: str
    """Known to its reader only: who has it may read the blocks."""
    num_blocks: int
    news: asyncio.Queue[Staged | str | None] = field(default_factory=asyncio.Queue[Staged | str | None])
    """The text of an error, or None once nothing is left to be read, ends it. Bounded by the prompt: an entry but the
    last ones brings blocks."""
    released: bool = False
    """Nothing is left to be read."""
    blocks: dict[int, int] = field(default_factory=dict[int, int])
    """Staged blocks that may still be read: block id by index in the prompt."""
    onboarding: OnboardReport | None = None
    attention: ExitStack = field(default_factory=ExitStack)
    """Keeps the transports attentive to this reader."""


class Stagings:
    """Every staged prompt of one worker."""

    def __init__(
        self,
        engine: BlockEngine,
        transports: Transports,
        hasher: BlockHasher,
        *,
        lease_s: float,
        max_stagings: int,
        onboarder: Onboarder,
    ) -> None:
        self._engine = engine
        self._transports = transports
        self._hasher = hasher
        self._max_stagings = max_stagings
        self._onboarder = onboarder
        self.lease_s = lease_s
        self._prompts: dict[str, StagedPrompt] = {}
        self._leases = LeaseTable()
        self._timer: asyncio.TimerHandle | None = None
        self._ended = Pulse()
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._prompts)

    def open(self, start: PrefillStart) -> StagedPrompt:
        """Begin to compute a prompt.

        Raises:
            CallerError, UnavailableError: this worker won't.
        """
        info = self._engine.info
        if self.is_draining:
            raise UnavailableError("this worker is draining")
        if len(self._prompts) >= self._max_stagings:
            raise OverloadedError(f"this worker stages {len(self._prompts)} prompts already")
        check_model(start.model, info)
        if start.kv_fingerprint != info.kv_fingerprint:
            raise CallerError("kv_fingerprint differs: KV of the two workers can't be exchanged")
        if start.transport not in ("nixl", "grpc"):
            raise CallerError(f"transport is {start.transport!r}; it must be 'nixl' or 'grpc'")
        token_ids = unpack_tokens(start.token_ids, info)
        check_prompt(len(token_ids), info)
        num_blocks = (len(token_ids) - 1) // info.block_size
        if start.first_block >= num_blocks:
            raise CallerError(f"first_block is {start.first_block}; the reader needs only {num_blocks} blocks")
        prompt = StagedPrompt(f"p-{uuid.uuid4().hex}", num_blocks)
        prompt.attention.enter_context(self._transports.attending())
        self._prompts[prompt.staging_id] = prompt
        self._engine.submit(
            Request(
                request_id=prompt.staging_id,
                token_ids=token_ids,
                prompt_tokens=len(token_ids),
                max_tokens=0,
                root=self._hasher.root(start.model, start.cache_namespace),
                work=Work.PREFILL,
                first_block=start.first_block,
                cached_only=start.cached_only,
                priority=start.priority,
                tenant=start.tenant,
                keep_s=start.keep_s,
            )
        )
        return prompt

    def on_staged(self, staged: Staged) -> None:
        """Blocks are computed."""
        prompt = self._prompts.get(staged.request_id)
        if prompt is not None:
            prompt.blocks.update(enumerate(staged.block_ids, staged.first_block))
            prompt.news.put_nowait(staged)
            if staged.is_last:
                metrics.cached_tokens.inc(staged.cached_tokens)

    def on_onboarding(self, request_id: str, report: OnboardReport) -> None:
        """Blocks of a prompt are being read from tiers below the device."""
        prompt = self._prompts.get(request_id)
        if prompt is not None:
            prompt.onboarding = report

    def on_failures(self, outputs: Sequence[TokenOutput]) -> None:
        """The engine has given up some prompts and holds nothing for them any more."""
        for output in outputs:
            prompt = self._prompts.get(output.request_id)
            if prompt is not None:
                prompt.news.put_nowait(output.error or "the engine gave the prompt up")
                self._forget(prompt)

    def release(self, prompt: StagedPrompt, up_to_block: int) -> None:
        """The reader needs no block below this index any more."""
        if prompt.released:
            return
        if up_to_block >= prompt.num_blocks:
            self._engine.release(prompt.staging_id)
            self._forget(prompt)
            return
        for index in [index for index in prompt.blocks if index < up_to_block]:
            del prompt.blocks[index]
        self._engine.release(prompt.staging_id, up_to_block)

    def close(self, prompt: StagedPrompt) -> None:
        """The call has ended: compute no further, and hold what is staged for as long as the lease says."""
        if prompt.released:
            return
        self._engine.stop_prefill(prompt.staging_id)
        self._onboarder.cancel(prompt.staging_id)
        self._leases.grant(prompt.staging_id, self._now_s() + self.lease_s)
        self._set_timer()

    def blocks_to_read(self, staging_id: str, block_ids: Sequence[int]) -> Sequence[int]:
        """`block_ids` if all of them are staged under this id.

        Raises:
            NotFoundError: the staging has ended, or not all blocks belong to it.
        """
        prompt = self._prompts.get(staging_id)
        if prompt is None:
            raise NotFoundError("no such staging; its lease may have run out")
        if not set(prompt.blocks.values()).issuperset(block_ids):
            raise NotFoundError("a block is not, or no longer, staged under this id")
        return block_ids

    async def drain(self) -> None:
        """Take nothing new; return when no reader needs anything any more."""
        self.is_draining = True
        while self._prompts:
            await self._ended.wait()

    def _forget(self, prompt: StagedPrompt) -> None:
        del self._prompts[prompt.staging_id]
        self._leases.release(prompt.staging_id)
        prompt.blocks.clear()
        prompt.released = True
        prompt.news.put_nowait(None)
        prompt.attention.close()
        self._ended.fire()

    def _expire(self) -> None:
        for staging_id in self._leases.expire(self._now_s()):
            metrics.leases_expired.inc()
            self.release(self._prompts[staging_id], self._prompts[staging_id].num_blocks)
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_expiry_s = self._leases.next_expiry_s()
        if next_expiry_s is not None:
            self._timer = asyncio.get_running_loop().call_at(next_expiry_s, self._expire)

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
