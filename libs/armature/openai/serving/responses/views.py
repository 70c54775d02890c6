"""What `/v1/responses/{id}` shows of responses that were kept, and how it forgets them."""

import asyncio
import re
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from armature.openai.errors import ApiError, invalid
from armature.openai.responses.record import Record
from armature.openai.serving.core import ServingCore
from armature.openai.serving.http.exchange import EVENT_STREAM
from armature.openai.serving.http.json_response import JsonResponse
from armature.openai.serving.responses.background import Background
from armature.openai.serving.responses.store import ResponseStore, unavailable
from armature.openai.serving.responses.tapes import Tapes, error_event
from armature.runtime.redis_client import RedisUnavailableError

CANCEL_TIMEOUT_S = 4.0
"""For another gateway to hear that it is to end a response."""

DEFAULT_PAGE, MAX_PAGE = 20, 100
"""Items, as the OpenAI API has it."""


class ResponseViews:
    """The routes besides `POST /v1/responses`. A response is seen only by whoever may go on from it."""

    def __init__(self, core: ServingCore, store: ResponseStore, background: Background, tapes: Tapes) -> None:
        self._core = core
        self._store = store
        self._background = background
        self._tapes = tapes

    def routes(self) -> list[Route]:
        one = "/v1/responses/{response_id}"
        return [
            Route(one, self.show, methods=["GET"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/input_items", self.input_items, methods=["GET"]),
            Route(f"{one}/cancel", self.cancel, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        if request.query_params.get("stream", "false").lower() in ("false", "0"):
            return _shown(await self._settled(_response_id(request)))
        return await self._stream(request)

    async def _stream(self, request: Request) -> Response:
        """The events of a response that is, or was, made in the background, after the one with a certain number."""
        after = request.query_params.get("starting_after", "-1")
        if not re.fullmatch(r"-1|\d{1,9}", after, re.ASCII):
            raise invalid("starting_after", f"must be the sequence_number of an event, not '{after[:40]}'")
        response_id, first = _response_id(request), int(after) + 1
        await self._settled(response_id)
        pieces = await self._tapes.read((self._owner, response_id), first)
        if pieces is None:
            fix = "only of what was begun with background and stream, and for some minutes after its end; leave it out"
            raise invalid("stream", f"the events of this response are not kept: {fix}")

        async def events() -> AsyncIterator[bytes]:
            told = first
            try:
                async for piece in pieces:
                    yield b"".join(piece)
                    told += len(piece)
            except ApiError as error:
                yield error_event(error, told)

        headers = {key.decode(): value.decode() for key, value in EVENT_STREAM}
        return StreamingResponse(events(), headers=headers)

    async def delete(self, request: Request) -> Response:
        response_id, owner = _response_id(request), self._owner
        if (await self._store.get(owner, response_id)).is_open:
            await self._end(owner, response_id)
        await self._store.delete(owner, response_id)
        return JsonResponse({"id": response_id, "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        limit, order, after = _page(request)
        record = await self._store.get(self._owner, _response_id(request))
        items = [{"status": "completed", **item} for item in record.input_items()]
        if order == "desc":
            items.reverse()
        if after is not None:
            begins = next((at for at, item in enumerate(items, 1) if item["id"] == after), None)
            if begins is None:
                raise invalid("after", f"there is no item '{after[:80]}'")
            items = items[begins:]
        shown = items[:limit]
        first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
        more = len(items) > limit
        return JsonResponse({"object": "list", "data": shown, "first_id": first, "last_id": last, "has_more": more})

    async def cancel(self, request: Request) -> Response:
        """The response, as far as it was made; one that another gateway makes may end a second later."""
        response_id, owner = _response_id(request), self._owner
        record = await self._settled(response_id)
        if record.is_open:
            await self._end(owner, response_id)
            record = await self._settled(response_id)
        elif not record.is_cancelled:
            fix = "only what is being made in the background is cancelled; others end when their connection is closed"
            raise invalid("response_id", fix)
        return _shown(record)

    async def _end(self, owner: str, response_id: str) -> None:
        try:
            await self._background.cancel((owner, response_id))
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                while (await self._store.get(owner, response_id)).is_open:  # noqa: ASYNC110 -- in another process
                    await asyncio.sleep(CANCEL_TIMEOUT_S / 20)
        except RedisUnavailableError as error:
            raise unavailable(error) from error
        except TimeoutError:
            pass

    async def _settled(self, response_id: str) -> Record:
        """The response; one that nobody makes any more has failed."""
        record = await self._store.get(self._owner, response_id)
        if not record.is_open or await self._background.is_running((self._owner, response_id)):
            return record
        record = await self._store.get(self._owner, response_id)  # it may have been completed in between
        if record.is_open:
            record = record.failed("The gateway that was making it has ended; send the request again")
            await self._store.replace(self._owner, response_id, record)
        return record

    @property
    def _owner(self) -> str:
        return self._core.doorkeeper.caller().cache_namespace


def _shown(record: Record) -> Response:
    return Response(record.response, media_type="application/json")


def _response_id(request: Request) -> str:
    return request.path_params["response_id"]


def _page(request: Request) -> tuple[int, str, str | None]:
    """`limit`, `order` and `after`."""
    query = request.query_params
    limit, order = query.get("limit", str(DEFAULT_PAGE)), query.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MAX_PAGE):
        raise invalid("limit", f"must be between 1 and {MAX_PAGE}, not {limit[:40]}")
    if order not in ("asc", "desc"):
        raise invalid("order", f"must be asc or desc, not '{order[:40]}'")
    return int(limit), order, query.get("after")
