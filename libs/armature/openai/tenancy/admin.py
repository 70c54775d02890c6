"""`/admin/...`: tenants, keys and usage, for whoever has the admin key.

A key is shown once, in the answer to its creation.
"""

import datetime
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from armature.openai.errors import ApiError, invalid
from armature.openai.tenancy.doorkeeper import Doorkeeper
from armature.openai.tenancy.keys import KeyBook, KeyEntry, KeyTable, Name, TenantEntry, digest_of, new_key
from armature.openai.tenancy.usage import UsageMeter
from armature.runtime.errors import UnavailableError

MAX_BODY_BYTES = 16 * 1024
MAX_DAYS = 400

Shape = TypeVar("Shape")


class KeyStore(Protocol):
    """Where keys and tenants are written down."""

    async def put(self, kind: str, name: str, entry: KeyEntry | TenantEntry | None) -> KeyTable:
        """Write a `key` or `tenant`; None deletes it. Returns all that is written down then.

        Raises:
            UnavailableError: not now.
        """
        ...


class NewKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is asked for."""

    tenant: Name
    name: str = ""
    expires_at: datetime.datetime | None = None


class Admin:
    """The endpoints. Without a `store` nothing can be changed: there are no keys."""

    def __init__(self, doorkeeper: Doorkeeper, meter: UsageMeter, store: KeyStore | None) -> None:
        self.meter = meter
        self._doorkeeper = doorkeeper
        self._store = store

    def routes(self) -> list[Route]:
        return [
            Route("/admin/tenants", self._tenants),
            Route("/admin/tenants/{name}", self._put_tenant, methods=["PUT"]),
            Route("/admin/tenants/{name}", self._remove_tenant, methods=["DELETE"]),
            Route("/admin/keys", self._keys, methods=["GET"]),
            Route("/admin/keys", self._create_key, methods=["POST"]),
            Route("/admin/keys/{key_id}", self._revoke_key, methods=["DELETE"]),
            Route("/admin/usage", self._usage),
        ]

    async def _tenants(self, request: Request) -> Response:
        book = self._book
        names = sorted({*book.tenants, *(entry.tenant for entry in book.keys.values())})
        counts = {name: sum(entry.tenant == name for entry in book.keys.values()) for name in names}
        shown = [_shown(book.tenants.get(name, TenantEntry()), name=name, keys=counts[name]) for name in names]
        return _json({"data": shown})

    async def _put_tenant(self, request: Request) -> Response:
        name = _name(request.path_params["name"])
        entry = await _body(request, TenantEntry)
        await self._write("tenant", name, entry)
        return _json(_shown(entry, name=name))

    async def _remove_tenant(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._book.tenants:
            raise ApiError(404, f"There is no tenant '{name[:80]}'", code="tenant_not_found")
        if any(entry.tenant == name for entry in self._book.keys.values()):
            raise ApiError(409, f"'{name}' still has keys: revoke them first", code="tenant_has_keys")
        await self._write("tenant", name, None)
        return _json({"name": name, "deleted": True})

    async def _keys(self, request: Request) -> Response:
        book = self._book
        return _json({"data": [_shown(entry, id=key_id) for key_id, entry in sorted(book.keys.items())]})

    async def _create_key(self, request: Request) -> Response:
        wanted = await _body(request, NewKey)
        now = datetime.datetime.now(datetime.UTC)
        if wanted.expires_at is not None and (wanted.expires_at.tzinfo is None or wanted.expires_at <= now):
            raise invalid("expires_at", "must be a time to come, with its zone, like 2031-01-01T00:00:00Z")
        key, key_id = new_key()
        entry = KeyEntry(
            tenant=wanted.tenant,
            digest=digest_of(key),
            name=wanted.name,
            created_at=now.replace(microsecond=0),
            expires_at=wanted.expires_at,
        )
        await self._write("key", key_id, entry)
        return _json(_shown(entry, id=key_id, key=key), 201)

    async def _revoke_key(self, request: Request) -> Response:
        key_id = request.path_params["key_id"]
        if key_id not in self._book.keys:
            raise ApiError(404, f"There is no key '{key_id[:80]}'; its id is its first 12 characters", code="no_key")
        await self._write("key", key_id, None)
        return _json({"id": key_id, "deleted": True})

    async def _usage(self, request: Request) -> Response:
        today = datetime.datetime.now(datetime.UTC).date()
        first, last = (_day(request, name, today) for name in ("from", "to"))
        if not 0 <= (last - first).days < MAX_DAYS:
            raise invalid("from", f"must not be after 'to', nor {MAX_DAYS} days before it")
        rows, is_complete = await self.meter.report(first, last, request.query_params.get("tenant", ""))
        return _json({"data": rows, "is_complete": is_complete})

    @property
    def _book(self) -> KeyBook:
        table = self._doorkeeper.table
        return KeyBook() if table is None else table.book

    async def _write(self, kind: str, name: str, entry: KeyEntry | TenantEntry | None) -> None:
        if self._store is None:
            raise ApiError(409, "This gateway has no keys: start it with --keys FILE or --keys etcd", code="no_keys")
        try:
            self._doorkeeper.table = await self._store.put(kind, name, entry)
        except UnavailableError as error:
            raise ApiError(503, str(error), code="key_store_unavailable", retry_after_s=2.0) from error


def _shown(entry: KeyEntry | TenantEntry, **more: Any) -> dict[str, Any]:
    """All but the digest."""
    fields = {name: getattr(entry, name) for name in entry.__struct_fields__ if name != "digest"}
    return {**more, **fields}


def _name(name: str) -> str:
    try:
        return msgspec.convert(name, Name)
    except msgspec.ValidationError:
        raise invalid("name", "must be up to 64 letters, digits, dots, dashes and underscores") from None


def _day(request: Request, name: str, default: datetime.date) -> datetime.date:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:  # weeks and days without dashes are dates too
        raise invalid(name, "must be a day like 2030-01-31")
    return day


async def _body(request: Request, shape: type[Shape]) -> Shape:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise ApiError(413, f"The body must not be larger than {MAX_BODY_BYTES} bytes", code="body_too_large")
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"Invalid body: {error}", code="invalid_body") from None


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
