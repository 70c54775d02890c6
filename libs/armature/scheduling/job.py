"""A request inside the scheduler: its sequence and how far it has come."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from armature.blocks.hashing import BlockDigest
from armature.scheduling.lifecycle import Event, State, advance
from armature.scheduling.limits import Limits
from armature.scheduling.plan import Sequence
from armature.scheduling.request import Request, Work

Rank = tuple[int, float, int]
"""The order in which requests are served, lowest first: priority, negated; turn of the tenant; position among all that
ever came."""
LAST: Rank = (11, 0.0, 0)
"""After everybody."""


@dataclass(slots=True, eq=False)
class Job(Sequence):
    """What the scheduler keeps of one request. Only the scheduler and its parts write it."""

    request_id: str
    prompt_tokens: int
    is_prefill: bool
    rank: Rank
    end: int
    """GENERATE: tokens in all at which it ends for lack of room. PREFILL: tokens to compute."""
    stop_ids: frozenset[int]
    stop_after: int
    """No stop token counts among this many tokens, prompt included."""
    shares_blocks: bool
    """Whether what it computes can be found in the cache."""
    finds_blocks: bool
    """Whether its prefix is looked for: of cached tokens nobody has kept hidden states or log probabilities."""
    wants_fetch: bool
    """Blocks of the prompt are still to be asked for from another worker."""
    state: State = State.WAITING
    is_aborted: bool = False
    """To be ended as soon as no transport writes to its blocks."""
    is_stopped: bool = False
    """Likewise to be held, as it is by then."""
    computed: int = 0
    """Leading tokens whose KV is in the blocks."""
    digests: list[BlockDigest] = field(default_factory=list[BlockDigest])
    """Of leading blocks of `token_ids`, as far as they were needed."""
    cached_tokens: int = -1
    """Prompt tokens found in the cache at first admission; -1 before it."""
    backlog: int = 0
    """Tokens that this request adds to the load's `waiting_prefill_tokens`."""
    asks_below: bool = False
    """The tiers below the device are still to be asked for blocks of the prompt."""
    is_onboarding: bool = False
    """What it fetches comes from those."""
    fetch_from: int = 0
    """Index of the first block to fetch."""
    landed: int = 0
    """Fetched blocks that are verified and committed."""
    announced: int = 0
    """PREFILL: index after the last announced block; starts at the request's `first_block`."""
    is_last_told: bool = False
    """PREFILL: the reader knows that no further block will be announced."""
    released: int = 0
    """PREFILL: blocks below this index are no longer needed by the reader."""
    held_from: int = 0
    """Blocks below this index are not held any more (only while HOLDING)."""

    def advance(self, event: Event) -> None:
        self.state = advance(self.state, event)


def open_job(request: Request, rank: Rank, limits: Limits, block_size: int, pool_tokens: int) -> Job:
    """The job of a request that is not refused."""
    prompt = request.prompt_tokens
    sampling = request.sampling
    is_prefill = request.work is Work.PREFILL
    whole_blocks = (prompt - 1) // block_size
    if is_prefill:
        end = whole_blocks * block_size
    else:
        end = min(prompt + request.max_tokens, limits.context_length, pool_tokens)
    eos: Iterable[int] = () if sampling.ignore_eos else limits.eos_token_ids
    first_block = min(max(request.first_block, 0), whole_blocks)
    finds_blocks = request.work is not Work.EMBED and sampling.prompt_logprobs is None
    return Job(
        request=request,
        token_ids=array("I", request.token_ids),
        block_ids=[],
        request_id=request.request_id,
        prompt_tokens=prompt,
        is_prefill=is_prefill,
        rank=rank,
        end=end,
        stop_ids=sampling.stop_token_ids.union(eos),
        stop_after=prompt + sampling.min_tokens,
        shares_blocks=request.work is not Work.EMBED,
        finds_blocks=finds_blocks,
        wants_fetch=request.remote and not is_prefill and finds_blocks,
        announced=first_block,
        released=first_block,
    )
