"""Runs a freshly loaded model twice over a few tokens, by its own attention and by the paged one, and compares.

A configuration cannot tell everything: attention that never goes through the interface, biases and sinks passed along,
a mask that the model builds itself. Whatever makes the logits differ is refused here, before anyone gets an answer.
"""

from array import array
from dataclasses import replace
from inspect import signature
from typing import Any

import torch

from armature.blocks.hashing import BlockDigest
from armature.engines.torch.attention import NAME, PagedStep
from armature.engines.torch.batch import BatchBuilder
from armature.engines.torch.compatibility import ModelError
from armature.engines.torch.loader import LoadedModel
from armature.engines.torch.memory import PagedMemory
from armature.engines.torch.tables import BlockTables
from armature.scheduling.plan import Sequence, Slice
from armature.scheduling.request import Request

BLOCK_SIZE = 4
CHUNKS = (5, 4, 1)
"""A prompt from nothing, a chunk over a context that ends within a block, a decode step."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest relative error of the logits; rounding stays some ten times below."""

CHANGES_SCORES = ("softcap", "s_aux", "position_bias", "alibi")
"""What models pass to an attention function to change its scores, and the paged one does not look at."""


class WatchedStep(PagedStep):
    """A step that remembers which layers called and what came with the calls."""

    is_watched = True

    def __init__(self, memory: PagedMemory, batch: Any) -> None:
        super().__init__(memory, batch)
        self.layers: list[int] = []
        self.passed: dict[str, Any] = {}

    def notice(self, layer: int, passed: dict[str, Any]) -> None:
        self.layers.append(layer)
        self.passed.update({key: value for key, value in passed.items() if value is not None})


@torch.inference_mode()
def check_model(model: LoadedModel, context_length: int) -> None:
    """Compare a few logits with the model's own.

    Raises:
        ModelError: they differ, or the model does not call the paged attention as it must.
    """
    module = model.module
    name = type(module).__name__
    if "logits_to_keep" not in signature(module.forward).parameters:
        raise ModelError(f"{name} cannot compute the logits of chosen tokens only (`logits_to_keep`)")
    tokens = [3 * index % model.vocab_size for index in range(min(sum(CHUNKS), context_length))]
    try:
        paged = _paged_logits(model, tokens, context_length)
        module.set_attn_implementation("sdpa")
        own = module(input_ids=torch.tensor([tokens], device=module.device), use_cache=False).logits[0, -1:].float()
    except (RuntimeError, TypeError, AttributeError, IndexError, ValueError, AssertionError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelError(f"{name} does not run with paged attention: {first_line}") from error
    finally:
        module.set_attn_implementation(NAME)
    error_share = float((paged - own).norm() / own.norm())
    if not error_share <= TOLERANCE[model.layout.dtype]:
        raise ModelError(
            f"{name} gives other logits with paged attention (relative error {error_share:.2g}); it is not supported"
        )


def _paged_logits(model: LoadedModel, tokens: list[int], context_length: int) -> torch.Tensor:
    """Logits `[1, vocab]` after `tokens`, computed in chunks over a small pool of its own."""
    layout = replace(model.layout, block_size=BLOCK_SIZE)
    device = model.module.device
    memory = PagedMemory(layout, 4, device)
    request = Request("", tokens, len(tokens), 1, root=BlockDigest(b""))
    sequence = Sequence(request, array("I", tokens), [2, 0, 3])
    builder = BatchBuilder(layout, BlockTables(), device)
    logits = torch.empty(0)
    start = 0
    for chunk in CHUNKS:
        count = min(chunk, len(tokens) - start)
        if count <= 0:
            break
        step = WatchedStep(memory, builder.build([Slice(sequence, start, count, samples=True)]))
        logits = model.logits(step)
        _judge(step, model, context_length)
        start += count
    return logits.float()


def _judge(step: WatchedStep, model: LoadedModel, context_length: int) -> None:
    name = type(model.module).__name__
    if step.layers != list(range(model.layout.num_layers)):
        raise ModelError(
            f"{name} has {model.layout.num_layers} layers, of which {len(step.layers)} use the attention interface of "
            "transformers; it is not supported"
        )
    for key in CHANGES_SCORES:
        if key in step.passed:
            raise ModelError(f"{name} changes attention scores by `{key}`, which is not supported")
    if step.passed.get("sliding_window", context_length) < context_length:
        raise ModelError(f"{name} uses a sliding window of {step.passed['sliding_window']} tokens: not supported")
    if step.passed.get("is_causal") is False or "attention_mask" in step.passed:
        raise ModelError(f"{name} uses an attention mask of its own, which is not supported")
