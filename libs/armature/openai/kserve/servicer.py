"""`inference.GRPCInferenceService`: text in and out for clients of KServe v2 and Triton."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from importlib.metadata import version
from typing import Any

from armature.openai.errors import ApiError, blamed, unsupported
from armature.openai.kserve.answers import PLATFORM, infer_response, model_config, model_metadata
from armature.openai.kserve.requests import check_version, inference_of
from armature.openai.serving.core import ServingCore
from armature.openai.serving.grpc_call import serving
from armature.openai.serving.write_watch import StreamWrites
from armature.runtime.errors import ArmatureError
from armature.third_party.kserve.v2 import inference_pb2 as pb
from armature.third_party.kserve.v2.inference_pb2_grpc import GRPCInferenceServiceServicer

MAX_REQUESTS_ON_A_STREAM = 64
"""At the same time; the next ones are read when one of these has ended."""
MAX_WAITING_RESPONSES = 64
"""For a client that does not read: then its answers wait, and in the end are given up as too slow."""


class KServeServicer(GRPCInferenceServiceServicer):
    """Decodes, lets the core serve, encodes. A cancelled call or stream cancels its work."""

    def __init__(self, core: ServingCore) -> None:
        self._core = core

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Any) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Any) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._core.is_ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Any) -> pb.ModelReadyResponse:
        is_served = request.name in self._core.catalog.served() and request.version in ("", "1")
        return pb.ModelReadyResponse(ready=is_served and self._core.is_ready)

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Any) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name=PLATFORM, version=version("armature"), extensions=["model_configuration", "binary_tensor_data"]
        )

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Any) -> pb.ModelMetadataResponse:
        self._check(request)
        return model_metadata(request.name)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Any) -> pb.ModelConfigResponse:
        self._check(request)
        return model_config(request.name)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:
        async with aclosing(self._infer(request, context, "ModelInfer")) as responses:
            return [response async for response in responses][-1]

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Any
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """Requests of a stream are served at the same time; their answers bear their ids."""
        ready: asyncio.Queue[pb.ModelStreamInferResponse | None] = asyncio.Queue(MAX_WAITING_RESPONSES)
        reading = asyncio.create_task(self._read(request_iterator, ready, context), name="requests of a KServe stream")
        try:
            with StreamWrites(self._core.writes) as writes:
                while (response := await ready.get()) is not None:
                    writes.begin()
                    yield response
                    writes.end()
            await reading
        finally:
            reading.cancel()
            await asyncio.wait([reading])

    async def _read(
        self,
        requests: AsyncIterator[pb.ModelInferRequest],
        ready: "asyncio.Queue[pb.ModelStreamInferResponse | None]",
        context: Any,
    ) -> None:
        seats = asyncio.Semaphore(MAX_REQUESTS_ON_A_STREAM)

        async def serve(request: pb.ModelInferRequest) -> None:
            try:
                async with aclosing(self._infer(request, context, "ModelStreamInfer")) as responses:
                    async for response in responses:
                        await ready.put(pb.ModelStreamInferResponse(infer_response=response))
            except (ArmatureError, TimeoutError) as error:
                whose = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
                await ready.put(pb.ModelStreamInferResponse(error_message=str(error), infer_response=whose))
            finally:
                seats.release()

        try:
            async with asyncio.TaskGroup() as tasks:
                async for request in requests:
                    await seats.acquire()
                    tasks.create_task(serve(request))
        finally:
            if not asyncio.current_task().cancelling():  # pyright: ignore[reportOptionalMemberAccess]
                await ready.put(None)

    async def _infer(
        self, request: pb.ModelInferRequest, context: Any, method: str
    ) -> AsyncGenerator[pb.ModelInferResponse, None]:
        """The answer, in one part unless it is to be streamed."""
        async with serving(self._core, f"GRPCInferenceService/{method}", context) as call:
            check_version(request.model_name, request.model_version)
            inference = inference_of(request)
            if inference.streams and method == "ModelInfer":
                raise unsupported("stream", "a streamed answer needs ModelStreamInfer")
            job = await self._core.prepare(call.request_id, inference.ask, call.started_s, call.traceparent)
            choices = self._core.choices(job)
            texts = [inference.text] if inference.repeats_input else []
            async with aclosing(choices.pieces()) as pieces:
                async for piece in pieces:
                    texts.append(piece.text)
                    is_last = piece.finish_reason is not None
                    if is_last or (inference.streams and piece.text):
                        usage = choices.usage if is_last else None
                        yield infer_response(request, inference, "".join(texts), piece.finish_reason, usage)
                        texts.clear()

    def _check(self, request: pb.ModelMetadataRequest | pb.ModelConfigRequest) -> None:
        try:
            check_version(request.name, request.version)
            self._core.catalog.check_served(request.name)
        except ApiError as error:
            raise blamed(error) from error
