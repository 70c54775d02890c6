"""One watch of a prefix on one connection: its opening, its events, and the question whether the server still lives."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from armature.runtime.etcd import EtcdClient
from armature.runtime.etcd_calls import Attempt
from armature.runtime.etcd_errors import CompactedError, EtcdError, EtcdUnavailableError, explain, translate
from armature.runtime.etcd_records import prefix_end
from armature.third_party.etcd.v3 import etcd_pb2 as pb

# Asked for as a sign of life only. Before etcd 3.4.25 and 3.5.8 its revision may be ahead of events still to come, so
# nobody may resume from it.
_PROBE = pb.WatchRequest(progress_request=pb.WatchProgressRequest())


@dataclass(frozen=True, slots=True)
class Patience:
    """After `probe_s` without a word the server is asked for one, which must come within `answer_s`."""

    probe_s: float
    answer_s: float


class WatchStream:
    """Made by `open`. One reader; `close` it."""

    def __init__(self, client: EtcdClient, attempt: Attempt, patience: Patience) -> None:
        self._client = client
        self._endpoint = attempt.endpoint
        self._patience = patience
        # No deadline: it lasts as long as it can. Silence is what ends it.
        self._call: grpc.aio.StreamStreamCall[pb.WatchRequest, pb.WatchResponse] = attempt.endpoint.watch.Watch(
            metadata=attempt.metadata
        )
        self._reading: asyncio.Task[Any] | None = None

    @staticmethod
    async def open(client: EtcdClient, prefix: str, start_revision: int, patience: Patience) -> "WatchStream":
        """Watch `prefix` from a revision on; every event from there on will come, if none of them is compacted.

        Raises:
            EtcdError: no endpoint opens the watch, or etcd refuses it.
        """
        create = pb.WatchCreateRequest(key=prefix.encode(), range_end=prefix_end(prefix), start_revision=start_revision)

        async def open_at(attempt: Attempt) -> WatchStream:
            stream = WatchStream(client, attempt, patience)
            try:
                async with asyncio.timeout(attempt.timeout_s):
                    await stream._call.write(pb.WatchRequest(create_request=create))
                    stream._check(await stream._call.read())
            except TimeoutError:
                await stream.close()
                raise EtcdUnavailableError(f"etcd at {attempt.endpoint.address} did not open a watch in time") from None
            except BaseException:
                await stream.close()
                raise
            return stream

        return await client.calls.make(open_at, f"watch {prefix}", client.timeout_s)

    async def events(self) -> Sequence[pb.Event]:
        """The next events, in the order of their revisions; maybe none, when the server only gave a sign of life.

        Raises:
            CompactedError: events that we have not seen are compacted away.
            EtcdUnavailableError: the connection broke, or the server is silent.
            EtcdError: etcd ended the watch.
        """
        try:
            response = self._check(await self._read())
        except grpc.aio.AioRpcError as error:
            self._client.calls.avoid(self._endpoint)
            raise translate(error, self._endpoint.address, "watch") from error
        return response.events

    async def close(self) -> None:
        """End the watch; what it had under way is cancelled."""
        self._call.cancel()
        if self._reading is not None:
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await self._reading

    async def _read(self) -> Any:
        # A read that is cancelled would cancel the call, so it outlives the wait for it.
        self._reading = self._reading or asyncio.create_task(self._call.read(), name="etcd watch")
        if not await self._is_read_within(self._patience.probe_s):
            await self._probe()
            if not await self._is_read_within(self._patience.answer_s):
                self._client.calls.avoid(self._endpoint)
                raise EtcdUnavailableError(f"etcd at {self._endpoint.address} is silent; it is stopped or cut off")
        response = self._reading.result()
        self._reading = None
        return response

    async def _is_read_within(self, timeout_s: float) -> bool:
        assert self._reading is not None
        done, _ = await asyncio.wait({self._reading}, timeout=timeout_s)
        return bool(done)

    async def _probe(self) -> None:
        # Neither a write that is held up nor one on a broken call matters: only whether something can be read.
        with contextlib.suppress(TimeoutError, asyncio.InvalidStateError, grpc.aio.AioRpcError):
            async with asyncio.timeout(self._patience.answer_s):
                await self._call.write(_PROBE)

    def _check(self, response: Any) -> pb.WatchResponse:
        if not isinstance(response, pb.WatchResponse):
            raise EtcdUnavailableError(f"etcd at {self._endpoint.address} closed a watch")
        if response.compact_revision:
            raise CompactedError(f"etcd at {self._endpoint.address}: compacted up to {response.compact_revision}")
        if response.canceled:
            # A token that has ended looks like missing rights here.
            self._client.calls.forget_token()
            raise explain(response.cancel_reason, EtcdError, self._endpoint.address, "watch")
        return response
