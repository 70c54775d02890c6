import ctypes
import mmap

import pytest
import torch

from armature.blocks.hashing import DIGEST_BYTES, BlockDigest
from armature.engines.torch.memory import BlockLayout, PagedMemory, blocks_in

CPU = torch.device("cpu")
LAYOUTS = [
    BlockLayout(num_layers=3, kv_heads=2, head_dim=8, block_size=4, dtype=torch.float32),
    BlockLayout(num_layers=2, kv_heads=1, head_dim=2, block_size=16, dtype=torch.bfloat16),
    BlockLayout(num_layers=1, kv_heads=3, head_dim=10, block_size=1, dtype=torch.bfloat16),
]


@pytest.fixture(params=LAYOUTS, ids=["plain", "rows shorter than a digest", "odd"])
def memory(request: pytest.FixtureRequest) -> PagedMemory:
    return PagedMemory(request.param, 6, CPU)


def test_a_block_lies_at_its_address_and_ends_with_its_digest(memory: PagedMemory) -> None:
    digest = BlockDigest(bytes(range(DIGEST_BYTES)))
    memory.seal([(4, digest)])
    block = ctypes.string_at(memory.base_address + 4 * memory.block_bytes, memory.block_bytes)
    assert block[-DIGEST_BYTES:] == digest
    assert block == memory.read([4])
    assert memory.base_address % mmap.PAGESIZE == 0
    assert memory.memory_kind == "DRAM"


def test_digests_are_zero_until_sealed_and_after_being_cleared(memory: PagedMemory) -> None:
    assert memory.digests([0, 5]) == [bytes(DIGEST_BYTES)] * 2
    memory.seal([(1, BlockDigest(b"x" * 16)), (5, BlockDigest(b"y" * 16))])
    assert memory.digests([5, 1, 0]) == [b"y" * 16, b"x" * 16, bytes(16)]
    memory.open([1])
    memory.open([])
    assert memory.digests([1, 5]) == [bytes(16), b"y" * 16]
    assert memory.digests([]) == []


def test_written_blocks_read_back_whole_and_leave_the_others_alone(memory: PagedMemory) -> None:
    size = memory.block_bytes
    numbers = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (2 * size,), generator=numbers, dtype=torch.uint8).numpy().tobytes()
    memory.write([3, 1], data)
    assert memory.read([3]) == data[:size]
    assert memory.read([1, 3]) == data[size:] + data[:size]
    assert memory.digests([1]) == [data[-DIGEST_BYTES:]]
    assert memory.read([0, 2, 4, 5]) == bytes(4 * size)


def test_opened_blocks_hold_nothing_of_what_was_in_them(memory: PagedMemory) -> None:
    memory.write([1, 2, 3], b"\xff" * (3 * memory.block_bytes))
    memory.open([3, 1])
    assert memory.read([1, 2, 3]) == bytes(memory.block_bytes) + b"\xff" * memory.block_bytes + bytes(
        memory.block_bytes
    )


def test_layers_keys_and_values_cover_a_block_without_meeting(memory: PagedMemory) -> None:
    layout = memory.layout
    for layer in range(layout.num_layers):
        memory.keys[layer][2] = 2 * layer + 1
        memory.values[layer][2] = 2 * layer + 2
    elements = torch.frombuffer(bytearray(memory.read([2])), dtype=layout.dtype)
    used = layout.kv_rows * layout.row_elements
    expected = torch.arange(1, 2 * layout.num_layers + 1).repeat_interleave(layout.block_size * layout.row_elements)
    assert elements[:used].tolist() == expected.tolist()
    assert not elements[used:].any()
    assert memory.rows[2 * layout.rows_per_block + layout.key_row(0)].tolist() == [1] * layout.row_elements


@pytest.mark.parametrize("block_ids", [[-1], [6], [0, 600]])
def test_ids_outside_the_pool_are_refused(memory: PagedMemory, block_ids: list[int]) -> None:
    with pytest.raises(ValueError, match="from 0 to 5"):
        memory.read(block_ids)
    with pytest.raises(ValueError, match="from 0 to 5"):
        memory.write(block_ids, bytes(memory.block_bytes * len(block_ids)))
    with pytest.raises(ValueError, match="from 0 to 5"):
        memory.digests(block_ids)


def test_data_of_another_size_is_refused(memory: PagedMemory) -> None:
    with pytest.raises(ValueError, match="do not fill 1 blocks"):
        memory.write([1], bytes(memory.block_bytes - 1))


def test_a_budget_holds_whole_blocks_and_at_least_one() -> None:
    layout = LAYOUTS[0]
    assert blocks_in(10 * layout.block_bytes + 5, layout) == 10
    assert blocks_in(1, layout) == 1
    with pytest.raises(ValueError, match="at least 1"):
        PagedMemory(layout, 0, CPU)
