"""A real S3 server that is killed, frozen and started again under its client."""

import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from armature.runtime.s3_client import S3Bucket, S3Client, S3UnavailableError
from tests.support.eventually import eventually
from tests.support.s3 import SECRET_KEY, S3Server, s3_server


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[S3Server]:
    async with s3_server(tmp_path_factory.mktemp("s3") / "data") as found:
        yield found


async def answers(client: S3Client) -> bool:
    try:
        await client.get("none")
    except S3UnavailableError:
        return False
    return True


async def test_objects_are_put_listed_read_and_deleted(server: S3Server) -> None:
    client = server.client()
    blob = bytes(range(256)) * 1000
    for name in ("a", "b", "deep/c"):
        await client.put(f"folder/{name}", blob)
    await client.put("folder-too/d", b"other")
    assert await client.get("folder/a") == blob
    assert await client.get("folder/none") is None
    found = [one async for page in client.list("folder") for one in page]
    assert [(one.path, one.size_bytes) for one in found] == [
        (f"folder/{name}", len(blob)) for name in ("a", "b", "deep/c")
    ]
    assert all(abs(one.modified - datetime.now(UTC)) < timedelta(minutes=5) for one in found)
    await client.delete([one.path for one in found] + ["folder/none"])
    assert [page async for page in client.list("folder")] == []
    assert await client.get("folder-too/d") == b"other"


async def test_a_store_that_dies_is_missed_at_once_and_found_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with s3_server(tmp_path / "data") as server:
        client = server.client()
        await client.put("a", b"1")
        await server.kill()
        for _ in range(5):
            with pytest.raises(S3UnavailableError):
                await client.put("a", b"2")
        assert not client.is_up
        assert caplog.text.count("S3 does not answer") == 1
        await server.start()
        await eventually(lambda: answers(client))
        assert await client.get("a") == b"1"
        assert caplog.text.count("S3 answers again") == 1


async def test_a_store_that_hangs_costs_the_deadline(tmp_path: Path) -> None:
    async with s3_server(tmp_path / "data") as server:
        client = server.client(timeout_s=0.3)
        await client.put("a", b"1")
        server.freeze()
        with pytest.raises(S3UnavailableError, match="in time"):
            await client.get("a")
        server.thaw()
        await eventually(lambda: answers(client))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"secret_key": "wrong-secret"}, "403 SignatureDoesNotMatch: correct s3_secret_key"),
        ({"access_key": "nobody"}, "403 InvalidAccessKeyId: correct s3_access_key"),
        ({"url": "s3://nowhere"}, "404 NoSuchBucket: make the bucket, or correct remote"),
    ],
    ids=["secret", "key", "bucket"],
)
async def test_a_refusal_says_what_to_correct_and_no_secret(
    server: S3Server, fields: dict[str, str], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = server.client(**fields)
    with pytest.raises(S3UnavailableError, match=told) as refused:
        await client.put("a", b"1")
    assert told in caplog.text
    for secret in (SECRET_KEY, "wrong-secret"):
        assert secret not in caplog.text + str(refused.value) + repr(client)
    with pytest.raises(S3UnavailableError):
        await client.get("a")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"url": "s3://"}, "remote must be"),
        ({"url": "s3://bucket?x=1"}, "remote must be"),
        ({"endpoint": "minio:9000"}, "s3_endpoint must begin with"),
        ({"endpoint": "ftp://minio"}, "s3_endpoint must begin with"),
        ({"endpoint": "https://key:secret@minio"}, "s3_endpoint must not hold credentials"),
        ({"access_key": "a"}, "s3_access_key and s3_secret_key"),
    ],
)
def test_what_is_wrong_is_called_as_the_settings_do(fields: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        S3Bucket(**{"url": "s3://bucket", **fields})


def test_the_bucket_is_named_where_the_store_wants_it() -> None:
    bucket = S3Bucket(url="s3://bkt/some/where/", endpoint="https://store.example:9000/", virtual_host=True)
    assert (bucket.name, bucket.prefix) == ("bkt", "some/where")
    config = bucket.open().config
    assert config["endpoint"] == "https://bkt.store.example:9000"
    assert (
        S3Bucket(url="s3://bkt", endpoint="https://store.example").open().config["endpoint"] == "https://store.example"
    )
