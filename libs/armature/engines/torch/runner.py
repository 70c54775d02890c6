"""The model runner: one forward pass of a transformers decoder over a step's slices, then sampling.

It holds no requests: what to compute comes with each plan. It keeps only arrays that it would otherwise make again
(block tables, penalty counts), by request, until told to forget.
"""

from collections.abc import Sequence as Items
from pathlib import Path

import torch

from armature.engines.engine import EngineInfo
from armature.engines.torch.attention import PagedStep
from armature.engines.torch.batch import BatchBuilder
from armature.engines.torch.loader import LoadedModel, fingerprint, load, open_checkpoint
from armature.engines.torch.memory import PagedMemory, blocks_in
from armature.engines.torch.pooling import Pooler
from armature.engines.torch.prompt_scores import PromptScorer
from armature.engines.torch.sampler import Sampler
from armature.engines.torch.selfcheck import check_model
from armature.engines.torch.tables import BlockTables
from armature.grammars.compiler import Follower, GrammarCompiler
from armature.scheduling.plan import SampledToken, StepPlan
from armature.v1.common_pb2 import Grammar


class TorchRunner:
    """Computes steps with PyTorch; implements `Runner`."""

    def __init__(self, model: LoadedModel, memory: PagedMemory, info: EngineInfo) -> None:
        self._model = model
        self._memory = memory
        self._info = info
        self._device = model.module.device
        self._tables = BlockTables()
        self._batches = BatchBuilder(model.layout, self._tables, self._device)
        self._pooler = Pooler()
        self._scorer = PromptScorer()
        self._sampler = Sampler(model.vocab_size, info.eos_token_ids, self._device)
        self._grammars = GrammarCompiler(Path(info.model_path), model.vocab_size, info.eos_token_ids)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def memory(self) -> PagedMemory:
        return self._memory

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> list[SampledToken]:
        """Compute a step; one token per slice that samples, in the plan's order."""
        self._memory.open(plan.opened)
        sampled: list[SampledToken] = []
        slices = plan.slices()
        if slices:
            step = PagedStep(self._memory, self._batches.build(slices))
            hidden = None
            if pooled := step.batch.pooled:
                logits, hidden = self._model.logits_and_hidden(step)
            else:
                logits = self._model.logits(step)
            sampled = self._sampler.sample(logits[: plan.num_samples], [one for one in slices if one.samples])
            if hidden is not None:  # last, since a step that fails is computed again
                self._pooler.add(hidden, pooled, slices, sampled)
            if scored := step.batch.scored:
                self._scorer.add(logits[plan.num_samples :], scored, slices, sampled)
        self._memory.seal(plan.sealed)
        return sampled

    def rest(self) -> None:
        pass

    def open_blocks(self, block_ids: Items[int]) -> None:
        """Empty these blocks at once, digests first."""
        self._memory.open(block_ids)

    def compile(self, grammar: Grammar) -> Follower:
        """See `Runner.compile`."""
        return self._grammars.compile(grammar)

    def forget(self, request_id: str) -> None:
        """Drop what was kept for a request."""
        self._tables.forget(request_id)
        self._sampler.forget(request_id)
        self._pooler.forget(request_id)
        self._scorer.forget(request_id)


def torch_engine_runner(
    model_path: Path | str,
    *,
    model_name: str,
    device: str = "auto",
    dtype: str = "auto",
    block_size: int = 16,
    num_blocks: int | None = None,
    kv_cache_bytes: int | None = None,
    max_num_seqs: int = 16,
    max_num_batched_tokens: int = 512,
    context_length: int | None = None,
    threads: int | None = None,
) -> TorchRunner:
    """Load a checkpoint and give it a pool of `num_blocks`, or of as many blocks as `kv_cache_bytes` holds.

    Raises:
        ModelError: the model cannot be served; the message says why.
        ValueError: neither a number of blocks nor a size is given.
    """
    if (num_blocks is None) == (kv_cache_bytes is None):
        raise ValueError("give either num_blocks or kv_cache_bytes")
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = open_checkpoint(Path(model_path), device, dtype, context_length)
    model = load(checkpoint, block_size)
    check_model(model, checkpoint.context_length)
    memory = PagedMemory(model.layout, num_blocks or blocks_in(kv_cache_bytes or 0, model.layout), checkpoint.device)
    info = EngineInfo(
        name="torch",
        model=model_name,
        model_path=str(model_path),
        context_length=checkpoint.context_length,
        vocab_size=model.vocab_size,
        eos_token_ids=checkpoint.eos_token_ids,
        block_size=block_size,
        block_bytes=memory.block_bytes,
        num_blocks=memory.num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_fingerprint=fingerprint(checkpoint, model.layout),
        embedding_size=model.hidden_size,
    )
    return TorchRunner(model, memory, info)
