"""What is changed in logits before a token is chosen: bias, end tokens that would come too early, penalties.

All of it is sparse: a request touches the logits of tokens that it names or has seen, through a flat view of the
step's logits. Seen tokens are counted as they come, never recounted.
"""

import math
from collections.abc import Callable
from collections.abc import Sequence as Items

import numpy as np
import torch
from numpy.typing import NDArray

from armature.scheduling.plan import Sequence, Slice
from armature.scheduling.request import Sampling


class TokenCounts:
    """The distinct tokens of one request's prompt and output, and how often each was put out."""

    def __init__(self, sequence: Sequence) -> None:
        self._counted = sequence.request.prompt_tokens
        self._tokens = np.unique(np.array(sequence.token_ids[: self._counted], dtype=np.int64))
        self._counts = np.zeros(len(self._tokens), dtype=np.float32)
        self._place = {int(token): place for place, token in enumerate(self._tokens)}

    def update(self, token_ids: Items[int], end: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Count the output up to `end`; the distinct tokens and their output counts, valid until the next call."""
        for token in token_ids[self._counted : end]:
            place = self._place.get(token)
            if place is None:
                place = self._add(token)
            self._counts[place] += 1.0
        self._counted = max(self._counted, end)
        used = len(self._place)
        return self._tokens[:used], self._counts[:used]

    def _add(self, token: int) -> int:
        place = len(self._place)
        if place == len(self._tokens):
            more = place + 16
            self._tokens = np.concatenate([self._tokens, np.zeros(more, dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(more, dtype=np.float32)])
        self._tokens[place] = token
        self._place[token] = place
        return place


class _Adjustments:
    """One request's: arrays of token ids within the vocabulary, made once."""

    def __init__(self, sequence: Sequence, vocab_size: int, eos_token_ids: Items[int]) -> None:
        sampling = sequence.request.sampling
        bias = {token: value for token, value in sampling.logit_bias.items() if 0 <= token < vocab_size}
        self.bias_tokens = np.array(list(bias), dtype=np.int64)
        self.bias = np.array(list(bias.values()), dtype=np.float32)
        ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos_token_ids)}
        self.end_tokens = np.array(sorted(token for token in ends if 0 <= token < vocab_size), dtype=np.int64)
        self.counts = TokenCounts(sequence) if has_penalties(sampling) else None


class LogitAdjuster:
    """Adjusts the logits of a step in place, in this order: bias, minimum of tokens, penalties."""

    def __init__(self, vocab_size: int, eos_token_ids: Items[int], device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._device = device
        self._kept: dict[str, _Adjustments] = {}

    def forget(self, request_id: str) -> None:
        self._kept.pop(request_id, None)

    def adjust(self, logits: torch.Tensor, rows: Items[Slice]) -> None:
        """Change float32 logits `[rows, vocab]`, each row of the slice that samples from it."""
        wanted = [(at, one, self._of(one.sequence)) for at, one in enumerate(rows) if needs_adjusting(one)]
        if not wanted:
            return
        flat = logits.view(-1)
        biased = [(at, kept) for at, _, kept in wanted if len(kept.bias)]
        if biased:
            index = self._flat([(at, kept.bias_tokens) for at, kept in biased])
            flat.index_add_(0, index, self._to_device(np.concatenate([kept.bias for _, kept in biased])))
        early = [(at, kept.end_tokens) for at, one, kept in wanted if is_too_early(one)]
        if early:
            flat.index_fill_(0, self._flat(early), -math.inf)
        penalized = [(at, one, kept.counts) for at, one, kept in wanted if kept.counts is not None]
        if penalized:
            self._penalize(flat, penalized)

    def _penalize(self, flat: torch.Tensor, rows: Items[tuple[int, Slice, TokenCounts]]) -> None:
        seen = [counts.update(one.sequence.token_ids, one.start + one.count) for _, one, counts in rows]
        index = self._flat([(at, tokens) for (at, _, _), (tokens, _) in zip(rows, seen, strict=True)])
        counts = self._to_device(np.concatenate([count for _, count in seen]))
        sizes = np.array([len(count) for _, count in seen])

        def spread(of: Callable[[Sampling], float]) -> torch.Tensor:
            values = np.array([of(one.sequence.request.sampling) for _, one, _ in rows], dtype=np.float32)
            return self._to_device(np.repeat(values, sizes))

        value = flat[index]
        repetition = spread(lambda sampling: sampling.repetition_penalty)
        value = torch.where(value > 0, value / repetition, value * repetition)
        value -= spread(lambda sampling: sampling.frequency_penalty) * counts
        value -= spread(lambda sampling: sampling.presence_penalty) * (counts > 0)
        flat[index] = value

    def _of(self, sequence: Sequence) -> _Adjustments:
        request_id = sequence.request.request_id
        kept = self._kept.get(request_id)
        if kept is None:
            kept = self._kept[request_id] = _Adjustments(sequence, self._vocab_size, self._eos_token_ids)
        return kept

    def _flat(self, tokens: Items[tuple[int, NDArray[np.int64]]]) -> torch.Tensor:
        return self._to_device(np.concatenate([at * self._vocab_size + ids for at, ids in tokens]))

    def _to_device(self, array: NDArray[np.int64] | NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


def output_index(one: Slice) -> int:
    """Position of the token that is chosen after this slice, counted from the end of the prompt."""
    return one.start + one.count - one.sequence.request.prompt_tokens


def has_penalties(sampling: Sampling) -> bool:
    return bool(sampling.presence_penalty or sampling.frequency_penalty) or sampling.repetition_penalty != 1.0


def is_too_early(one: Slice) -> bool:
    """Whether end tokens are not allowed yet."""
    return output_index(one) < one.sequence.request.sampling.min_tokens


def needs_adjusting(one: Slice) -> bool:
    sampling = one.sequence.request.sampling
    return bool(sampling.logit_bias) or has_penalties(sampling) or is_too_early(one)
