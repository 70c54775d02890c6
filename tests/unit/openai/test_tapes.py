"""Events of responses are kept within bounds of memory, and told from wherever a reader wants to go on."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from armature.openai.errors import ApiError
from armature.openai.serving.responses import tapes as module
from armature.openai.serving.responses.tapes import Tape, Tapes

EVENT = b"event: x\ndata: {}\n\n"


@pytest.fixture
async def kept() -> AsyncIterator[Tapes]:
    async with asyncio.TaskGroup() as tasks:
        yield Tapes(tasks, None, "", cast(Any, None))


async def read(tape: Tape, first: int = 0) -> list[bytes]:
    return [event async for events in tape.read(first) for event in events]


async def test_a_reader_gets_what_there_is_and_what_comes(kept: Tapes) -> None:
    tape = kept.begin(("owner", "a"))
    tape.send_more(EVENT * 2)
    reading = [asyncio.create_task(read(tape, first)) for first in (0, 1, 2, 9)]
    await asyncio.sleep(0)
    tape.send_more(EVENT)
    tape.send_more(b"")
    kept.end(("owner", "a"), tape)
    assert await asyncio.gather(*reading) == [[EVENT] * 3, [EVENT] * 2, [EVENT], []]


async def test_a_tape_that_grows_too_long_is_lost(kept: Tapes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TAPE_BYTES", 2 * len(EVENT))
    tape = kept.begin(("owner", "a"))
    reading = asyncio.create_task(read(tape))
    for _ in range(3):
        await asyncio.sleep(0)
        tape.send_more(EVENT)
    with pytest.raises(ApiError, match="not kept"):
        await reading
    assert await kept.read(("owner", "a"), 0) is None


async def test_complete_tapes_go_first_when_there_are_too_many(kept: Tapes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 4 * len(EVENT))
    names = [("owner", name) for name in "abc"]
    under_way, old, new = [kept.begin(name) for name in names]
    for tape in (under_way, old, new):
        tape.send_more(EVENT)
    kept.end(names[1], old)
    kept.end(names[2], new)
    under_way.send_more(EVENT * 2)
    assert [await kept.read(name, 0) is None for name in names] == [False, True, False]
    under_way.send_more(EVENT * 3)
    assert [await kept.read(name, 0) is None for name in names] == [True, True, True]
    kept.begin(names[0]).send_more(EVENT)
    assert await kept.read(names[0], 0) is not None
