"""API keys and the tenants they belong to. Of a key nothing is kept but a digest and its first characters.

A key has 256 random bits, so its digest needs no salt and no slow function: nobody can try them all. Its first
characters are its id, which people may see; what they look up is compared in constant time.
"""

import datetime
import hmac
import secrets
from collections.abc import Mapping
from hashlib import blake2b
from typing import Annotated

import msgspec

from armature.openai.errors import ApiError
from armature.openai.tenancy.caller import Caller, TenantLimits

ID_CHARACTERS = 12
_NO_DIGEST = "0" * 64

Count = Annotated[int, msgspec.Meta(ge=0)]
NAME_PATTERN = r"^[A-Za-z0-9_.-]{1,64}$(?!\n)"
"""`$` alone would let a line end after it."""
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]


class TenantEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is written down of a tenant; limits of 0 are none."""

    cache_namespace: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{0,64}$(?!\n)")] = ""
    """Empty: the tenant's name, which no other tenant has."""
    requests_per_min: Count = 0
    tokens_per_min: Count = 0
    concurrent_requests: Count = 0
    is_disabled: bool = False


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is written down of a key."""

    tenant: Name
    digest: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$(?!\n)")]
    name: str = ""
    """For people."""
    created_at: datetime.datetime | None = None
    expires_at: datetime.datetime | None = None


class KeyBook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All tenants by name and all keys by id, as files hold them. Tenants without an entry have no limits."""

    tenants: dict[Name, TenantEntry] = {}
    keys: dict[str, KeyEntry] = {}


def new_key() -> tuple[str, str]:
    """A key and its id; the key is told to its owner, once."""
    key = f"arm-{secrets.token_urlsafe(32)}"
    return key, key[:ID_CHARACTERS]


def digest_of(key: str) -> str:
    """What is kept of a key, in hexadecimal."""
    return blake2b(key.encode(), digest_size=32, person=b"armature api key").hexdigest()


class KeyTable:
    """A key book, ready to be asked."""

    def __init__(self, book: KeyBook) -> None:
        self.book = book
        self._keys = dict(book.keys)
        names = {*book.tenants, *(entry.tenant for entry in book.keys.values())}
        entries = {name: book.tenants.get(name, TenantEntry()) for name in names}
        self._callers = {name: caller_of(name, entry) for name, entry in entries.items()}
        self._disabled = frozenset(name for name, entry in entries.items() if entry.is_disabled)

    @property
    def callers(self) -> Mapping[str, Caller]:
        """By tenant."""
        return self._callers

    def find(self, key: str, now: datetime.datetime) -> Caller:
        """Whose key this is.

        Raises:
            ApiError: 401 if it is nobody's or has expired, 403 if its tenant is not served.
        """
        entry = self._keys.get(key[:ID_CHARACTERS])
        is_equal = hmac.compare_digest(digest_of(key), entry.digest if entry else _NO_DIGEST)
        if entry is None or not is_equal:
            raise ApiError(401, "Incorrect API key: it was mistyped or revoked", code="invalid_api_key")
        if entry.expires_at is not None and entry.expires_at <= now:
            raise ApiError(401, f"The API key {key[:ID_CHARACTERS]}... has expired", code="expired_api_key")
        if entry.tenant in self._disabled:
            message = f"Requests of '{entry.tenant}' are not served at the moment: ask whoever runs this service"
            raise ApiError(403, message, code="tenant_disabled")
        return self._callers[entry.tenant]


def caller_of(name: str, entry: TenantEntry) -> Caller:
    limits = TenantLimits(
        requests_per_min=entry.requests_per_min,
        tokens_per_min=entry.tokens_per_min,
        concurrent_requests=entry.concurrent_requests,
    )
    return Caller(tenant=name, cache_namespace=entry.cache_namespace or name, limits=limits)
