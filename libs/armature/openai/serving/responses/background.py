"""Responses that are made after their request has been answered, and cancelled by whichever gateway is asked to.

Each is made by the gateway that took it, which holds a lease on it: a response under way whose lease has ended will
never be complete, and says so. That it is to be cancelled is left beside it for its gateway, which looks every second.
Without Redis, or while it is away, only this gateway can cancel what it makes.
"""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from armature.openai.errors import overloaded
from armature.runtime.redis_client import RedisClient, RedisUnavailableError

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 1.0
LEASE_S = 10
CANCEL_TTL_S = 60

Name = tuple[str, str]
"""Owner, which is a cache namespace, and id of a response."""


@dataclass(slots=True, eq=False)
class _Work:
    task: asyncio.Task[None]
    is_cancelled: bool = False


class Background:
    """What this gateway makes so; `tasks` own it, `run` must be one of them."""

    def __init__(self, tasks: asyncio.TaskGroup, redis: RedisClient | None, prefix: str, most: int) -> None:
        self._tasks = tasks
        self._redis = redis
        self._prefix = prefix
        self._most = most
        self._works: dict[Name, _Work] = {}

    def check_room(self) -> None:
        """Raise 429 if no more can be made at the same time."""
        if len(self._works) >= self._most:
            raise overloaded(f"{len(self._works)} responses are being made in the background here; try again later")

    def begin(self, name: Name, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have `work` make the response. It is cancelled with its task, and told by `is_cancelled` on whose wish."""
        task = self._tasks.create_task(self._make(name, work), name=f"response {name[1]}")
        self._works[name] = _Work(task)
        task.add_done_callback(lambda _: self._works.pop(name, None))
        return task

    def is_cancelled(self, name: Name) -> bool:
        """Whether somebody has asked for the end of what is made here."""
        work = self._works.get(name)
        return work is not None and work.is_cancelled

    async def is_running(self, name: Name) -> bool:
        """Whether the response may still be completed by somebody."""
        if name in self._works:
            return True
        if self._redis is None:
            return False
        try:
            return bool(await self._redis.call("EXISTS", self._key("lease", name)))
        except RedisUnavailableError:
            return True

    async def cancel(self, name: Name) -> None:
        """End it: here and now, or soon by the gateway that makes it. Nothing if it has ended."""
        work = self._works.get(name)
        if work is not None:
            work.is_cancelled = True
            work.task.cancel()
            await asyncio.wait([work.task])
        elif self._redis is not None:
            await self._redis.call("SET", self._key("cancel", name), 1, "EX", CANCEL_TTL_S)

    async def run(self) -> None:
        """Hold leases and look for cancellations until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            if self._works and self._redis is not None:
                await self._look(self._redis, list(self._works))

    async def hold(self, name: Name) -> None:
        """Take the lease before anybody is told of the response."""
        if self._redis is not None:
            await self._look(self._redis, [name])

    async def _look(self, redis: RedisClient, names: list[Name]) -> None:
        leases = [("SET", self._key("lease", name), 1, "EX", LEASE_S) for name in names]
        try:
            *_, asked = await redis.call_all([*leases, ("MGET", *(self._key("cancel", name) for name in names))])
        except RedisUnavailableError:
            return
        for name, is_asked in zip(names, asked, strict=True):
            work = self._works.get(name)
            if is_asked is not None and work is not None and not work.is_cancelled:
                work.is_cancelled = True
                work.task.cancel()

    async def _make(self, name: Name, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # whose own failures are told in the response: this is our bug, and one request's
            log.exception("response %s failed in the background", name[1])

    def _key(self, kind: str, name: Name) -> str:
        owner, response_id = name
        return f"{self._prefix}{kind}:{owner}:{response_id}"
