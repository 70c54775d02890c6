"""Prefixes are found again: by the same prompt, and by the turns of many conversations at once."""

import asyncio
import random
from collections.abc import AsyncIterator

import grpc
import pytest
import torch
from transformers import AutoModelForCausalLM

from armature.engines.demo_model import DEMO_MODEL_PATH
from tests.support.asking import ask, channel_to
from tests.support.cell import Cell, running_cell
from tests.support.eventually import eventually
from tests.support.rest import until_at_rest

TURNS, NEW_TOKENS = 4, 8
BLOCK_SIZE = 16
PROMPT_TOKENS = 3000
PROMPT_BLOCKS = PROMPT_TOKENS // BLOCK_SIZE


@pytest.fixture(scope="module")
async def cell(etcd_address: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cell]:
    async with running_cell(tmp_path_factory.mktemp("talk"), etcd_address) as cell:
        yield cell


async def indexed_blocks(cell: Cell) -> bool:
    return (await cell.services["router"].metrics())["armature_router_index_blocks"] >= PROMPT_BLOCKS


async def test_the_same_prompt_again_is_cached_on_the_same_worker_and_quicker(cell: Cell) -> None:
    prompt = [random.Random(1).randrange(300, 4000) for _ in range(PROMPT_TOKENS)]
    async with channel_to(cell) as channel:
        first = await ask(channel, prompt, 4)
        # What a worker has computed is known to the router when its events have come, and a guess before.
        await eventually(lambda: indexed_blocks(cell), what="the router knows of the prompt's blocks")
        again = await ask(channel, prompt, 4)
    assert first.info.cached_tokens == 0
    assert again.info.cached_tokens == PROMPT_BLOCKS * BLOCK_SIZE
    assert again.info.decode_worker == first.info.decode_worker
    assert again.token_ids == first.token_ids
    # The work is 3,000 tokens against 8: not a matter of the machine's mood.
    assert again.info.ttft_s < first.info.ttft_s


async def converse(channel: grpc.aio.Channel, seed: int) -> tuple[list[int], list[tuple[int, list[int]]], int]:
    """All tokens of a conversation, the answers with their positions, and the cached tokens of its later turns."""
    rng = random.Random(seed)
    history: list[int] = []
    answers: list[tuple[int, list[int]]] = []
    cached = 0
    for turn in range(TURNS):
        history += [rng.randrange(300, 4000) for _ in range(rng.randrange(5, 60))]
        answer = await ask(channel, history, NEW_TOKENS)
        answers.append((len(history), answer.token_ids))
        history += answer.token_ids
        cached += answer.info.cached_tokens if turn else 0
    return history, answers, cached


async def test_fifty_conversations_at_once_are_all_correct_and_leave_the_pool_as_it_was(cell: Cell) -> None:
    async with channel_to(cell) as channel:
        conversations = await asyncio.gather(*(converse(channel, seed) for seed in range(50)))
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL_PATH, dtype=torch.float32).eval()
    for history, answers, _ in conversations:
        with torch.inference_mode():
            predicted = model(torch.tensor([history])).logits[0].argmax(-1).tolist()
        for start, tokens in answers:
            assert tokens == predicted[start - 1 : start - 1 + len(tokens)]
    assert sum(cached for _, _, cached in conversations) > 0
    await until_at_rest(cell)


async def test_the_index_knows_what_the_workers_hold(cell: Cell) -> None:
    async def agree() -> bool:
        held = sum([(await worker.metrics())["armature_worker_cached_blocks"] for worker in cell.workers()])
        return held > 0 and held == (await cell.services["kv-index"].metrics())["armature_kv_index_holdings"]

    await eventually(agree, what="index and workers agree on the number of blocks held")
