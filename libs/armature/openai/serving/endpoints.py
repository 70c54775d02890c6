"""`/v1/chat/completions` and `/v1/completions`: from bytes to an answer, whole or streamed."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

from armature.openai.answers import DONE, ChunkEncoder, Form, whole_answer
from armature.openai.asks import chat_ask, completion_ask
from armature.openai.assembler import Piece, joined
from armature.openai.rules import Ask, TextPrompt
from armature.openai.schema import BodyDecoder, ChatBody, CompletionBody
from armature.openai.serving.choices import Choices, best
from armature.openai.serving.core import ServingCore
from armature.openai.serving.endpoint import CLIENT_LEFT, Call, Endpoint
from armature.openai.serving.http_io import Exchange
from armature.openai.serving.job import Job

Kind = Literal["chat", "completion"]


class GenerateEndpoint(Endpoint):
    """One of the two routes."""

    def __init__(self, core: ServingCore, kind: Kind) -> None:
        super().__init__(core, "/v1/chat/completions" if kind == "chat" else "/v1/completions")
        self._kind: Kind = kind
        self._decoder = BodyDecoder(ChatBody if kind == "chat" else CompletionBody)

    async def answer(self, call: Call, data: bytes) -> int:
        exchange = call.exchange
        body = self._decoder.decode(data)
        ask = chat_ask(body, call.session) if self._kind == "chat" else completion_ask(body, call.session)
        async with exchange:
            job = await self._core.prepare(call.request_id, call.with_headers(ask), call.started_s, call.traceparent)
            return await self._answer(exchange, body, job, _echoed(ask, job) if body.echo else "")
        return CLIENT_LEFT  # the exchange has swallowed the cancellation

    async def _answer(self, exchange: Exchange, body: ChatBody | CompletionBody, job: Job, echo: str) -> int:
        # Log probabilities may be there for other reasons; a completion's 0 asks for them, a chat's false does not.
        shows_logprobs = body.logprobs is not None and body.logprobs is not False
        form = Form(
            kind=self._kind,
            request_id=job.request_id,
            model=job.model.name,
            vocabulary=job.model.tokenizer.vocabulary,
            top_logprobs=job.sampling.top_logprobs if shows_logprobs else None,
            include_usage=bool(body.stream_options and body.stream_options.include_usage),
            echo=echo,
        )
        choices = self._core.choices(job)
        async with aclosing(choices.pieces()) as pieces:
            if body.stream:
                await self._stream(exchange, form, choices, pieces)
            else:
                await self._send_whole(exchange, form, choices, pieces, body.n or 1)
        return 200

    async def _stream(
        self, exchange: Exchange, form: Form, choices: Choices, pieces: AsyncGenerator[Piece, None]
    ) -> None:
        encoders = [ChunkEncoder(form, index) for index in range(len(choices.generations))]
        events = b"".join([encoder.start() for encoder in encoders])
        unfinished = len(encoders)
        async for piece in pieces:
            chunks = encoders[piece.index]
            if piece.text or piece.tokens or piece.events:
                events += chunks.piece(piece)
            if piece.finish_reason is not None:
                unfinished -= 1
                generation = choices.generations[piece.index]
                events += chunks.finish(piece.finish_reason, generation.info if generation.job.include_info else None)
                if not unfinished:
                    events += chunks.usage(choices.usage) + DONE
            if events:
                await exchange.send_events(events, is_last=not unfinished)
                events = b""

    async def _send_whole(
        self, exchange: Exchange, form: Form, choices: Choices, pieces: AsyncGenerator[Piece, None], wanted: int
    ) -> None:
        parts: list[list[Piece]] = [[] for _ in choices.generations]
        async for piece in pieces:
            parts[piece.index].append(piece)
        answers = best([joined(own) for own in parts], wanted)
        first = choices.generations[0]
        await exchange.send_json(
            200, whole_answer(form, answers, choices.usage, first.info if first.job.include_info else None)
        )


def _echoed(ask: Ask, job: Job) -> str:
    if isinstance(ask.prompt, TextPrompt):
        return ask.prompt.text
    return job.model.tokenizer.vocabulary.tokenizer.decode(job.prompt.tolist(), skip_special_tokens=False)
