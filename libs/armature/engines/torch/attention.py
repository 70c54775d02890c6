"""Attention over the paged pool, called by every layer of a transformers model through its attention interface.

It writes the step's keys and values into the pool, then attends: decode slices of a group in one call over their
gathered blocks, each prefill slice in a call of its own. The heads that share a key head are folded into the query
length, or into a dimension along which keys do not move, so keys are never repeated in memory.
"""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from armature.engines.torch.batch import DecodeGroup, PrefillSlice, StepBatch
from armature.engines.torch.memory import PagedMemory

NAME = "armature_paged"


class PagedStep:
    """What the attention function needs in one forward pass; handed through the model as a keyword."""

    is_watched = False

    def __init__(self, memory: PagedMemory, batch: StepBatch) -> None:
        self.memory = memory
        self.batch = batch

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention of one layer: query `[tokens, heads, dim]`, key and value `[tokens, kv_heads, dim]`."""
        memory, batch = self.memory, self.batch
        tokens = len(query)
        memory.rows.index_copy_(0, batch.key_rows[layer], key.reshape(tokens, -1))
        memory.rows.index_copy_(0, batch.value_rows[layer], value.reshape(tokens, -1))
        parts = [self._decode(group, layer, query[group.start : group.stop], scale) for group in batch.decodes]
        for one in batch.prefills:
            span = slice(one.start, one.stop)
            parts.append(self._prefill(one, layer, (query[span], key[span], value[span]), scale))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def notice(self, layer: int, passed: dict[str, Any]) -> None:
        """For a step that is watched: what else came with a layer's call."""

    def _decode(self, group: DecodeGroup, layer: int, query: torch.Tensor, scale: float) -> torch.Tensor:
        count, heads, dim = query.shape
        kv_heads = self.memory.layout.kv_heads
        key, value = (
            pages.index_select(0, group.table).view(count, -1, kv_heads, dim).transpose(1, 2)
            for pages in (self.memory.keys[layer], self.memory.values[layer])
        )
        folded = query.reshape(count, kv_heads, heads // kv_heads, dim)
        out = scaled_dot_product_attention(folded, key, value, attn_mask=group.mask, scale=scale)
        return out.reshape(count, heads, dim)

    def _prefill(
        self, one: PrefillSlice, layer: int, qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor], scale: float
    ) -> torch.Tensor:
        query, key, value = qkv
        _, heads, dim = query.shape
        kv_heads = self.memory.layout.kv_heads
        if one.table is not None:
            key, value = (
                pages.index_select(0, one.table).view(-1, kv_heads, dim)[: one.context]
                for pages in (self.memory.keys[layer], self.memory.values[layer])
            )
        grouped = query.transpose(0, 1).unflatten(0, (kv_heads, heads // kv_heads))
        key, value = (
            pages.transpose(0, 1)[:, None].expand(kv_heads, heads // kv_heads, one.context, dim)
            for pages in (key, value)
        )
        parts = [
            scaled_dot_product_attention(
                grouped[:, :, piece.start : piece.stop],
                key[:, :, : piece.context],
                value[:, :, : piece.context],
                attn_mask=piece.mask,
                is_causal=piece.mask is None,
                scale=scale,
            )
            for piece in one.pieces
        ]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        return out.flatten(0, 1).transpose(0, 1)


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    paged_step: PagedStep | None = None,
    **passed: Any,
) -> tuple[torch.Tensor, None]:
    """The function that models call: query `[1, heads, tokens, dim]` in, `[1, tokens, heads, dim]` out."""
    assert paged_step is not None, "the model was called without a step"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx
    if paged_step.is_watched:
        paged_step.notice(layer, passed | {"attention_mask": attention_mask})
    out = paged_step.attend(layer, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), scale)
    return out[None], None


def register() -> None:
    """Make the attention known to transformers under `NAME`. May be called again.

    No mask function goes with it: for an attention without one, models build no mask over the packed tokens.
    """
    AttentionInterface.register(NAME, paged_attention)
