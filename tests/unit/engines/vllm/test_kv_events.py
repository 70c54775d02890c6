"""vLLM's KV events come out as ours: the digests that our hasher gives the same tokens."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.blocks.hashing import BlockDigest, BlockHasher
from armature.engines.kv_event_log import KvEventLog
from armature.engines.vllm.kv_events import EventTranslator, decode, salt_of
from armature.index.tiers import Tier

HASHER = BlockHasher(b"secret", 4)
ALICE, BOB = HASHER.root("m", "alice"), HASHER.root("m", "bob")

# As vLLM 0.32 has published it, but for the salt and the length: two blocks of a prompt.
RECORDED: list[Any] = [
    1795317768.231378,
    [
        {
            "type": "BlockStored", "block_hashes": [3576641892539783679, 14614258035341268783],
            "parent_block_hash": None, "token_ids": [10, 17, 24, 31, 38, 45, 52, 59], "block_size": 4,
            "lora_id": None, "medium": "GPU", "lora_name": None, "extra_keys": [[salt_of(ALICE)], None], "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }
    ],
    0,
]  # fmt: skip


def stored(names: list[int], tokens: list[int], parent: int | None = None, root: BlockDigest = ALICE) -> dict[str, Any]:
    keys = [[salt_of(root)] if parent is None else None, *[None] * (len(names) - 1)]
    return {
        "type": "BlockStored", "block_hashes": names, "parent_block_hash": parent, "token_ids": tokens,
        "block_size": 4, "lora_id": None, "medium": "GPU", "lora_name": None, "extra_keys": keys,
    }  # fmt: skip


def removed(*names: int) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": list(names), "medium": "GPU"}


class Heard:
    """A translator, and the log that a worker keeps of what it tells."""

    def __init__(self) -> None:
        self.translator = EventTranslator(HASHER)
        self.log = KvEventLog()

    def hear(self, *told: dict[str, Any]) -> list[str]:
        events = self.translator.translate(decode(msgspec.msgpack.encode([0.0, list(told), 0])))
        self.log.append(events)
        return [event.kind.value for event in events]

    @property
    def held(self) -> list[BlockDigest]:
        return self.log.held().get(Tier.G1, [])


def test_a_recorded_event_becomes_the_digests_of_its_tokens() -> None:
    events = EventTranslator(HASHER).translate(decode(msgspec.msgpack.encode(RECORDED)))
    assert [event.digests for event in events] == [tuple(HASHER.extend(ALICE, [10, 17, 24, 31, 38, 45, 52, 59]))]


def test_blocks_behind_others_are_chained_to_them_and_tenants_have_digests_of_their_own() -> None:
    heard = Heard()
    heard.hear(stored([1], [1, 2, 3, 4]), stored([2], [5, 6, 7, 8], parent=1))
    assert heard.held == HASHER.extend(ALICE, [1, 2, 3, 4, 5, 6, 7, 8])
    heard.hear(stored([7], [1, 2, 3, 4], root=BOB))
    assert heard.held[2:] == HASHER.extend(BOB, [1, 2, 3, 4])


def test_a_block_that_is_there_twice_is_gone_when_both_copies_are() -> None:
    heard = Heard()
    assert heard.hear(stored([1], [1, 2, 3, 4]), stored([1], [1, 2, 3, 4]), removed(1)) == ["stored"]
    assert heard.hear(removed(1)) == ["removed"]
    assert heard.held == []


def test_a_cleared_cache_holds_nothing() -> None:
    heard = Heard()
    assert heard.hear(stored([1], [1, 2, 3, 4]), {"type": "AllBlocksCleared"}) == ["stored", "cleared"]
    assert (heard.held, len(heard.translator)) == ([], 0)


@pytest.mark.parametrize(
    "told",
    [
        stored([2], [5, 6, 7, 8], parent=99),
        stored([2], [5, 6, 7, 8]) | {"extra_keys": None},
        stored([2], [5, 6, 7, 8]) | {"extra_keys": [["an adapter's name"]]},
        stored([2], [5, 6, 7, 8]) | {"medium": "CPU"},
        stored([2], [5, 6, 7, 8]) | {"block_size": 2},
        stored([2], list(range(8))),
        removed(99),
    ],
    ids=["parent unknown", "nobody's", "no salt", "not on the device", "other blocks", "some of a chain", "unknown"],
)
def test_what_can_t_be_attributed_is_left_out(told: dict[str, Any]) -> None:
    heard = Heard()
    heard.hear(stored([1], [1, 2, 3, 4]))
    assert heard.hear(told) == []
    assert heard.held == HASHER.extend(ALICE, [1, 2, 3, 4])


def test_something_else_is_no_event() -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(msgspec.msgpack.encode([0.0, [{"type": "BlockPainted"}], 0]))


@given(seed=st.integers(0, 2**32))
def test_what_is_told_is_what_a_cache_holds(seed: int) -> None:
    """Against a cache of blocks that stores chains of random tokens and evicts random blocks, its copies too."""
    rng, heard = random.Random(seed), Heard()
    names: dict[BlockDigest, int] = {}
    blocks: list[BlockDigest] = []
    for _ in range(30):
        if blocks and rng.random() < 0.4:
            digest = blocks.pop(rng.randrange(len(blocks)))
            heard.hear(removed(names[digest]))
            continue
        root, tokens = rng.choice([ALICE, BOB]), [rng.randrange(2) for _ in range(8)]
        chain = HASHER.extend(root, tokens)
        for digest in chain:
            names.setdefault(digest, len(names))
        known = next((n for n, digest in enumerate(chain) if digest not in blocks), 2)
        if known == 2 or rng.random() < 0.3:
            known = 0  # two requests at the same time compute the same
        heard.hear(
            stored([names[one] for one in chain[known:]], tokens[4 * known :], names[chain[0]] if known else None, root)
        )
        blocks += chain[known:]
    assert set(heard.held) == set(blocks)
