"""Trains the demo model on this machine's processor: `python -m armature.engines.demo_model.train --minutes 25`.

The budget is a time, so that a slow or busy machine gives a weaker model and not a longer wait; with `--steps` the
budget is a number of steps and the same seed gives the same weights on the same machine.
"""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from armature.engines.demo_model import DEMO_MODEL_PATH, corpus
from armature.engines.demo_model.packing import TOKENS_PER_STEP, Packer, Texts
from armature.engines.demo_model.tokenizer import (
    END_OF_TEXT,
    SPECIAL_TOKENS,
    TURN_END,
    VOCAB_SIZE,
    save_tokenizer,
    train_tokenizer,
)

CONTEXT_LENGTH = 8192
_END_OF_TEXT_ID = SPECIAL_TOKENS.index(END_OF_TEXT)
_TURN_END_ID = SPECIAL_TOKENS.index(TURN_END)
_WARMUP = 0.02
# Muon wants a large step for matrices, AdamW a small one for the embedding and the norms.
_MATRIX_LR = 0.02
_OTHER_LR = 0.003


def new_model() -> LlamaForCausalLM:
    """3.4 million parameters: 6.8 MB in bfloat16."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=_TURN_END_ID,
        pad_token_id=_END_OF_TEXT_ID,
    )
    return LlamaForCausalLM(config)


class Trainer:
    """One model, its two optimizers and the learning rate over the share of the budget used."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._model = model
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
        self._optimizers = (
            (torch.optim.Muon(matrices, lr=_MATRIX_LR, weight_decay=0.01), _MATRIX_LR),
            (torch.optim.AdamW(others, lr=_OTHER_LR, betas=(0.9, 0.95), weight_decay=0.0), _OTHER_LR),
        )

    def step(self, ids: torch.Tensor, labels: torch.Tensor, progress: float) -> float:
        """One update; returns the loss in nats per counted token."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self._model(input_ids=ids, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimizer, lr in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * _schedule(progress)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def _schedule(progress: float) -> float:
    """Warm up, then a cosine down to nothing."""
    if progress < _WARMUP:
        return progress / _WARMUP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Budget:
    """How much of the time, or of the steps, is used up: from 0 to 1."""

    def __init__(self, minutes: float, steps: int) -> None:
        self._started_s = time.monotonic()
        self._seconds = minutes * 60
        self._steps = steps

    def used(self, step: int) -> float:
        if self._steps:
            return min(1.0, step / self._steps)
        return min(1.0, (time.monotonic() - self._started_s) / self._seconds)


def train(output: Path, budget: Budget, seed: int, console: Console) -> None:
    """Train and write a model directory."""
    torch.manual_seed(seed)
    texts = Texts(corpus.entries(), corpus.topics())
    tokenizer = train_tokenizer(texts.all())
    model = new_model()
    parameters = sum(p.numel() for p in model.parameters())
    console.print(f"{len(texts.entries)} entries, {len(texts.topics)} topics, {parameters / 1e6:.2f} M parameters")
    _fit(Trainer(model), Packer(texts, tokenizer, seed), budget, console)
    output.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, output, CONTEXT_LENGTH)
    model.generation_config = GenerationConfig(
        eos_token_id=[_TURN_END_ID, _END_OF_TEXT_ID], pad_token_id=_END_OF_TEXT_ID
    )
    model.bfloat16().save_pretrained(output)
    console.print(f"saved to {output}")


def _fit(trainer: Trainer, packer: Packer, budget: Budget, console: Console) -> None:
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[seen]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0, seen="")
        step, mean_loss = 0, 0.0
        while (progress := budget.used(step)) < 1.0:
            loss = trainer.step(*packer.batch(progress), progress)
            step += 1
            mean_loss = loss if step == 1 else 0.98 * mean_loss + 0.02 * loss
            bar.update(task, completed=progress, seen=f"loss {mean_loss:.3f}")
            if step % 100 == 0:
                tokens = step * TOKENS_PER_STEP / 1e6
                console.print(f"{progress:6.1%}  step {step:5d}  {tokens:5.1f} M tokens  loss {mean_loss:.3f}")
        bar.update(task, completed=1.0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m armature.engines.demo_model.train", description=__doc__)
    parser.add_argument("--minutes", type=float, default=25.0, help="time to train (default %(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="train this many steps instead")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=DEMO_MODEL_PATH)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    train(args.output, Budget(args.minutes, args.steps), args.seed, Console())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
