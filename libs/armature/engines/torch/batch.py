"""One step's slices packed into one row of tokens, with every index that attention needs, made once for all layers.

Decode slices (one token) come first, so that they are attended together; prefill slices follow and are attended one by
one. Nothing is padded but the gathered context of decode slices, which are grouped by context length.
"""

import math
from array import array
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from armature.engines.torch.memory import BlockLayout
from armature.engines.torch.tables import BlockTables
from armature.scheduling.plan import Slice
from armature.scheduling.request import Work

RUN_COST_TOKENS = 256
"""What one more call of attention costs, in tokens of context gathered and attended: 40 µs and 0.17 µs on one core."""

CACHE_BYTES = 1 << 20
"""Keys and values of a layer that are gathered together, for each thread: they must still be in the second-level cache
when attention reads them. Sixteen contexts of 1024 tokens, attended one by one, take 0.4 times as long as at once."""


PIECE, SHORT_CONTEXT, LONG_PIECE = 64, 1024, 256
"""Queries attended in one call on the host. PyTorch's kernel skips later keys only in steps of 512, so short contexts
gain from small pieces (1.5 times at 512 tokens); with long ones its larger tiles are worth more."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decode slices of similar context length.

    Attributes:
        start, stop: their tokens within the step.
        table: block ids `[(stop - start) * blocks]`, blocks of one slice next to each other.
        mask: additive `[stop - start, 1, 1, blocks * block_size]`, None if every context fills its blocks.
    """

    start: int
    stop: int
    table: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class QueryPiece:
    """A run of a slice's queries, attended to the context up to its own last token.

    Attributes:
        start, stop: its tokens within the slice.
        context: tokens of context, the piece included.
        mask: additive `[stop - start, context]`; None if the piece is its own context (plainly causal).
    """

    start: int
    stop: int
    context: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class PrefillSlice:
    """A run of one sequence's tokens.

    Attributes:
        start, stop: its tokens within the step.
        table: ids of the blocks that hold its context; None if the context is the slice itself.
        context: tokens of context, the slice included.
        pieces: the slice's queries, cut for attention.
    """

    start: int
    stop: int
    table: torch.Tensor | None
    context: int
    pieces: list[QueryPiece]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The packed step.

    Attributes:
        input_ids, positions: `[1, tokens]`.
        key_rows: for each layer the pool rows `[tokens]` to write keys to; `value_rows` likewise.
        logit_rows: index of the last token of each slice that samples, in the plan's order, then those of `scored`.
        pooled: slices of prompts that are embedded, each with the indices of its first and behind its last token.
        scored: slices of prompts whose tokens' log probabilities are wanted, each with as many rows as of its tokens
            have a prompt token behind them.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    key_rows: list[torch.Tensor]
    value_rows: list[torch.Tensor]
    logit_rows: torch.Tensor
    decodes: list[DecodeGroup]
    prefills: list[PrefillSlice]
    pooled: list[tuple[Slice, int, int]]
    scored: list[tuple[Slice, int]]


