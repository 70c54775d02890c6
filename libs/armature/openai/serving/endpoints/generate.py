"""`/v1/chat/completions` and `/v1/completions`: from bytes to an answer, whole or streamed."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from armature.openai.answers import DONE, ChunkEncoder, Form, PromptShown, whole_answer
from armature.openai.asks import chat_ask, completion_asks
from armature.openai.assembler import Piece, Whole
from armature.openai.logprobs import LONG_SCORED_TOKENS
from armature.openai.prompt_scores import Echo, echoed, prompt_logprobs
from armature.openai.rules import Ask, TextPrompt
from armature.openai.schema import BodyDecoder, ChatBody, CompletionBody
from armature.openai.serving.choices import Choices, best
from armature.openai.serving.core import ServingCore
from armature.openai.serving.endpoints.endpoint import CLIENT_LEFT, Call, Endpoint
from armature.openai.serving.generation import Generation
from armature.openai.serving.http.exchange import Exchange
from armature.openai.serving.job import Job

Kind = Literal["chat", "completion"]


@dataclass(frozen=True, slots=True)
class _Order:
    """What one request wants: an ask and a job for each of its prompts."""

    body: ChatBody | CompletionBody
    asks: Sequence[Ask]
    jobs: Sequence[Job]

    @property
    def shows_logprobs(self) -> bool:
        """They may be there for other reasons; a completion's 0 asks for them, a chat's false does not."""
        return self.body.logprobs is not None and self.body.logprobs is not False

    async def shown(self, place: int, generation: Generation) -> PromptShown:
        """What is told of the prompt at this place, once the first of its answers has begun."""
        if not (self.body.echo or self.body.prompt_logprobs is not None):
            return PromptShown()
        return await asyncio.to_thread(self._shown, place, generation)  # there may be megabytes of it

    def _shown(self, place: int, generation: Generation) -> PromptShown:
        job, told = self.jobs[place], generation.prompt_logprobs
        vocabulary, echo, likely = job.model.tokenizer.vocabulary, None, None
        if self.body.echo:
            text = _text(self.asks[place], job)
            is_scored = told is not None and self.shows_logprobs
            echo = echoed(vocabulary, text, job.prompt, told) if is_scored and told is not None else Echo(text)
        if self.body.prompt_logprobs is not None and told is not None:
            likely = prompt_logprobs(vocabulary, told)
        return PromptShown(echo, likely)


class GenerateEndpoint(Endpoint):
    """One of the two routes."""

    def __init__(self, core: ServingCore, kind: Kind) -> None:
        super().__init__(core, "/v1/chat/completions" if kind == "chat" else "/v1/completions")
        self._kind: Kind = kind
        self._decoder = BodyDecoder(ChatBody if kind == "chat" else CompletionBody)

    async def answer(self, call: Call, data: bytes) -> int:
        exchange = call.exchange
        body = self._decoder.decode(data)
        asks = [chat_ask(body, call.session)] if self._kind == "chat" else completion_asks(body, call.session)
        asks = [call.with_headers(ask) for ask in asks]
        async with exchange:
            jobs = await self._core.prepare_all(call.request_id, asks, call.started_s, call.traceparent)
            return await self._answer(exchange, _Order(body, asks, jobs))
        return CLIENT_LEFT  # the exchange has swallowed the cancellation

    async def _answer(self, exchange: Exchange, order: _Order) -> int:
        body, job = order.body, order.jobs[0]
        stream = body.stream_options
        form = Form(
            kind=self._kind,
            request_id=job.request_id,
            model=job.model.name,
            vocabulary=job.model.tokenizer.vocabulary,
            top_logprobs=job.sampling.top_logprobs if order.shows_logprobs else None,
            include_usage=bool(stream and stream.include_usage),
            counts_on=bool(stream and stream.include_usage and stream.continuous_usage_stats),
        )
        choices = self._core.choices(*order.jobs)
        async with aclosing(choices.pieces()) as pieces:
            if body.stream:
                await self._stream(exchange, form, order, choices, pieces)
            else:
                await self._send_whole(exchange, form, order, choices, pieces)
        return 200

    async def _stream(
        self, exchange: Exchange, form: Form, order: _Order, choices: Choices, pieces: AsyncGenerator[Piece, None]
    ) -> None:
        generations, of_each = choices.generations, order.jobs[0].num_answers
        encoders: list[ChunkEncoder | None] = [None] * len(generations)
        unfinished = len(encoders)
        async for piece in pieces:
            events, generation, chunks = b"", generations[piece.index], encoders[piece.index]
            is_first = chunks is None
            if chunks is None:
                chunks = encoders[piece.index] = ChunkEncoder(form, piece.index)
            if form.counts_on:
                chunks.count(generation.usage)
            elif is_first and len(generations) == 1:
                generation.on_piece = _sender(exchange, chunks)
            if is_first:
                place = piece.index // of_each
                events = chunks.start((await order.shown(place, generations[place * of_each])).echo)
            events += chunks.piece(piece)
            if piece.finish_reason is not None:
                unfinished -= 1
                events += chunks.finish(piece.finish_reason, generation.info if generation.job.include_info else None)
                if not unfinished:
                    events += chunks.usage(choices.usage) + DONE
            if events:
                await exchange.send_events(events, is_last=not unfinished)

    async def _send_whole(
        self, exchange: Exchange, form: Form, order: _Order, choices: Choices, pieces: AsyncGenerator[Piece, None]
    ) -> None:
        wholes = [Whole() for _ in choices.generations]
        async for piece in pieces:
            wholes[piece.index].add(piece)
        of_each, wanted = order.jobs[0].num_answers, order.body.n or 1
        answers: list[Piece] = []
        for begin in range(0, len(wholes), of_each):
            answers += best([own.piece() for own in wholes[begin : begin + of_each]], wanted)
        for index, answer in enumerate(answers):
            answer.index = index
        firsts = choices.generations[::of_each]
        prompts = [await order.shown(place, first) for place, first in enumerate(firsts)]
        info = firsts[0].info if firsts[0].job.include_info else None
        told = (form, answers, choices.usage, info, prompts)
        is_long = sum(len(answer.tokens) for answer in answers) > LONG_SCORED_TOKENS
        body = await asyncio.to_thread(whole_answer, *told) if is_long else whole_answer(*told)
        await exchange.send_json(200, body)


def _sender(exchange: Exchange, chunks: ChunkEncoder) -> Callable[[Piece], bool]:
    return lambda piece: exchange.send_more(chunks.piece(piece))


def _text(ask: Ask, job: Job) -> str:
    if isinstance(ask.prompt, TextPrompt):
        return ask.prompt.text
    return job.model.tokenizer.vocabulary.tokenizer.decode(job.prompt.tolist(), skip_special_tokens=False)
