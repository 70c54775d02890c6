"""What tenants have used, by model and day: counted here, added up in Redis.

Counts wait in memory and are sent together, so a request costs a few additions. A batch that was sent and not answered
is sent again under its number, which Redis counts once. What can't be sent waits, for a bounded number of different
tenants, models and days; without Redis this gateway knows what it has served since it began.
"""

import asyncio
import datetime
import time
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from prometheus_client import Counter

from armature.openai.serving.generation import Generation
from armature.runtime.redis_client import RedisClient, RedisUnavailableError

FLUSH_INTERVAL_S = 1.0
MAX_WAITING = 10_000
"""Different tenants, models and days."""
_KEPT_S = 400 * 86_400
_COUNTS = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens")
_SCRIPT = """
if tonumber(redis.call('GET', KEYS[1]) or '0') >= tonumber(ARGV[1]) then return 0 end
for i = 3, #ARGV, 3 do
  local day = KEYS[tonumber(ARGV[i])]
  redis.call('HINCRBY', day, ARGV[i + 1], ARGV[i + 2])
  redis.call('EXPIRE', day, ARGV[2])
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', 86400)
return 1
"""
"""KEYS: this gateway's latest batch, then days. ARGV: the batch's number, how long days are kept, and per count the
number of its day among the keys, its field, and how much it grows."""

_lost = Counter("armature_gateway_usage_lost_total", "Requests whose use was not counted: too much waits for Redis.")


class Spent(NamedTuple):
    """For whom, on what and when."""

    day: str
    tenant: str
    model: str


class UsageRow(msgspec.Struct, frozen=True):
    day: str
    tenant: str
    model: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Of those of the prompts."""


class UsageMeter:
    """One per gateway; `ended` for every generation, `run` to send."""

    def __init__(self, own_id: str, prefix: str, redis: RedisClient | None) -> None:
        self._own_id = own_id
        self._prefix = prefix
        self._redis = redis
        self._waiting: dict[Spent, list[int]] = {}
        self._sent: dict[Spent, list[int]] = {}
        """The batch that has not been answered."""
        self._sending = asyncio.Lock()
        """Two that send at once would take each other's batch for answered."""
        # Above those of a process that had the same id before, and small enough for the doubles of a script.
        self._number = time.time_ns() // 1000

    def ended(self, generation: Generation) -> None:
        """A request, or one of its answers, has ended."""
        job, usage = generation.job, generation.usage
        is_first = job.answer_index == 0
        counts = (is_first, is_first * usage.prompt_tokens, usage.completion_tokens, is_first * usage.cached_tokens)
        self.add(Spent(_today(), job.tenant, job.model.name), counts)

    def embedded(self, tenant: str, model: str, prompt_tokens: int) -> None:
        """A request for embeddings has been answered."""
        self.add(Spent(_today(), tenant, model), (1, prompt_tokens, 0, 0))

    def add(self, spent: Spent, counts: tuple[int, ...]) -> None:
        """Count requests, tokens of prompts and answers, and cached ones."""
        sums = self._waiting.get(spent)
        if sums is None:
            if len(self._waiting) >= MAX_WAITING:
                _lost.inc(counts[0])
                return
            sums = self._waiting[spent] = [0] * len(_COUNTS)
        for index, count in enumerate(counts):
            sums[index] += count

    async def run(self) -> None:
        """Send what waits, again and again until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            await self.flush()

    async def flush(self) -> bool:
        """Send what waits; whether nothing waits any more."""
        async with self._sending:
            return await self._flush()

    async def _flush(self) -> bool:
        if self._redis is None:
            return False
        while self._sent or self._waiting:
            if not self._sent:
                self._sent, self._waiting = self._waiting, {}
                self._number += 1
            try:
                await self._send(self._redis)
            except RedisUnavailableError:
                return False
            self._sent = {}
        return True

    async def report(self, first: datetime.date, last: datetime.date, tenant: str = "") -> tuple[list[UsageRow], bool]:
        """What was used from one day to another, by one tenant or all; and whether other gateways' use is in it."""
        days = [(first + datetime.timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]
        sums: dict[Spent, list[int]] = {}
        async with self._sending:  # what is sent meanwhile would be seen twice, or not at all
            is_complete = await self._flush()
            if self._redis is not None:
                try:
                    answers = await self._redis.call_all([("HGETALL", self._prefix + day) for day in days])
                    for day, answer in zip(days, answers, strict=True):
                        _read(sums, day, answer)
                except RedisUnavailableError:
                    is_complete = False
            for waiting in (self._waiting, self._sent):
                _merge(sums, {spent: counts for spent, counts in waiting.items() if spent.day in days})
        rows = [UsageRow(*spent, *counts) for spent, counts in sorted(sums.items()) if tenant in ("", spent.tenant)]
        return rows, is_complete

    async def _send(self, redis: RedisClient) -> None:
        days = list(dict.fromkeys(spent.day for spent in self._sent))
        arguments: list[str | int] = [self._number, _KEPT_S]
        for spent, counts in self._sent.items():
            for name, count in zip(_COUNTS, counts, strict=True):
                if count:
                    arguments += [days.index(spent.day) + 2, f"{spent.tenant}/{name}/{spent.model}", count]
        keys = [f"{self._prefix}sent:{self._own_id}", *(self._prefix + day for day in days)]
        await redis.call("EVAL", _SCRIPT, len(keys), *keys, *arguments)


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _read(sums: dict[Spent, list[int]], day: str, fields: list[bytes]) -> None:
    for field, count in zip(fields[::2], fields[1::2], strict=True):
        tenant, name, model = field.decode().split("/", 2)
        if name in _COUNTS:
            sums.setdefault(Spent(day, tenant, model), [0] * len(_COUNTS))[_COUNTS.index(name)] += int(count)


def _merge(sums: dict[Spent, list[int]], more: Mapping[Spent, list[int]]) -> None:
    for spent, counts in more.items():
        mine = sums.setdefault(spent, [0] * len(_COUNTS))
        for index, count in enumerate(counts):
            mine[index] += count
