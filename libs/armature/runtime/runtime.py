"""What a service's app composes with: server, channels, the view of the others, and the process's life."""

import asyncio
import contextlib
import gc
import logging
import os
import platform
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Generic, NoReturn, Self, TypeVar

from opentelemetry.trace import Tracer

from armature.runtime import telemetry
from armature.runtime.addresses import join_host_port, reachable_host
from armature.runtime.channels import ChannelPool
from armature.runtime.election import Election
from armature.runtime.etcd import EtcdClient
from armature.runtime.membership import MemberChange, MembershipView
from armature.runtime.metrics import MetricsServer, start_metrics
from armature.runtime.presence import Presence
from armature.runtime.server import RpcServer
from armature.runtime.settings import CommonSettings
from armature.v1.common_pb2 import (
    MEMBER_STATE_DRAINING,
    MEMBER_STATE_READY,
    Member,
    OffloadInfo,
    PlannerInfo,
    WorkerInfo,
)

log = logging.getLogger(__name__)

S = TypeVar("S", bound=CommonSettings)

GC_THRESHOLDS = (10_000, 20, 20)
"""Requests make hundreds of objects that go without the collector; by default it looks at them all the time."""


def settle_collector() -> None:
    """Spare the collector from ever walking again what the start has built, since it lives as long as the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class Stopped(Exception):  # noqa: N818 -- no error: it ends what it can't end otherwise
    """Ends the process's task group without blame; it never leaves `armature.runtime.service`."""


