"""Following a prefix of etcd for ever: through restarts, freezes, compactions and a store that was wiped or restored.

A watch resumes after the last revision seen, so no change is lost or told twice. After every reconnection the listing
*at that revision* is compared with what we hold: only if they are equal is it still the same store, and the same past.
If not, or if that past is compacted, everything is listed anew and the difference told.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from prometheus_client import Counter

from armature.runtime.backoff import Backoff
from armature.runtime.etcd import EtcdClient
from armature.runtime.etcd_errors import CompactedError, EtcdError, FutureRevisionError
from armature.runtime.etcd_records import Record
from armature.runtime.mirror import Change, Mirror
from armature.runtime.watch_stream import Patience, WatchStream

log = logging.getLogger(__name__)

# A server that was frozen ends the leases that ran out meanwhile within a second; after that, deletions are meant.
_DOUBT_S = 2.0

_INTERRUPTIONS = Counter("armature_etcd_watch_interruptions_total", "How often a watch of etcd broke off.")


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that became known together. The first batch is all there is, and may be empty.

    If it `is_doubtful`, deletions are only absences: the store has lost its past, or has just come back and let leases
    end that nobody could prolong. Owners that live are about to write again.
    """

    changes: tuple[Change, ...]
    is_doubtful: bool = False


class PrefixWatch:
    """The records under `prefix`, followed while somebody iterates over `batches()`.

    A server that says nothing for `probe_s` is asked for a sign of life, and left if it gives none within `answer_s`.
    """

    def __init__(self, client: EtcdClient, prefix: str, *, probe_s: float = 2.0, answer_s: float = 1.5) -> None:
        self.is_stale = True
        self._client = client
        self._prefix = prefix
        self._patience = Patience(probe_s, answer_s)
        self._mirror = Mirror()
        self._backoff = Backoff()
        self._was_interrupted = False
        self._doubt_until_s = -math.inf

    @property
    def records(self) -> Mapping[str, Record]:
        """The last known records by key, live; `is_stale` says whether etcd can be heard at the moment."""
        return self._mirror.records

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Yield what changes, for ever; close with `contextlib.aclosing`. A slow reader slows etcd's sending."""
        while True:
            try:
                async with aclosing(self._follow()) as batches:
                    async for batch in batches:
                        yield batch
            except EtcdError as error:
                self._interrupted(error)
            await asyncio.sleep(self._backoff.next_s())

    async def _follow(self) -> AsyncGenerator[Batch, None]:
        if not self._mirror.is_loaded:
            everything = self._mirror.replace(await self._client.list(self._prefix))
            self._connected()
            yield Batch(tuple(everything))
        async with self._stream() as stream:
            batch = await self._reconcile()
            self._connected()
            if batch is not None:
                yield batch
                return  # the stream began at a revision of another past
            while True:
                changes = self._mirror.apply(await stream.events())
                if changes:
                    yield Batch(tuple(changes), is_doubtful=time.monotonic() < self._doubt_until_s)

    async def _reconcile(self) -> Batch | None:
        """None if the store still has our past; else what a new listing changes."""
        is_same_store = False
        try:
            if self._mirror.agrees_with(await self._client.list(self._prefix, revision=self._mirror.revision)):
                return None
        except FutureRevisionError:
            pass
        except CompactedError:
            is_same_store = True
        now = await self._client.list(self._prefix)
        is_same_store = is_same_store and self._mirror.may_precede(now)
        log.info("listed %s anew: %s", self._prefix, "compacted" if is_same_store else "the store is another one")
        return Batch(tuple(self._mirror.replace(now)), is_doubtful=not is_same_store)

    @asynccontextmanager
    async def _stream(self) -> AsyncGenerator[WatchStream, None]:
        stream = await WatchStream.open(self._client, self._prefix, self._mirror.revision + 1, self._patience)
        try:
            yield stream
        finally:
            await stream.close()

    def _connected(self) -> None:
        self._backoff.reset()
        if self.is_stale:
            log.debug("following %s from revision %d", self._prefix, self._mirror.revision)
            self._doubt_until_s = time.monotonic() + _DOUBT_S if self._was_interrupted else -math.inf
        self.is_stale = False

    def _interrupted(self, error: EtcdError) -> None:
        # One line for an outage, however often the reconnection fails.
        log.log(logging.DEBUG if self.is_stale else logging.WARNING, "lost sight of %s: %s", self._prefix, error)
        if not self.is_stale:
            _INTERRUPTIONS.inc()
            self._was_interrupted = True
        self.is_stale = True
