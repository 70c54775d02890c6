"""What values mean: ranges, combinations, and what is not implemented.

Shared by REST and gRPC: both end in an `Ask`, which holds only what every surface means alike. Validation refuses and
never repairs, with one exception: `max_tokens` is an upper bound, so more than the context holds is no mistake.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from armature.openai.errors import ApiError, invalid, unsupported
from armature.openai.schema import Body
from armature.openai.tools import NO_TOOLS, ToolUse
from armature.routing.hints import NO_HINTS, Hints
from armature.v1.common_pb2 import Grammar, SamplingParams

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 512
MAX_STOP_TOKENS = 128
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20
MAX_CHOICES = 16
MAX_TOKENS_EVER = 2**31 - 1
"""`max_tokens` travels as 32 bits; beyond this nobody has a context."""
LEAST_FLOAT = 2.0**-126
"""What is smaller may be 0 at the worker: numbers travel as floats of 32 bits."""
LEAST_REPETITION_PENALTY = 0.01
"""Logits are divided by it, and must stay numbers: those that are not fail the step of all requests in the batch."""


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Used as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Rendered with the model's chat template; `messages` hold role and content strings, and tool calls."""

    messages: Sequence[Mapping[str, Any]]
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Already tokenized."""

    token_ids: Sequence[int]


Prompt = TextPrompt | ChatPrompt | TokenPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a client wants, whichever surface it came through."""

    model: str
    prompt: Prompt
    prompt_field: str
    """What the client calls the prompt, for errors about it."""
    sampling: SamplingParams
    max_tokens: int | None = None
    """Output tokens; None: until the context is full. 0: only what is told of the prompt is wanted."""
    stop: tuple[str, ...] = ()
    include_info: bool = False
    session_id: str = ""
    """Equal for requests of one conversation; empty: unknown."""
    hints: Hints = NO_HINTS
    num_answers: int = 1
    """How many to make, each with a seed of its own."""
    grammar: Grammar | None = None
    """What the answer must match; None: anything."""
    grammar_field: str = "grammar"
    """What the client calls it, for errors about it."""
    tools: ToolUse = NO_TOOLS


@dataclass(frozen=True, slots=True)
class Range:
    low: float
    high: float
    fix: str

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


RANGES: Mapping[str, Range] = {
    "temperature": Range(0, 2, "must be between 0 and 2"),
    "top_p": Range(LEAST_FLOAT, 1, "must be above 0 and at most 1"),
    "top_k": Range(-1, 2**31 - 1, "must be -1 or 0 (keep all tokens), or the number of tokens to keep"),
    "min_p": Range(0, 1, "must be between 0 and 1"),
    "presence_penalty": Range(-2, 2, "must be between -2 and 2"),
    "frequency_penalty": Range(-2, 2, "must be between -2 and 2"),
    "repetition_penalty": Range(LEAST_REPETITION_PENALTY, 100, f"must be between {LEAST_REPETITION_PENALTY} and 100"),
    "min_tokens": Range(0, MAX_TOKENS_EVER, f"must be between 0 and {MAX_TOKENS_EVER}"),
    "top_logprobs": Range(0, MAX_TOP_LOGPROBS, f"must be between 0 and {MAX_TOP_LOGPROBS}"),
    "prompt_logprobs": Range(0, MAX_TOP_LOGPROBS, f"must be between 0 and {MAX_TOP_LOGPROBS}"),
    "max_tokens": Range(1, MAX_TOKENS_EVER, f"must be between 1 and {MAX_TOKENS_EVER}"),
    "max_completion_tokens": Range(1, MAX_TOKENS_EVER, f"must be between 1 and {MAX_TOKENS_EVER}"),
    "max_tool_calls": Range(1, MAX_TOKENS_EVER, f"must be between 1 and {MAX_TOKENS_EVER}"),
    "n": Range(1, MAX_CHOICES, f"must be between 1 and {MAX_CHOICES}"),
    "best_of": Range(1, MAX_CHOICES, f"must be between n and {MAX_CHOICES}"),
    "seed": Range(-(2**63), 2**64 - 1, "must be an integer of 64 bits"),
}

# Field, what leaves the answer's meaning alone, what to do instead.
UNSUPPORTED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("functions", ([],), 'send {"type": "function", "function": ...} in tools instead'),
    ("function_call", ("none", "auto"), "use tools and tool_choice instead"),
    ("modalities", ([], ["text"]), 'only ["text"] is implemented'),
    ("audio", (), "audio is not implemented; leave it out"),
    ("moderation", (), "answers are not moderated; leave it out"),
    ("web_search_options", (), "there is no web search; leave it out"),
    ("suffix", ("",), "insertion is not implemented; leave it out"),
    ("use_beam_search", (False,), "beam search is not implemented; leave it out"),
    ("truncate_prompt_tokens", (), "prompts are never cut; shorten it yourself"),
    ("continue_final_message", (False,), "use /v1/completions to continue a text"),
    ("add_generation_prompt", (True,), "use /v1/completions to continue a text"),
    ("bad_words", ([],), "use logit_bias with -100"),
)


