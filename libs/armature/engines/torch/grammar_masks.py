"""Keeps the rows of a step to their grammars: what they must not say gets a logit of minus infinity.

The masks of all rows are computed at once, without the interpreter's lock and on several cores if there are several
rows. A grammar that can't go on ends its own request and no other.
"""

import math
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from llguidance import LLExecutor
from numpy.typing import NDArray

from armature.grammars.compiler import Follower
from armature.scheduling.plan import SampledToken, Slice

_WORD_BYTES = 4


@dataclass(frozen=True, slots=True)
class BoundRows:
    """The rows of one step that have grammars."""

    at: list[int]
    followers: list[Follower]
    forbidden: torch.Tensor
    """`[len(at), vocab]`, bool."""
    problems: list[str]
    """Why each of them can't go on; empty for those that can."""

    def forbid(self, logits: torch.Tensor) -> None:
        """Change float32 logits `[rows, vocab]` of the step in place."""
        if len(self.at) == len(logits):
            logits.masked_fill_(self.forbidden, -math.inf)
            return
        index = torch.tensor(self.at, device=logits.device)
        logits[index] = logits[index].masked_fill_(self.forbidden, -math.inf)

    def accept(self, sampled: list[SampledToken]) -> list[SampledToken]:
        """Advance the grammars by the chosen tokens; the tokens, with what that means for their requests."""
        for at, follower, problem in zip(self.at, self.followers, self.problems, strict=True):
            one = sampled[at]
            if problem:
                sampled[at] = SampledToken(one.token_id, error=f"grammar: {problem}")
            elif follower.accept(one.token_id):
                sampled[at] = one._replace(is_last=True)
        return sampled


class GrammarMasks:
    """Finds what may come next. One per runner."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._mask_bytes = -(-vocab_size // 32) * _WORD_BYTES
        self._device = device
        self._executor: LLExecutor | None = None

    def follow(self, rows: Items[Slice]) -> BoundRows:
        """Bring the grammars of the rows that have one to where their answers are."""
        at: list[int] = []
        followers: list[Follower] = []
        for index, one in enumerate(rows):
            sequence = one.sequence
            follower = sequence.request.grammar
            if follower is not None:
                assert isinstance(follower, Follower)
                follower.follow(sequence.token_ids, sequence.request.prompt_tokens, one.start + one.count)
                at.append(index)
                followers.append(follower)
        masks = self._masks(followers)
        problems = [follower.problem for follower in followers]
        for index in np.flatnonzero(~masks.any(-1)).tolist():
            problems[index] = problems[index] or "no token of this model can follow"
            masks[index] = 255  # there must be something to choose, though nobody is told
        np.invert(masks, out=masks)
        forbidden = np.unpackbits(masks, axis=-1, count=self._vocab_size, bitorder="little").view(np.bool_)
        return BoundRows(at, followers, torch.from_numpy(forbidden).to(self._device, non_blocking=True), problems)

    def _masks(self, followers: list[Follower]) -> NDArray[np.uint8]:
        """A bit for each token that may follow, `[followers, bytes]`."""
        masks = np.empty((len(followers), self._mask_bytes), dtype=np.uint8)
        if len(followers) == 1:
            followers[0].matcher.unsafe_compute_mask_ptr(masks.ctypes.data, self._mask_bytes)
        else:
            if self._executor is None:
                self._executor = LLExecutor()
            matchers = [(follower.matcher, index) for index, follower in enumerate(followers)]
            self._executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, self._mask_bytes, len(followers))
        return masks
