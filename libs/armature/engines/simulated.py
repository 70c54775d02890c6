"""An engine without a model: real scheduling, real block memory, made-up tokens, at once or at a model's pace.

It shows what everything around a model costs, and lets a whole cell run where no model fits. With a performance model
its steps take the time that they take in a simulation, asleep. Blocks hold only their digests, which is what transports
check. A token follows from the seed, the position and the token before it, so it is
the same however the request is batched, preempted, moved or prefilled. Grammars are ignored: made-up tokens have no
meaning that could match one.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import Histogram

from armature.blocks.hashing import DIGEST_BYTES, BlockHasher
from armature.engines.engine import EngineInfo
from armature.engines.host_memory import HostBlockMemory
from armature.engines.local import LocalEngine
from armature.engines.step_clock import StepClock
from armature.performance.shape import shape_of
from armature.performance.step import PerformanceModel
from armature.scheduling.offloading import OffloadTiming
from armature.scheduling.plan import SampledToken, StepPlan
from armature.scheduling.plan import Sequence as TokenSequence
from armature.scheduling.request import PromptLogprobs, TokenLogprobs, Work
from armature.v1.common_pb2 import Grammar

_MASK = (1 << 64) - 1
_NO_DIGEST = bytes(DIGEST_BYTES)

_lag_s = Histogram(
    "armature_worker_simulated_lag_seconds",
    "How late simulated steps were planned; if later than steps take, the machine is too slow for the speed-up.",
    buckets=(0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
)


@dataclass(frozen=True, kw_only=True)
class SimulatedModel:
    """What a simulated engine pretends to be."""

    name: str
    path: str = ""
    """Directory whose `config.json` gives vocabulary, end tokens and context length; empty: those below."""
    vocab_size: int = 32000
    eos_token_ids: tuple[int, ...] = (2,)
    context_length: int = 32768
    num_blocks: int = 4096
    block_size: int = 16
    block_bytes: int = 256
    """Memory of one block, digest included. Raise it to make transports move as much as a real model's would."""
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 8192
    answer_tokens: int = 0
    """Answers end with an end token after this many tokens; 0: never by themselves."""
    performance: PerformanceModel | None = None
    """How long steps take; None: no time at all."""
    embedding_size: int = 64
    """Components of made-up embeddings."""
    kv_events: bool = True
    """Whether it tells which blocks it holds."""


