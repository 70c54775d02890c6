"""What an engine takes on: the bounds of its steps and queues, and why a request can never be served."""

from dataclasses import dataclass

import numpy as np

from armature.scheduling.request import Request, Work


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one scheduler.

    Raises:
        ValueError: a bound is below 1, or a step could not hold one token of every running request.
    """

    max_num_seqs: int
    """Requests in one step. Raise it for throughput, lower it for a shorter decode step."""
    max_num_batched_tokens: int
    """Tokens in one step. Raise it for faster prefill, lower it if prefill delays running decodes too much."""
    context_length: int
    """Tokens of prompt and output together."""
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    max_waiting: int = 1024
    """Requests that may wait; further ones are answered with an error that starts with `queue full`."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "context_length", "vocab_size", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}): "
                "a step could not hold one token of every running request"
            )


def refusal(request: Request, limits: Limits, pool_tokens: int) -> str:
    """Why nobody with these limits and a pool of `pool_tokens` tokens can serve the request; empty if it can."""
    given, prompt = len(request.token_ids), request.prompt_tokens
    if not 1 <= prompt <= given:
        return f"prompt_tokens is {prompt} of {given} token ids; it must be at least 1 and at most all of them"
    token_ids = np.asarray(request.token_ids)
    if token_ids.min() < 0 or token_ids.max() >= limits.vocab_size:
        return f"a token id lies outside the vocabulary of {limits.vocab_size}"
    if any(not 0 <= token_id < limits.vocab_size for token_id in request.sampling.logit_bias):
        return f"a logit bias is for a token outside the vocabulary of {limits.vocab_size}"
    # A prompt that leaves no room for one token of output can't be answered; one that is only prefilled may fill up.
    needed = prompt if request.work is Work.PREFILL else prompt + 1
    if needed > limits.context_length:
        return f"the prompt has {prompt} tokens; the context length is {limits.context_length}"
    if needed > pool_tokens:
        return f"the prompt has {prompt} tokens; the KV pool holds {pool_tokens}"
    return ""
