"""What etcd stores, in our own words."""

from dataclasses import dataclass

from armature.third_party.etcd.v3 import etcd_pb2 as pb


@dataclass(frozen=True, slots=True)
class Record:
    """A key as it was at one revision."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """All records under a prefix at `revision`, in the order of their keys."""

    cluster_id: int
    revision: int
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease; `ttl_s` is what etcd granted, which may be more than was asked for."""

    lease_id: int
    ttl_s: int


def record_of(kv: pb.KeyValue) -> Record:
    """The record in an answer. Bytes of a key that are no UTF-8 are replaced: no key of ours has any."""
    key = kv.key.decode(errors="replace")
    return Record(key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def prefix_end(prefix: str) -> bytes:
    """The first key after all keys with the prefix, as etcd wants it for a range. UTF-8 has no byte 0xff."""
    raw = prefix.encode()
    return raw[:-1] + bytes([raw[-1] + 1]) if raw else b"\0"
