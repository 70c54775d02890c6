"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's surface over the same path as every other."""

from contextlib import aclosing

import msgspec

from armature.openai.anthropic.answer import MessageAnswer
from armature.openai.anthropic.asks import NAMES, count_ask, message_ask, shows_thinking
from armature.openai.anthropic.errors import error_event
from armature.openai.anthropic.schema import CountBody, MessagesBody
from armature.openai.assembler import Piece
from armature.openai.renaming import renaming
from armature.openai.schema import BodyDecoder
from armature.openai.serving.core import ServingCore
from armature.openai.serving.endpoints.endpoint import CLIENT_LEFT, Call, Endpoint
from armature.openai.serving.generation import Generation
from armature.openai.serving.http.exchange import Exchange


class MessagesEndpoint(Endpoint):
    request_id_header = b"request-id"

    def __init__(self, core: ServingCore) -> None:
        super().__init__(core, "/v1/messages")
        self._decoder = BodyDecoder(MessagesBody)

    async def answer(self, call: Call, data: bytes) -> int:
        call.error_event = error_event
        body: MessagesBody = self._decoder.decode(data)
        ask = call.with_headers(message_ask(body, call.session))
        exchange, is_streamed = call.exchange, bool(body.stream)
        async with exchange:
            with renaming(NAMES):
                job = await self._core.prepare(call.request_id, ask, call.started_s, call.traceparent)
            answer = MessageAnswer(
                call.request_id, body.model, is_streamed=is_streamed, shows_thinking=shows_thinking(body),
                tells_edits=body.context_management is not None,
            )  # fmt: skip
            await self._make(self._core.generation(job), answer, exchange if is_streamed else None)
            if is_streamed:
                await exchange.send_events(answer.take_events(), is_last=True)
            else:
                await exchange.send_json(200, answer.to_json())
            return 200
        return CLIENT_LEFT  # the exchange has swallowed the cancellation

    async def _make(self, generation: Generation, answer: MessageAnswer, stream: Exchange | None) -> None:
        """All of the answer but its last events."""
        has_begun = False

        def more(piece: Piece) -> bool:
            answer.feed(piece.said)
            return stream is not None and stream.send_more(answer.take_events())

        generation.on_piece = more if stream is not None else None
        async with aclosing(generation.pieces()) as pieces:
            async for piece in pieces:
                if not has_begun:
                    has_begun = True
                    answer.begin(generation.usage)
                answer.feed(piece.said)
                if piece.finish_reason is not None:
                    info = generation.info if generation.job.include_info else None
                    answer.finish(piece.finish_reason, generation.stop_string, generation.usage, info)
                elif stream is not None and (events := answer.take_events()):
                    await stream.send_events(events)


class CountTokensEndpoint(Endpoint):
    request_id_header = MessagesEndpoint.request_id_header

    def __init__(self, core: ServingCore) -> None:
        super().__init__(core, "/v1/messages/count_tokens")
        self._decoder = BodyDecoder(CountBody)

    async def answer(self, call: Call, data: bytes) -> int:
        body: CountBody = self._decoder.decode(data)
        ask = count_ask(body)
        async with call.exchange:
            with renaming(NAMES):
                tokens = await self._core.count_tokens(ask)
            await call.exchange.send_json(200, msgspec.json.encode({"input_tokens": tokens}))
            return 200
        return CLIENT_LEFT  # the exchange has swallowed the cancellation
