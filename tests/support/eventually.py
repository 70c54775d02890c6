"""Waiting for something that another process or task brings about."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable


async def eventually(
    condition: Callable[[], object | Awaitable[object]], deadline_s: float = 20.0, what: str = ""
) -> None:
    """Return as soon as `condition()`, which may be a coroutine function, holds.

    Raises:
        AssertionError: not within `deadline_s`, generous because others use the machine; names `what`.
    """
    give_up_at = time.monotonic() + deadline_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return
        assert time.monotonic() < give_up_at, f"not within {deadline_s:g} s: {what or 'the condition'}"
        await asyncio.sleep(0.01)
