"""What we use of vLLM, so that nothing but `launch` needs it to be installed: tests bring their own."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class TokenScore(Protocol):
    """How likely a token was in its place, and which place it had among all, counted from 1."""

    @property
    def logprob(self) -> float: ...
    @property
    def rank(self) -> int | None: ...


Scores = Mapping[int, TokenScore]
"""By token id: the place's own token and the likeliest ones."""


class Completion(Protocol):
    """What has been added to an answer."""

    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def logprobs(self) -> Sequence[Scores] | None: ...
    @property
    def finish_reason(self) -> str | None: ...


class Output(Protocol):
    """What a request has come to since the last one."""

    @property
    def outputs(self) -> Sequence[Completion]: ...
    @property
    def num_cached_tokens(self) -> int | None: ...
    @property
    def prompt_logprobs(self) -> Sequence[Scores | None] | None: ...


class Vllm(Protocol):
    """`AsyncLLM`. A generator that is closed or cancelled has its request aborted."""

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, *, priority: int
    ) -> AsyncGenerator[Output, None]: ...

    @property
    def errored(self) -> bool:
        """Whether it computes nothing any more."""
        ...

    def shutdown(self) -> None: ...


class StepNews(NamedTuple):
    """What one of its steps computed."""

    num_prompts: int
    prefill_tokens: int
    num_decodes: int
    elapsed_s: float


class Stats(NamedTuple):
    """Its state after a step."""

    running_seqs: int
    kv_usage: float
    """Share of the blocks that requests hold, 0 to 1."""
    preemptions: int = 0
    """In this step."""
    step: StepNews | None = None
