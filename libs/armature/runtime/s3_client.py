"""An S3-compatible object store as a cell uses it: one bucket, or a folder of one, that may be away.

Every call has a deadline. While the store is away, or refuses, calls fail at once, but for one try now and then. That
it went and that it came back is logged once each; every failure is counted. No message shows a credential.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store
from prometheus_client import Counter, Gauge

from armature.runtime.errors import UnavailableError
from armature.runtime.outage import Outage

if TYPE_CHECKING:
    from obstore import ListStream, ObjectMeta
    from obstore.store import ClientConfig, S3Config

Answer = TypeVar("Answer")

DELETES_AT_ONCE = 1000
"""What one request of the protocol takes."""
_LIST_CHUNK = 1000
_SLOW_TIMEOUT_S = 10.0
"""For a request about many objects, and for those that a caller has given up."""
_RETRIES = 2
"""Of what a busy store has turned away; all within the deadline."""
_FIRST_WAIT = timedelta(milliseconds=50)

_failures = Counter("armature_s3_failures_total", "Calls to the S3 store without an answer, by reason.", ["reason"])
_is_up = Gauge("armature_s3_up", "1 while the S3 store answers, 0 while it does not.")

_REMEDIES = {
    "NoSuchBucket": "make the bucket, or correct remote",
    "PermanentRedirect": "set s3_region to the bucket's",
    "AuthorizationHeaderMalformed": "set s3_region to the bucket's",
    "InvalidAccessKeyId": "correct s3_access_key",
    "SignatureDoesNotMatch": "correct s3_secret_key",
    "AccessDenied": "let these credentials read, write, delete and list there",
}


class S3UnavailableError(UnavailableError):
    """The store did not answer, or refused."""


class Listed(NamedTuple):
    """An object of a listing."""

    path: str
    size_bytes: int
    modified: datetime


@dataclass(frozen=True, kw_only=True)
class S3Bucket:
    """Where objects are, and who asks for them.

    Raises:
        ValueError: a field makes no sense; the message calls it as the settings do.
    """

    url: str
    """s3://bucket[/prefix]."""
    endpoint: str = ""
    """https://host[:port], or http://; empty: AWS's, of the region."""
    region: str = ""
    """Empty: AWS_REGION, else us-east-1."""
    access_key: str = field(default="", repr=False)
    """Empty: as AWS's own tools find credentials: environment, web identity, instance."""
    secret_key: str = field(default="", repr=False)
    virtual_host: bool = False
    """The bucket is a part of the host's name, not of the path."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{2,62}(/[^?#]*)?", self.url):
            raise ValueError("remote must be s3://bucket or s3://bucket/prefix")
        if self.endpoint and (urlsplit(self.endpoint).scheme not in ("http", "https") or not self._host):
            raise ValueError("s3_endpoint must begin with https:// or http:// and name a host")
        if urlsplit(self.endpoint).username is not None:
            raise ValueError("s3_endpoint must not hold credentials: set s3_access_key and s3_secret_key")
        if bool(self.access_key) != bool(self.secret_key):
            raise ValueError("s3_access_key and s3_secret_key must be set together")

    @property
    def name(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def prefix(self) -> str:
        return urlsplit(self.url).path.strip("/")

    @property
    def _host(self) -> str:
        return urlsplit(self.endpoint).netloc

    def open(self) -> S3Store:
        """A client of the library's; it connects when it is first used."""
        config: S3Config = {"virtual_hosted_style_request": self.virtual_host}
        if self.endpoint:
            scheme = urlsplit(self.endpoint).scheme
            bucket = f"{self.name}." if self.virtual_host else ""
            config["endpoint"] = f"{scheme}://{bucket}{self._host}{urlsplit(self.endpoint).path.rstrip('/')}"
        if self.region:
            config["region"] = self.region
        if self.access_key:
            config["access_key_id"], config["secret_access_key"] = self.access_key, self.secret_key
        options: ClientConfig = {
            "allow_http": self.endpoint.startswith("http://"),
            "timeout": timedelta(seconds=_SLOW_TIMEOUT_S),
        }
        return S3Store(
            self.name,
            prefix=self.prefix or None,
            config=config,
            client_options=options,
            retry_config={"max_retries": _RETRIES, "backoff": {"init_backoff": _FIRST_WAIT}},
        )


