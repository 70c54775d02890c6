"""`/v1/chat/completions` and `/v1/completions`: from bytes to an answer, whole or streamed."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Literal

from starlette.types import Receive, Scope, Send

from armature.openai.answers import DONE, ChunkEncoder, Form, error_event, whole_answer
from armature.openai.asks import chat_ask, completion_ask
from armature.openai.assembler import Piece
from armature.openai.errors import ApiError, internal
from armature.openai.rules import Ask
from armature.openai.schema import Body, BodyDecoder, ChatBody, CompletionBody
from armature.openai.serving.core import ServingCore
from armature.openai.serving.generation import Generation
from armature.openai.serving.http_io import ClientLeftError, Exchange, WriteWatch, check_headers, header
from armature.openai.serving.job import Job
from armature.openai.serving.metrics import CANCELLATIONS, REQUEST_S, REQUESTS
from armature.runtime import telemetry

log = logging.getLogger(__name__)

CLIENT_LEFT = 499
DISCARDED_BODIES = 4
"""How much of a body that is too large is read, as a multiple of what is allowed, before the connection is closed."""

Kind = Literal["chat", "completion"]


class GenerateEndpoint:
    """An ASGI application for one of the two routes."""

    def __init__(self, core: ServingCore, writes: WriteWatch, kind: Kind) -> None:
        self._core = core
        self._writes = writes
        self._kind: Kind = kind
        self._route = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
        self._decoder = BodyDecoder(ChatBody if kind == "chat" else CompletionBody)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = secrets.token_hex(12)
        exchange = Exchange(scope, receive, send, self._writes, headers=((b"x-request-id", request_id.encode()),))
        started_s = asyncio.get_running_loop().time()
        status = CLIENT_LEFT
        try:
            with telemetry.span("gateway", traceparent=header(scope, b"traceparent"), route=self._route) as span:
                status = await self._serve(exchange, request_id, started_s, telemetry.traceparent_of(span))
                span.set_attribute("http.response.status_code", status)
        finally:
            REQUESTS.labels(self._route, str(status)).inc()
            REQUEST_S.observe(asyncio.get_running_loop().time() - started_s)
            if status == CLIENT_LEFT:
                CANCELLATIONS.inc()

    async def _serve(self, exchange: Exchange, request_id: str, started_s: float, traceparent: str) -> int:
        """The status that the client got, whatever happened."""
        options = self._core.options
        try:
            with self._core.admitted():
                check_headers(exchange.scope, options.max_body_bytes)
                data = await exchange.read_body(options.max_body_bytes, options.body_timeout_s)
                body = self._decoder.decode(data)
                session = header(exchange.scope, b"x-armature-session-id") or header(
                    exchange.scope, b"x-dynamo-session-id"
                )
                ask = chat_ask(body, session) if self._kind == "chat" else completion_ask(body, session)
                async with exchange:
                    job = await self._core.prepare(request_id, _with_header(ask, exchange), started_s, traceparent)
                    return await self._answer(exchange, body, job)
        except ApiError as error:
            return await self._fail(exchange, error)
        except ClientLeftError:
            return CLIENT_LEFT
        except Exception:
            log.exception("request %s failed", request_id)
            return await self._fail(exchange, internal())
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

    async def _fail(self, exchange: Exchange, error: ApiError) -> int:
        """Tell the client, by a status if none has been sent."""
        if error.status >= 500:
            log.warning("%s answers %d: %s", self._route, error.status, error.message)
        if exchange.has_begun:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._core.options.write_timeout_s):
                    await exchange.send_events(error_event(error), is_last=True)
        else:
            if error.status == 413:
                options = self._core.options
                await exchange.discard_body(DISCARDED_BODIES * options.max_body_bytes, options.body_timeout_s)
            await exchange.send_error(error)
        return error.status


def _with_header(ask: Ask, exchange: Exchange) -> Ask:
    """`x-armature-info: true` asks for the same as the field in the body, for clients that can't add fields."""
    wanted = header(exchange.scope, b"x-armature-info").lower() in ("1", "true")
    return replace(ask, include_info=True) if wanted else ask
