"""The runner under the engine's own scheduler and thread: answers, prefix reuse, prefill elsewhere."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from armature.blocks.hashing import BlockHasher
from armature.engines.local import LocalEngine
from armature.engines.torch.runner import TorchRunner
from armature.scheduling.request import Request, Sampling, Work
from tests.support.engine_listener import Listener

BLOCK, TOKENS = 16, 20
HASHER = BlockHasher(b"secret", BLOCK)
ROOT = HASHER.root("tiny")
PROMPT = torch.randint(3, 512, (150,), generator=torch.Generator().manual_seed(2)).tolist()


def request(name: str, *, work: Work = Work.GENERATE, remote: bool = False) -> Request:
    sampling = Sampling(temperature=0.0, ignore_eos=True)
    return Request(name, PROMPT, len(PROMPT), TOKENS, ROOT, sampling, work=work, remote=remote)


@pytest.fixture
def expected(checkpoint: Callable[[str], Path]) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint("llama"))
    model.generation_config.eos_token_id = None
    ids = torch.tensor([PROMPT])
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
    return answer[0, len(PROMPT) :].tolist()


async def started(runner: TorchRunner) -> tuple[LocalEngine, Listener]:
    engine, listener = LocalEngine(runner, HASHER), Listener()
    await engine.start(listener.hear)
    return engine, listener


async def test_a_cached_prompt_gets_the_same_answer(
    make_runner: Callable[..., TorchRunner], expected: list[int]
) -> None:
    engine, heard = await started(make_runner(max_num_batched_tokens=64))
    for name in ("first", "second"):
        engine.submit(request(name))
        await heard.end_of(request(name))
    await engine.stop()
    assert heard.tokens["first"] == heard.tokens["second"] == expected
    assert heard.ends["first"].cached_tokens == 0
    assert heard.ends["second"].cached_tokens == 9 * BLOCK


async def test_a_prompt_computed_by_another_engine_gets_the_same_answer(
    make_runner: Callable[..., TorchRunner], expected: list[int]
) -> None:
    prefill, staging = await started(make_runner(max_num_batched_tokens=64))
    decode, heard = await started(make_runner())
    # Something else first, so that the same block has another id on either side.
    decode.submit(Request("other", PROMPT[60:], 90, 4, ROOT, Sampling(temperature=0.0, ignore_eos=True)))
    decode.submit(request("wanted", remote=True))
    prefill.submit(request("wanted", work=Work.PREFILL))
    await staging.until(lambda: any(staged.is_last for staged in staging.staged))
    await heard.until(lambda: bool(heard.reserved))
    reserved = heard.reserved[0]
    blocks: dict[bytes, int] = {}
    for staged in staging.staged:
        blocks.update(zip(staged.digests, staged.block_ids, strict=True))
    sources = [blocks[digest] for digest in reserved.digests]
    assert sources != list(reserved.block_ids)
    assert decode.memory.digests(reserved.block_ids) == [bytes(16)] * len(sources)
    data = await asyncio.to_thread(prefill.memory.read, sources)
    await asyncio.to_thread(decode.memory.write, reserved.block_ids, data)
    assert decode.memory.digests(reserved.block_ids) == list(reserved.digests)
    decode.land("wanted", len(sources))
    decode.finish_remote("wanted", len(sources))
    await heard.end_of(request("wanted"))
    prefill.release("wanted")
    await asyncio.gather(prefill.stop(), decode.stop())
    assert heard.tokens["wanted"] == expected
    assert len(sources) == 9
