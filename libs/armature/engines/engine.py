"""The contract between a worker host and an engine.

The host lives on an event loop; an engine computes elsewhere (a thread, another process). Every method here returns at
once and may be called from the loop only; what comes of it arrives in a later `StepOutput`, on the loop. An engine
never calls `on_step` from two steps at a time and never after `stop` has returned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from armature.blocks.hashing import BlockDigest
from armature.index.tiers import Tier
from armature.scheduling.lower_tiers import TierChange, TierSpeed
from armature.scheduling.request import Request, StepOutput
from armature.v1.common_pb2 import Grammar


class BlockMemory(Protocol):
    """The pool's bytes, as transports see them: block b is `block_bytes` bytes at `base_address + b * block_bytes`.

    A block is contiguous, all layers, and ends with the digest of what it holds: zeroed before the first byte of new
    content is written, set when the block is full. A reader that finds the right digest behind the bytes it has read
    in ascending order has read the right bytes (a sequence lock's read side).
    """

    @property
    def base_address(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def memory_kind(self) -> str:
        """`DRAM` or `VRAM`."""
        ...

    @property
    def device_id(self) -> int: ...

    def read(self, block_ids: Sequence[int]) -> bytes:
        """The blocks' bytes, concatenated. Blocking; call it off the loop."""
        ...

    def write(self, block_ids: Sequence[int], data: bytes) -> None:
        """Overwrite the blocks. Blocking; call it off the loop."""
        ...

    def digests(self, block_ids: Sequence[int]) -> list[BlockDigest]:
        """The digest at the end of each block, zeros if its content is not complete."""
        ...


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What does not change in an engine's life."""

    name: str
    """`torch`, `simulated` or `vllm`."""
    model: str
    model_path: str
    context_length: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    block_size: int
    block_bytes: int
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_fingerprint: bytes
    embedding_size: int = 0
    """Components of an embedding; 0: it takes no EMBED requests."""
    publishes_kv_events: bool = True
    """Whether its outputs say which blocks are stored and removed."""


class Engine(Protocol):
    """Continuous batching over a paged KV cache. One that lets others at its blocks is a `BlockEngine`."""

    @property
    def info(self) -> EngineInfo: ...

    async def start(self, on_step: Callable[[StepOutput], None]) -> None:
        """Begin to compute; `on_step` is called on this event loop, once a step that has something to tell."""
        ...

    async def stop(self) -> None:
        """End after the current step. Unfinished requests get no further output."""
        ...

    async def compile(self, grammar: Grammar) -> object | None:
        """What `Request.grammar` of one request is to be, made off the event loop; None: this engine ignores grammars.

        Raises:
            ValueError: the grammar can't be followed; the message says why.
        """
        ...

    def submit(self, request: Request) -> None:
        """Queue a request. Wrong requests come back as a TokenOutput with ERROR."""
        ...

    def abort(self, request_id: str) -> None:
        """Stop a request and free its blocks before the next step. A GENERATE request answers with CANCELLED.

        A request whose remote blocks are being read must first be ended with `finish_remote`. Unknown ids are ignored.
        """
        ...


@runtime_checkable
class BlockEngine(Engine, Protocol):
    """An engine whose blocks come from and go to others: prefill workers, peers, tiers below the device.

    Only it is given requests with `remote` and PREFILL ones.
    """

    @property
    def memory(self) -> BlockMemory: ...

    def land(self, request_id: str, num_blocks: int) -> None:
        """The first `num_blocks` reserved blocks hold verified bytes and may be shared."""
        ...

    def finish_remote(self, request_id: str, num_blocks: int, quarantined: Sequence[int] = ()) -> None:
        """No more remote blocks will come: use the first `num_blocks`, compute the rest here.

        `quarantined` names blocks (by id, none among the landed) that a late read may still overwrite: they are taken
        from the request and given to nobody until `unquarantine`.
        """
        ...

    def unquarantine(self, block_ids: Sequence[int]) -> None:
        """Nothing can write to these blocks any more."""
        ...

    def stop_prefill(self, request_id: str) -> None:
        """Compute no further for a PREFILL request, but hold what is staged until `release`."""
        ...

    def release(self, request_id: str, up_to_block: int | None = None) -> None:
        """Let go of staged blocks below prompt index `up_to_block`; None: of all, and end the request."""
        ...

    def offloaded(self, run_id: int) -> None:
        """Blocks that were offered to the tiers below the device have been copied, or won't be."""
        ...

    def tell_below(self, changes: Sequence[TierChange]) -> None:
        """What the tiers below the device hold has changed."""
        ...

    def tell_speed(self, tier: Tier, speed: TierSpeed) -> None:
        """How quickly blocks come from a tier below to the device by now."""
        ...
