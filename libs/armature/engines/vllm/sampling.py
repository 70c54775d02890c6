"""From our sampling parameters to vLLM's, and what vLLM can't follow. Pure.

vLLM calls parameters what we call them, mostly. It counts as output only what it has made itself: where a request was
moved here with the beginning of its answer, that is prompt to it. Lengths and seeds are adjusted for that; penalties
and grammars, which would have to know the beginning, are refused.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from armature.scheduling.request import Request, Work


class UnfollowableError(ValueError):
    """vLLM can't do what the request asks for; the message says what."""


def sampling_fields(request: Request, eos_token_ids: Sequence[int]) -> dict[str, Any]:
    """Fields of vLLM's `SamplingParams`, the grammar left out.

    Raises:
        UnfollowableError: the request can't be followed.
    """
    _check(request)
    sampling = request.sampling
    made = len(request.token_ids) - request.prompt_tokens
    stops = set(sampling.stop_token_ids)
    if not sampling.ignore_eos:
        stops.update(eos_token_ids)  # those of the worker's record, whatever vLLM has read out of the model's folder
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": _seed(sampling.seed, made) if sampling.temperature else None,
        "logit_bias": dict(sampling.logit_bias) or None,
        "logprobs": sampling.top_logprobs,
        "prompt_logprobs": sampling.prompt_logprobs,
        "stop_token_ids": sorted(stops),
        "ignore_eos": sampling.ignore_eos,
        "max_tokens": request.max_tokens - made,
        "min_tokens": max(0, sampling.min_tokens - made),
        "detokenize": False,
    }


def _check(request: Request) -> None:
    if request.work is not Work.GENERATE:
        raise UnfollowableError(f"vLLM workers do no {request.work.value} for others")
    if len(request.token_ids) == request.prompt_tokens:
        return
    sampling = request.sampling
    for name in ("presence_penalty", "frequency_penalty"):
        if getattr(sampling, name):
            raise UnfollowableError(f"{name} can't go on at a vLLM worker with an answer that was begun elsewhere")
    if request.grammar is not None:
        raise UnfollowableError("a grammar can't go on at a vLLM worker with an answer that was begun elsewhere")


def _seed(seed: int, made: int) -> int:
    """The seed itself, or another that follows from it: the numbers of the answer's beginning must not come again."""
    if not made:
        return seed
    digest = blake2b(seed.to_bytes(8, "little") + made.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
