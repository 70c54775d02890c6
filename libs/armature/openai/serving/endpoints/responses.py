"""`/v1/responses`: makes a response, whole or streamed, and keeps it so that a later one can go on from it."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from armature.openai.assembler import Piece
from armature.openai.errors import ApiError, invalid
from armature.openai.logprobs import LONG_SCORED_TOKENS, encoded_entries
from armature.openai.renaming import renaming
from armature.openai.responses.answer import ResponseAnswer, response_id_of
from armature.openai.responses.asks import NAMES, check_body, response_ask
from armature.openai.responses.items import REFERENCE, input_items
from armature.openai.responses.record import Record
from armature.openai.responses.schema import Item, ResponseBody
from armature.openai.schema import BodyDecoder
from armature.openai.serving.core import ServingCore
from armature.openai.serving.endpoints.endpoint import CLIENT_LEFT, Call, Endpoint
from armature.openai.serving.generation import Generation
from armature.openai.serving.http.exchange import Exchange, requested_timeout_s
from armature.openai.serving.job import Job
from armature.openai.serving.responses.background import Background, Name
from armature.openai.serving.responses.store import ResponseStore
from armature.openai.serving.responses.tapes import Tape, Tapes, error_event

_encode = msgspec.json.Encoder().encode


class ResponsesEndpoint(Endpoint):
    """Each turn is one generation over the whole conversation, whose blocks the workers mostly have."""

    def __init__(self, core: ServingCore, store: ResponseStore, background: Background, tapes: Tapes) -> None:
        super().__init__(core, "/v1/responses")
        self._store = store
        self._background = background
        self._tapes = tapes
        self._decoder = BodyDecoder(ResponseBody)

    async def answer(self, call: Call, data: bytes) -> int:
        body: ResponseBody = self._decoder.decode(data)
        check_body(body)
        exchange = call.exchange
        async with exchange:
            if isinstance(body.input, list) and any(item.get("type") == REFERENCE for item in body.input):
                body.input = await self._store.resolved(self._owner, body.input)
            turn = _Turn(body, input_items(body.input, call.request_id), self._owner)
            turn.encoded = self._encoded(turn.items, body)
            if body.background:
                begun = await self._begin(call, turn)
                if begun.tape is None:
                    await exchange.send_json(200, begun.response)
                else:
                    await self._show(call, begun.tape)
                return 200
            job = await self._prepare(call, turn)
            answer = _answer(call, body, job)
            call.error_event = answer.fail
            await self._make(self._core.generation(job), answer, exchange if body.stream else None)
            if body.store is not False:
                await self._store.put(turn.owner, answer.response_id, turn.record(answer))
            if body.stream:
                await exchange.send_events(answer.take_events(), is_last=True)
            else:
                await exchange.send_json(200, answer.to_json())
            return 200
        return CLIENT_LEFT  # the exchange has swallowed the cancellation

    async def _prepare(self, call: Call, turn: "_Turn") -> Job:
        before: list[Item] = []
        if turn.body.previous_response_id is not None:
            previous = await self._store.conversation(turn.owner, turn.body.previous_response_id)
            turn.ancestors, before, turn.bytes_before = previous
        first = turn.ancestors[0] if turn.ancestors else response_id_of(call.request_id)
        ask = call.with_headers(response_ask(turn.body, [*before, *turn.items], call.session or first))
        with renaming(NAMES):
            return await self._core.prepare(call.request_id, ask, call.started_s, call.traceparent)

    async def _show(self, call: Call, tape: Tape) -> None:
        """Tell the events of a response; it is made also if nobody hears them."""
        told = 0
        call.error_event = lambda error: error_event(error, told)
        async for events in tape.read(0):
            await call.exchange.send_events(b"".join(events))
            told += len(events)
        await call.exchange.send_events(b"", is_last=True)

    async def _begin(self, call: Call, turn: "_Turn") -> "_Begun":
        """Have a response made in the background."""
        self._background.check_room()
        begun: asyncio.Future[_Begun] = asyncio.get_running_loop().create_future()
        name = turn.owner, response_id_of(call.request_id)
        task = self._background.begin(name, self._make_in_background(call, turn, name, begun))
        task.add_done_callback(lambda _: begun.cancel())
        try:
            return await begun
        except asyncio.CancelledError:  # the client has left before it knew of the response
            task.cancel()
            raise

    async def _make_in_background(self, call: Call, turn: "_Turn", name: Name, begun: "asyncio.Future[_Begun]") -> None:
        """It is a request of its own, which begins where the other one ends."""
        tape: Tape | None = None
        try:
            with self._core.admitted(requested_timeout_s(call.exchange.scope)):
                job = await self._prepare(call, turn)
                answer = _answer(call, turn.body, job)
                await self._background.hold(name)
                await self._store.put(*name, turn.record(answer, is_open=True))
                if turn.body.stream:
                    tape = self._tapes.begin(name)
                    tape.send_more(answer.take_events())
                if not begun.done():
                    begun.set_result(_Begun(answer.to_json(), tape))
                last = b""
                try:
                    await self._make(self._core.generation(job), answer, tape)
                except ApiError as error:
                    last = answer.fail(error)
                except asyncio.CancelledError:
                    if not self._background.is_cancelled(name):
                        raise
                    answer.cancel()
                await self._store.replace(*name, turn.record(answer))
                if tape is not None:
                    tape.send_more(last + answer.take_events())
                    self._tapes.end(name, tape)
        except Exception as error:
            if begun.done():
                raise
            begun.set_exception(error)
        finally:
            if tape is not None and not tape.is_complete:
                tape.lose()

    async def _make(self, generation: Generation, answer: ResponseAnswer, stream: Exchange | Tape | None) -> None:
        """All of the answer but the last events, which are told once it has been kept."""

        def more(piece: Piece) -> bool:
            answer.feed(piece.said, piece.tokens)
            return stream is not None and stream.send_more(answer.take_events())

        generation.on_piece = more if stream is not None else None
        async with aclosing(generation.pieces()) as pieces:
            async for piece in pieces:
                answer.feed(piece.said, piece.tokens)
                if piece.finish_reason is not None:
                    info = generation.info if generation.job.include_info else None
                    await _finish(answer, piece.finish_reason, generation.usage, int(time.time()), info)
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


async def _finish(answer: ResponseAnswer, *end: Any) -> None:
    if answer.num_scored <= LONG_SCORED_TOKENS:
        answer.finish(*end)
        return
    finishing = asyncio.ensure_future(asyncio.to_thread(answer.finish, *end))
    try:
        await asyncio.shield(finishing)
    except asyncio.CancelledError:
        await asyncio.wait([finishing])  # which takes milliseconds, and nobody may change the answer meanwhile
        raise


def _answer(call: Call, body: ResponseBody, job: Job) -> ResponseAnswer:
    vocabulary, top = job.model.tokenizer.vocabulary, job.sampling.top_logprobs
    return ResponseAnswer(
        call.request_id, body, int(time.time()), lambda tokens: encoded_entries(vocabulary, tokens, top)
    )


class _Begun(NamedTuple):
    """What is made in the background from now on."""

    response: bytes
    """As it begins."""
    tape: Tape | None
    """Its events, if they are streamed."""


@dataclass(slots=True)
class _Turn:
    """What one request adds to a conversation."""

    body: ResponseBody
    items: list[Item]
    owner: str
    encoded: bytes = b""
    """The items, as they are stored."""
    ancestors: list[str] = field(default_factory=list[str])
    bytes_before: int = 0

    def record(self, answer: ResponseAnswer, *, is_open: bool = False) -> Record:
        return Record(answer.to_json(), self.encoded, tuple(self.ancestors), is_open, self.bytes_before)
