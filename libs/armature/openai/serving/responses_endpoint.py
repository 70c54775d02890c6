"""`/v1/responses`: makes a response, whole or streamed, and keeps it so that a later one can go on from it."""

import time
from contextlib import aclosing

import msgspec

from armature.openai.errors import invalid
from armature.openai.logprobs import chat_logprobs
from armature.openai.renaming import renaming
from armature.openai.responses.answer import ResponseAnswer, response_id_of
from armature.openai.responses.asks import NAMES, check_body, response_ask
from armature.openai.responses.items import input_items
from armature.openai.responses.record import Record
from armature.openai.responses.schema import Item, ResponseBody
from armature.openai.schema import BodyDecoder
from armature.openai.serving.core import ServingCore
from armature.openai.serving.endpoint import CLIENT_LEFT, Call, Endpoint
from armature.openai.serving.generation import Generation
from armature.openai.serving.http_io import Exchange
from armature.openai.serving.response_store import ResponseStore

_encode = msgspec.json.Encoder().encode


class ResponsesEndpoint(Endpoint):
    """Each turn is one generation over the whole conversation, whose blocks the workers mostly have."""

    def __init__(self, core: ServingCore, store: ResponseStore) -> None:
        super().__init__(core, "/v1/responses")
        self._store = store
        self._decoder = BodyDecoder(ResponseBody)

    async def answer(self, call: Call, data: bytes) -> int:
        body: ResponseBody = self._decoder.decode(data)
        check_body(body)
        own = input_items(body.input, call.request_id)
        encoded = self._encoded(own, body)
        exchange = call.exchange
        async with exchange:
            ancestors, before = [], []
            if body.previous_response_id is not None:
                ancestors, before = await self._store.conversation(self._owner, body.previous_response_id)
            first = ancestors[0] if ancestors else response_id_of(call.request_id)
            ask = call.with_headers(response_ask(body, [*before, *own], call.session or first))
            with renaming(NAMES):
                job = await self._core.prepare(call.request_id, ask, call.started_s, call.traceparent)
            answer = ResponseAnswer(call.request_id, body, int(time.time()))
            call.error_event = answer.fail
            await self._make(self._core.generation(job), answer, exchange if body.stream else None)
            if body.store is not False:
                record = Record(answer.to_json(), encoded, tuple(ancestors))
                await self._store.put(self._owner, answer.response_id, record)
            if body.stream:
                await exchange.send_events(answer.take_events(), is_last=True)
            else:
                await exchange.send_json(200, answer.to_json())
            return 200
        return CLIENT_LEFT  # the exchange has swallowed the cancellation

    async def _make(self, generation: Generation, answer: ResponseAnswer, stream: Exchange | None) -> None:
        """All of the answer but the last events, which are told once it has been kept."""
        job = generation.job
        vocabulary, top = job.model.tokenizer.vocabulary, job.sampling.top_logprobs
        async with aclosing(generation.pieces()) as pieces:
            async for piece in pieces:
                logprobs = chat_logprobs(vocabulary, piece, top)["content"] if piece.tokens else ()
                answer.feed(piece.said, logprobs)
                if piece.finish_reason is not None:
                    info = generation.info if job.include_info else None
                    answer.finish(piece.finish_reason, generation.usage, int(time.time()), info)
                elif stream is not None and (events := answer.take_events()):
                    await stream.send_events(events)

    @property
    def _owner(self) -> str:
        """Of the responses that the current caller may go on from."""
        return self._core.doorkeeper.caller().cache_namespace

    def _encoded(self, items: list[Item], body: ResponseBody) -> bytes:
        encoded, most = _encode(items), self._store.options.max_response_bytes
        if body.store is not False and len(encoded) > most:
            fix = f'its items have {len(encoded)} bytes and {most} are kept; send "store": false'
            raise invalid("input", fix, code="input_too_large")
        return encoded
