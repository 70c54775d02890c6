"""`armature.v1.Inference`: the same answers as REST, without JSON and events."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from armature.openai.errors import ApiError, blamed
from armature.openai.serving.core import ServingCore
from armature.openai.serving.grpc_call import serving
from armature.openai.serving.write_watch import StreamWrites
from armature.openai.texts import floats_of
from armature.v1 import inference_pb2 as pb
from armature.v1.common_pb2 import ModelCard
from armature.v1.inference_pb2_grpc import InferenceServicer as Contract
from services.gateway.conversion import ask_of, inputs_of, response_of, text_prompt_of


class InferenceServicer(Contract):
    """Decodes, lets the core serve, encodes. A cancelled call closes the generation, which cancels the work."""

    def __init__(self, core: ServingCore) -> None:
        self._core = core

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        async with serving(self._core, "Inference/Generate", context) as call:
            job = await self._core.prepare(call.request_id, ask_of(request), call.started_s, call.traceparent)
            choices = self._core.choices(job)
            unfinished = len(choices.generations)
            told = [-1] * unfinished  # of which number of migrations the client knows
            scores = choices.generations[0] if job.wants_scores else None
            with StreamWrites(self._core.writes) as writes:
                async with aclosing(choices.pieces()) as pieces:
                    async for piece in pieces:
                        generation = choices.generations[piece.index]
                        unfinished -= piece.finish_reason is not None
                        response = response_of(job.request_id, piece, None if unfinished else choices.usage)
                        if job.include_info and bool(piece.text or piece.finish_reason):
                            if told[piece.index] < generation.migrations:
                                response.info.CopyFrom(generation.info)
                            told[piece.index] = generation.migrations
                        if generation is scores and generation.prompt_logprobs is not None:
                            response.prompt_logprobs.CopyFrom(generation.prompt_logprobs)
                            scores = None
                        writes.begin()
                        yield response
                        writes.end()

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[card for card, _ in self._core.catalog.served().values()])

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> ModelCard:
        try:
            self._core.catalog.check_served(request.model)
        except ApiError as error:
            raise blamed(error) from error
        card, _ = self._core.catalog.served()[request.model]
        return card

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:
        async with serving(self._core, "Inference/Embed", context) as call:
            made = await self._core.texts.embed(
                call.request_id, request.model, inputs_of(request), received_s=call.started_s
            )
            return pb.EmbedResponse(
                embeddings=[pb.Embedding(values=floats_of(packed)) for packed in made.embeddings],
                usage=pb.Usage(prompt_tokens=made.prompt_tokens),
            )

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        async with serving(self._core, "Inference/Tokenize", context):
            made = await self._core.texts.tokenize(
                request.model,
                text_prompt_of(request),
                add_special_tokens=request.HasField("prompt") and not request.without_special_tokens,
                with_strings=request.with_token_strings,
            )
            return pb.TokenizeResponse(
                token_ids=made.token_ids, token_strings=made.token_strings, context_length=made.context_length
            )

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> pb.DetokenizeResponse:
        async with serving(self._core, "Inference/Detokenize", context):
            return pb.DetokenizeResponse(text=await self._core.texts.detokenize(request.model, request.token_ids))
