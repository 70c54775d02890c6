"""Between the words of the Decode contract and those of an engine, with every check on the way in."""

import sys
from array import array
from collections.abc import Iterable, Sequence
from math import isfinite

import numpy as np

from armature.engines.engine import EngineInfo
from armature.runtime.errors import CallerError, NotFoundError
from armature.scheduling.request import FinishReason, PromptLogprobs, Sampling, TokenLogprobs
from armature.v1 import common_pb2 as common
from armature.v1.worker_pb2 import DecodeRequest, WorkerError

MAX_TOP_LOGPROBS = 20
TOKEN_ID_BYTES = 4

FINISH_REASONS = {
    FinishReason.STOP: common.FINISH_REASON_STOP,
    FinishReason.LENGTH: common.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: common.FINISH_REASON_CANCELLED,
    FinishReason.ERROR: common.FINISH_REASON_ERROR,
}


def unpack_tokens(packed: bytes, info: EngineInfo) -> "array[int]":
    """Token ids as they travel between services, little-endian 32-bit.

    Raises:
        CallerError: no tokens, a broken one, or one outside of the vocabulary.
    """
    if not packed or len(packed) % TOKEN_ID_BYTES:
        raise CallerError(f"token_ids has {len(packed)} bytes; expected 4 for each of at least one token")
    tokens = array("I", packed)
    if sys.byteorder == "big":
        tokens.byteswap()
    largest = int(np.asarray(tokens).max())
    if largest >= info.vocab_size:
        raise CallerError(f"token_ids has {largest}; the vocabulary of {info.model} has {info.vocab_size}")
    return tokens


def pack_tokens(token_ids: Sequence[int]) -> bytes:
    """The inverse of `unpack_tokens`."""
    tokens = array("I", token_ids)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens.tobytes()


def check_model(model: str, info: EngineInfo) -> None:
    """Raises `NotFoundError` unless the engine serves `model`."""
    if model != info.model:
        raise NotFoundError(f"model is {model!r}; this worker serves {info.model!r}")


def check_prompt(prompt_tokens: int, info: EngineInfo) -> None:
    """Raises `CallerError` unless the engine has room for the prompt and one more token."""
    if prompt_tokens + 1 > info.context_length:
        raise CallerError(f"the prompt has {prompt_tokens} tokens; the context holds {info.context_length}")
    pool_tokens = (info.num_blocks - 1) * info.block_size  # block 0 is never handed out
    if prompt_tokens + 1 > pool_tokens:
        raise CallerError(f"the prompt has {prompt_tokens} tokens; the KV pool of this worker holds {pool_tokens}")


def check_lengths(request: DecodeRequest, num_tokens: int) -> int:
    """How many of the tokens are the prompt.

    Raises:
        CallerError: the request's numbers contradict each other.
    """
    prompt_tokens = request.prompt_tokens or num_tokens
    if prompt_tokens > num_tokens:
        raise CallerError(f"prompt_tokens is {prompt_tokens}, but token_ids has only {num_tokens}")
    if request.max_tokens <= num_tokens - prompt_tokens:
        raise CallerError(
            f"max_tokens is {request.max_tokens}; it must be above the {num_tokens - prompt_tokens} made already"
        )
    if not (isfinite(request.timeout_s) and request.timeout_s >= 0):
        raise CallerError(f"timeout_s is {request.timeout_s}; it must be 0 or more")
    return prompt_tokens


def check_grammar(request: DecodeRequest) -> None:
    """Raises `CallerError` if the request wants both to match a grammar and to go on when it is complete."""
    if request.HasField("grammar") and request.sampling.min_tokens:
        raise CallerError("min_tokens is not possible with a grammar, which says itself when the answer ends")


def code_of(error: str) -> "WorkerError.Code.ValueType":
    """Who can do something about what an engine says of a request that it ends: another worker, the client, nobody."""
    if error.startswith("queue full"):
        return WorkerError.CODE_UNAVAILABLE
    return WorkerError.CODE_INVALID if error.startswith(("grammar: ", "invalid: ")) else WorkerError.CODE_INTERNAL


def sampling_of(params: common.SamplingParams, info: EngineInfo) -> Sampling:
    """Sampling parameters with the contract's defaults.

    Raises:
        CallerError: one is out of range; the message names it.
    """
    sampling = Sampling(
        temperature=params.temperature if params.HasField("temperature") else 1.0,
        top_p=params.top_p if params.HasField("top_p") else 1.0,
        top_k=params.top_k,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty if params.HasField("repetition_penalty") else 1.0,
        seed=params.seed,
        logit_bias=dict(params.logit_bias),
        top_logprobs=params.top_logprobs if params.logprobs else None,
        stop_token_ids=frozenset(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        min_tokens=params.min_tokens,
        prompt_logprobs=params.prompt_logprobs if params.HasField("prompt_logprobs") else None,
    )
    _check_range("temperature", sampling.temperature, 0.0, 100.0)
    _check_range("top_p", sampling.top_p, 0.0, 1.0)
    if sampling.top_p == 0.0:
        raise CallerError("top_p is 0; it must be above 0")
    _check_range("min_p", sampling.min_p, 0.0, 1.0)
    _check_range("presence_penalty", sampling.presence_penalty, -2.0, 2.0)
    _check_range("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    # Beyond these a logit may leave the floats, and what is no number fails a step.
    if not 0.009 <= sampling.repetition_penalty <= 100:
        raise CallerError(f"repetition_penalty is {sampling.repetition_penalty}; it must be between 0.01 and 100")
    _check_range("top_logprobs", params.top_logprobs, 0, MAX_TOP_LOGPROBS)
    _check_range("prompt_logprobs", params.prompt_logprobs, 0, MAX_TOP_LOGPROBS)
    _check_token_ids("stop_token_ids", sampling.stop_token_ids, info)
    _check_token_ids("logit_bias", sampling.logit_bias, info)
    if not all(isfinite(bias) for bias in sampling.logit_bias.values()):
        raise CallerError("logit_bias has a value that is not finite")
    return sampling


def logprobs_of(logprobs: TokenLogprobs) -> common.Logprobs:
    """Log probabilities for the wire, the chosen token first."""
    pairs = zip(logprobs.token_ids, logprobs.logprobs, strict=True)
    return common.Logprobs(tokens=[common.TokenLogprob(token_id=token_id, logprob=value) for token_id, value in pairs])


def prompt_logprobs_of(told: PromptLogprobs) -> common.PromptLogprobs:
    """Log probabilities of a prompt for the wire."""
    return common.PromptLogprobs(top=told.top, token_ids=told.token_ids, logprobs=told.logprobs, ranks=told.ranks)


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # also refuses NaN
        raise CallerError(f"{name} is {value:g}; it must be from {least:g} to {most:g}")


def _check_token_ids(name: str, token_ids: Iterable[int], info: EngineInfo) -> None:
    largest = max(token_ids, default=0)
    if largest >= info.vocab_size:
        raise CallerError(f"{name} has {largest}; the vocabulary of {info.model} has {info.vocab_size}")
