"""A lease in etcd and the keys that live under it, for as long as the process does.

When the lease is lost, by etcd's word or by our own clock, everything is written again under a new one. The clock is
ours because etcd may be unreachable: it counts from the moment a keepalive was *sent*, so it never ends after etcd's.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import Counter

from armature.runtime.backoff import Backoff
from armature.runtime.etcd import EtcdClient
from armature.runtime.etcd_errors import EtcdError, LeaseNotFoundError

log = logging.getLogger(__name__)

_LOSSES = Counter("armature_etcd_lease_losses_total", "How often the lease in etcd was lost.")
# A lease of ttl_s is prolonged this often in its life: two tries may fail.
_KEEPALIVES_PER_TTL = 3


@dataclass(slots=True)
class _Lease:
    lease_id: int
    ttl_s: float
    prolonged_at: float

    @property
    def ends_at(self) -> float:
        return self.prolonged_at + self.ttl_s

    @property
    def due_at(self) -> float:
        return self.prolonged_at + self.ttl_s / _KEEPALIVES_PER_TTL


class Session:
    """Keys under one lease, written by `run()`, which alone talks to etcd.

    `on_lost` is called when the lease is lost, also while etcd is unreachable; `on_regained` when all keys are back.
    """

    def __init__(
        self,
        client: EtcdClient,
        *,
        ttl_s: float = 10.0,
        on_lost: Callable[[], None] | None = None,
        on_regained: Callable[[], None] | None = None,
    ) -> None:
        self._client = client
        self._ttl_s = max(1, math.ceil(ttl_s))
        self._on_lost = on_lost
        self._on_regained = on_regained
        self._lease: _Lease | None = None
        # Leases that we gave up; their keys may live on in etcd until they are revoked.
        self._former: list[int] = []
        self._wanted: dict[str, bytes] = {}
        self._stored: dict[str, bytes] = {}
        self._ending: asyncio.TimerHandle | None = None
        self._was_lost = False
        self._is_closing = False
        self.last_error: EtcdError | None = None
        """Why the keys are not all stored, if etcd was asked in vain; for messages."""
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stopped.set()
        self._backoff = Backoff()

    @property
    def is_live(self) -> bool:
        """Whether etcd still holds our lease, as far as our own clock can tell."""
        return self._lease is not None and time.monotonic() < self._lease.ends_at

    @property
    def is_settled(self) -> bool:
        """Whether the lease is live and every key is stored under it."""
        return self.is_live and self._stored == self._wanted

    @property
    def lease_id(self) -> int:
        """The lease at the moment; 0 if there is none."""
        return self._lease.lease_id if self._lease else 0

    async def put(self, key: str, value: bytes, *, timeout_s: float | None = None) -> bool:
        """Keep `key` at `value` from now on. False if it is not stored in time: it will be when etcd is back."""
        self._wanted[key] = value
        return await self._settle(timeout_s)

    async def remove(self, key: str, *, timeout_s: float | None = None) -> bool:
        """Delete `key`. False if that is not done in time: it will be when etcd is back, or with the lease."""
        self.forget(key)
        return await self._settle(timeout_s)

    def forget(self, key: str) -> None:
        """Delete `key` with the next write."""
        self._wanted.pop(key, None)
        self._wake.set()

    async def settled(self) -> None:
        """Wait until every key is stored."""
        await self._settled.wait()

    async def run(self) -> None:
        """Obtain the lease, keep it and write the keys, until `close()`. If cancelled, the lease ends by itself."""
        self._stopped.clear()
        try:
            while not self._is_closing:
                await self._pause(await self._advance())
        finally:
            self._disarm()
            self._stopped.set()

    async def close(self) -> None:
        """End `run()`, and the lease with all its keys, if etcd can be reached."""
        self._is_closing = True
        self._wake.set()
        await self._stopped.wait()
        if self._lease is not None:
            self._former.append(self._lease.lease_id)
            self._lease = None
        try:
            await self._revoke_former()
        except EtcdError as error:
            log.warning("left a lease to end by itself: %s", error)

    async def _settle(self, timeout_s: float | None) -> bool:
        self._settled.clear()
        self._wake.set()
        try:
            async with asyncio.timeout(2 * self._client.timeout_s if timeout_s is None else timeout_s):
                await self._settled.wait()
        except TimeoutError:
            return False
        return True

    async def _advance(self) -> float:
        """Do what is due; return the seconds until something is due again."""
        lease = self._lease
        try:
            if lease is None:
                lease = await self._obtain()
            elif time.monotonic() >= lease.due_at:
                await self._prolong(lease)
            await self._write(lease)
            await self._revoke_former()
        except EtcdError as error:
            if isinstance(error, LeaseNotFoundError) and lease is not None:
                self._lose(lease, "etcd has ended it")
            # One line for an outage, however often we try.
            log.log(logging.WARNING if self.last_error is None else logging.DEBUG, "etcd session: %s", error)
            self.last_error = error
            return self._backoff.next_s()
        if self._lease is not lease:
            return self._backoff.next_s()
        self._backoff.reset()
        self._report_settled()
        return max(0.0, lease.due_at - time.monotonic())

    async def _obtain(self) -> _Lease:
        sent_at = time.monotonic()
        granted = await self._client.grant(self._ttl_s)
        self._lease = lease = _Lease(granted.lease_id, granted.ttl_s, sent_at)
        self._arm(lease)
        return lease

    async def _prolong(self, lease: _Lease) -> None:
        sent_at = time.monotonic()
        # Leaves time for another try.
        timeout_s = min(self._client.timeout_s, lease.ttl_s / _KEEPALIVES_PER_TTL)
        ttl_s = await self._client.keep_alive(lease.lease_id, timeout_s=timeout_s)
        if ttl_s <= 0:
            raise LeaseNotFoundError("the lease had ended before it was prolonged")
        # An answer that comes after our clock gave the lease up does not bring it back: others were told.
        if self._lease is lease:
            lease.prolonged_at, lease.ttl_s = sent_at, ttl_s
            self._arm(lease)

    async def _write(self, lease: _Lease) -> None:
        """Store what is wanted, then delete what is not, while the lease is ours."""
        for key, value in list(self._wanted.items()):
            if self._lease is lease and self._stored.get(key) != value:
                await self._client.put(key, value, lease_id=lease.lease_id)
                if self._lease is lease:
                    self._stored[key] = value
        for key in self._stored.keys() - self._wanted.keys():
            await self._client.delete(key)
            self._stored.pop(key, None)

    async def _revoke_former(self) -> None:
        """End the leases given up, after their keys have moved to the new one: so nobody sees them leave and return."""
        while self._former:
            with contextlib.suppress(LeaseNotFoundError):
                await self._client.revoke(self._former[0])
            self._former.pop(0)

    def _report_settled(self) -> None:
        if not self.is_settled:
            return
        self.last_error = None
        self._settled.set()
        if self._was_lost:
            self._was_lost = False
            log.warning("lease in etcd regained, %d keys stored again", len(self._stored))
            if self._on_regained is not None:
                self._on_regained()

    def _lose(self, lease: _Lease, why: str) -> None:
        if self._lease is not lease:
            return
        self._disarm()
        self._former.append(lease.lease_id)
        self._lease = None
        self._stored.clear()
        self._settled.clear()
        self._was_lost = True
        _LOSSES.inc()
        log.warning("lease in etcd lost: %s", why)
        if self._on_lost is not None:
            self._on_lost()

    def _arm(self, lease: _Lease) -> None:
        """Make sure that we notice the end of the lease, also while a call to etcd hangs."""
        self._disarm()
        delay_s = max(0.0, lease.ends_at - time.monotonic())
        self._ending = asyncio.get_running_loop().call_later(delay_s, self._expire, lease)

    def _disarm(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _expire(self, lease: _Lease) -> None:
        # The loop's timer may be a millisecond early by our clock.
        if time.monotonic() < lease.ends_at:
            self._arm(lease)
        else:
            self._lose(lease, "etcd was not reached in time")
            self._wake.set()

    async def _pause(self, wait_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        self._wake.clear()
