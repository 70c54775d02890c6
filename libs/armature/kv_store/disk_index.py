"""Which block lies in which slot of a disk store: a file of equal records that is right after a crash at any moment.

A record is 64 bytes: the block's digest, a checksum of its bytes, a number that grows with every write, the number of
its tenant, and a checksum of the record that also covers the slot and the tenant's name. A record that does not check
is no record. Whoever overwrites a slot takes its
record away first and writes the new one last, so that a record never stands for bytes that were not written, unless
the machine itself goes down: then the checksum of the bytes tells.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from threading import Lock
from typing import NamedTuple

import xxhash

from armature.kv_store.tenant_names import TenantNames
from armature.offload.copies import Found

_HEADER = struct.Struct("<8sIQ32s12x")
_MAGIC, _VERSION = b"AXKVDISK", 2
_RECORD = struct.Struct("<16s16sQI12xQ")
_BLANK = bytes(_RECORD.size)


class Entry(NamedTuple):
    """A block that lies in a slot."""

    slot: int
    digest: bytes
    checksum: bytes
    """Of its bytes."""
    tenant: str


class DiskIndex:
    """The index in an open file, with a copy of what can be found in memory; `tenants` is what its numbers stand for.

    Raises:
        OSError: the file can't be read or written.
    """

    def __init__(self, fd: int, tenants: TenantNames, layout: bytes, block_bytes: int, num_slots: int) -> None:
        self._fd = fd
        self._tenants = tenants
        self._header = _HEADER.pack(_MAGIC, _VERSION, block_bytes, layout[:32])
        self._slots: dict[bytes, int] = {}
        self._entries: dict[int, Entry] = {}
        self._last_number = 0
        self._lock = Lock()  # the disk's threads come here, each with slots of its own
        self.discarded = 0
        """Records that were found and did not check."""
        if os.pread(fd, len(self._header), 0) == self._header:
            self._load(num_slots)
        else:
            os.ftruncate(fd, 0)
            os.pwrite(fd, self._header, 0)

    def _load(self, num_slots: int) -> None:
        end = len(self._header) + num_slots * _RECORD.size
        if os.fstat(self._fd).st_size > end:
            os.ftruncate(self._fd, end)
        found: list[tuple[int, Entry]] = []
        for slot, record in enumerate(self._records()):
            if record == _BLANK:
                continue
            digest, checksum, number, tenant_number, check = _RECORD.unpack(record)
            tenant = self._tenants.name(tenant_number)
            if tenant is not None and check == _check(slot, record, tenant):
                found.append((number, Entry(slot, digest, checksum, tenant)))
            else:
                self.discarded += 1
        for number, entry in sorted(found):
            self._remember(entry)
            self._last_number = number

    def _records(self) -> Iterator[bytes]:
        at = len(self._header)
        while piece := os.pread(self._fd, _RECORD.size * 4096, at):
            at += len(piece)
            for start in range(0, len(piece) - _RECORD.size + 1, _RECORD.size):
                yield piece[start : start + _RECORD.size]
            if len(piece) % _RECORD.size:
                return

    def __len__(self) -> int:
        return len(self._slots)

    def found(self) -> dict[int, Found]:
        """The blocks that can be found, by slot, in the order in which they were written."""
        return {slot: Found(digest, self._entries[slot].tenant) for digest, slot in self._slots.items()}

    def slot(self, digest: bytes) -> int | None:
        return self._slots.get(digest)

    def checksum(self, slot: int, digest: bytes) -> bytes | None:
        """The checksum of a block's bytes; None if the slot has another block, or none."""
        known = self._entries.get(slot)
        return known.checksum if known is not None and known.digest == digest else None

    def clear(self, slots: Sequence[int]) -> None:
        """Take the records of slots away."""
        with self._lock:
            for slot in slots:
                known = self._entries.pop(slot, None)
                if known is not None and self._slots.get(known.digest) == slot:
                    del self._slots[known.digest]
        for first, count in runs(slots):
            os.pwrite(self._fd, _BLANK * count, self._at(first))

    def set(self, entries: Sequence[Entry]) -> None:
        """Enter blocks; the bytes are in their slots, and the slots' old records gone."""
        with self._lock:
            number = self._last_number
            self._last_number += len(entries)
        records: dict[int, bytes] = {}
        for slot, digest, checksum, tenant in entries:
            number += 1
            record = _RECORD.pack(digest, checksum, number, self._tenants.number(tenant), 0)
            records[slot] = record[:-8] + _check(slot, record, tenant).to_bytes(8, "little")
        for first, count in runs(list(records)):
            os.pwrite(self._fd, b"".join([records[slot] for slot in range(first, first + count)]), self._at(first))
        with self._lock:
            for entry in entries:
                self._remember(entry)

    def _remember(self, entry: Entry) -> None:
        former = self._slots.pop(entry.digest, None)
        if former is not None:
            self._entries.pop(former, None)
        self._slots[entry.digest] = entry.slot
        self._entries[entry.slot] = entry

    def _at(self, slot: int) -> int:
        return len(self._header) + slot * _RECORD.size


def runs(slots: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Consecutive slots as (first, count)."""
    ordered = sorted(slots)
    breaks = [0, *[i + 1 for i, (a, b) in enumerate(pairwise(ordered)) if b != a + 1], len(ordered)]
    for start, end in pairwise(breaks):
        if end > start:
            yield ordered[start], end - start


def _check(slot: int, record: bytes, tenant: str) -> int:
    return xxhash.xxh3_64_intdigest(record[:-8] + tenant.encode(), slot)
