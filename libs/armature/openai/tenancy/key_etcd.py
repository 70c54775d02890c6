"""API keys in etcd, for a cell of several gateways: all of them follow the same records.

While etcd is away the keys that were read last go on. Records: `/armature/<namespace>/keys/key/<id>` and
`.../keys/tenant/<name>`, each a JSON object with what a key file says of one.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress

import msgspec

from armature.openai.tenancy.doorkeeper import Doorkeeper
from armature.openai.tenancy.keys import KeyBook, KeyEntry, KeyTable, TenantEntry
from armature.runtime.errors import StartError, UnavailableError
from armature.runtime.etcd import EtcdClient
from armature.runtime.etcd_errors import EtcdError
from armature.runtime.etcd_records import Record
from armature.runtime.membership import namespace_prefix
from armature.runtime.watch import PrefixWatch

log = logging.getLogger(__name__)

HEAR_TIMEOUT_S = 2.0


class EtcdKeys:
    """The keys of one cell."""

    def __init__(self, client: EtcdClient, namespace: str) -> None:
        self._client = client
        self._prefix = f"{namespace_prefix(namespace)}keys/"
        self._watch = PrefixWatch(client, self._prefix)
        self._is_loaded = asyncio.Event()
        self._heard = asyncio.Event()
        """Set, and replaced, with every change that is heard of."""

    async def follow(self, doorkeeper: Doorkeeper) -> None:
        """Tell the doorkeeper of the keys and all their changes until cancelled."""
        async with aclosing(self._watch.batches()) as batches:
            async for _ in batches:
                doorkeeper.table = self._table()
                self._is_loaded.set()
                heard, self._heard = self._heard, asyncio.Event()
                heard.set()

    async def loaded(self, timeout_s: float) -> None:
        """Wait for the first keys.

        Raises:
            StartError: etcd does not tell them.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_loaded.wait()
        except TimeoutError:
            raise StartError("etcd has not told the API keys: check it") from None

    async def put(self, kind: str, name: str, entry: KeyEntry | TenantEntry | None) -> KeyTable:
        """Write what there is to know of a key or tenant, None deletes it; all that is heard of then.

        Only what etcd tells counts, in its order: a key that somebody else revokes meanwhile does not come back.

        Raises:
            UnavailableError: etcd did not take it.
        """
        path = f"{self._prefix}{kind}/{name}"
        try:
            if entry is None:
                await self._client.delete(path)
                await self._hear(lambda records: path not in records)
            else:
                revision = await self._client.put(path, msgspec.json.encode(entry))
                await self._hear(lambda records: path in records and records[path].mod_revision >= revision)
        except EtcdError as error:
            raise UnavailableError(f"etcd did not take it: {error}") from error
        return self._table()

    async def _hear(self, is_told: Callable[[Mapping[str, Record]], bool]) -> None:
        """Wait for etcd to tell of a change that it has taken; without end it would be for one that was taken back."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HEAR_TIMEOUT_S):
                while not is_told(self._watch.records):
                    await self._heard.wait()

    def _table(self) -> KeyTable:
        return KeyTable(_book(self._prefix, self._watch.records))


def _book(prefix: str, records: Mapping[str, Record]) -> KeyBook:
    """What can be used of the records; one that can't is left out, and said so."""
    keys: dict[str, KeyEntry] = {}
    tenants: dict[str, TenantEntry] = {}
    for path, record in records.items():
        kind, _, name = path.removeprefix(prefix).partition("/")
        try:
            if kind == "key":
                keys[name] = msgspec.json.decode(record.value, type=KeyEntry)
            elif kind == "tenant":
                tenants[name] = msgspec.json.decode(record.value, type=TenantEntry)
        except msgspec.DecodeError as error:
            log.error("%s is left out: %s", path, error)
    return KeyBook(keys=keys, tenants=tenants)