class SimulatedRunner:
    """Answers every step when its time has passed."""

    def __init__(self, model: SimulatedModel, clock: StepClock | None = None) -> None:
        shape = f"simulated {model.name} {model.block_size} {model.block_bytes}"
        self.info = EngineInfo(
            name="simulated",
            model=model.name,
            model_path=model.path,
            context_length=model.context_length,
            vocab_size=model.vocab_size,
            eos_token_ids=model.eos_token_ids,
            block_size=model.block_size,
            block_bytes=model.block_bytes,
            num_blocks=model.num_blocks,
            max_num_seqs=model.max_num_seqs,
            max_num_batched_tokens=model.max_num_batched_tokens,
            kv_fingerprint=blake2b(shape.encode(), digest_size=16).digest(),
            embedding_size=model.embedding_size,
            publishes_kv_events=model.kv_events,
        )
        self.memory = HostBlockMemory(model.num_blocks, model.block_bytes)
        self._answer_tokens = model.answer_tokens if model.eos_token_ids else 0
        self._performance = model.performance
        self._clock = clock or StepClock()

    def execute(self, plan: StepPlan) -> list[SampledToken]:
        """Compute nothing; see `Runner.execute`."""
        self.open_blocks(plan.opened)
        sampled = [self._sample(sequence) for sequence in plan.decodes]
        sampled += [self._scored(piece.sequence) for piece in plan.chunks if piece.samples]
        if self._performance is not None:
            self._clock.pass_step(self._performance.step_s(shape_of(plan)))
            _lag_s.observe(self._clock.lag_s)
        for block_id, digest in plan.sealed:
            self.memory.set_digest(block_id, digest)
        return sampled

    def rest(self) -> None:
        self._clock.rest()

    def open_blocks(self, block_ids: Sequence[int]) -> None:
        for block_id in block_ids:
            self.memory.set_digest(block_id, _NO_DIGEST)

    def forget(self, request_id: str) -> None:
        pass

    def compile(self, grammar: Grammar) -> None:
        """Nothing; see `Runner.compile`."""

    def _sample(self, sequence: TokenSequence) -> SampledToken:
        if sequence.request.work is Work.EMBED:
            return SampledToken(0, embedding=self._embedding(sequence))
        sampling = sequence.request.sampling
        token_id = self._next_token(sequence)
        if sampling.top_logprobs is None:
            return SampledToken(token_id)
        likeliest = [(token_id + rank) % self.info.vocab_size for rank in range(sampling.top_logprobs)]
        falling = [-0.5 * (rank + 1) for rank in range(sampling.top_logprobs)]
        return SampledToken(token_id, TokenLogprobs((token_id, *likeliest), (-0.5, *falling)))

    def _scored(self, sequence: TokenSequence) -> SampledToken:
        """A chunk's token, with what is to be told of its prompt: all tokens are equally likely."""
        sampled = self._sample(sequence)
        if not sequence.scores_prompt:
            return sampled
        request = sequence.request
        top, behind = request.sampling.prompt_logprobs or 0, sequence.token_ids[1 : request.prompt_tokens]
        own = np.array(behind, dtype="<u4")[:, None]
        token_ids = (own + np.arange(-1, top, dtype="<i4").clip(0)) % self.info.vocab_size
        logprobs = np.full(token_ids.shape, -np.log(self.info.vocab_size), dtype="<f4")
        ranks = np.ones(len(own), dtype="<u4")
        told = PromptLogprobs(top, token_ids.astype("<u4").tobytes(), logprobs.tobytes(), ranks.tobytes())
        return sampled._replace(prompt_logprobs=told)

    def _embedding(self, sequence: TokenSequence) -> bytes:
        """A direction that depends on the prompt alone."""
        digest = blake2b(np.array(sequence.token_ids, dtype="<u4").tobytes(), digest_size=8).digest()
        vector = np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(self.info.embedding_size)
        return (vector / np.linalg.norm(vector)).astype("<f4").tobytes()

    def _next_token(self, sequence: TokenSequence) -> int:
        tokens, request = sequence.token_ids, sequence.request
        position, info = len(tokens), self.info
        if self._answer_tokens:
            output_tokens = position - request.prompt_tokens
            if output_tokens >= max(self._answer_tokens, request.sampling.min_tokens):
                return info.eos_token_ids[0]
        # Multiplications by odd constants and a fold of high bits onto low ones, as in splitmix64 (Steele et al. 2014).
        seed = request.sampling.seed if request.sampling.temperature else 0
        mixed = (seed + tokens[-1] * 0x9E3779B97F4A7C15 + position * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 31)) * 0x94D049BB133111EB) & _MASK
        token_id = (mixed ^ (mixed >> 29)) % info.vocab_size
        while token_id in info.eos_token_ids:
            token_id = (token_id + 1) % info.vocab_size
        return token_id


def simulated_engine(
    model: SimulatedModel, secret: bytes, *, max_waiting: int = 1024, offload: OffloadTiming | None = None
) -> LocalEngine:
    """An engine that computes nothing, shaped by `model`, or by the configuration in `model.path` where there is one.

    Raises:
        ValueError: the shape contradicts itself, or the configuration can't be read.
    """
    if model.path:
        model = _shaped_by_config(model)
    hasher = BlockHasher(secret, model.block_size)
    return LocalEngine(SimulatedRunner(model), hasher, max_waiting=max_waiting, offload=offload)


def _shaped_by_config(model: SimulatedModel) -> SimulatedModel:
    path = Path(model.path) / "config.json"
    if not path.exists():
        return model
    config: dict[str, Any] = json.loads(path.read_text())
    eos: int | list[int] | None = config.get("eos_token_id", list(model.eos_token_ids))
    eos_token_ids = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    return replace(
        model,
        vocab_size=config.get("vocab_size", model.vocab_size),
        eos_token_ids=eos_token_ids,
        context_length=min(model.context_length, config.get("max_position_embeddings", model.context_length)),
    )
