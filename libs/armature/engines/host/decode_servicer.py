"""Serves `armature.v1.Decode`: one stream for all requests of a client, one frame for each engine step; embeddings."""

import asyncio
from collections.abc import AsyncIterator

from armature.engines.host.client_stream import ClientStream
from armature.engines.host.embedding import Embeddings
from armature.engines.host.generation import Generations
from armature.v1 import worker_pb2_grpc
from armature.v1.worker_pb2 import DecodeFrame, EmbeddingBatch, PromptBatch, TokenFrame


class DecodeServicer(worker_pb2_grpc.DecodeServicer):
    """When a stream ends, for whatever reason, everything on it is stopped."""

    def __init__(self, generations: Generations, embeddings: Embeddings) -> None:
        self._generations = generations
        self._embeddings = embeddings

    async def Embed(self, request: PromptBatch, context: object) -> EmbeddingBatch:
        return EmbeddingBatch(embeddings=await self._embeddings.embed(request.model, request.prompts))

    async def Stream(self, request_iterator: AsyncIterator[DecodeFrame], context: object) -> AsyncIterator[TokenFrame]:
        stream = ClientStream()
        reading = asyncio.create_task(self._read(request_iterator, stream), name="requests of a client")
        reading.add_done_callback(lambda _: self._on_read_all(reading, stream))
        try:
            async for frame in stream.tokens.frames():
                yield frame
                if reading.done() and not stream.live:
                    stream.tokens.complete()
            await reading
        finally:
            reading.cancel()
            self._generations.cancel_all(stream)

    def _on_read_all(self, reading: asyncio.Task[None], stream: ClientStream) -> None:
        if not reading.cancelled() and reading.exception() is not None:
            self._generations.cancel_all(stream)
        if not stream.live:
            stream.tokens.complete()

    async def _read(self, frames: AsyncIterator[DecodeFrame], stream: ClientStream) -> None:
        """Take requests and cancels until the client closes its side; what it has asked for is still answered."""
        async for frame in frames:
            for stream_id in frame.cancels:
                self._generations.cancel(stream, stream_id)
            for request in frame.requests:
                self._generations.accept(stream, request)
