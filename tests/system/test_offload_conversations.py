"""Conversations that go on when the device has long forgotten them: read back from all tiers, with the same answers."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from armature.engines.demo_model import DEMO_MODEL_PATH
from armature.runtime.processes import start_valkey
from tests.support.offload_node import Conversation, offload_node, onboarded, until_offloaded, words
from tests.support.s3 import s3_server

VOCABULARY = 4096
BLOCK_BYTES = (4 * 2 * 16 + 1) * 4 * 32 * 4
"""Of the demo model in 32-bit floats: rows of 4 heads with 32 numbers each."""
CONVERSATIONS, HISTORY_TOKENS = 10, 600
HISTORY_BLOCKS = 37
"""Whole ones of a history and its first answer."""


@asynccontextmanager
async def remote_store(kind: str, folder: Path) -> AsyncIterator[list[str]]:
    """A running one; what a kv-offload is told of it."""
    if kind == "s3":
        async with s3_server(folder / "s3") as server:
            yield server.flags
        return
    valkey = await start_valkey(folder)
    try:
        yield ["--redis", f"redis://{valkey.address}"]
    finally:
        await valkey.stop()


@pytest.mark.parametrize("remote", ["s3", pytest.param("redis", marks=pytest.mark.slow)])
async def test_conversations_are_read_back_from_all_tiers(remote: str, etcd_address: str, tmp_path: Path) -> None:
    rng = random.Random(3)
    # Host memory and disk hold about a third of the histories each, and the device two.
    part = str(HISTORY_BLOCKS * CONVERSATIONS // 3 * BLOCK_BYTES)
    flags = ("--offload", "--num-blocks", "90", "--max-num-batched-tokens", "256", "--dtype", "float32")
    store = (
        "--policy", "all", "--host-bytes", part, "--disk-dir", str(tmp_path / "disk"), "--disk-bytes", part,
        "--remote-bytes", str(1 << 26),
    )  # fmt: skip
    async with (
        remote_store(remote, tmp_path) as place,
        offload_node(
            tmp_path / "node", etcd_address, DEMO_MODEL_PATH, workers={"worker": flags}, store=(*store, *place)
        ) as node,
    ):
        worker, client = node.services["worker"], node.clients["worker"]
        talks = [Conversation(words(rng, HISTORY_TOKENS, VOCABULARY)) for _ in range(CONVERSATIONS)]
        for number, talk in enumerate(talks, 1):
            await talk.turn(client, [], 8)
            await until_offloaded(worker, number * HISTORY_BLOCKS)
        turns = [(list(talk.tokens), words(rng, 20, VOCABULARY)) for talk in talks]
        answers = [
            await talk.turn(client, more, 8) for talk, (_, more) in reversed(list(zip(talks, turns, strict=True)))
        ]
        # In a namespace of its own nothing is found: that is what an undisturbed run answers.
        expected = [
            await Conversation(history).turn(client, more, 8, cache_namespace="undisturbed")
            for history, more in reversed(turns)
        ]
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in expected]
    assert not any(answer.info.cached_tokens for answer in expected)
    found = onboarded(answers)
    assert min(found["G2"], found["G3"], found["G4"]) > 0, found
    for answer in answers:
        assert answer.info.cached_tokens >= sum(one.tokens for one in answer.info.onboarded)
