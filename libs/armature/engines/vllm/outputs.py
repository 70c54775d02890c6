"""From vLLM's outputs to ours. Pure."""

from collections.abc import Sequence

import numpy as np

from armature.engines.vllm.surface import Output, Scores
from armature.scheduling.request import FinishReason, PromptLogprobs, Request, TokenLogprobs, TokenOutput

_REASONS = {
    None: None,
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "abort": FinishReason.CANCELLED,
}


def token_output(request: Request, output: Output, index: int) -> TokenOutput:
    """What has been added to the answer to `request`; `index`: of the first token among its output."""
    (added,) = output.outputs
    reason = _REASONS.get(added.finish_reason, FinishReason.ERROR)
    logprobs: tuple[TokenLogprobs, ...] = ()
    top = request.sampling.top_logprobs
    if top is not None and added.logprobs is not None:
        pairs = zip(added.token_ids, added.logprobs, strict=True)
        logprobs = tuple([_token_logprobs(token_id, scores, top) for token_id, scores in pairs])
    return TokenOutput(
        request_id=request.request_id,
        output_index=index,
        token_ids=tuple(added.token_ids),
        finish_reason=reason,
        cached_tokens=min(output.num_cached_tokens or 0, request.prompt_tokens),
        logprobs=logprobs,
        error=f"vLLM ended the request: {added.finish_reason}" if reason is FinishReason.ERROR else "",
        prompt_logprobs=_prompt_logprobs(request, output.prompt_logprobs),
    )


def _likeliest(scores: Scores, top: int) -> list[int]:
    """Token ids of the first `top` places."""
    ranked = sorted((score.rank, token_id) for token_id, score in scores.items() if score.rank is not None)
    return [token_id for rank, token_id in ranked if rank <= top]


def _token_logprobs(token_id: int, scores: Scores, top: int) -> TokenLogprobs:
    token_ids = (token_id, *_likeliest(scores, top))
    return TokenLogprobs(token_ids, tuple([scores[one].logprob for one in token_ids]))


def _prompt_logprobs(request: Request, places: Sequence[Scores | None] | None) -> PromptLogprobs | None:
    """The prompt's rows; of an answer that was begun elsewhere, that beginning is left out."""
    top = request.sampling.prompt_logprobs
    if top is None or not places:
        return None
    own = request.token_ids[1 : request.prompt_tokens]
    ids, values, ranks = (np.zeros((len(own), top + 1), kind) for kind in ("<u4", "<f4", "<u4"))
    for row, (token_id, scores) in enumerate(zip(own, places[1 : request.prompt_tokens], strict=True)):
        assert scores is not None, "only of a prompt's first token nothing is known"
        told = [token_id, *_likeliest(scores, top)]
        ids[row, : len(told)] = told
        values[row, : len(told)] = [scores[one].logprob for one in told]
        ranks[row, 0] = scores[token_id].rank or 0
    return PromptLogprobs(top, ids.tobytes(), values.tobytes(), ranks[:, 0].tobytes())
