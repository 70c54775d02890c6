"""Looks at a running cell: who is registered in etcd, and what each process's /metrics say.

A source that does not answer in time is left out; the table shows what is known.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence

import httpx
from google.protobuf.message import DecodeError

from armature.cli.rows import METRICS, Rates, Row, Samples, Seen, rows
from armature.cli.state import ProcessState
from armature.runtime.etcd import EtcdClient
from armature.runtime.etcd_errors import EtcdError
from armature.runtime.tls import TlsFiles, etcd_tls
from armature.v1.common_pb2 import Member

TIMEOUT_S = 1.0


class Observer:
    """Keeps its connections from one look to the next, until it is closed."""

    def __init__(self, etcd: str, namespace: str, tls: TlsFiles | None = None) -> None:
        self._etcd = EtcdClient(etcd.split(","), tls=etcd_tls(tls, etcd), timeout_s=TIMEOUT_S)
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S)
        self._prefix = f"/armature/{namespace}/"
        self._rates = Rates()

    async def close(self) -> None:
        await self._http.aclose()
        await self._etcd.close()

    async def look(self, processes: Sequence[ProcessState]) -> list[Row]:
        """The table's rows now."""
        members, samples = await asyncio.gather(self._members(), self._samples(processes))
        now_s = time.monotonic()
        rates = {member_id: self._rates.tokens_per_s(member_id, seen, now_s) for member_id, seen in samples.items()}
        return rows(processes, Seen(members, samples, rates))

    async def _members(self) -> Mapping[str, Member] | None:
        try:
            listing = await self._etcd.list(self._prefix)
        except EtcdError:
            return None
        members: dict[str, Member] = {}
        for record in listing.records:
            with contextlib.suppress(DecodeError):  # a key of the cell that is no member
                member = Member.FromString(record.value)
                members[member.id] = member
        return members

    async def _samples(self, processes: Iterable[ProcessState]) -> dict[str, Samples]:
        watched = [p for p in processes if p.metrics_address and p.kind.endswith("worker")]
        found = await asyncio.gather(*(self._scrape(p.metrics_address) for p in watched))
        return {p.member_id: seen for p, seen in zip(watched, found, strict=True) if seen}

    async def _scrape(self, address: str) -> Samples:
        try:
            response = await self._http.get(f"http://{address}/metrics")
        except httpx.HTTPError:
            return {}
        return parse_metrics(response.text)


def parse_metrics(text: str) -> Samples:
    """The samples that the table shows, summed over their labels, from Prometheus' text format."""
    sums: dict[str, float] = {}
    for line in text.splitlines():
        # The lines of interest are few: a whole parser would cost more than everything else here.
        name = line.partition(" ")[0].partition("{")[0]
        if name in METRICS:
            sums[name] = sums.get(name, 0.0) + float(line.rpartition(" ")[2])
    return sums
