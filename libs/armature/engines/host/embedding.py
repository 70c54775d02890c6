"""Prompts that this worker embeds.

A call may bring hundreds of prompts. They must not stand in the engine's queue before answers that somebody waits for,
so only few are in the engine at a time, whoever asked for them; the others wait here, bounded, first come first served.
"""

import asyncio
import itertools
from collections.abc import Sequence

from armature.blocks.hashing import DIGEST_BYTES, BlockDigest
from armature.engines.engine import Engine
from armature.engines.host.conversion import check_model, check_prompt, unpack_tokens
from armature.runtime.errors import CallerError, OverloadedError, UnavailableError
from armature.runtime.pulse import Pulse
from armature.scheduling.request import FinishReason, Request, Sampling, TokenOutput, Work

SHARE_OF_SEATS = 4
"""One in so many of the requests in a step may be a prompt that is embedded."""
MAX_BATCH_PROMPTS = 256
MAX_WAITING_PROMPTS = 4096

_NO_ROOT = BlockDigest(bytes(DIGEST_BYTES))
"""Blocks of embedded prompts have no identity: nobody finds them."""


class Embeddings:
    """Takes batches of prompts into the engine, and embeddings out of it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seats = asyncio.Semaphore(max(1, engine.info.max_num_seqs // SHARE_OF_SEATS))
        self._answers: dict[str, asyncio.Future[bytes]] = {}
        self._numbers = itertools.count(1)
        self._ended = Pulse()
        self._is_draining = False
        self.num_prompts = 0
        """Taken on and not yet embedded."""

    async def embed(self, model: str, prompts: Sequence[bytes]) -> list[bytes]:
        """The embeddings of packed prompts. Whoever is cancelled takes his prompts out of the engine.

        Raises:
            CallerError: a prompt can't be embedded, or not by this worker.
            UnavailableError: not now.
        """
        info = self._engine.info
        check_model(model, info)
        if not info.embedding_size:
            raise CallerError(f"the engine of {info.model} computes no embeddings")
        if not 1 <= len(prompts) <= MAX_BATCH_PROMPTS:
            raise CallerError(f"there are {len(prompts)} prompts; a batch has 1 to {MAX_BATCH_PROMPTS}")
        unpacked = [unpack_tokens(packed, info) for packed in prompts]
        for token_ids in unpacked:
            check_prompt(len(token_ids), info)
        if self._is_draining:
            raise UnavailableError("this worker is draining")
        if self.num_prompts + len(prompts) > MAX_WAITING_PROMPTS:
            raise OverloadedError(f"{self.num_prompts} prompts wait to be embedded", retry_after_s=1.0)
        self.num_prompts += len(prompts)
        try:
            async with asyncio.TaskGroup() as tasks:
                embedding = [tasks.create_task(self._embed(token_ids)) for token_ids in unpacked]
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            self.num_prompts -= len(prompts)
            self._ended.fire()
        return [task.result() for task in embedding]

    def on_tokens(self, outputs: Sequence[TokenOutput]) -> None:
        """Take what a step yielded for prompts of ours."""
        if not self._answers:
            return
        for output in outputs:
            answer = self._answers.get(output.request_id)
            if answer is None or answer.done():
                continue
            if output.finish_reason is FinishReason.ERROR:
                answer.set_exception(UnavailableError(output.error))
            elif output.finish_reason is not None:
                answer.set_result(output.embedding)

    async def drain(self) -> None:
        """Take nothing new; return when all has been embedded."""
        self._is_draining = True
        while self.num_prompts:
            await self._ended.wait()

    async def _embed(self, token_ids: Sequence[int]) -> bytes:
        async with self._seats:
            request_id = f"e-{next(self._numbers)}"
            answer = self._answers[request_id] = asyncio.get_running_loop().create_future()
            self._engine.submit(
                Request(
                    request_id=request_id,
                    token_ids=token_ids,
                    prompt_tokens=len(token_ids),
                    max_tokens=1,
                    root=_NO_ROOT,
                    sampling=Sampling(temperature=0.0),
                    work=Work.EMBED,
                )
            )
            try:
                return await answer
            except asyncio.CancelledError:
                self._engine.abort(request_id)
                raise
            finally:
                del self._answers[request_id]
