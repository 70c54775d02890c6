"""Embeddings: the mean of a prompt's last hidden states, summed up while its chunks are computed.

Sums are taken in 32 bits whatever the model computes in. Only a prompt under way has one; a prompt that starts over,
since its blocks were taken or a step failed, starts its sum over too.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch.nn.functional import normalize

from armature.scheduling.plan import SampledToken, Slice


@dataclass(slots=True)
class _Sum:
    tokens: int
    states: torch.Tensor


class Pooler:
    """Keeps sums by request until they are complete, or told to forget."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = {}

    def forget(self, request_id: str) -> None:
        self._sums.pop(request_id, None)

    def add(
        self,
        hidden: torch.Tensor,
        pooled: Items[tuple[Slice, int, int]],
        slices: Items[Slice],
        sampled: list[SampledToken],
    ) -> None:
        """Add the chunks in `pooled`, rows of `hidden` `[tokens, size]`; complete means become the embeddings of what
        their slices have `sampled`, one for each of `slices` that samples.

        Raises:
            ArithmeticError: a chunk does not follow on the one before it.
        """
        places = {id(one): place for place, one in enumerate([one for one in slices if one.samples])}
        for one, start, stop in pooled:
            total = self._total(one, hidden[start:stop].float().sum(dim=0))
            if one.samples:
                direction = normalize(total, dim=0)  # the mean's own, whose length does not matter
                embedding = direction.cpu().numpy().astype("<f4").tobytes()
                sampled[places[id(one)]] = SampledToken(0, embedding=embedding)

    def _total(self, one: Slice, states: torch.Tensor) -> torch.Tensor:
        request_id = one.sequence.request.request_id
        known = self._sums.get(request_id)
        if not one.start:
            known = self._sums[request_id] = _Sum(0, torch.zeros_like(states))
        if known is None or known.tokens != one.start:
            raise ArithmeticError(f"the hidden states of {request_id} before token {one.start} are not summed up")
        known.tokens += one.count
        known.states += states
        return known.states
