"""The token path: one multiplexed `Decode.Stream` per decode worker, opened when first needed.

The reader never waits for a request's consumer: a request whose queue is full is cancelled, the others go on. A
watchdog for all streams looks after silence and deadlines while there are requests, so that a token's path has no
timers.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Collection

import grpc

from armature.openai.serving.decode_call import DecodeCall, Limits, WorkerFailedError
from armature.openai.serving.frames import FrameStream
from armature.openai.serving.options import ServingOptions
from armature.runtime.channels import ChannelPool
from armature.runtime.lean_call import Method
from armature.runtime.roster import MemberChange
from armature.v1.worker_pb2 import DecodeFrame, DecodeRequest, TokenFrame

log = logging.getLogger(__name__)

DECODE_STREAM = "/armature.v1.Decode/Stream"
MAX_WATCH_INTERVAL_S = 0.5
CONNECT_TIMEOUT_S = 1.0
"""How long one look takes at whether a worker whose stream has broken can be reached again."""


class WorkerStreams:
    """All decode workers' streams."""

    def __init__(self, channels: ChannelPool, tasks: asyncio.TaskGroup, options: ServingOptions) -> None:
        self._channels = channels
        self._tasks = tasks
        self._interval_s = min(MAX_WATCH_INTERVAL_S, options.stall_timeout_s / 4, options.first_token_timeout_s / 4)
        self._streams: dict[str, _WorkerStream] = {}
        self._stream_addresses: dict[str, str] = {}
        """Of workers that have one of their own for streams."""
        self._running: set[_WorkerStream] = set()
        """Those too whose worker has left and whose requests have not ended."""
        self._watchdog: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._lost: dict[str, None] = {}

    @property
    def lost(self) -> Collection[str]:
        """Workers that can't be reached since their stream broke. They may be dead: etcd says so a lease later."""
        return self._lost.keys()

    def open(self, worker_id: str, address: str, request: DecodeRequest, limits: Limits) -> DecodeCall:
        """Send `request`, whose `stream_id` is set here."""
        stream = self._streams.get(worker_id)
        if stream is None or stream.has_ended:
            method = self._channels.method(self._stream_addresses.get(worker_id, address), DECODE_STREAM)
            stream = self._streams[worker_id] = _WorkerStream(worker_id, method)
            self._running.add(stream)
            self._tasks.create_task(self._run(worker_id, stream, address), name=f"decode stream {worker_id}")
        if self._watchdog is None:
            self._watchdog = self._loop.call_later(self._interval_s, self._watch)
        return stream.begin(request, limits)

    def member_changed(self, change: MemberChange) -> None:
        """Somebody has come, changed or left; the stream to a worker that has left ends when no request is on it."""
        member = change.member
        if change.kind != "left":
            if member.stream_address and member.HasField("worker"):
                self._stream_addresses[member.id] = member.stream_address
            else:
                self._stream_addresses.pop(member.id, None)
            return
        self._stream_addresses.pop(member.id, None)
        self._lost.pop(member.id, None)
        stream = self._streams.pop(member.id, None)
        if stream is not None:
            stream.end_when_idle()

    async def _run(self, worker_id: str, stream: "_WorkerStream", address: str) -> None:
        try:
            await stream.run()
        finally:
            self._running.discard(stream)
        if stream.is_wanted and worker_id not in self._lost:
            self._lost[worker_id] = None
            await self._reach(worker_id, address)
        if worker_id not in self._streams:
            await self._channels.discard(address)

    def _watch(self) -> None:
        is_busy = [stream.check_times() for stream in self._running]
        self._watchdog = self._loop.call_later(self._interval_s, self._watch) if any(is_busy) else None

    async def _reach(self, worker_id: str, address: str) -> None:
        """Until there is a connection to a lost worker, or the member has left."""
        while worker_id in self._lost:
            # It is closed under our hands when the process ends.
            with contextlib.suppress(TimeoutError, grpc.aio.BaseError):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await self._channels.get(address).channel_ready()
                self._lost.pop(worker_id, None)


class _WorkerStream:
    def __init__(self, worker_id: str, method: Method) -> None:
        self._worker_id = worker_id
        self._frames = FrameStream[DecodeFrame, TokenFrame](method, TokenFrame.FromString, self._take, self._on_frames)
        self._ids = itertools.count(1)
        self._calls: dict[int, DecodeCall] = {}
        self._requests: dict[int, DecodeRequest] = {}
        self._cancels: list[int] = []
        self._task: asyncio.Task[str] | None = None
        self._now_s = asyncio.get_running_loop().time
        self.is_wanted = True
        self.has_ended = False

    def begin(self, request: DecodeRequest, limits: Limits) -> DecodeCall:
        call = DecodeCall(next(self._ids), limits, self._now_s(), self._end)
        request.stream_id = call.stream_id
        self._calls[call.stream_id] = call
        self._requests[call.stream_id] = request
        self._frames.wake()
        return call

    async def run(self) -> None:
        reason = "the stream was stopped"
        try:
            async with asyncio.TaskGroup() as tasks:
                self._task = tasks.create_task(self._frames.run())
            reason = reason if self._task.cancelled() else self._task.result()
        finally:
            self.has_ended = True
            log.info(
                "the stream to %s has ended, %d requests were on it: %s", self._worker_id, len(self._calls), reason
            )
            calls, self._calls = self._calls, {}
            for call in calls.values():
                call.fail(WorkerFailedError(reason))

    def end_when_idle(self) -> None:
        self.is_wanted = False
        if not self._calls and self._task is not None:
            self._task.cancel()

    def _end(self, call: DecodeCall) -> None:
        """Forget a call that is no longer read."""
        if self._calls.pop(call.stream_id, None) is None:
            return
        if self._requests.pop(call.stream_id, None) is None:  # it was sent already
            self._cancels.append(call.stream_id)
            self._frames.wake()
        if not self.is_wanted:
            self.end_when_idle()

    def _take(self) -> DecodeFrame:
        frame = DecodeFrame(requests=self._requests.values(), cancels=self._cancels)
        self._requests.clear()
        self._cancels.clear()
        return frame

    def _on_frames(self, frames: list[TokenFrame]) -> None:
        now_s = self._now_s()
        calls = self._calls
        reached: dict[DecodeCall, None] = {}
        deltas = frames[0].deltas if len(frames) == 1 else [delta for frame in frames for delta in frame.deltas]
        for delta in deltas:
            call = calls.get(delta.stream_id)
            if call is None:
                continue  # cancelled here; the worker did not know yet
            call.push(delta, now_s)
            reached[call] = None
            if delta.finish_reason:
                calls.pop(delta.stream_id, None)
        for call in reached:
            call.deliver()
        if not self.is_wanted:
            self.end_when_idle()

    def check_times(self) -> bool:
        """Fail calls that have been silent for too long or whose time is up; whether there are others."""
        now_s = self._now_s()
        for call in [*self._calls.values()]:
            failure = call.overdue(now_s)
            if failure is not None:
                call.fail(failure)
                self._end(call)
        return bool(self._calls)
