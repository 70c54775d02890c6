"""How likely the tokens of prompts were, put together while their chunks are computed.

Log probabilities are the model's own, as those of answers are. Only a prompt under way has some here; one that starts
over, since its blocks were taken or a step failed, is scored anew.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from armature.scheduling.plan import SampledToken, Slice
from armature.scheduling.request import PromptLogprobs


@dataclass(slots=True)
class _Scores:
    """Of the tokens after the first `tokens`, row by row: token ids, log probabilities and ranks."""

    top: int
    tokens: int = 0
    token_ids: list[NDArray[np.uint32]] = field(default_factory=list[NDArray[np.uint32]])
    logprobs: list[NDArray[np.float32]] = field(default_factory=list[NDArray[np.float32]])
    ranks: list[NDArray[np.uint32]] = field(default_factory=list[NDArray[np.uint32]])

    def told(self) -> PromptLogprobs:
        parts = (self.token_ids, self.logprobs, self.ranks)
        return PromptLogprobs(self.top, *(b"".join([rows.tobytes() for rows in part]) for part in parts))


class PromptScorer:
    """Keeps scores by request until they are told, or to be forgotten."""

    def __init__(self) -> None:
        self._scores: dict[str, _Scores] = {}

    def forget(self, request_id: str) -> None:
        self._scores.pop(request_id, None)

    def add(
        self, logits: torch.Tensor, scored: Items[tuple[Slice, int]], slices: Items[Slice], sampled: list[SampledToken]
    ) -> None:
        """Score the chunks in `scored`, whose rows of `logits` `[rows, vocab]` follow one another; what is complete
        goes with the token that its slice has `sampled`, one for each of `slices` that samples.

        Raises:
            ArithmeticError: a chunk does not follow on the one before it.
        """
        places = {id(one): place for place, one in enumerate([one for one in slices if one.samples])}
        begin = 0
        for one, count in scored:
            scores = self._score(one, logits[begin : begin + count])
            begin += count
            if one.samples:
                place = places[id(one)]
                sampled[place] = sampled[place]._replace(prompt_logprobs=scores.told())
                self.forget(one.sequence.request.request_id)

    def _score(self, one: Slice, logits: torch.Tensor) -> _Scores:
        request, start = one.sequence.request, one.start
        top = min(request.sampling.prompt_logprobs or 0, logits.shape[-1])
        scores = self._scores.get(request.request_id)
        if not start:
            scores = self._scores[request.request_id] = _Scores(top)
        if scores is None or scores.tokens != start:
            raise ArithmeticError(f"the tokens of {request.request_id} before token {start} are not scored")
        scores.tokens += one.count
        if len(logits):
            logprobs = logits.float().log_softmax(-1)
            behind = one.sequence.token_ids[start + 1 : start + 1 + len(logits)]
            chosen = torch.from_numpy(np.array(behind, dtype=np.int64)).to(logits.device)[:, None]
            own = logprobs.gather(-1, chosen)
            values, ids = logprobs.topk(top, dim=-1)
            scores.token_ids.append(torch.cat([chosen, ids], -1).cpu().numpy().astype("<u4"))
            scores.logprobs.append(torch.cat([own, values], -1).cpu().numpy().astype("<f4"))
            scores.ranks.append((1 + (logprobs > own).sum(-1)).cpu().numpy().astype("<u4"))
        return scores
