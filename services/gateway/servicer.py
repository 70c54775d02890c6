"""`armature.v1.Inference`: the same answers as REST, without JSON and events."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from armature.openai.errors import ApiError, blamed
from armature.openai.serving.core import ServingCore
from armature.openai.serving.metrics import CANCELLATIONS, REQUEST_S, REQUESTS
from armature.runtime import telemetry
from armature.v1.inference_pb2 import GenerateRequest, GenerateResponse, ListModelsRequest, ListModelsResponse
from armature.v1.inference_pb2_grpc import InferenceServicer as Contract
from services.gateway.conversion import ask_of, response_of

ROUTE = "Inference/Generate"
OK, CLIENT_LEFT = 200, 499


class InferenceServicer(Contract):
    """Decodes, lets the core serve, encodes. A cancelled call closes the generation, which cancels the work."""

    def __init__(self, core: ServingCore) -> None:
        self._core = core

    async def Generate(self, request: GenerateRequest, context: Any) -> AsyncIterator[GenerateResponse]:
        started_s, status = asyncio.get_running_loop().time(), CLIENT_LEFT
        try:
            async with aclosing(self._generate(request, context, started_s)) as responses:
                async for response in responses:
                    yield response
            status = OK
        except ApiError as error:
            status = error.status
            raise blamed(error) from error
        finally:
            REQUESTS.labels(ROUTE, str(status)).inc()
            REQUEST_S.observe(asyncio.get_running_loop().time() - started_s)
            if status == CLIENT_LEFT:
                CANCELLATIONS.inc()

    async def _generate(
        self, request: GenerateRequest, context: Any, started_s: float
    ) -> AsyncGenerator[GenerateResponse, None]:
        parent = str(dict(context.invocation_metadata() or ()).get(telemetry.TRACEPARENT, ""))
        admitted = self._core.admitted(context.time_remaining())
        with telemetry.span("gateway", traceparent=parent, route=ROUTE) as span, admitted:
            traceparent = telemetry.traceparent_of(span)
            job = await self._core.prepare(secrets.token_hex(12), ask_of(request), started_s, traceparent)
            choices = self._core.choices(job)
            unfinished = len(choices.generations)
            told = [-1] * unfinished  # of which number of migrations the client knows
            async with aclosing(choices.pieces()) as pieces:
                async for piece in pieces:
                    generation = choices.generations[piece.index]
                    unfinished -= piece.finish_reason is not None
                    response = response_of(job.request_id, piece, None if unfinished else choices.usage)
                    if job.include_info and bool(piece.text or piece.finish_reason):
                        if told[piece.index] < generation.migrations:
                            response.info.CopyFrom(generation.info)
                        told[piece.index] = generation.migrations
                    yield response

    async def ListModels(self, request: ListModelsRequest, context: Any) -> ListModelsResponse:
        return ListModelsResponse(models=[card for card, _ in self._core.catalog.served().values()])
