"""A snapshot reads back as it was, and nothing else is taken for one."""

from array import array
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.index.snapshot import Head, SnapshotError, decode_head, decode_part, encode_head, parts_of
from armature.index.tiers import Tier
from armature.index.tracker import Position

Blocks = dict[Tier, "array[int]"]
HASHES = st.lists(st.integers(0, 2**64 - 1), max_size=40)


def snapshot(blocks: Blocks, part_blocks: int = 8) -> tuple[bytes, list[bytes]]:
    parts = list(parts_of(blocks, part_blocks))
    head = Head("wörker-1", Position(7, 41), tuple(part for part, _ in parts))
    return encode_head(head), [data for _, data in parts]


def read(head: bytes, parts: list[bytes]) -> dict[Tier, list[int]]:
    blocks: dict[Tier, list[int]] = {}
    decoded = decode_head(head, "wörker-1", 7)
    for part, data in zip(decoded.parts, parts, strict=True):
        blocks.setdefault(part.tier, []).extend(decode_part(part, data))
    assert sum(map(len, blocks.values())) == decoded.num_blocks
    return blocks


@given(st.dictionaries(st.sampled_from(Tier), HASHES.filter(bool)), st.integers(1, 50))
def test_what_was_written_is_read(held: dict[Tier, list[int]], part_blocks: int) -> None:
    head, parts = snapshot({tier: array("Q", hashes) for tier, hashes in held.items()}, part_blocks)
    assert all(len(part) <= 8 * part_blocks for part in parts)
    assert read(head, parts) == held
    assert decode_head(head, "wörker-1", 7).position == Position(7, 41)


HEAD, PARTS = snapshot({Tier.G1: array("Q", range(20)), Tier.G2: array("Q", [5])})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda head: b"", "format"),
        (lambda head: b"RDB" + head[3:], "format"),
        (lambda head: head[:4] + b"\x02" + head[5:], "version"),
        (lambda head: head[:-1], "torn"),
        (lambda head: head[:40], "torn"),
        (lambda head: head + b"x", "torn"),
        (lambda head: head[:20] + b"\xff" + head[21:], "torn"),
        (lambda head: head[:12] + b"\xff\xff\xff\xff" + head[16:], "torn"),
    ],
)
def test_a_damaged_head_is_refused_with_a_reason(damage: Callable[[bytes], bytes], reason: str) -> None:
    with pytest.raises(SnapshotError) as error:
        decode_head(damage(HEAD), "wörker-1", 7)
    assert error.value.reason == reason


@pytest.mark.parametrize(("worker_id", "epoch"), [("worker-2", 7), ("wörker-1", 8)])
def test_anothers_snapshot_is_refused(worker_id: str, epoch: int) -> None:
    with pytest.raises(SnapshotError, match="wörker-1 in epoch 7") as error:
        decode_head(HEAD, worker_id, epoch)
    assert error.value.reason == "foreign"


@pytest.mark.parametrize("part", [None, b"", PARTS[0][:-8], PARTS[1], PARTS[0][:-1] + b"x"])
def test_a_part_that_is_not_the_one_named_is_refused(part: bytes | None) -> None:
    with pytest.raises(SnapshotError) as error:
        decode_part(decode_head(HEAD, "wörker-1", 7).parts[0], part)
    assert error.value.reason == "torn"


@given(st.integers(0, len(HEAD) - 1), st.integers(1, 255))
def test_no_flipped_bit_goes_unnoticed(at: int, flip: int) -> None:
    damaged = bytearray(HEAD)
    damaged[at] ^= flip
    with pytest.raises(SnapshotError):
        decode_head(bytes(damaged), "wörker-1", 7)
