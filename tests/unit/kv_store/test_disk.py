"""A disk store gives back the bytes that were stored or none, whatever has happened to it."""

import asyncio
import errno
import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.kv_store.disk import DiskStore, open_disk, slots_in
from armature.kv_store.lower_store import Block, Problem
from armature.offload.copies import Found

T = TypeVar("T")

BLOCK_BYTES = 5000  # no whole number of pages
LAYOUT = b"layout-of-blocks"
NUM_SLOTS = 6


def digest(number: int) -> bytes:
    return number.to_bytes(8, "little") * 2


def content(number: int, block_bytes: int = BLOCK_BYTES) -> bytes:
    """What block `number` holds, everywhere different from any other."""
    body = (number.to_bytes(8, "little") * (block_bytes // 8 + 1))[: block_bytes - 16]
    return body + digest(number)


def block(number: int, slot: int, block_bytes: int = BLOCK_BYTES, tenant: str = "") -> Block:
    return Block(digest(number), slot, memoryview(bytearray(content(number, block_bytes))), tenant)


def empty(number: int, slot: int, block_bytes: int = BLOCK_BYTES) -> Block:
    return Block(digest(number), slot, memoryview(bytearray(block_bytes)))


def with_store(folder: Path, work: Callable[[DiskStore], Awaitable[T]], num_slots: int = NUM_SLOTS) -> T:
    """What `work` returns of a store that is open only for that."""

    async def run() -> T:
        store = await open_disk(folder, LAYOUT, BLOCK_BYTES, num_slots)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


async def read_found(store: DiskStore) -> dict[int, Problem | None]:
    """Reads all that the store says it has; asserts that what it gives back is right. The outcomes, by slot."""
    outcomes: dict[int, Problem | None] = {}
    for slot, found in (await store.found()).items():
        number = int.from_bytes(found.digest[:8], "little")
        wanted = empty(number, slot)
        (outcomes[slot],) = await store.read([wanted])
        assert outcomes[slot] is not None or bytes(wanted.data) == content(number), "wrong bytes"
    return outcomes


async def test_blocks_are_found_again_oldest_first(tmp_path: Path) -> None:
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    assert await store.write([block(7, 4), block(8, 5), block(9, 0)]) == [None] * 3
    assert await store.write([block(10, 5)]) == [None]
    await store.close()
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    assert list((await store.found()).items()) == [
        (4, Found(digest(7))),
        (0, Found(digest(9))),
        (5, Found(digest(10))),
    ]
    assert await read_found(store) == {4: None, 0: None, 5: None}
    assert await store.read([empty(8, 5)]) == [Problem.MISSING]
    await store.close()


async def test_blocks_are_found_again_with_their_tenants(tmp_path: Path) -> None:
    tenants = ["", "a", 'one with "marks"\n', "a", "Ünal"]
    for _ in range(2):
        store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
        await store.write([block(slot, slot, tenant=tenant) for slot, tenant in enumerate(tenants)])
        await store.close()
        store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
        assert [found.tenant for found in (await store.found()).values()] == tenants
        await store.close()


@pytest.mark.parametrize("damage", [b"", b'"b"\n"a"\n', b'"a"\n"'], ids=["all", "swapped", "half a line"])
async def test_a_block_whose_tenant_is_not_known_any_more_is_nobodys_and_not_found(
    tmp_path: Path, damage: bytes
) -> None:
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    await store.write([block(1, 1, tenant="a"), block(2, 2, tenant="b"), block(3, 3)])
    await store.close()
    (tmp_path / LAYOUT.hex() / "tenants").write_bytes(damage)
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    left = {Found(digest(3)), Found(digest(1), "a")} if damage.startswith(b'"a"') else {Found(digest(3))}
    assert set((await store.found()).values()) == left
    assert store.discarded == 3 - len(left)
    await store.write([block(4, 4, tenant="c")])
    await store.close()
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    assert set((await store.found()).values()) == {*left, Found(digest(4), "c")}
    await store.close()


async def test_what_is_forgotten_is_not_found_again(tmp_path: Path) -> None:
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    await store.write([block(1, 1), block(2, 2)])
    await store.forget([digest(1), digest(99)])
    await store.close()
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    assert list((await store.found()).values()) == [Found(digest(2))]
    await store.close()


async def test_a_block_that_was_stored_twice_is_found_once(tmp_path: Path) -> None:
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    await store.write([block(1, 1)])
    await store.write([block(1, 3)])
    await store.close()
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    assert dict(await store.found()) == {3: Found(digest(1))}
    await store.close()


async def test_a_smaller_store_keeps_what_fits(tmp_path: Path) -> None:
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    await store.write([block(slot, slot) for slot in range(NUM_SLOTS)])
    await store.close()
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, 2)
    assert await read_found(store) == {0: None, 1: None}
    assert sum(path.stat().st_size for path in tmp_path.rglob("blocks")) == slots_in(1, 1) + 2 * 8192
    await store.close()


async def test_another_layout_finds_nothing_and_takes_the_room(tmp_path: Path) -> None:
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    await store.write([block(1, 1)])
    await store.close()
    (tmp_path / "of somebody else").mkdir()
    store = await open_disk(tmp_path, b"another one", BLOCK_BYTES, NUM_SLOTS)
    assert await store.found() == {}
    assert {path.name for path in tmp_path.iterdir()} == {b"another one".hex(), "of somebody else"}
    await store.close()


async def test_blocks_of_another_size_are_not_mistaken_for_ours(tmp_path: Path) -> None:
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    await store.write([block(1, 1)])
    await store.close()
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES + 8, NUM_SLOTS)
    assert await store.found() == {}
    await store.close()


