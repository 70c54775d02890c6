"""One worker's entry of the index as bytes, to be kept outside the process and read back after a restart.

A snapshot says up to which event of the worker's stream it is true, so that a stream resumed there makes it whole. It
is a head and parts: the head names format, worker, position and every part with its digest; a part holds hashes of one
tier. All numbers are little-endian.

    head: magic, version, reserved, worker id's length, number of parts, epoch, next_seq | worker id
          | (tier, blocks, digest) a part | digest of all before
    part: sequence hashes, 8 bytes each
"""

import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from armature.index.packing import HASH_BYTES
from armature.index.tiers import Tier
from armature.index.tracker import Position

MAGIC = b"AKVX"
VERSION = 1
_DIGEST_BYTES = 8
_HEAD = struct.Struct("<4sHHIIQQ")
_PART = struct.Struct(f"<II{_DIGEST_BYTES}s")


class SnapshotError(Exception):
    """A snapshot is of no use; `reason` is one word of `format`, `version`, `foreign`, `torn`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class PartHead:
    """What the head says of a part."""

    tier: Tier
    num_blocks: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a snapshot before its parts are read."""

    worker_id: str
    position: Position
    parts: tuple[PartHead, ...]

    @property
    def num_blocks(self) -> int:
        return sum(part.num_blocks for part in self.parts)


def parts_of(blocks: Mapping[Tier, "array[int]"], part_blocks: int) -> Iterator[tuple[PartHead, bytes]]:
    """The hashes in parts of at most `part_blocks`, each with what the head is to say of it."""
    for tier, hashes in blocks.items():
        for start in range(0, len(hashes), part_blocks):
            some = np.frombuffer(hashes[start : start + part_blocks], dtype=np.uint64)
            part = some.astype("<u8").tobytes()
            yield PartHead(tier, len(some), _digest(part)), part


def encode_head(head: Head) -> bytes:
    """The head as bytes; with `parts_of` the whole snapshot."""
    name, position = head.worker_id.encode(), head.position
    fixed = _HEAD.pack(MAGIC, VERSION, 0, len(name), len(head.parts), position.epoch, position.next_seq)
    described = fixed + name + b"".join([_PART.pack(part.tier, part.num_blocks, part.digest) for part in head.parts])
    return described + _digest(described)


def decode_head(head: bytes, worker_id: str, epoch: int) -> Head:
    """Read a head that should be of this worker in this epoch.

    Raises:
        SnapshotError: it is of another worker or epoch, of another format, or damaged.
    """
    if len(head) < _HEAD.size + _DIGEST_BYTES or not head.startswith(MAGIC):
        raise SnapshotError("format", f"{len(head)} bytes that begin with {head[:4]!r} are no snapshot")
    _, version, _, name_bytes, num_parts, its_epoch, next_seq = _HEAD.unpack_from(head)
    if version != VERSION:
        raise SnapshotError("version", f"the snapshot has format {version}; this process reads {VERSION}")
    described, digest = head[:-_DIGEST_BYTES], head[-_DIGEST_BYTES:]
    if len(described) != _HEAD.size + name_bytes + num_parts * _PART.size or _digest(described) != digest:
        raise SnapshotError("torn", "the head is damaged")
    name = described[_HEAD.size : _HEAD.size + name_bytes].decode(errors="replace")
    if (name, its_epoch) != (worker_id, epoch):
        raise SnapshotError("foreign", f"it is of {name} in epoch {its_epoch}, not of {worker_id} in epoch {epoch}")
    try:
        parts = tuple(
            PartHead(Tier(tier), num_blocks, digest)
            for tier, num_blocks, digest in _PART.iter_unpack(described[_HEAD.size + name_bytes :])
        )
    except ValueError as error:
        raise SnapshotError("format", f"the head names a part that can't be: {error}") from error
    return Head(name, Position(its_epoch, next_seq), parts)


def decode_part(head: PartHead, part: bytes | None) -> list[int]:
    """The hashes of a part.

    Raises:
        SnapshotError: it is missing, or not the one that the head names.
    """
    if part is None or len(part) != head.num_blocks * HASH_BYTES or _digest(part) != head.digest:
        found = "missing" if part is None else f"{len(part)} other bytes"
        raise SnapshotError("torn", f"a part of {head.num_blocks} blocks is {found}")
    return np.frombuffer(part, dtype="<u8").tolist()


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()
