"""Embeddings against transformers' own hidden states, under the engine's scheduler and thread."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel

from armature.blocks.hashing import BlockHasher
from armature.engines.demo_model import DEMO_MODEL_PATH
from armature.engines.local import LocalEngine
from armature.engines.torch.runner import TorchRunner, torch_engine_runner
from armature.scheduling.request import Request, Sampling, Work
from tests.support.engine_listener import Listener
from tests.support.models import KINDS

BLOCK = 16
HASHER = BlockHasher(b"secret", BLOCK)
ROOT = HASHER.root("tiny")
NUMBERS = torch.Generator().manual_seed(3)
PROMPTS = [torch.randint(3, 300, (length,), generator=NUMBERS).tolist() for length in (1, 16, 17, 150, 333)]


def embed(number: int, prompt: Sequence[int]) -> Request:
    return Request(f"e{number}", prompt, len(prompt), 1, ROOT, Sampling(temperature=0.0), work=Work.EMBED)


def generate(number: int, tokens: int) -> Request:
    prompt = PROMPTS[3][number:]
    sampling = Sampling(temperature=0.0, ignore_eos=True)
    return Request(f"g{number}", prompt, len(prompt), tokens, ROOT, sampling)


def expected(model: Path, prompt: Sequence[int]) -> np.ndarray:
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(model, dtype=torch.float32).eval()(torch.tensor([prompt])).last_hidden_state
    mean = hidden[0].mean(dim=0)
    return (mean / mean.norm()).numpy()


async def run(runner: TorchRunner, requests: Sequence[Request]) -> Listener:
    engine, heard = LocalEngine(runner, HASHER), Listener()
    await engine.start(heard.hear)
    for request in requests:
        engine.submit(request)
    await heard.end_of(*requests)
    await engine.stop()
    return heard


def embedding(heard: Listener, number: int) -> np.ndarray:
    return np.frombuffer(heard.ends[f"e{number}"].embedding, dtype="<f4")


@pytest.mark.parametrize("kind", KINDS)
async def test_prompts_in_chunks_beside_answers_embed_as_transformers_does(
    kind: str, checkpoint: Callable[[str], Path], make_runner: Callable[..., TorchRunner]
) -> None:
    embeds = [embed(number, prompt) for number, prompt in enumerate(PROMPTS)]
    heard = await run(make_runner(kind, max_num_batched_tokens=64), [generate(0, 12), *embeds, generate(1, 12)])
    alone = await run(make_runner(kind), [generate(0, 12), generate(1, 12)])
    for number, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(embedding(heard, number), expected(checkpoint(kind), prompt), atol=2e-5)
    assert {name: heard.tokens[name] for name in ("g0", "g1")} == alone.tokens


async def test_the_demo_model_embeds_as_transformers_does() -> None:
    runner = torch_engine_runner(DEMO_MODEL_PATH, model_name="demo", device="cpu", dtype="float32", num_blocks=64)
    assert runner.info.embedding_size == 256
    heard = await run(runner, [embed(number, prompt) for number, prompt in enumerate(PROMPTS)])
    for number, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(embedding(heard, number), expected(DEMO_MODEL_PATH, prompt), atol=2e-5)
    assert not any(output.kv_events for output in heard.outputs)


async def test_a_prompt_that_has_to_start_over_is_summed_up_anew_and_leaves_nothing_behind(
    checkpoint: Callable[[str], Path], make_runner: Callable[..., TorchRunner]
) -> None:
    answers = [generate(number, 60) for number in range(3)]
    embeds = [embed(number, PROMPTS[4]) for number in range(2)]
    runner = make_runner(num_blocks=44, max_num_batched_tokens=24, max_num_seqs=8)
    heard = await run(runner, [answers[0], embeds[0], answers[1], embeds[1], answers[2]])
    load = heard.outputs[-1].load
    assert load.preemptions > 0
    for number in range(2):
        np.testing.assert_allclose(embedding(heard, number), expected(checkpoint("llama"), PROMPTS[4]), atol=2e-5)
    assert load.free_blocks == load.total_blocks
