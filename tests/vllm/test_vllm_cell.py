"""The `openai` client against a cell whose worker computes with vLLM: a small model with random weights, on the CPU."""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
import yaml

from armature.openai.tenancy.keys import digest_of
from armature.v1.router_pb2 import ExplainRequest
from armature.v1.router_pb2_grpc import RouterStub
from tests.support.cell import Cell, running_cell
from tests.support.eventually import eventually
from tests.support.models import make_model

ROOT = Path(__file__).parents[2]
BLOCK_SIZE = 32
"""vLLM computes on CPUs with blocks of 32 tokens, or several times that."""
READY_TIMEOUT_S = 900.0
KEYS = {tenant: f"arm-{tenant}00" + "0" * 35 for tenant in ("alices", "boboby")}
QUESTION = [{"role": "user", "content": "Which worker has which block? " * 12}]
INFO = {"armature": {"include_info": True}}


@pytest.fixture(scope="module")
async def cell(etcd_address: str, tmp_path_factory: pytest.TempPathFactory, vllm_python: str) -> AsyncIterator[Cell]:
    folder = tmp_path_factory.mktemp("vllm")
    model = make_model(folder / "tiny", "qwen3", hidden=128, head_dim=64)
    keys = {key[:12]: {"tenant": tenant, "digest": digest_of(key)} for tenant, key in KEYS.items()}
    (folder / "keys.yaml").write_text(yaml.safe_dump({"keys": keys}))
    async with running_cell(
        folder / "cell",
        etcd_address,
        prefill=0, decode=0, aggregated=1,
        worker_flags=(
            "--engine", "vllm", "--model", str(model), "--model-name", "tiny", "--dtype", "float32",
            "--block-size", str(BLOCK_SIZE), "--kv-cache-bytes", str(64 << 20), "--max-num-seqs", "8",
            "--max-num-batched-tokens", "256", "--vllm-args", '{"enforce_eager": true}',
        ),
        flags={"gateway": ("--keys", str(folder / "keys.yaml"))},
        env={"PYTHONPATH": f"{ROOT}/libs:{ROOT}", "VLLM_HOST_IP": "127.0.0.1"},
        worker_python=vllm_python,
        ready_timeout_s=READY_TIMEOUT_S,
    ) as cell:  # fmt: skip
        yield cell


def client_of(cell: Cell, tenant: str = "alices") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{cell.url}/v1", api_key=KEYS[tenant], max_retries=0, timeout=120)


@pytest.fixture(scope="module")
async def client(cell: Cell) -> AsyncIterator[openai.AsyncOpenAI]:
    async with client_of(cell) as client:
        yield client


async def worker_load(cell: Cell) -> dict[str, float]:
    return await cell.workers()[0].metrics()


async def is_at_rest(cell: Cell) -> bool:
    load = await worker_load(cell)
    running, waiting = load["armature_worker_running_seqs"], load["armature_worker_waiting_seqs"]
    return not running and not waiting and load["armature_worker_free_blocks"] == load["armature_worker_total_blocks"]


