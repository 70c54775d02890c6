"""A small asyncio client of etcd's v3 API: keys and leases over several endpoints, with deadlines and authentication.

A call that no endpoint answers fails; loops are built on top: resuming a watch in `watch.py`, keeping a lease in
`session.py`.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import grpc

from armature.runtime.etcd_calls import Attempt, Calls
from armature.runtime.etcd_endpoint import Endpoint
from armature.runtime.etcd_errors import CompactedError, EtcdUnavailableError, OutcomeUnknownError, translate
from armature.runtime.etcd_records import Lease, Listing, Record, prefix_end, record_of
from armature.runtime.tls import TlsFiles
from armature.third_party.etcd.v3 import etcd_pb2 as pb

Answer = TypeVar("Answer")

DEFAULT_TIMEOUT_S = 2.0
# Records of one answer; a listing of more takes several calls at the same revision.
PAGE_SIZE = 1000
# A listing starts over if its revision is compacted between two pages.
_LIST_ATTEMPTS = 3


class EtcdClient:
    """One connection per endpoint, opened when it is first needed.

    `endpoints` are `host:port`. `timeout_s` bounds each call as a whole, so that each endpoint gets its share of it.
    All calls raise `EtcdUnavailableError` if no endpoint answers, `EtcdAuthError` or `PermissionDeniedError` if etcd
    turns us away.

    Raises:
        EtcdError: an endpoint is not `host:port`, or there is none.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        user: str = "",
        password: str = "",
        tls: TlsFiles | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.timeout_s = timeout_s
        self._endpoints = [Endpoint(address, tls) for address in endpoints]
        self.calls = Calls(self._endpoints, user, password)

    async def close(self) -> None:
        """Close all connections; calls on them fail."""
        for endpoint in self._endpoints:
            await endpoint.close()

    async def get(self, key: str) -> Record | None:
        """The record of a key, None if there is none."""
        answer = await self._range(pb.RangeRequest(key=key.encode()), f"get {key}")
        return record_of(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str, *, revision: int = 0, page_size: int = PAGE_SIZE) -> Listing:
        """All records under a prefix, as they were at one revision (0: now).

        Raises:
            CompactedError: the revision is no longer kept.
            FutureRevisionError: the store has not reached the revision.
        """
        for _ in range(_LIST_ATTEMPTS):
            try:
                return await self._list_once(prefix, revision, page_size)
            except CompactedError:
                if revision:
                    raise
        raise EtcdUnavailableError(
            f"etcd was compacted {_LIST_ATTEMPTS} times while {prefix} was being listed; try again"
        )

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        """Write a key and return the store's revision.

        Raises:
            LeaseNotFoundError: the lease has ended.
        """
        request = pb.PutRequest(key=key.encode(), value=value, lease=lease_id)

        async def put(to: Attempt) -> pb.PutResponse:
            return await to.endpoint.kv.Put(request, timeout=to.timeout_s, metadata=to.metadata)

        return (await self._make(put, f"put {key}")).header.revision

    async def delete(self, key: str) -> bool:
        """Delete a key; tell whether it was there."""
        return await self._delete(pb.DeleteRangeRequest(key=key.encode()), f"delete {key}") > 0

    async def delete_prefix(self, prefix: str) -> int:
        """Delete all keys under a prefix; return how many there were."""
        request = pb.DeleteRangeRequest(key=prefix.encode(), range_end=prefix_end(prefix))
        return await self._delete(request, f"delete all under {prefix}")

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Run a transaction. It is sent once, to the first endpoint that can be reached.

        Raises:
            OutcomeUnknownError: it was sent, but no answer came.
        """

        async def txn(to: Attempt) -> pb.TxnResponse:
            if not await to.endpoint.is_reachable(to.timeout_s):
                raise EtcdUnavailableError(f"etcd at {to.endpoint.address} can't be reached; nothing was sent")
            try:
                return await to.endpoint.kv.Txn(request, timeout=to.timeout_s, metadata=to.metadata)
            except grpc.aio.AioRpcError as error:
                failure = translate(error, to.endpoint.address, "transaction")
                if isinstance(failure, EtcdUnavailableError):
                    raise OutcomeUnknownError(f"{failure}; the transaction may have been done") from error
                raise

        return await self._make(txn, "transaction")

    async def compact(self, revision: int) -> None:
        """Forget all that was before `revision`."""
        request = pb.CompactionRequest(revision=revision)

        async def compact(to: Attempt) -> pb.CompactionResponse:
            return await to.endpoint.kv.Compact(request, timeout=to.timeout_s, metadata=to.metadata)

        await self._make(compact, f"compact to {revision}")

    async def grant(self, ttl_s: int) -> Lease:
        """A new lease. One that is granted but whose answer is lost ends by itself."""
        request = pb.LeaseGrantRequest(TTL=ttl_s)

        async def grant(to: Attempt) -> pb.LeaseGrantResponse:
            return await to.endpoint.lease.LeaseGrant(request, timeout=to.timeout_s, metadata=to.metadata)

        answer = await self._make(grant, "grant a lease")
        return Lease(answer.ID, answer.TTL)

    async def keep_alive(self, lease_id: int, *, timeout_s: float | None = None) -> int:
        """Prolong a lease and return the seconds it has left; 0 or less means that it has ended."""

        async def keep_alive(to: Attempt) -> pb.LeaseKeepAliveResponse:
            call = to.endpoint.lease.LeaseKeepAlive(timeout=to.timeout_s, metadata=to.metadata)
            try:
                await call.write(pb.LeaseKeepAliveRequest(ID=lease_id))
                answer = await call.read()
            finally:
                call.cancel()
            if not isinstance(answer, pb.LeaseKeepAliveResponse):
                raise EtcdUnavailableError(f"etcd at {to.endpoint.address} left the keepalive of a lease unanswered")
            return answer

        return (await self._make(keep_alive, "keep a lease alive", timeout_s)).TTL

    async def revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys.

        Raises:
            LeaseNotFoundError: it had ended already.
        """
        request = pb.LeaseRevokeRequest(ID=lease_id)

        async def revoke(to: Attempt) -> pb.LeaseRevokeResponse:
            return await to.endpoint.lease.LeaseRevoke(request, timeout=to.timeout_s, metadata=to.metadata)

        await self._make(revoke, "revoke a lease")

    async def _make(
        self, call: Callable[[Attempt], Awaitable[Answer]], doing: str, timeout_s: float | None = None
    ) -> Answer:
        return await self.calls.make(call, doing, self.timeout_s if timeout_s is None else timeout_s)

    async def _range(self, request: pb.RangeRequest, doing: str) -> pb.RangeResponse:
        async def read(to: Attempt) -> pb.RangeResponse:
            return await to.endpoint.kv.Range(request, timeout=to.timeout_s, metadata=to.metadata)

        return await self._make(read, doing)

    async def _delete(self, request: pb.DeleteRangeRequest, doing: str) -> int:
        async def delete(to: Attempt) -> pb.DeleteRangeResponse:
            return await to.endpoint.kv.DeleteRange(request, timeout=to.timeout_s, metadata=to.metadata)

        return (await self._make(delete, doing)).deleted

    async def _list_once(self, prefix: str, revision: int, page_size: int) -> Listing:
        start, records = prefix.encode(), list[Record]()
        while True:
            request = pb.RangeRequest(key=start, range_end=prefix_end(prefix), limit=page_size, revision=revision)
            answer = await self._range(request, f"list {prefix}")
            records += map(record_of, answer.kvs)
            # Without a revision of the caller's the first page's is the listing's.
            revision = revision or answer.header.revision
            if not answer.more:
                return Listing(answer.header.cluster_id, revision, tuple(records))
            start = answer.kvs[-1].key + b"\0"
