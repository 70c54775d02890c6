"""JSON answers for Starlette by msgspec."""

from typing import Any

import msgspec
from starlette.responses import JSONResponse


class JsonResponse(JSONResponse):
    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)
