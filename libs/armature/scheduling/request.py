"""What an engine is asked to do, and what one of its steps yields.

These are the words between a worker's event loop and its engine: plain data, no behaviour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from armature.blocks.events import KvEvent as KvEvent
from armature.blocks.events import KvEventKind as KvEventKind
from armature.blocks.hashing import BlockDigest
from armature.performance.linear import LinearModel
from armature.scheduling.offloading import OffloadRun, Terms


class FinishReason(Enum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class Work(Enum):
    """What is wanted of a request."""

    GENERATE = "generate"
    PREFILL = "prefill"
    """Compute the prompt's whole blocks and keep them until released; sample nothing."""
    EMBED = "embed"
    """Compute the mean of the prompt's last hidden states, in blocks that nobody else finds. `max_tokens` is 1, and the
    one token that is told has no meaning but to bring the `embedding`."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; the meaning of each field stands in `protos/armature/v1/common.proto`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    top_logprobs: int | None = None
    """None: no log probabilities; n: the chosen token's and those of the n likeliest."""
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0
    prompt_logprobs: int | None = None
    """None: nothing is told of the prompt; n: how likely its tokens were, and the n likeliest in each place."""


@dataclass(frozen=True, slots=True)
class Request:
    """One piece of work for an engine.

    `token_ids` holds the prompt and, for a request that was moved here, the output made elsewhere, which counts as
    output for limits, penalties and random numbers.
    """

    request_id: str
    token_ids: Sequence[int]
    """An `array("I")` is taken over fastest."""
    prompt_tokens: int
    max_tokens: int
    """Output tokens, those already in `token_ids` included."""
    root: BlockDigest
    sampling: Sampling = Sampling()
    work: Work = Work.GENERATE
    remote: bool = False
    """The prompt's whole blocks come from another worker: reserve room for them and wait (see `Reserved`)."""
    first_block: int = 0
    """For PREFILL: blocks before this index need not be announced."""
    cached_only: bool = False
    """For PREFILL: stage what is cached and compute nothing. With `remote`: the other worker does so."""
    tenant: str = ""
    """Tenants that wait take turns."""
    priority: int = 0
    """Higher goes first, and gives way last."""
    keep_s: float = 0.0
    """How long its blocks are worth keeping after the answer; 0: nothing was said."""
    grammar: object | None = None
    """What the engine made of the grammar that the answer must match (`Engine.compile`); only its runner looks in."""

    @property
    def terms(self) -> Terms:
        """On which its blocks are kept below the device."""
        return Terms(self.tenant, self.priority, self.keep_s)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probability of the chosen token, then of the likeliest ones in falling order."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """How likely the tokens of a prompt were; laid out as in `protos/armature/v1/common.proto`."""

    top: int
    token_ids: bytes
    logprobs: bytes
    ranks: bytes


class TokenOutput(NamedTuple):
    """Tokens that a step gave to one request. A stop token that ends the request is the last of them.

    A named tuple, since one is made per token and a frozen dataclass takes three times as long.
    """

    request_id: str
    output_index: int
    """Position of the first of `token_ids` among the output, counted from the end of the prompt."""
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    """Prompt tokens found in the local prefix cache when the request was first admitted, or onboarded for it then."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    error: str = ""
    embedding: bytes = b""
    """For EMBED: of length 1, little-endian 32-bit floats."""
    prompt_logprobs: PromptLogprobs | None = None
    """With the first token made here, if asked for."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """Room for a remote request's blocks. Empty `block_ids`: everything was in the local cache, nothing to fetch; the
    engine goes on by itself, and a `finish_remote` is allowed but not needed.

    Otherwise the receiver answers with `Engine.land` as verified blocks arrive in order, then once with
    `Engine.finish_remote`.
    """

    request_id: str
    first_block: int
    """Index in the prompt of the first block to fetch; the blocks before it are in the local cache."""
    block_ids: tuple[int, ...]
    digests: tuple[BlockDigest, ...]
    is_onboarding: bool = False
    """They come from the tiers below the device; more of the prompt may have to be computed."""
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Staged:
    """Blocks of a PREFILL request that are computed and held until `Engine.release`.

    One with `is_last`, perhaps without blocks, comes for every request that is not aborted, released or failed before.
    """

    request_id: str
    first_block: int
    block_ids: tuple[int, ...]
    digests: tuple[BlockDigest, ...]
    is_last: bool
    cached_tokens: int = 0


class EngineLoad(NamedTuple):
    """What the engine has to do, after a step."""

    running_seqs: int = 0
    waiting_seqs: int = 0
    waiting_prefill_tokens: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    cached_blocks: int = 0
    """Blocks that the prefix cache can find, in use or not."""
    quarantined_blocks: int = 0
    staged_blocks: int = 0
    prefill_tokens_per_s: float = 0.0
    decode_step_s: float = 0.0
    step_costs: LinearModel | None = None
    """What steps take, fitted to those made; None until a prompt has been computed."""
    computed_prefill_tokens: int = 0
    """Since the start: prompt tokens, and tokens computed again after a preemption or a move."""
    preemptions: int = 0
    """Since the start."""
    failed_steps_in_a_row: int = 0
    """Steps that raised since the last that did not; above 0 the engine is ill or a request was poisonous."""


_NO_LOAD = EngineLoad()


class SeenPrompt(NamedTuple):
    """A prompt that is about to be served: what is kept below the device is decided by such."""

    digests: tuple[BlockDigest, ...]
    """Of its whole blocks."""
    terms: Terms


class OffloadNews(NamedTuple):
    """For the tiers below the device."""

    runs: tuple[OffloadRun, ...] = ()
    """Blocks that may be copied; the receiver answers each with `Engine.offloaded`."""
    seen: tuple[SeenPrompt, ...] = ()
    missed_blocks: int = 0
    """Evicted before they could be offered, since the start."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Everything that one engine step has to tell."""

    tokens: tuple[TokenOutput, ...] = ()
    reserved: tuple[Reserved, ...] = ()
    staged: tuple[Staged, ...] = ()
    kv_events: tuple[KvEvent, ...] = ()
    load: EngineLoad = _NO_LOAD
    offload: OffloadNews | None = None
    """None: there is nothing to tell."""
