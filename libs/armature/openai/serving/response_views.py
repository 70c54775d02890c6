"""What `/v1/responses/{id}` shows of responses that were kept, and how it forgets them."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from armature.openai.errors import invalid, unsupported
from armature.openai.serving.core import ServingCore
from armature.openai.serving.json_response import JsonResponse
from armature.openai.serving.response_store import ResponseStore

DEFAULT_PAGE, MAX_PAGE = 20, 100
"""Items, as the OpenAI API has it."""


class ResponseViews:
    """The routes besides `POST /v1/responses`. A response is seen only by whoever may go on from it."""

    def __init__(self, core: ServingCore, store: ResponseStore) -> None:
        self._core = core
        self._store = store

    def routes(self) -> list[Route]:
        one = "/v1/responses/{response_id}"
        return [
            Route(one, self.show, methods=["GET"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/input_items", self.input_items, methods=["GET"]),
            Route(f"{one}/cancel", self.cancel, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        if request.query_params.get("stream", "false").lower() not in ("false", "0"):
            raise unsupported("stream", "only a response that is being made is streamed; leave it out")
        record = await self._store.get(self._owner, _response_id(request))
        return Response(record.response, media_type="application/json")

    async def delete(self, request: Request) -> Response:
        response_id = _response_id(request)
        await self._store.delete(self._owner, response_id)
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
        await self._store.get(self._owner, _response_id(request))
        raise invalid("response_id", "it is complete; one that is being made is cancelled by closing its connection")

    @property
    def _owner(self) -> str:
        return self._core.doorkeeper.caller().cache_namespace


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
