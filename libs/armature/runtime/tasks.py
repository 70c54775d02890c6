"""What is said of tasks in many places: who starts them, and that their end was noticed."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
"""Starts a task that somebody owns: `TaskGroup.create_task`. One that fails ends the process."""


def forget_outcome(settled: "asyncio.Future[None]") -> None:
    """Take notice of an outcome that is told elsewhere, so that asyncio does not complain that nobody did."""
    if not settled.cancelled():
        settled.exception()