async def test_a_directory_has_one_user(tmp_path: Path) -> None:
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    with pytest.raises(BlockingIOError):
        DiskStore(tmp_path / LAYOUT.hex(), LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    await store.close()


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond this, as a full disk does."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


async def test_a_full_disk_refuses_what_does_not_fit_and_keeps_the_rest(tmp_path: Path) -> None:
    store = await open_disk(tmp_path, LAYOUT, BLOCK_BYTES, NUM_SLOTS)
    with largest_file(3 * 8192):
        assert await store.write([block(1, 0), block(2, 1)]) == [None, None]
        assert await store.write([block(3, 5)]) == [Problem.FULL]
        assert await store.write([block(4, 2)]) == [Problem.FULL], "it is not asked again so soon"
    assert await read_found(store) == {0: None, 1: None}
    assert await store.read([empty(3, 5)]) == [Problem.MISSING]
    await store.close()


@pytest.mark.parametrize("block_bytes", [4096, 5000, 65536])
async def test_runs_of_slots_are_written_in_one_go_and_read_back(tmp_path: Path, block_bytes: int) -> None:
    store = await open_disk(tmp_path, LAYOUT, block_bytes, 40)
    slots = [*range(3, 30), 39, 0]
    assert await store.write([block(slot, slot, block_bytes) for slot in slots]) == [None] * len(slots)
    wanted = [empty(slot, slot, block_bytes) for slot in slots]
    assert await store.read(wanted) == [None] * len(slots)
    assert [bytes(one.data) for one in wanted] == [content(slot, block_bytes) for slot in slots]
    await store.close()


writes = st.lists(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, NUM_SLOTS - 1)), min_size=1, max_size=3, unique_by=(
        lambda one: one[0], lambda one: one[1],
    )),
    min_size=1, max_size=6,
)  # fmt: skip


@given(writes, st.sampled_from(["index", "blocks"]), st.data())
@settings(max_examples=60, deadline=None)
def test_no_flipped_byte_and_no_cut_ever_gives_wrong_bytes(
    batches: list[list[tuple[int, int]]], name: str, data: st.DataObject
) -> None:
    with TemporaryDirectory() as folder:

        async def fill(store: DiskStore) -> None:
            for batch in batches:
                assert await store.write([block(*one) for one in batch]) == [None] * len(batch)
            assert not any((await read_found(store)).values())

        with_store(Path(folder), fill)
        path = Path(folder) / LAYOUT.hex() / name
        held = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(held) - 1))
        if data.draw(st.booleans()):
            held[at] ^= data.draw(st.integers(1, 255))
        else:
            del held[at:]
        path.write_bytes(held)
        outcomes = with_store(Path(folder), read_found)
        assert set(outcomes.values()) <= {None, Problem.DAMAGED}


class Crash(Exception):  # noqa: N818 -- it is one
    """The process is gone at this moment."""


@contextmanager
def crash_at(call: int, share: float) -> Iterator[None]:
    """The `call`-th write from now on is done in part, and is the last."""
    count, genuine = 0, {name: getattr(os, name) for name in ("pwrite", "pwritev")}

    def write(name: str) -> Callable[..., int]:
        def stopping(fd: int, given: Any, at: int) -> int:
            nonlocal count
            count += 1
            if count < call:
                return genuine[name](fd, given, at)
            if count == call:
                whole = given if name == "pwrite" else b"".join(given)
                genuine["pwrite"](fd, whole[: int(len(whole) * share)], at)
            raise Crash

        return stopping

    with pytest.MonkeyPatch.context() as patch:
        for name in genuine:
            patch.setattr(os, name, write(name))
        yield


@given(writes, st.integers(1, 8), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_crash_at_any_write_loses_at_most_what_was_being_written(
    batches: list[list[tuple[int, int]]], call: int, share: float
) -> None:
    expected: dict[int, int] = {}
    crashed: list[tuple[int, int]] = []
    with TemporaryDirectory() as folder:

        async def fill(store: DiskStore) -> None:
            for batch in batches:
                crashed[:] = batch
                with crash_at(call, share) if batch is batches[-1] else nullcontext():
                    await store.write([block(*one) for one in batch])
                _enter(expected, batch)
                crashed.clear()

        with suppress(Crash):
            with_store(Path(folder), fill)
        outcomes = with_store(Path(folder), read_found)
        in_danger = {number for number, _ in crashed}, {slot for _, slot in crashed}
        safe = {slot for slot, number in expected.items() if number not in in_danger[0] and slot not in in_danger[1]}
        assert safe <= set(outcomes), "a block that was not being written is lost"
        assert set(outcomes.values()) <= {None}, "a record stands for bytes that were not written"


def _enter(expected: dict[int, int], batch: list[tuple[int, int]]) -> None:
    for number, slot in batch:
        for former in [one for one, known in expected.items() if known == number]:
            del expected[former]
        expected[slot] = number


def test_a_read_error_is_told_apart_from_damage(tmp_path: Path) -> None:
    async def work(store: DiskStore) -> None:
        await store.write([block(1, 1)])

        def broken(*_: Any) -> int:
            raise OSError(errno.EIO, "no more")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "preadv", broken)
            assert await store.read([empty(1, 1)]) == [Problem.FAILED]
        assert await store.read([empty(1, 1)]) == [None]

    with_store(tmp_path, work)
