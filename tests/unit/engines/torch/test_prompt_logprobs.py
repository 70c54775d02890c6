"""Log probabilities of prompts against transformers' own logits, under the engine's scheduler and thread."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from armature.blocks.hashing import BlockHasher
from armature.engines.local import LocalEngine
from armature.engines.torch.runner import TorchRunner
from armature.scheduling.planner import MAX_SCORED_TOKENS
from armature.scheduling.request import Request, Sampling
from tests.support.engine_listener import Listener
from tests.support.models import KINDS

BLOCK = 16
HASHER = BlockHasher(b"secret", BLOCK)
ROOT = HASHER.root("tiny")
NUMBERS = torch.Generator().manual_seed(3)
PROMPTS = [torch.randint(3, 300, (length,), generator=NUMBERS).tolist() for length in (1, 2, 17, 150, 333)]
TOP = 3
assert MAX_SCORED_TOKENS < 150


def score(number: int, prompt: Sequence[int], tokens: int = 3, made: Sequence[int] = ()) -> Request:
    sampling = Sampling(temperature=0.0, ignore_eos=True, prompt_logprobs=TOP)
    return Request(f"s{number}", [*prompt, *made], len(prompt), tokens + len(made), ROOT, sampling)


def generate(number: int, tokens: int) -> Request:
    prompt = PROMPTS[3][number:]
    return Request(f"g{number}", prompt, len(prompt), tokens, ROOT, Sampling(temperature=0.0, ignore_eos=True))


async def run(runner: TorchRunner, requests: Sequence[Request]) -> Listener:
    engine, heard = LocalEngine(runner, HASHER), Listener()
    for request in requests:
        heard.tokens[request.request_id] = list(request.token_ids[request.prompt_tokens :])
    await engine.start(heard.hear)
    for request in requests:
        engine.submit(request)
    await heard.end_of(*requests)
    await engine.stop()
    return heard


def check(heard: Listener, number: int, model: Path, prompt: Sequence[int]) -> None:
    told = [
        output.prompt_logprobs
        for step in heard.outputs
        for output in step.tokens
        if output.request_id == f"s{number}" and output.prompt_logprobs is not None
    ]
    assert len(told) == 1, "told once, with the first token"
    (scores,) = told
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()(torch.tensor([prompt])).logits
    expected = logits[0, :-1].log_softmax(-1)
    behind = torch.tensor(prompt[1:])
    token_ids = np.frombuffer(scores.token_ids, "<u4").reshape(-1, TOP + 1)
    logprobs = np.frombuffer(scores.logprobs, "<f4").reshape(-1, TOP + 1)
    own = expected.gather(-1, behind[:, None])
    assert token_ids[:, 0].tolist() == prompt[1:]
    np.testing.assert_allclose(logprobs[:, :1], own.numpy(), atol=2e-4)
    np.testing.assert_allclose(logprobs[:, 1:], expected.topk(TOP).values.numpy(), atol=2e-4)
    likeliest = expected.gather(-1, torch.from_numpy(token_ids[:, 1:].astype(np.int64)))
    np.testing.assert_allclose(likeliest.numpy(), logprobs[:, 1:], atol=2e-4)
    ranks = np.frombuffer(scores.ranks, "<u4")
    near = (expected > own - 4e-4).sum(-1).numpy(), (expected > own + 4e-4).sum(-1).numpy() + 1
    assert ((ranks <= near[0]) & (ranks >= near[1])).all()


@pytest.mark.parametrize("kind", KINDS)
async def test_prompts_in_chunks_beside_answers_are_scored_as_transformers_does(
    kind: str, checkpoint: Callable[[str], Path], make_runner: Callable[..., TorchRunner]
) -> None:
    scores = [score(number, prompt) for number, prompt in enumerate(PROMPTS)]
    heard = await run(make_runner(kind), [generate(0, 12), *scores, generate(1, 12)])
    alone = await run(make_runner(kind), [generate(0, 12), generate(1, 12)])
    for number, prompt in enumerate(PROMPTS):
        check(heard, number, checkpoint(kind), prompt)
    assert {name: heard.tokens[name] for name in ("g0", "g1")} == alone.tokens


async def test_cached_prompts_are_scored_too_and_what_is_scored_can_be_found(
    checkpoint: Callable[[str], Path], make_runner: Callable[..., TorchRunner]
) -> None:
    runner = make_runner()
    engine, heard = LocalEngine(runner, HASHER), Listener()
    await engine.start(heard.hear)
    for request in (score(0, PROMPTS[4]), score(1, PROMPTS[4]), generate(0, 2)):
        engine.submit(request)
        await heard.end_of(request)
    again = Request("again", PROMPTS[4], len(PROMPTS[4]), 1, ROOT, Sampling(temperature=0.0))
    engine.submit(again)
    await heard.end_of(again)
    await engine.stop()
    for number in range(2):
        check(heard, number, checkpoint("llama"), PROMPTS[4])
    assert heard.ends["s1"].cached_tokens == 0
    assert heard.ends["again"].cached_tokens == 332 // BLOCK * BLOCK


async def test_a_prompt_that_starts_over_or_was_moved_here_is_told_once(
    checkpoint: Callable[[str], Path], make_runner: Callable[..., TorchRunner]
) -> None:
    answers = [generate(number, 60) for number in range(3)]
    scores = [score(0, PROMPTS[4], 40), score(1, PROMPTS[4], 40, made=PROMPTS[2])]
    runner = make_runner(num_blocks=33, max_num_batched_tokens=12, max_num_seqs=8)
    heard = await run(runner, [answers[0], scores[0], answers[1], scores[1], answers[2]])
    load = heard.outputs[-1].load
    assert load.preemptions > 0
    for number in range(2):
        check(heard, number, checkpoint("llama"), PROMPTS[4])
    assert load.free_blocks == load.total_blocks