async def test_a_chat_says_the_same_streamed_or_not(client: openai.AsyncOpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = await client.chat.completions.create(**options, extra_body=INFO)
    assert whole.usage.completion_tokens == 24 and whole.choices[0].finish_reason == "length"
    text, pieces = "", 0
    async for chunk in await client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            pieces += bool(choice.delta.content)
            text += choice.delta.content or ""
    assert text == whole.choices[0].message.content and pieces > 1


async def test_completions_bring_log_probabilities_and_obey_bias_seed_and_stops(client: openai.AsyncOpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": "def add(left", "max_tokens": 12, "logprobs": 2}
    one, other = [await client.completions.create(**options, seed=5, temperature=1.5) for _ in range(2)]
    assert one.choices[0].text == other.choices[0].text
    told = one.choices[0].logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == one.usage.completion_tokens
    assert all(value <= 0 for value in told.token_logprobs)
    forced = await client.completions.create(**options, logit_bias={"100": 100}, temperature=0)
    assert len(set(forced.choices[0].logprobs.tokens)) == 1
    ended = await client.completions.create(**options, temperature=0, logit_bias={"2": 100})
    assert (ended.choices[0].finish_reason, ended.usage.completion_tokens) == ("stop", 1)


async def test_a_second_turn_is_cached_and_the_router_knows_it_by_vllms_events(
    client: openai.AsyncOpenAI, cell: Cell
) -> None:
    before = (await cell.services["router"].metrics())["armature_router_index_blocks"]
    prompt = [random.Random(1).randrange(3, 500) for _ in range(10 * BLOCK_SIZE + 5)]
    options: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 2, "extra_body": INFO}
    first = await client.completions.create(prompt=prompt, **options)
    assert first.usage.prompt_tokens_details.cached_tokens == 0

    async def knows() -> bool:
        return (await cell.services["router"].metrics())["armature_router_index_blocks"] == before + 10

    await eventually(knows, what="the router knows of the prompt's blocks")
    again = await client.completions.create(prompt=[*prompt, *prompt[:40]], **options)
    assert again.usage.prompt_tokens_details.cached_tokens == 10 * BLOCK_SIZE
    async with grpc.aio.insecure_channel(cell.services["router"].addresses["grpc"]) as channel:
        request = ExplainRequest(without_counterfactuals=True)
        decisions = (await RouterStub(channel).Explain(request, timeout=10)).decisions
    assert 10 * BLOCK_SIZE in [one.overlap_tokens for decision in decisions for one in decision.candidates]


async def test_tenants_share_nothing(cell: Cell) -> None:
    prompt = [random.Random(2).randrange(3, 500) for _ in range(4 * BLOCK_SIZE + 5)]
    cached: list[int] = []
    for tenant in ("alices", "boboby", "alices", "boboby"):
        async with client_of(cell, tenant) as client:
            done = await client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=2)
            cached.append(done.usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 0, 4 * BLOCK_SIZE, 4 * BLOCK_SIZE]


async def test_an_answer_matches_its_schema_and_a_wrong_one_is_the_clients_error(client: openai.AsyncOpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "trip", "strict": True, "schema": schema}}
    options: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 64, "seed": 3}
    for _ in range(2):
        done = await client.chat.completions.create(**options, response_format=wanted)
        answer = json.loads(done.choices[0].message.content)
        assert answer["city"] in ("Rome", "Oslo") and answer["days"] in (1, 2)
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(**options, extra_body={"structured_outputs": {"regex": "(a"}})


async def test_who_leaves_frees_what_was_computed_for_him(client: openai.AsyncOpenAI, cell: Cell) -> None:
    options: dict[str, Any] = {
        "model": "tiny", "prompt": "1234567890", "max_tokens": 900, "stream": True, "temperature": 0,
        "extra_body": {"ignore_eos": True},
    }  # fmt: skip
    stream = await client.completions.create(**options)
    async for _ in stream:
        break
    assert (await worker_load(cell))["armature_worker_running_seqs"] == 1
    await stream.close()
    await eventually(lambda: is_at_rest(cell), what="nothing runs, and all blocks are free")


async def test_many_at_once_are_all_answered(client: openai.AsyncOpenAI, cell: Cell) -> None:
    rng = random.Random(3)
    prompts = [[rng.randrange(3, 500) for _ in range(rng.randrange(5, 300))] for _ in range(40)]
    options: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 16, "extra_body": {"ignore_eos": True}}
    together = await asyncio.gather(*(client.completions.create(prompt=prompt, **options) for prompt in prompts))
    assert {done.usage.completion_tokens for done in together} == {16}
    load = await worker_load(cell)
    assert load["armature_worker_prefill_tokens_total"] > 0 and load["vllm:prompt_tokens_total"] > 0
    await eventually(lambda: is_at_rest(cell), what="nothing runs, and all blocks are free")


async def test_a_worker_goes_when_its_vllm_has_died(cell: Cell, client: openai.AsyncOpenAI) -> None:
    """The last test: the cell has no worker afterwards."""
    (worker,) = cell.workers()
    of_threads = Path(f"/proc/{worker.pid}/task").glob("*/children")
    children = [child for of_thread in of_threads for child in of_thread.read_text().split()]
    names = {int(child): Path(f"/proc/{child}/cmdline").read_text() for child in children}
    (core,) = [pid for pid, name in names.items() if "EngineCore" in name]
    options: dict[str, Any] = {"model": "tiny", "prompt": "1234567890", "max_tokens": 900, "stream": True}
    stream = await client.completions.create(**options, extra_body={"ignore_eos": True})
    async for _ in stream:
        break
    os.kill(core, signal.SIGKILL)
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass
    assert worker.process is not None
    async with asyncio.timeout(30):
        assert await worker.process.wait() != 0
