"""Responses that clients may come back to: in Redis, or in this gateway's memory without one or while it is away.

A response belongs to the cache namespace of whoever made it: nobody else can read it, go on from it or delete it.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from armature.openai.errors import ApiError, invalid
from armature.openai.responses.items import REFERENCE, response_of
from armature.openai.responses.recent import Recent
from armature.openai.responses.record import (
    MAX_CONVERSATION_BYTES,
    MAX_TURNS,
    Conversation,
    Record,
    decode_record,
)
from armature.openai.responses.schema import Item
from armature.runtime.redis_client import RedisClient, RedisUnavailableError

MAX_REFERRED_RESPONSES = 64
"""By the items of one input."""

REPLACE_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0)
"""Before another try to write what nobody else knows, while Redis is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Raises ValueError for values that can't work."""

    response_ttl_s: float = 7 * 24 * 3600.0
    """How long a response is kept after it was last gone on from."""
    max_response_bytes: int = 1024 * 1024
    """Of one turn's input; its output is bounded by the model's context."""
    local_response_bytes: int = 64 * 1024 * 1024
    """For responses that can't be in Redis."""
    max_background_responses: int = 256
    """That a gateway makes in the background at the same time."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


class ResponseStore:
    """One per gateway. `owner` is a cache namespace throughout."""

    def __init__(self, redis: RedisClient | None, namespace: str, options: StoreOptions | None = None) -> None:
        self.options = options or StoreOptions()
        self.redis = self._redis = redis
        self.background_prefix = f"armature:{namespace}:background:"
        self._prefix = f"armature:{namespace}:response:"
        self._ttl_s = max(1, round(self.options.response_ttl_s))
        self._local = Recent(self.options.local_response_bytes, self.options.response_ttl_s)
        self._now_s = asyncio.get_running_loop().time

    async def put(self, owner: str, response_id: str, record: Record) -> None:
        """Keep a response. One that fits nowhere is as good as forgotten."""
        key, value = self._key(owner, response_id), record.encode()
        if self._redis is not None:
            try:
                await self._redis.call("SET", key, value, "EX", self._ttl_s)
                return
            except RedisUnavailableError:
                pass
        self._local.put(key, value, self._now_s())

    async def replace(self, owner: str, response_id: str, record: Record) -> None:
        """Keep what has become of a response, unless it has been deleted."""
        key, value = self._key(owner, response_id), record.encode()
        for pause_s in REPLACE_PAUSES_S if self._redis is not None else ():
            assert self._redis is not None
            await asyncio.sleep(pause_s)
            with suppress(RedisUnavailableError):
                await self._redis.call("SET", key, value, "EX", self._ttl_s, "XX")
                break
        if self._local.get(key, self._now_s()) is not None:
            self._local.put(key, value, self._now_s())

    async def get(self, owner: str, response_id: str) -> Record:
        """One response, which is kept for its time again.

        Raises:
            ApiError: 404, or 503 while nobody can tell.
        """
        (record,) = await self.get_all(owner, [response_id])
        return record

    async def get_all(self, owner: str, response_ids: Sequence[str]) -> list[Record]:
        """Several responses, all of which are kept for their time again.

        Raises:
            ApiError: 404 that names one that is not there, or 503 while nobody can tell.
        """
        if not response_ids:
            return []
        keys = [self._key(owner, response_id) for response_id in response_ids]
        values: list[bytes | None] = [None] * len(keys)
        away: RedisUnavailableError | None = None
        if self._redis is not None:
            try:
                values = await self._redis.call_all([("GETEX", key, "EX", self._ttl_s) for key in keys])
            except RedisUnavailableError as error:
                away = error
        records: list[Record] = []
        for response_id, key, value in zip(response_ids, keys, values, strict=True):
            found = value if value is not None else self._local.get(key, self._now_s())
            if found is None:
                raise not_found(response_id) if away is None else unavailable(away)
            records.append(decode_record(found))
        return records

    async def conversation(self, owner: str, previous_id: str) -> Conversation:
        """A response and those before it.

        Raises:
            ApiError: 400 if one of them is not there or there is too much, or 503 while nobody can tell.
        """
        try:
            previous = await self.get(owner, previous_id)
            _check_end(previous)
            earlier = await self.get_all(owner, previous.ancestors)
        except ApiError as error:
            if error.status != 404:
                raise
            code = "previous_response_not_found"
            raise ApiError(400, error.message, param="previous_response_id", code=code) from error
        items = [item for record in (*earlier, previous) for item in record.items()]
        return Conversation([*previous.ancestors, previous_id], items, previous.conversation_bytes)

    async def resolved(self, owner: str, items: Sequence[Item]) -> list[Item]:
        """The items, with those of earlier responses in the places where they are only referred to.

        Raises:
            ApiError: 400 if one of them is not there, or 503 while nobody can tell.
        """
        references = {index: str(item.get("id")) for index, item in enumerate(items) if item.get("type") == REFERENCE}
        responses = {index: response_of(item_id) for index, item_id in references.items()}
        known: dict[str, Item] = {}
        wanted = list(dict.fromkeys([one for one in responses.values() if one is not None]))
        if len(wanted) > MAX_REFERRED_RESPONSES:
            raise invalid("input", f"items of at most {MAX_REFERRED_RESPONSES} responses can be referred to at once")
        for response_id in wanted:
            try:
                record = await self.get(owner, response_id)
            except ApiError as error:
                if error.status != 404:
                    raise
                continue
            known |= {item["id"]: item for item in record.items()}
        for index, item_id in references.items():
            if item_id not in known:
                fix = f"there is no item '{item_id[:80]}': its response was not stored, has expired or was deleted"
                raise invalid(f"input[{index}].id", fix, code="item_not_found")
        return [known[references[index]] if index in references else item for index, item in enumerate(items)]

    async def delete(self, owner: str, response_id: str) -> None:
        """Forget a response.

        Raises:
            ApiError: 404, or 503 if Redis is away: it may still have it.
        """
        key = self._key(owner, response_id)
        known = self._local.remove(key)
        if self._redis is not None:
            try:
                known = bool(await self._redis.call("UNLINK", key)) or known
            except RedisUnavailableError as error:
                raise unavailable(error) from error
        if not known:
            raise not_found(response_id)

    def _key(self, owner: str, response_id: str) -> str:
        return f"{self._prefix}{owner}:{response_id}"


def _check_end(previous: Record) -> None:
    """Raise 400 unless a conversation can go on from this response."""
    field = "previous_response_id"
    if previous.is_open:
        fix = "it is still being made: wait until it is complete"
        raise invalid(field, fix, code="previous_response_not_completed")
    if len(previous.ancestors) >= MAX_TURNS:
        raise invalid(field, f"a conversation has at most {MAX_TURNS} turns; begin a new one")
    if previous.conversation_bytes > MAX_CONVERSATION_BYTES:
        raise invalid(field, f"a conversation has at most {MAX_CONVERSATION_BYTES} bytes; begin a new one")


def not_found(response_id: str) -> ApiError:
    message = f"There is no response '{response_id[:80]}': it was not stored, has expired or was deleted"
    return ApiError(404, message, param="response_id", code="response_not_found")


def unavailable(error: RedisUnavailableError) -> ApiError:
    """Nobody can tell what is stored."""
    message = "Stored responses can't be read at the moment; try again"
    return ApiError(503, message, code="store_unavailable", retry_after_s=error.retry_after_s or 1.0)
