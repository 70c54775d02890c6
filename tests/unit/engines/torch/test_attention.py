"""Attention over blocks against attention over each sequence's own tokens, token by token."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.blocks.hashing import BlockDigest
from armature.engines.torch.attention import PagedStep
from armature.engines.torch.batch import RUN_COST_TOKENS, BatchBuilder, split_by_context
from armature.engines.torch.memory import BlockLayout, PagedMemory
from armature.engines.torch.tables import BlockTables
from armature.scheduling.plan import Sequence, Slice
from armature.scheduling.request import Request

CPU = torch.device("cpu")
HEADS, KV_HEADS, DIM, SCALE = 6, 2, 16, 0.3
LAYERS = 2


class World:
    """Sequences with random queries, keys and values for all their tokens."""

    def __init__(self, lengths: list[int], block_size: int) -> None:
        layout = BlockLayout(LAYERS, KV_HEADS, DIM, block_size, torch.float32)
        blocks = [-(-length // block_size) for length in lengths]
        self.memory = PagedMemory(layout, sum(blocks) + 1, CPU)
        # Block 0 is nobody's: what another request has left in a block must never count, whatever it is.
        self.memory.rows.fill_(torch.nan)
        self.memory.open(range(1, sum(blocks) + 1))
        self.builder = BatchBuilder(layout, BlockTables(), CPU)
        numbers = torch.Generator().manual_seed(sum(lengths))
        ids = torch.randperm(sum(blocks), generator=numbers).add(1).tolist()
        self.sequences: list[Sequence] = []
        self.qkv: list[tuple[torch.Tensor, ...]] = []
        for index, (length, count) in enumerate(zip(lengths, blocks, strict=True)):
            request = Request(str(index), [0] * length, length, 1, BlockDigest(bytes(16)))
            self.sequences.append(Sequence(request, list(range(length)), [ids.pop() for _ in range(count)]))
            self.qkv.append(
                tuple(
                    torch.randn(LAYERS, length, heads, DIM, generator=numbers) for heads in (HEADS, KV_HEADS, KV_HEADS)
                )
            )

    def step(self, runs: list[tuple[int, int, int]]) -> None:
        """Attend the runs (sequence, start, count) in one step and compare every token of them."""
        slices = [Slice(self.sequences[index], start, count, samples=True) for index, start, count in runs]
        batch = self.builder.build(slices)
        packed = sorted((run for run in runs if run[2] == 1), key=lambda run: run[1])
        packed += [run for run in runs if run[2] > 1]
        assert batch.input_ids[0].tolist() == [at for _, start, count in packed for at in range(start, start + count)]
        assert batch.positions.equal(batch.input_ids)
        lasts = [start + count - 1 for _, start, count in runs]
        assert batch.input_ids[0, batch.logit_rows].tolist() == lasts
        for layer in range(LAYERS):
            query, key, value = (
                torch.cat([self.qkv[index][part][layer, start : start + count] for index, start, count in packed])
                for part in range(3)
            )
            found = PagedStep(self.memory, batch).attend(layer, query, key, value, SCALE)
            wanted = torch.cat([self._attend(layer, *run) for run in packed])
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)

    def _attend(self, layer: int, index: int, start: int, count: int) -> torch.Tensor:
        query, key, value = (part[layer] for part in self.qkv[index])
        rows: list[torch.Tensor] = []
        for at in range(start, start + count):
            keys, values = (one[: at + 1].repeat_interleave(HEADS // KV_HEADS, 1) for one in (key, value))
            shares = torch.einsum("hd,thd->ht", query[at], keys).mul(SCALE).softmax(-1)
            rows.append(torch.einsum("ht,thd->hd", shares, values))
        return torch.stack(rows)


@pytest.mark.parametrize("block_size", [1, 16, 24])
def test_chunks_decodes_and_mixtures_attend_to_their_own_context(block_size: int) -> None:
    world = World([200, 90, 33, 5], block_size)
    world.step([(0, 0, 130), (1, 0, 70), (2, 0, 32), (3, 0, 1)])
    world.step([(2, 32, 1), (0, 130, 69), (3, 1, 2), (1, 70, 1)])
    world.step([(3, 3, 1), (1, 71, 19), (0, 199, 1)])


def test_long_contexts_are_cut_into_other_pieces_and_groups() -> None:
    world = World([1600, 1500, 1400, 1300], 16)
    world.step([(0, 0, 1100), (1, 0, 1000)])
    world.step([(0, 1100, 499), (1, 1000, 499), (2, 0, 1399), (3, 0, 1299)])
    world.step([(0, 1599, 1), (1, 1499, 1), (2, 1399, 1), (3, 1299, 1)])


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_any_cut_of_any_prompts_attends_alike(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=5))
    world = World(lengths, data.draw(st.integers(1, 20)))
    done = [0] * len(lengths)
    while True:
        runs: list[tuple[int, int, int]] = []
        for index in data.draw(st.permutations(range(len(lengths)))):
            if done[index] < lengths[index]:
                count = data.draw(st.integers(1, lengths[index] - done[index]))
                runs.append((index, done[index], count))
                done[index] += count
        if not runs:
            return
        world.step(runs)


@given(st.lists(st.integers(1, 5000), max_size=40), st.integers(1, 20_000))
def test_decode_groups_cover_all_and_hold_neither_too_much_nor_too_much_padding(
    contexts: list[int], limit: int
) -> None:
    contexts.sort()
    groups = split_by_context(contexts, limit)
    assert [index for start, stop in groups for index in range(start, stop)] == list(range(len(contexts)))
    for start, stop in groups:
        members = np.array(contexts[start:stop])
        assert len(members) == 1 or members[-1] * len(members) <= limit
        assert (members[-1] - members).sum() <= RUN_COST_TOKENS