class Runtime(Generic[S]):
    """One per process, made by `armature.runtime.service.run`.

    `member_id` is unique among the cell's living members, `epoch` grows with each start of the process.
    """

    def __init__(self, kind: str, member_id: str, settings: S, tasks: asyncio.TaskGroup) -> None:
        self.kind = kind
        self.member_id = member_id
        self.epoch = time.time_ns()
        self.settings = settings
        self.tasks = tasks
        """Owns every task of the process; one that fails ends the process."""
        self.channels = ChannelPool(settings.tls)
        self._host = reachable_host(settings.host, settings.advertise_host, settings.etcd_endpoints[0])
        self.server = RpcServer(
            settings.host,
            settings.port,
            tls=settings.tls,
            advertise_host=self._host,
            max_request_bytes=settings.max_request_bytes,
            connection_age=settings.connection_age,
        )
        self.was_hurried = False
        """Whether requests were given up because of a second signal."""
        self._presence = Presence(settings, tasks)
        self.node = settings.node or platform.node()
        """The machine that this process runs on, as the cell knows it."""
        self._member = Member(id=member_id, kind=kind, epoch=self.epoch, pid=os.getpid(), node=self.node)
        self._stopping = asyncio.Event()
        self._is_serving = False
        self._has_given_up = False
        self._patience: asyncio.Timeout | None = None

    async def __aenter__(self) -> Self:
        await self._presence.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.channels.close()
        await self._presence.close()

    @property
    def etcd(self) -> EtcdClient:
        """The process's connection to etcd, for what is neither a member's record nor a view."""
        return self._presence.client

    @property
    def tracer(self) -> Tracer:
        """The process's tracer; does nothing when tracing is off."""
        return telemetry.tracer()

    async def view(self, *kinds: str, on_change: Callable[[MemberChange], None] | None = None) -> MembershipView:
        """A live view of the members of these kinds (all if none is named), complete when this returns.

        `on_change` is called on the event loop for each change, those up to now included; it must not block.

        Raises:
            StartError: etcd does not answer.
        """
        return await self._presence.view(kinds, on_change)

    def election(self, name: str) -> Election:
        """Campaign for a seat that one process of the cell has at a time; its `run` is the caller's to start."""
        return self._presence.election(name, self.member_id)

    async def update_worker(self, worker: WorkerInfo) -> None:
        """Tell the cell that this worker has changed, its role for example."""
        self._member.worker.CopyFrom(worker)
        await self._presence.update(self._member)

    async def update_offload(self, offload: OffloadInfo) -> None:
        """Tell the cell what this kv-offload keeps; before `serve`, it is told with the rest."""
        self._member.offload.CopyFrom(offload)
        if self._is_serving:
            await self._presence.update(self._member)

    async def update_planner(self, planner: PlannerInfo) -> None:
        """Tell the cell what this planner promises."""
        self._member.planner.CopyFrom(planner)
        if self._is_serving:
            await self._presence.update(self._member)

    async def serve(
        self,
        *,
        worker: WorkerInfo | None = None,
        drain: Callable[[], Awaitable[None]] | None = None,
        announce: Mapping[str, str] | None = None,
    ) -> None:
        """Serve until told to stop, then drain. Returns when the process may end.

        On SIGTERM, SIGINT or `shutdown()`: the record says DRAINING, health says NOT_SERVING, `drain` is awaited for at
        most `drain_timeout_s` (without one: the end of the unary calls), the record goes, the server stops. A second
        signal ends the draining at once. `announce` adds fields to the READY line, `{"http": "host:port"}`.

        Raises:
            StartError: a port is taken, or etcd does not answer.
        """
        metrics: MetricsServer | None = None
        try:
            await self.server.start()
            metrics = self._start_metrics()
            await self._join(worker, metrics)
            self._report_ready(announce or {})
            await self._stopping.wait()
            await self._drain(drain or self.server.wait_idle)
        finally:
            self._is_serving = False
            self.server.set_serving(False)
            await self._presence.leave()
            await self.server.stop()
            if metrics is not None:
                await asyncio.to_thread(metrics.close)

    def shutdown(self) -> None:
        """Begin to stop: drain if serving, else give up the start."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if not self._is_serving:
            self._give_up()

    def on_signal(self, name: str) -> None:
        """The first signal lets the process drain, a second one does not."""
        if not self._stopping.is_set():
            log.info("%s: stopping", name)
            self.shutdown()
            return
        log.warning("%s again: stopping at once, unfinished requests are lost", name)
        self.was_hurried = True
        if self._patience is not None:
            self._patience.reschedule(asyncio.get_running_loop().time())
        else:
            self._give_up()

    def _give_up(self) -> None:
        """End without draining. Asked again, end without cleaning up either: something hangs, a thread for example."""
        if self._has_given_up:
            os._exit(1)
        self._has_given_up = True

        async def stop() -> NoReturn:
            raise Stopped

        stopping = stop()
        try:
            self.tasks.create_task(stopping, name="stop")
        except RuntimeError:  # the group is ending already
            stopping.close()

    def _start_metrics(self) -> MetricsServer | None:
        if self.settings.metrics_port < 0:
            return None
        return start_metrics(self.settings.host, self.settings.metrics_port, kind=self.kind, member_id=self.member_id)

    async def _join(self, worker: WorkerInfo | None, metrics: MetricsServer | None) -> None:
        self._member.address, self._member.stream_address = self.server.address, self.server.stream_address
        self._member.state = MEMBER_STATE_READY
        self._member.metrics_address = join_host_port(self._host, metrics.port) if metrics else ""
        if worker is not None:
            self._member.worker.CopyFrom(worker)
        told = Member()
        told.CopyFrom(self._member)
        await self._presence.join(told)
        self._is_serving = True
        if told != self._member:  # something was added meanwhile
            await self._presence.update(self._member)
        self.server.set_serving(True)

    def _report_ready(self, announce: Mapping[str, str]) -> None:
        settle_collector()
        addresses = {"grpc": self.server.address}
        if self.server.stream_address:
            addresses["streams"] = self.server.stream_address
        if self._member.metrics_address:
            addresses["metrics"] = self._member.metrics_address
        fields = " ".join(f"{name}={address}" for name, address in (addresses | dict(announce)).items())
        with contextlib.suppress(OSError):  # nobody reads it any more
            print(f"READY {self.kind} {self.member_id} {fields}", flush=True)  # noqa: T201 -- for whoever started us
        log.info("ready: %s", fields)

    async def _drain(self, drain: Callable[[], Awaitable[None]]) -> None:
        """Not to be held up by etcd: who does not see DRAINING there is refused by the service itself."""
        began_s = time.monotonic()
        self.server.set_serving(False)
        self._member.state = MEMBER_STATE_DRAINING
        patience = self._patience = asyncio.timeout(self.settings.drain_timeout_s)
        try:
            async with patience:
                await self._presence.update(self._member)
                await drain()
            log.info("drained in %.3f s", time.monotonic() - began_s)
        except TimeoutError:
            if not patience.expired():
                raise
            log.warning("not drained after %.1f s: unfinished requests are cancelled", time.monotonic() - began_s)
        finally:
            self._patience = None
