"""Streams of news that are held for a moment."""

import pytest

from armature.runtime import news_gate
from armature.runtime.news_gate import MOST_STREAMS, NewsGate
from tests.support.eventually import eventually


class Stream:
    is_held = False

    def hold(self) -> None:
        self.is_held = True

    def release(self) -> None:
        self.is_held = False


async def test_streams_are_held_and_read_on_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news_gate, "HOLD_S", 0.01)
    gate, streams = NewsGate(), [Stream(), Stream()]
    for stream in streams:
        gate.add(stream)
    for _ in range(2):  # it can be done again
        gate.hold()
        gate.hold()
        assert [stream.is_held for stream in streams] == [True, True]
        await eventually(lambda: not streams[0].is_held)
        assert not streams[1].is_held


async def test_whoever_can_not_wait_opens_it() -> None:
    gate, stream = NewsGate(), Stream()
    gate.add(stream)
    gate.hold()
    gate.open()
    assert not stream.is_held
    gate.hold()
    assert stream.is_held
    gate.open()


async def test_a_stream_that_has_ended_is_none_of_its_business_and_a_new_one_is_read() -> None:
    gate, old, new = NewsGate(), Stream(), Stream()
    gate.add(old)
    gate.hold()
    gate.discard(old)
    gate.add(new)
    assert not new.is_held
    gate.open()
    assert old.is_held


async def test_many_streams_are_not_held_at_all() -> None:
    gate, streams = NewsGate(), [Stream() for _ in range(MOST_STREAMS + 1)]
    for stream in streams:
        gate.add(stream)
    gate.hold()
    assert not any(stream.is_held for stream in streams)
