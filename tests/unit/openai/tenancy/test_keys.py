"""API keys: what is kept of them, whose they are, and the file they are in."""

import asyncio
import datetime
from collections.abc import Callable
from pathlib import Path

import pytest

from armature.openai.errors import ApiError
from armature.openai.tenancy.caller import TenantLimits
from armature.openai.tenancy.doorkeeper import Doorkeeper, presented_key
from armature.openai.tenancy.key_file import KeyFile, parse_book
from armature.openai.tenancy.keys import KeyBook, KeyEntry, KeyTable, TenantEntry, digest_of, new_key
from armature.runtime.errors import StartError
from tests.support.eventually import eventually

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
KEY_ID = "arm-abcdefgh"
KEY = KEY_ID + "0" * 35


def table(entry: KeyEntry | None = None, **tenants: TenantEntry) -> KeyTable:
    entry = entry or KeyEntry(tenant="acme", digest=digest_of(KEY))
    return KeyTable(KeyBook(keys={KEY_ID: entry}, tenants=tenants))


def refusal(found: Callable[[], object]) -> tuple[int, str | None]:
    with pytest.raises(ApiError) as caught:
        found()
    return caught.value.status, caught.value.code


def test_a_key_is_its_tenants_and_leads_to_the_tenants_namespace_and_limits() -> None:
    caller = table(acme=TenantEntry(requests_per_min=60, concurrent_requests=4)).find(KEY, NOW)
    assert (caller.tenant, caller.cache_namespace) == ("acme", "acme")
    assert caller.limits == TenantLimits(requests_per_min=60, concurrent_requests=4)
    assert table().find(KEY, NOW).limits == TenantLimits()
    assert table(acme=TenantEntry(cache_namespace="shared")).find(KEY, NOW).cache_namespace == "shared"


@pytest.mark.parametrize("key", ["", "x", KEY_ID, KEY[:-1], KEY + "x", KEY_ID + "x" * 35, "arm-ünï", "arm-" + "z" * 43])
def test_a_key_that_differs_in_anything_is_refused(key: str) -> None:
    assert refusal(lambda: table().find(key, NOW)) == (401, "invalid_api_key")


def test_an_expired_key_and_a_disabled_tenant_are_refused() -> None:
    ends = KeyEntry(tenant="acme", digest=digest_of(KEY), expires_at=NOW)
    assert table(ends).find(KEY, NOW - datetime.timedelta(seconds=1)).tenant == "acme"
    assert refusal(lambda: table(ends).find(KEY, NOW)) == (401, "expired_api_key")
    assert refusal(lambda: table(acme=TenantEntry(is_disabled=True)).find(KEY, NOW)) == (403, "tenant_disabled")


def test_nothing_that_is_kept_tells_the_key() -> None:
    keys = {new_key()[0] for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) >= 47 for key in keys)
    assert KEY[len(KEY_ID) :] not in repr(table().book)


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([], ""),
        ([("authorization", "Bearer abc")], "abc"),
        ([(b"authorization", b"bearer  abc ")], "abc"),
        ([(b"authorization", b"Basic abc")], ""),
        ([(b"x-api-key", b"abc")], "abc"),
        ([("x-api-key", "one"), ("authorization", "Bearer two")], "two"),
        ([("authorization", "Bearer "), ("x-api-key", "one")], "one"),
    ],
)
def test_a_key_comes_as_openai_or_as_anthropic_clients_send_it(headers: list[tuple[str, str]], key: str) -> None:
    assert presented_key(headers) == key


def test_without_keys_everybody_is_one_tenant() -> None:
    assert Doorkeeper().identify([]).tenant == "default"
    assert Doorkeeper().caller().cache_namespace == ""


def test_with_keys_nobody_is_served_who_has_not_come_through_the_door() -> None:
    with pytest.raises(LookupError):
        Doorkeeper(table()).caller()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keys: [", "parsing"),
        ("keis: {}", "keis"),
        ("tenants: {acme: {requests_per_min: -1}}", "tenants"),
        ("tenants: {a b: {}}", "matching regex"),
        (f"keys: {{{KEY_ID}: {{tenant: acme, digest: abc}}}}", "digest"),
        ("- 1", "object"),
    ],
)
def test_a_file_that_is_wrong_says_where(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_book(text)


def test_an_empty_file_has_no_keys_and_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("")
    assert refusal(lambda: KeyFile(path).read().find(KEY, NOW)) == (401, "invalid_api_key")
    with pytest.raises(StartError, match="No such file"):
        KeyFile(tmp_path / "none.yaml").read()


async def test_a_file_is_read_again_when_it_changes_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(f"keys: {{{KEY_ID}: {{tenant: acme, digest: {digest_of(KEY)}}}}}")
    file = KeyFile(path)
    doorkeeper = Doorkeeper(file.read())
    following = asyncio.create_task(file.follow(doorkeeper, interval_s=0.01))

    def tenants() -> set[str]:
        assert doorkeeper.table is not None
        return {entry.tenant for entry in doorkeeper.table.book.keys.values()}

    async def replaced_by(tenant: str) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_text(f"keys: {{{KEY_ID}: {{tenant: {tenant}, digest: {digest_of(KEY)}}}}}")
        fresh.replace(path)
        await eventually(lambda: tenants() == {tenant})

    await replaced_by("globex")
    path.write_text("keys: [")
    await eventually(lambda: "stay as they were" in caplog.text)
    caplog.clear()
    path.unlink()
    await eventually(lambda: "stay as they were" in caplog.text)
    assert tenants() == {"globex"}
    await replaced_by("initech")
    following.cancel()
