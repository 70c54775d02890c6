"""What stands around every gRPC call of a client: admission, trace, counting, errors by whom they blame."""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from armature.openai.errors import ApiError, blamed
from armature.openai.serving.core import ServingCore
from armature.openai.serving.metrics import CANCELLATIONS, REQUEST_S, REQUESTS
from armature.runtime import telemetry

OK, CLIENT_LEFT = 200, 499


@dataclass(frozen=True, slots=True)
class Call:
    started_s: float
    """As the event loop counts."""
    traceparent: str
    request_id: str = field(default_factory=lambda: secrets.token_hex(12))


@asynccontextmanager
async def serving(core: ServingCore, route: str, context: Any) -> AsyncGenerator[Call, None]:
    """Serve one request inside.

    Raises:
        ArmatureError: an `ApiError` from inside, by whom it blames.
    """
    started_s, status = asyncio.get_running_loop().time(), CLIENT_LEFT
    parent = str(dict(context.invocation_metadata() or ()).get(telemetry.TRACEPARENT, ""))
    admitted = core.admitted(context.time_remaining())
    try:
        with telemetry.span("gateway", traceparent=parent, route=route) as span, admitted:
            yield Call(started_s, telemetry.traceparent_of(span))
        status = OK
    except ApiError as error:
        status = error.status
        raise blamed(error) from error
    finally:
        REQUESTS.labels(route, str(status)).inc()
        REQUEST_S.observe(asyncio.get_running_loop().time() - started_s)
        if status == CLIENT_LEFT:
            CANCELLATIONS.inc()
