"""A process's place in its cell: its connection to etcd, its own record, and its views of the others.

etcd must answer at the start, so that wrong settings are noticed; afterwards it may come and go.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from prometheus_client import Gauge

from armature.runtime.backoff import Backoff
from armature.runtime.election import Election
from armature.runtime.errors import StartError
from armature.runtime.etcd import EtcdClient
from armature.runtime.etcd_errors import EtcdError, EtcdUnavailableError
from armature.runtime.membership import OWN_PREFIX, MemberChange, MembershipView, Registration, namespace_prefix
from armature.runtime.session import Session
from armature.runtime.settings import CommonSettings
from armature.v1.common_pb2 import Member

log = logging.getLogger(__name__)

# Telling etcd that we drain or go must hold up neither: the lease runs out by itself.
FAREWELL_TIMEOUT_S = 2.0
# The same when etcd has been away for long: our lease has ended.
_HOPELESS_TIMEOUT_S = 0.2
# Members missing from a store that lost its data have this many lease times to register again.
_GRACE_LEASES = 1.5

_registered = Gauge("armature_registered", "1 while etcd holds this process's record, as far as it can tell.")


class Presence:
    """Connect first, then announce and view; tasks are given to `tasks`."""

    def __init__(self, settings: CommonSettings, tasks: asyncio.TaskGroup) -> None:
        self._settings = settings
        self._tasks = tasks
        try:
            self._client = EtcdClient(
                settings.etcd_endpoints,
                user=settings.etcd_user,
                password=settings.etcd_password,
                tls=settings.etcd_tls,
            )
        except EtcdError as error:
            raise StartError(str(error)) from error
        self._session = Session(
            self._client,
            ttl_s=settings.lease_ttl_s,
            on_lost=lambda: _registered.set(0),
            on_regained=lambda: _registered.set(1),
        )
        self._registration = Registration(self._session, settings.namespace)
        self._views: list[asyncio.Task[None]] = []
        self._has_left = False

    @property
    def client(self) -> EtcdClient:
        return self._client

    def election(self, name: str, candidate: str) -> Election:
        """A seat that one process of the cell has at a time; its `run` is the caller's to start."""
        key = f"{OWN_PREFIX}{self._settings.namespace}/{name}/leader"
        return Election(self._client, self._session, key, candidate)

    async def connect(self) -> None:
        """Wait until etcd answers.

        Raises:
            StartError: it did not within `etcd_timeout_s`, or turned us away.
        """
        give_up_at_s = time.monotonic() + self._settings.etcd_timeout_s
        backoff = Backoff()
        while (error := await self._refusal()) is not None:
            wait_s = backoff.next_s()
            if not isinstance(error, EtcdUnavailableError):
                raise StartError(str(error)) from error
            if time.monotonic() + wait_s >= give_up_at_s:
                tried = f"tried for {self._settings.etcd_timeout_s:g} s"
                raise StartError(f"no etcd at {self._settings.etcd} ({tried}): start it or set --etcd") from error
            await asyncio.sleep(wait_s)
        self._tasks.create_task(self._session.run(), name="etcd session")

    async def _refusal(self) -> EtcdError | None:
        try:
            await self._client.get(namespace_prefix(self._settings.namespace))
        except EtcdError as error:
            return error
        return None

    async def view(self, kinds: Sequence[str], on_change: Callable[[MemberChange], None] | None) -> MembershipView:
        """A live view of the members of these kinds, complete when this returns.

        Raises:
            StartError: etcd has not said who is there within `etcd_timeout_s`.
        """
        grace_s = _GRACE_LEASES * self._settings.lease_ttl_s
        view = MembershipView(self._client, self._settings.namespace, kinds, on_change=on_change, grace_s=grace_s)
        self._views.append(self._tasks.create_task(view.run(), name=f"members {' '.join(kinds)}"))
        try:
            async with asyncio.timeout(self._settings.etcd_timeout_s):
                await view.loaded()
        except TimeoutError as error:
            raise StartError(f"etcd at {self._settings.etcd} has not listed the members: check it") from error
        return view

    async def join(self, member: Member) -> None:
        """Write our record for the first time.

        Raises:
            StartError: etcd has not taken it within `etcd_timeout_s`.
        """
        try:
            async with asyncio.timeout(self._settings.etcd_timeout_s):
                while not await self._registration.announce(member):
                    log.warning("not registered yet: %s", self._session.last_error)
        except TimeoutError as error:
            raise StartError(f"etcd at {self._settings.etcd} has not taken our record: check it") from error
        _registered.set(1)

    async def update(self, member: Member) -> None:
        """Replace our record; if etcd is away, as soon as it is back."""
        try:
            async with asyncio.timeout(self._patience_s):
                await self._registration.announce(member)
        except TimeoutError:
            log.warning("etcd is away: the cell does not know yet that this member has changed")

    async def leave(self) -> None:
        """Delete our record and end the lease, as far as etcd can be reached; once."""
        if self._has_left:
            return
        self._has_left = True
        _registered.set(0)
        try:
            async with asyncio.timeout(self._patience_s):
                await self._session.close()
        except TimeoutError:
            log.warning("etcd is away: our record goes when the lease of %g s ends", self._settings.lease_ttl_s)

    @property
    def _patience_s(self) -> float:
        return FAREWELL_TIMEOUT_S if self._session.is_live else _HOPELESS_TIMEOUT_S

    async def close(self) -> None:
        """Leave, stop looking at the others and disconnect."""
        await self.leave()
        for view in self._views:
            view.cancel()
        if self._views:
            await asyncio.wait(self._views)
        await self._client.close()
