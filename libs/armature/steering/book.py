"""What planners of a cell know in common, in etcd: what people have set, and the log of what was done and why.

Every planner follows it, so whoever takes over goes on where the last one ended. The log is bounded. While etcd is away
entries wait in memory, as many as the log would keep.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import aclosing
from itertools import islice
from typing import TypeVar

from google.protobuf.message import DecodeError

from armature.runtime.etcd import EtcdClient
from armature.runtime.etcd_errors import EtcdError, EtcdUnavailableError
from armature.runtime.watch import PrefixWatch
from armature.third_party.etcd.v3 import etcd_pb2 as etcd
from armature.v1.planner_pb2 import LogEntry, PlannerTargets

log = logging.getLogger(__name__)

M = TypeVar("M", LogEntry, PlannerTargets)

KEPT = 400
"""Entries of the log; one has some kilobytes at most."""


class Book:
    """Entries are noted at once and written by `flush`; others' come while `run()` runs."""

    def __init__(self, client: EtcdClient, prefix: str, planner: str) -> None:
        self.on_targets: Callable[[], None] = lambda: None
        """Is told when somebody has set targets."""
        self._client = client
        self._planner = planner
        self._targets_key, self._log_prefix = f"{prefix}targets", f"{prefix}log/"
        self._watch = PrefixWatch(client, prefix)
        self._pending: deque[LogEntry] = deque(maxlen=KEPT)
        self._last_number = 0

    async def run(self) -> None:
        """Follow what is written, until cancelled."""
        async with aclosing(self._watch.batches()) as batches:
            async for batch in batches:
                if any(change.record.key == self._targets_key for change in batch.changes):
                    self.on_targets()

    # --- what people have set

    @property
    def targets(self) -> PlannerTargets | None:
        """None: nobody has set any."""
        record = self._watch.records.get(self._targets_key)
        return _parsed(PlannerTargets, record.value) if record is not None else None

    async def set_targets(self, targets: PlannerTargets) -> None:
        """Replace them, for all planners.

        Raises:
            EtcdError: etcd has not taken them.
        """
        await self._client.put(self._targets_key, targets.SerializeToString(deterministic=True))

    async def forget_targets(self) -> None:
        """Let the policy and flags of each planner count again.

        Raises:
            EtcdError: etcd has not forgotten them.
        """
        await self._client.delete(self._targets_key)

    # --- the log

    def entries(self, limit: int, after: int = 0) -> list[LogEntry]:
        """The latest, oldest first; those that are not written yet have no number and come last."""
        keys = sorted((key for key in self._watch.records if key.startswith(self._log_prefix)), reverse=True)
        found: list[LogEntry] = []
        for key in islice(keys, limit):
            entry = _parsed(LogEntry, self._watch.records[key].value)
            if entry is not None and entry.number > after:
                found.append(entry)
        return [*reversed(found), *self._pending][-limit:] if limit else []

    def note(self, entry: LogEntry) -> None:
        """Add an entry; when and by whom is filled in here."""
        entry.at_s, entry.planner = time.time(), self._planner
        self._pending.append(entry)
        log.info("%s", entry.text)

    async def flush(self) -> None:
        """Write what was noted; what etcd does not take now is written later."""
        while self._pending:
            entry = self._pending[0]
            try:
                if not await self._write(entry):
                    return
            except EtcdUnavailableError as error:
                log.warning("the log of plans waits for etcd: %s", error)
                return
            except EtcdError as error:
                log.error("an entry of the log of plans is lost: %s", error)
            if self._pending and self._pending[0] is entry:
                self._pending.popleft()

    async def _write(self, entry: LogEntry) -> bool:
        """Under the next number; False if another planner has just used it, which we are about to hear."""
        entry.number = self._next_number()
        key = self._key(entry.number)
        free = etcd.Compare(result=etcd.Compare.EQUAL, target=etcd.Compare.CREATE, key=key, create_revision=0)
        put = etcd.PutRequest(key=key, value=entry.SerializeToString(deterministic=True))
        request = etcd.TxnRequest(compare=[free], success=[etcd.RequestOp(request_put=put)])
        answer = await self._client.txn(request)
        if answer.succeeded:
            self._last_number = entry.number
            if entry.number > KEPT:
                await self._client.delete(self._key(entry.number - KEPT).decode())
        return answer.succeeded

    def _next_number(self) -> int:
        """After all that are known, ours included: etcd's word of our own may not have come back yet."""
        keys = [key for key in self._watch.records if key.startswith(self._log_prefix)]
        known = int(max(keys).removeprefix(self._log_prefix)) if keys else 0
        return max(known, self._last_number) + 1

    def _key(self, number: int) -> bytes:
        return f"{self._log_prefix}{number:012}".encode()


def _parsed(kind: type[M], value: bytes) -> M | None:
    try:
        return kind.FromString(value)
    except DecodeError:
        log.warning("skipped a record of plans that can't be read")
        return None
