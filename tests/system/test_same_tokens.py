"""However a request is served, its greedy tokens are those that the model's reference implementation makes."""

import asyncio
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from armature.engines.demo_model import DEMO_MODEL_PATH
from tests.support.asking import Answer, ask, channel_to
from tests.support.cell import running_cell

# Below, at and above block boundaries (16 tokens), up to the lengths that take many chunks.
LENGTHS = (1, 2, 7, 15, 16, 17, 18, 31, 32, 33, 64, 65, 100, 128, 200, 257, 400, 511, 512, 700, 1000, 1500, 1999, 2000)
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(7)
    return [[rng.randrange(300, 4000) for _ in range(length)] for length in LENGTHS]


@pytest.fixture(scope="module")
def reference(prompts: list[list[int]]) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL_PATH, dtype=torch.float32).eval()
    outputs = []
    for prompt in prompts:
        made = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, eos_token_id=-1, pad_token_id=0,
        )  # fmt: skip
        outputs.append(made[0, len(prompt) :].tolist())
    return outputs


CELLS = {
    "aggregated": ({"prefill": 0, "decode": 0, "aggregated": 1}, (), {}, ""),
    "nixl": ({"prefill": 1, "decode": 1}, ("--transport", "nixl"), {}, "nixl"),
    "nixl over tcp": ({"prefill": 1, "decode": 1}, ("--transport", "nixl"), {"UCX_TLS": "tcp"}, "nixl"),
    "grpc": ({"prefill": 1, "decode": 1}, ("--transport", "grpc"), {}, "grpc"),
}


SLOW = ("nixl over tcp", "grpc")
"""Transports that tests of one pair of workers try, too."""


@pytest.mark.parametrize("name", [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in CELLS])
async def test_greedy_tokens_equal_the_reference(
    name: str, prompts: list[list[int]], reference: list[list[int]], etcd_address: str, tmp_path: Path
) -> None:
    sizes, transport_flags, env, transport = CELLS[name]
    flags = {"router": ("--disaggregation", "always"), "decode_worker": transport_flags}
    async with (
        running_cell(tmp_path, etcd_address, **sizes, flags=flags, env=env) as cell,
        channel_to(cell) as channel,
    ):
        answers: list[Answer] = await asyncio.gather(*(ask(channel, prompt, NEW_TOKENS) for prompt in prompts))
    for prompt, answer, expected in zip(prompts, answers, reference, strict=True):
        assert answer.token_ids == expected, f"prompt of {len(prompt)} tokens"
        fetched = (len(prompt) - 1) // 16 if transport else 0
        assert answer.info.transport == (transport if fetched else "")
        assert answer.info.transferred_tokens == 16 * fetched