class BatchBuilder:
    """Turns the slices of a step into a `StepBatch` on the device."""

    def __init__(self, layout: BlockLayout, tables: BlockTables, device: torch.device) -> None:
        self._layout = layout
        self._tables = tables
        self._device = device
        self._limit_tokens = _limit_tokens(layout, device)
        first_rows = np.array([layout.key_row(layer) for layer in range(layout.num_layers)], dtype=np.int64)
        self._layer_rows = np.stack([first_rows, first_rows + layout.block_size], axis=1)[:, :, None]

    def build(self, slices: Items[Slice]) -> StepBatch:
        decodes = [one for one in slices if one.count == 1]
        decodes.sort(key=lambda one: one.start)
        prefills = [one for one in slices if one.count > 1]
        packed = decodes + prefills
        runs = [np.arange(one.start, one.start + one.count) for one in prefills]
        positions = np.concatenate([np.array([one.start for one in decodes], dtype=np.int64), *runs])
        token_ids = array("I")
        for one in packed:
            token_ids.extend(one.sequence.token_ids[one.start : one.start + one.count])
        rows = self._to_device(self._pool_rows(decodes, prefills, positions))
        ends = np.cumsum([one.count for one in packed])
        last = {id(one): int(end) - 1 for one, end in zip(packed, ends, strict=True)}
        logit_rows = [last[id(one)] for one in slices if one.samples]
        scored = [(one, scored_rows(one)) for one in packed if one.sequence.scores_prompt]
        for one, count in scored:
            first = last[id(one)] + 1 - one.count
            logit_rows.extend(range(first, first + count))
        return StepBatch(
            input_ids=self._to_device(np.array(token_ids, dtype=np.int64)[None]),
            positions=self._to_device(positions[None]),
            key_rows=list(rows[:, 0]),
            value_rows=list(rows[:, 1]),
            logit_rows=self._to_device(np.array(logit_rows, dtype=np.int64)),
            decodes=self._decode_groups(decodes),
            prefills=[self._prefill(one, int(end)) for one, end in zip(prefills, ends[len(decodes) :], strict=True)],
            pooled=[
                (one, int(end) - one.count, int(end))
                for one, end in zip(packed, ends, strict=True)
                if one.sequence.request.work is Work.EMBED
            ],
            scored=scored,
        )

    def _pool_rows(
        self, decodes: Items[Slice], prefills: Items[Slice], positions: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Pool rows `[layers, 2, tokens]` of the step's keys and values."""
        size = self._layout.block_size
        # Plain lists for decodes: an array operation for each of them would cost ten times more.
        blocks = np.array([one.sequence.block_ids[one.start // size] for one in decodes], dtype=np.int64)
        begin = len(decodes)
        for one in prefills:
            places = positions[begin : begin + one.count] // size
            blocks = np.concatenate([blocks, self._tables.of(one.sequence)[places]])
            begin += one.count
        return (blocks * self._layout.rows_per_block + positions % size)[None, None] + self._layer_rows

    def _decode_groups(self, decodes: Items[Slice]) -> list[DecodeGroup]:
        groups: list[DecodeGroup] = []
        for start, stop in split_by_context([one.start + 1 for one in decodes], self._limit_tokens):
            members = decodes[start:stop]
            size = self._layout.block_size
            blocks = -(-(members[-1].start + 1) // size)
            table = np.empty((len(members), blocks), dtype=np.int64)
            for row, one in zip(table, members, strict=True):
                used = -(-(one.start + 1) // size)
                own = self._tables.of(one.sequence)
                row[:used] = own[:used]
                if used < blocks:
                    # Never another's block: a NaN in it would come through the mask.
                    row[used:] = own[0]
            contexts = np.array([one.start + 1 for one in members])
            groups.append(
                DecodeGroup(start, stop, self._to_device(table.reshape(-1)), self._length_mask(contexts, blocks * size))
            )
        return groups

    def _length_mask(self, contexts: NDArray[np.int64], width: int) -> torch.Tensor | None:
        if (contexts == width).all():
            return None
        hidden = self._to_device(np.arange(width)[None] >= contexts[:, None])
        mask = torch.zeros(hidden.shape, dtype=self._layout.dtype, device=self._device)
        return mask.masked_fill_(hidden, -math.inf)[:, None, None]

    def _prefill(self, one: Slice, stop: int) -> PrefillSlice:
        context = one.start + one.count
        table = None
        if one.start > 0:
            table = self._to_device(self._tables.of(one.sequence)[: -(-context // self._layout.block_size)])
        return PrefillSlice(stop - one.count, stop, table, context, self._pieces(one.start, one.count))

    def _pieces(self, start: int, count: int) -> list[QueryPiece]:
        size = count if self._device.type != "cpu" else PIECE if start + count <= SHORT_CONTEXT else LONG_PIECE
        # Every piece's mask is a window of one strip: nothing hidden up to the piece, then a triangle.
        strip = torch.zeros(min(size, count), start + count + size, dtype=self._layout.dtype, device=self._device)
        strip[:, start + count :] = torch.full_like(strip[:, start + count :], -math.inf).triu_(1)
        pieces: list[QueryPiece] = []
        for begin in range(0, count, size):
            end = min(begin + size, count)
            left = count - begin
            mask = strip[: end - begin, left : left + start + end] if start + begin else None
            pieces.append(QueryPiece(begin, end, start + end, mask))
        return pieces

    def _to_device(self, array: NDArray[np.int64] | NDArray[np.bool_]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.to(self._device, non_blocking=True)


def scored_rows(one: Slice) -> int:
    """How many of the slice's tokens have a prompt token behind them."""
    return max(0, min(one.count, one.sequence.request.prompt_tokens - 1 - one.start))


def _limit_tokens(layout: BlockLayout, device: torch.device) -> int:
    """Tokens of context in one decode group; a device with thousands of lanes takes them all at once."""
    if device.type != "cpu":
        return 1 << 40
    return CACHE_BYTES * torch.get_num_threads() // (2 * layout.row_bytes)


def split_by_context(contexts: Items[int], limit_tokens: int) -> list[tuple[int, int]]:
    """Cut rising context lengths into runs `(start, stop)` that are gathered and attended together.

    A run, padded to its longest context, holds at most `limit_tokens` (a single context may be longer), and padding
    never costs more than one more run would.
    """
    runs: list[tuple[int, int]] = []
    start = padding = 0
    for index in range(1, len(contexts)):
        padding += (contexts[index] - contexts[index - 1]) * (index - start)
        if padding > RUN_COST_TOKENS or contexts[index] * (index + 1 - start) > limit_tokens:
            runs.append((start, index))
            start, padding = index, 0
    if contexts:
        runs.append((start, len(contexts)))
    return runs
