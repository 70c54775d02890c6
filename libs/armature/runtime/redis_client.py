"""Redis or Valkey as a cell uses it: shared memory that may be away.

Every call has a deadline. While the server is away calls fail at once, but for one try now and then, so that traffic
never waits for it. That it went and that it came back is logged once each; every failure is counted.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import redis.asyncio as aioredis
from prometheus_client import Counter, Gauge
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from armature.runtime.errors import UnavailableError
from armature.runtime.outage import Outage
from armature.runtime.settings import CommonSettings, option

Answer = TypeVar("Answer")
Command = Sequence[str | bytes | int | float]

# More calls at a time than this wait for each other, within their deadlines.
_MAX_CONNECTIONS = 8

_failures = Counter("armature_redis_failures_total", "Redis calls without an answer, by reason.", ["reason"])
_is_up = Gauge("armature_redis_up", "1 while Redis answers, 0 while it does not.")


@dataclass(frozen=True, kw_only=True)
class RedisSettings(CommonSettings):
    """What a service that shares memory through Redis can be told besides."""

    redis: str = option(
        "",
        help="Redis or Valkey to share memory through, redis://[user:password@]host:port[/database], rediss:// for "
        "TLS; empty does without",
        secret=True,
    )
    redis_timeout_s: float = option(0.5, help="longest wait for one answer of Redis; raise it if it is far away")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.redis and not self.redis.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("redis must begin with redis://, rediss:// or unix://")
        if self.redis_timeout_s <= 0:
            raise ValueError("redis_timeout_s must be above 0")


class RedisUnavailableError(UnavailableError):
    """Redis did not answer, or refused."""


class RedisClient:
    """One server, any number of callers.

    Raises:
        ValueError: `url` is none.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.5) -> None:
        pool = aioredis.BlockingConnectionPool.from_url(
            url,
            max_connections=_MAX_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        self._redis = aioredis.Redis(connection_pool=pool)
        # They turn some commands' answers into something else, and others' not.
        self._redis.response_callbacks.clear()
        self._timeout_s = timeout_s
        self._outage = Outage("Redis")

    @property
    def is_up(self) -> bool:
        """Whether the last call that was tried was answered."""
        return self._outage.is_up

    async def call(self, *command: str | bytes | int | float, timeout_s: float | None = None) -> Any:
        """Send one command; the answer as Redis gives it, text as bytes.

        Raises:
            RedisUnavailableError: it did not answer within `timeout_s` (default: the client's), or refused.
        """
        return await self._within(lambda: self._redis.execute_command(*command), timeout_s)

    async def call_all(self, commands: Sequence[Command], *, timeout_s: float | None = None) -> list[Any]:
        """Send several commands in one round trip, all or none of which are carried out; their answers.

        Raises:
            RedisUnavailableError: it did not answer within `timeout_s` (default: the client's), or refused one.
        """
        pipeline = self._redis.pipeline(transaction=True)
        for command in commands:
            pipeline.execute_command(*command)
        return await self._within(pipeline.execute, timeout_s)

    async def close(self) -> None:
        await self._redis.aclose()

    async def _within(self, work: Callable[[], Awaitable[Answer]], timeout_s: float | None) -> Answer:
        loop = asyncio.get_running_loop()
        if pause_s := self._outage.pause_s(loop.time()):
            _failures.labels("paused").inc()
            raise RedisUnavailableError("Redis is away", pause_s)
        try:
            async with asyncio.timeout(self._timeout_s if timeout_s is None else timeout_s):
                answer = await work()
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:  # OSError: TimeoutError is one
            self._lost(loop.time(), error)
            raise RedisUnavailableError(f"Redis does not answer: {_line(error)}") from error
        except RedisError as error:
            _failures.labels("refused").inc()
            raise RedisUnavailableError(f"Redis refuses: {_line(error)}") from error
        finally:
            _pass_on_cancellation()
        self._answered()
        return answer

    def _lost(self, now_s: float, error: Exception) -> None:
        _failures.labels("away").inc()
        _is_up.set(0)
        self._outage.lost(now_s, _line(error))

    def _answered(self) -> None:
        _is_up.set(1)
        self._outage.answered()


def _pass_on_cancellation() -> None:
    """Be cancelled after all: redis-py swallows a cancellation that meets it while it connects."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