class S3Client:
    """One bucket, any number of callers."""

    def __init__(self, bucket: S3Bucket, *, timeout_s: float) -> None:
        self._store = bucket.open()
        self._timeout_s = timeout_s
        self._outage = Outage("S3")

    @property
    def is_up(self) -> bool:
        """Whether the last call that was tried was answered."""
        return self._outage.is_up

    async def put(self, path: str, data: bytes) -> None:
        """Store an object, whatever was there.

        Raises:
            S3UnavailableError: it is not known to be stored.
        """
        await self._within(lambda: self._store.put_async(path, data, use_multipart=False), self._timeout_s)

    async def get(self, path: str) -> memoryview | None:
        """An object's bytes; None: there is none.

        Raises:
            S3UnavailableError: the store did not answer, or refused.
        """

        async def read() -> memoryview | None:
            try:
                found = await self._store.get_async(path)
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None
            return memoryview(await found.bytes_async())

        return await self._within(read, self._timeout_s)

    async def delete(self, paths: Sequence[str]) -> None:
        """Delete at most `DELETES_AT_ONCE` objects, whether or not they are there.

        Raises:
            S3UnavailableError: the store did not answer, or refused.
        """
        await self._within(lambda: self._store.delete_async(list(paths)), _SLOW_TIMEOUT_S)

    async def list(self, folder: str) -> AsyncIterator[Sequence[Listed]]:
        """All objects in a folder and those below it, some at a time, in the order of their paths.

        Raises:
            S3UnavailableError: the store did not answer, or refused; what was listed before is right.
        """
        pages = obstore.list(self._store, folder, chunk_size=_LIST_CHUNK)
        while True:
            page = await self._within(lambda: _next_page(pages), _SLOW_TIMEOUT_S)
            if page is None:
                return
            yield [Listed(one["path"], one["size"], one["last_modified"]) for one in page]

    async def _within(self, work: Callable[[], Awaitable[Answer]], timeout_s: float) -> Answer:
        loop = asyncio.get_running_loop()
        if pause_s := self._outage.pause_s(loop.time()):
            _failures.labels("paused").inc()
            raise S3UnavailableError("S3 is away", pause_s)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await work()
        except (BaseError, OSError, ValueError) as error:  # OSError: TimeoutError and FileNotFoundError are some
            refusal = _refusal(error)
            _failures.labels("refused" if refusal else "away").inc()
            _is_up.set(0)
            self._outage.lost(loop.time(), refusal or _line(error))
            raise S3UnavailableError(f"S3 does not answer: {refusal or _line(error)}") from error
        _is_up.set(1)
        self._outage.answered()
        return answer


async def _next_page(pages: "ListStream[Sequence[ObjectMeta]]") -> "Sequence[ObjectMeta] | None":
    """Whoever waits may be cancelled, the request may not: a listing that is dropped while it connects panics."""
    coming = asyncio.ensure_future(anext(pages))
    coming.add_done_callback(lambda done: done.cancelled() or done.exception())  # it counts as looked at
    try:
        return await asyncio.shield(coming)
    except StopAsyncIteration:
        return None


def _refusal(error: Exception) -> str:
    """What the store itself says, and what to do; empty: it says nothing."""
    status = re.search(r"status code: (\d+)", str(error))
    code = re.search(r"<Code>(\w+)</Code>", str(error))
    if status is None:
        return ""
    remedy = _REMEDIES.get(code[1], "") if code else ""
    return f"{status[1]} {code[1] if code else ''}".rstrip() + (f": {remedy}" if remedy else "")


def _line(error: Exception) -> str:
    """The first one: further ones show the library's insides."""
    return str(error).partition("\n")[0] or "no answer in time"
