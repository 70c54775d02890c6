"""Responses in a real Valkey, and without one."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from armature.openai.errors import ApiError
from armature.openai.responses.record import MAX_CONVERSATION_BYTES, Record
from armature.openai.serving.responses.store import ResponseStore, StoreOptions
from armature.runtime.children import Child
from armature.runtime.processes import start_valkey
from armature.runtime.redis_client import RedisClient


def record(text: str, *ancestors: str) -> Record:
    items = [{"type": "message", "id": "msg_1", "role": "user", "content": text}]
    return Record(b'{"output":[{"type":"message","id":"msg_2"}]}', msgspec.json.encode(items), ancestors)


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[Child]:
    child = await start_valkey(tmp_path)
    yield child
    await child.kill()


async def refusal(work: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await work  # pyright: ignore
    return caught.value


async def test_gateways_share_responses_through_redis_and_each_owner_has_its_own(valkey: Child) -> None:
    redis = RedisClient(f"redis://{valkey.address}", timeout_s=2.0)
    one, other = ResponseStore(redis, "cell"), ResponseStore(redis, "cell")
    await one.put("acme", "resp_1", record("hello"))
    await one.put("acme", "resp_2", record("again", "resp_1"))
    found = await other.get("acme", "resp_2")
    assert found == record("again", "resp_1")
    assert [item["id"] for item in found.items()] == ["msg_1", "msg_2"]
    assert [r.input for r in await other.get_all("acme", ["resp_1", "resp_2"])] == [
        record("hello").input, found.input,
    ]  # fmt: skip
    for owner, response_id in (("other", "resp_1"), ("", "resp_1"), ("acme", "resp_3")):
        assert (await refusal(other.get(owner, response_id))).status == 404
        assert (await refusal(other.delete(owner, response_id))).status == 404
    await other.delete("acme", "resp_1")
    gone = await refusal(one.get_all("acme", ["resp_2", "resp_1"]))
    assert (gone.status, gone.code) == (404, "response_not_found")
    assert "resp_1" in gone.message
    await redis.close()


async def test_a_conversation_that_nobody_could_hold_is_not_read() -> None:
    store = ResponseStore(None, "cell")
    last = msgspec.structs.replace(record("more", "resp_0"), bytes_before=MAX_CONVERSATION_BYTES)
    for response_id, previous in (("resp_1", record("a")), ("resp_2", last)):
        await store.put("", response_id, previous)
    found = await store.conversation("", "resp_1")
    assert (found.ids, found.size_bytes) == (["resp_1"], record("a").conversation_bytes)
    refused = await refusal(store.conversation("", "resp_2"))
    assert (refused.status, refused.param) == (400, "previous_response_id") and "bytes" in refused.message


async def test_a_response_lives_on_when_it_is_used(valkey: Child) -> None:
    redis = RedisClient(f"redis://{valkey.address}", timeout_s=2.0)
    store = ResponseStore(redis, "cell", StoreOptions(response_ttl_s=1000))
    await store.put("", "resp_1", record("hello"))
    (key,) = await redis.call("KEYS", "*")
    await redis.call("EXPIRE", key, 10)
    await store.get("", "resp_1")
    assert 990 <= await redis.call("TTL", key) <= 1000
    await redis.close()


async def test_conversations_go_on_in_memory_while_redis_is_away(valkey: Child) -> None:
    redis = RedisClient(f"redis://{valkey.address}", timeout_s=2.0)
    store = ResponseStore(redis, "cell")
    await store.put("", "resp_1", record("in redis"))
    await valkey.kill()
    await store.put("", "resp_2", record("in memory"))
    assert await store.get("", "resp_2") == record("in memory")
    away = await refusal(store.get("", "resp_1"))
    assert (away.status, away.code) == (503, "store_unavailable")
    assert away.retry_after_s > 0
    assert (await refusal(store.delete("", "resp_1"))).status == 503
    await redis.close()


async def test_without_redis_memory_is_bounded() -> None:
    store = ResponseStore(None, "cell", StoreOptions(local_response_bytes=2000))
    for number in range(10):
        await store.put("", f"resp_{number}", record("x" * 200))
    assert (await refusal(store.get("", "resp_0"))).status == 404
    assert await store.get("", "resp_9") == record("x" * 200)
    await store.delete("", "resp_9")
    assert (await refusal(store.get("", "resp_9"))).status == 404


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="response_ttl_s"):
        StoreOptions(response_ttl_s=0)
