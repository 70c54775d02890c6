"""`/v1/chat/completions` and `/v1/completions`: from bytes to an answer, whole or streamed."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

from armature.openai.answers import DONE, ChunkEncoder, Form, whole_answer
from armature.openai.asks import chat_ask, completion_ask
from armature.openai.assembler import Piece
from armature.openai.schema import Body, BodyDecoder, ChatBody, CompletionBody
from armature.openai.serving.core import ServingCore
from armature.openai.serving.endpoint import CLIENT_LEFT, Call, Endpoint
from armature.openai.serving.generation import Generation
from armature.openai.serving.http_io import Exchange, WriteWatch
from armature.openai.serving.job import Job

Kind = Literal["chat", "completion"]


class GenerateEndpoint(Endpoint):
    """One of the two routes."""

    def __init__(self, core: ServingCore, writes: WriteWatch, kind: Kind) -> None:
        super().__init__(core, writes, "/v1/chat/completions" if kind == "chat" else "/v1/completions")
        self._kind: Kind = kind
        self._decoder = BodyDecoder(ChatBody if kind == "chat" else CompletionBody)

    async def answer(self, call: Call, data: bytes) -> int:
        exchange = call.exchange
        body = self._decoder.decode(data)
        ask = chat_ask(body, call.session) if self._kind == "chat" else completion_ask(body, call.session)
        async with exchange:
            job = await self._core.prepare(call.request_id, call.with_headers(ask), call.started_s, call.traceparent)
            return await self._answer(exchange, body, job)
        return CLIENT_LEFT  # the exchange has swallowed the cancellation

    async def _answer(self, exchange: Exchange, body: Body, job: Job) -> int:
        form = Form(
            kind=self._kind,
            request_id=job.request_id,
            model=job.model.name,
            vocabulary=job.model.tokenizer.vocabulary,
            top_logprobs=job.sampling.top_logprobs if job.sampling.logprobs else None,
            include_usage=bool(body.stream_options and body.stream_options.include_usage),
        )
        generation = self._core.generation(job)
        async with aclosing(generation.pieces()) as pieces:
            if body.stream:
                await self._stream(exchange, form, generation, pieces)
            else:
                await self._send_whole(exchange, form, generation, pieces)
        return 200

    async def _stream(
        self, exchange: Exchange, form: Form, generation: Generation, pieces: AsyncGenerator[Piece, None]
    ) -> None:
        chunks = ChunkEncoder(form)
        events = chunks.start()
        async for piece in pieces:
            if piece.text or piece.tokens:
                events += chunks.piece(piece)
            if piece.finish_reason is not None:
                info = generation.info if generation.job.include_info else None
                events += chunks.finish(piece.finish_reason, info) + chunks.usage(generation.usage) + DONE
            if events:
                await exchange.send_events(events, is_last=piece.finish_reason is not None)
                events = b""

    async def _send_whole(
        self, exchange: Exchange, form: Form, generation: Generation, pieces: AsyncGenerator[Piece, None]
    ) -> None:
        parts = [piece async for piece in pieces]
        whole = Piece(
            text="".join([piece.text for piece in parts]),
            tokens=[token for piece in parts for token in piece.tokens],
            offsets=[offset for piece in parts for offset in piece.offsets],
            finish_reason=parts[-1].finish_reason,
        )
        info = generation.info if generation.job.include_info else None
        await exchange.send_json(200, whole_answer(form, whole, generation.usage, info))