def refuse_unsupported(body: Body) -> None:
    """Raise for fields whose values would change the meaning of the answer and are not implemented."""
    for name, neutral, fix in UNSUPPORTED:
        value = getattr(body, name)
        if value is None or any(type(value) is type(other) and value == other for other in neutral):
            continue
        raise unsupported(name, fix)


def check_ranges(values: Mapping[str, float | None]) -> None:
    """Raise for the first number outside its range; None is not checked. NaN is outside every range."""
    for name, value in values.items():
        if value is not None and not RANGES[name].holds(value):
            raise invalid(name, f"{RANGES[name].fix}, not {value}")


def check_stop(stop: str | Iterable[str] | None) -> tuple[str, ...]:
    """The stop strings, without repetitions."""
    if stop is None:
        return ()
    stops = (stop,) if isinstance(stop, str) else tuple(dict.fromkeys(stop))
    if len(stops) > MAX_STOP_STRINGS:
        raise invalid("stop", f"at most {MAX_STOP_STRINGS} strings are possible, not {len(stops)}")
    for text in stops:
        if not text:
            raise invalid("stop", "a stop string must not be empty")
        if len(text) > MAX_STOP_CHARACTERS:
            raise invalid("stop", f"a stop string has at most {MAX_STOP_CHARACTERS} characters, not {len(text)}")
    return stops


def check_token_ids(param: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """Raise unless every id is in the vocabulary."""
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise invalid(param, f"token ids must be between 0 and {vocab_size - 1}, not {wrong}")


def parse_logit_bias(bias: Mapping[str, float] | None) -> dict[int, float]:
    """Token ids and what to add to their logits."""
    if not bias:
        return {}
    parsed: dict[int, float] = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise invalid("logit_bias", f"keys must be token ids, not '{key[:40]}'")
        parsed[int(key)] = value
    return parsed


def check_against_model(sampling: SamplingParams, max_tokens: int | None, vocab_size: int) -> None:
    """Raise for what only the model can tell: ids outside its vocabulary, and combinations.

    Raises:
        ApiError: 400 that names the field.
    """
    bias = sampling.logit_bias
    if bias:
        if len(bias) > MAX_LOGIT_BIAS:
            raise invalid("logit_bias", f"at most {MAX_LOGIT_BIAS} tokens are possible, not {len(bias)}")
        for value in bias.values():
            if not -100 <= value <= 100:
                raise invalid("logit_bias", f"values must be between -100 and 100, not {value}")
        check_token_ids("logit_bias", list(bias), vocab_size)
    stops = sampling.stop_token_ids
    if stops:
        if len(stops) > MAX_STOP_TOKENS:
            raise invalid("stop_token_ids", f"at most {MAX_STOP_TOKENS} ids are possible, not {len(stops)}")
        check_token_ids("stop_token_ids", stops, vocab_size)
    if max_tokens is not None and sampling.min_tokens > max_tokens:
        raise invalid("min_tokens", f"must not be above max_tokens ({max_tokens}), is {sampling.min_tokens}")


def sampling_of(body: Body) -> SamplingParams:
    """The body's sampling parameters, ranges checked; `logprobs` are left to the caller, whose shapes differ."""
    check_ranges({name: getattr(body, name) for name in _SAMPLING_FIELDS})
    check_ranges({"seed": body.seed, "n": body.n, "best_of": body.best_of})
    stop_token_ids = body.stop_token_ids or ()
    if any(not 0 <= token_id < 2**32 for token_id in stop_token_ids):
        raise invalid("stop_token_ids", "token ids must be in the model's vocabulary")
    bias = parse_logit_bias(body.logit_bias)
    if any(token_id >= 2**32 for token_id in bias):
        raise invalid("logit_bias", "token ids must be in the model's vocabulary")
    return SamplingParams(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty,
        seed=None if body.seed is None else body.seed & (2**64 - 1),
        logit_bias=bias,
        stop_token_ids=stop_token_ids,
        ignore_eos=bool(body.ignore_eos),
        min_tokens=body.min_tokens or 0,
        prompt_logprobs=body.prompt_logprobs,
    )


_SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "min_tokens", "prompt_logprobs",
)  # fmt: skip


def check_streamed(body: Body) -> None:
    """Raise for what is possible only with a stream, or only without one."""
    if body.prompt_logprobs is not None and body.stream:
        raise invalid("prompt_logprobs", 'not possible with "stream": true')
    if body.stream_options is not None and not body.stream:
        raise ApiError(
            400, "'stream_options' is only possible with \"stream\": true", param="stream_options", code="invalid_value"
        )
