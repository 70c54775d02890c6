"""`/openapi.json` and `/docs`."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from armature.openai.openapi.document import document, route_names
from armature.openai.openapi.page import HEADERS, page
from armature.openai.tenancy.doorkeeper import Doorkeeper


class Description:
    """Describes some routes and its own."""

    def __init__(self, routes: Sequence[Route], doorkeeper: Doorkeeper) -> None:
        own = self.routes()
        self._routes = route_names((route.path, route.methods or ()) for route in (*routes, *own))
        self._doorkeeper = doorkeeper

    def routes(self) -> list[Route]:
        return [Route("/openapi.json", self._document), Route("/docs", self._page)]

    async def _document(self, request: Request) -> Response:
        return Response(self._made(), media_type="application/json")

    async def _page(self, request: Request) -> Response:
        return HTMLResponse(page(self._made()), headers=HEADERS)

    def _made(self) -> bytes:
        return document(self._routes, needs_key=self._doorkeeper.table is not None)
