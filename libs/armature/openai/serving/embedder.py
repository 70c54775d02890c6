"""Has prompts embedded by workers: in batches, each placed like a request of its own, so that many workers share them.

A batch whose worker fails goes to another one. Embeddings depend on the prompt alone, so it does not matter who has
computed which.
"""

import asyncio
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc

from armature.openai.errors import ApiError, deadline_exceeded, no_workers, overloaded
from armature.openai.serving.catalog import ServedModel
from armature.openai.serving.generation import PREDICTION_FACTOR, rejected
from armature.openai.serving.metrics import MIGRATIONS
from armature.openai.serving.options import ServingOptions
from armature.openai.serving.router_client import RouterClient
from armature.runtime import telemetry
from armature.runtime.channels import ChannelPool
from armature.v1.router_pb2 import Query
from armature.v1.worker_pb2 import PromptBatch
from armature.v1.worker_pb2_grpc import DecodeStub

BATCH_PROMPTS, BATCH_TOKENS = 64, 8192
"""A batch ends at either; so large that its call costs little beside its computation."""
BATCHES_AT_ONCE = 8
"""Of one request."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be embedded, for whom."""

    request_id: str
    model: ServedModel
    prompts: Sequence["array[int]"]
    tenant: str
    received_s: float
    """As the event loop counts."""
    timeout_s: float
    """How long the client waits."""


class Embedder:
    """Sends prompts to workers."""

    def __init__(self, router: RouterClient, channels: ChannelPool, options: ServingOptions) -> None:
        self._router = router
        self._channels = channels
        self._options = options
        self._now_s = asyncio.get_running_loop().time

    async def embed(self, order: Order) -> list[bytes]:
        """The prompts' embeddings, little-endian 32-bit floats of length 1.

        Raises:
            ApiError: nobody can compute them, or not in time.
        """
        seats = asyncio.Semaphore(BATCHES_AT_ONCE)
        budget_s = min(self._options.request_timeout_s, order.timeout_s)
        due_s = order.received_s + budget_s

        async def embed_batch(number: int, prompts: Sequence["array[int]"]) -> list[bytes]:
            async with seats:
                return await self._batch(
                    replace(order, request_id=f"{order.request_id}-{number}", prompts=prompts), due_s
                )

        try:
            async with asyncio.timeout_at(due_s), asyncio.TaskGroup() as tasks:
                batches = [
                    tasks.create_task(embed_batch(number, batch))
                    for number, batch in enumerate(_batches(order.prompts))
                ]
        except TimeoutError:
            raise deadline_exceeded(f"The embeddings were not complete within {budget_s:g} s") from None
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return [embedding for batch in batches for embedding in batch.result()]

    async def _batch(self, order: Order, due_s: float) -> list[bytes]:
        """Try one worker after another, as often as a request may be moved."""
        model, prompts = order.model, order.prompts
        excluded: list[str] = []
        failure = no_workers("No worker can embed texts at the moment")
        for attempt in range(self._options.migration_limit + 1):
            MIGRATIONS.inc(1 if attempt else 0)
            query = Query(
                request_id=f"{order.request_id}-{attempt}" if attempt else order.request_id,
                model=model.name,
                prompt_tokens=sum(map(len, prompts)),
                max_tokens=1,
                excluded_workers=excluded,
                traceparent=telemetry.current_traceparent(),
                tenant=order.tenant,
                prefill_locally=True,
                omit_reason=True,
            )
            placement, ledger = await self._router.place(query)
            if not placement.HasField("assigned"):
                raise failure if excluded else rejected(placement.rejected)
            assigned = placement.assigned
            patience_s = self._options.stall_timeout_s + PREDICTION_FACTOR * assigned.predicted_ttft_s
            try:
                stub: Any = DecodeStub(self._channels.get(assigned.address))
                answer = await stub.Embed(
                    PromptBatch(
                        request_id=query.request_id, model=model.name, prompts=[prompt.tobytes() for prompt in prompts]
                    ),
                    timeout=max(0.001, min(patience_s, due_s - self._now_s())),
                    metadata=((telemetry.TRACEPARENT, query.traceparent),) if query.traceparent else (),
                )
                if _is_complete(answer.embeddings, len(prompts), model.card.embedding_size):
                    return list(answer.embeddings)
                failure = no_workers(f"{assigned.worker_id} answers with embeddings of another size")
            except grpc.aio.AioRpcError as error:
                failure = _failure(error)
                if failure.status < 429:
                    raise failure from None
            finally:
                ledger.finished(query.request_id, 0)
            excluded.append(assigned.worker_id)
        raise failure


def _batches(prompts: Sequence["array[int]"]) -> Iterator[list["array[int]"]]:
    batch: list[array[int]] = []
    tokens = 0
    for prompt in prompts:
        if batch and (len(batch) == BATCH_PROMPTS or tokens + len(prompt) > BATCH_TOKENS):
            yield batch
            batch, tokens = [], 0
        batch.append(prompt)
        tokens += len(prompt)
    yield batch


def _is_complete(embeddings: Sequence[bytes], prompts: int, embedding_size: int) -> bool:
    return len(embeddings) == prompts and all(len(packed) == 4 * embedding_size for packed in embeddings)


def _failure(error: grpc.aio.AioRpcError) -> ApiError:
    """What a worker's status means to the client, if no other worker does better."""
    why = error.details() or error.code().name
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        return ApiError(400, f"The worker refuses the request: {why}", param="input", code="invalid_value")
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return overloaded(f"All workers are busy: {why}")
    return no_workers(f"The worker has failed: {why}")
