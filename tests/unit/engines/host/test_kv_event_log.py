"""The log tells late readers either exactly what they missed, or that they must be told everything."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.blocks.events import KvEvent, KvEventKind
from armature.blocks.hashing import BlockDigest
from armature.engines.kv_event_log import KvEventLog
from armature.index.tiers import Tier


def digest(number: int) -> BlockDigest:
    return BlockDigest(number.to_bytes(16, "little"))


def stored(seq: int, *numbers: int) -> KvEvent:
    return KvEvent(seq, KvEventKind.STORED, tuple(map(digest, numbers)))


def test_a_reader_gets_what_it_missed() -> None:
    log = KvEventLog(capacity=4)
    events = [stored(seq, seq) for seq in range(1, 4)]
    log.append(events)
    assert log.since(1) == events
    assert log.since(3) == events[2:]
    assert log.since(4) == []


def test_a_reader_from_before_the_oldest_kept_event_must_start_anew() -> None:
    log = KvEventLog(capacity=2)
    log.append([stored(seq, seq) for seq in range(1, 6)])
    assert log.since(3) is None
    assert [event.seq for event in log.since(4) or []] == [4, 5]


def test_a_reader_from_the_future_must_start_anew() -> None:
    log = KvEventLog()
    log.append([stored(1, 1)])
    assert log.since(3) is None


@pytest.mark.parametrize("seq", [1, 3])
def test_a_repeated_or_missing_event_is_refused(seq: int) -> None:
    log = KvEventLog()
    log.append([stored(1, 1)])
    with pytest.raises(ValueError, match="2 was expected"):
        log.append([stored(seq, 2)])


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(list(KvEventKind)),
        st.lists(st.integers(0, 5), max_size=3, unique=True),
        st.sampled_from([Tier.G1, Tier.G3]),
    ),
    max_size=20,
)
Held = set[tuple[Tier, BlockDigest]]


@given(CHANGES, st.integers(1, 8), st.integers(1, 22))
def test_what_is_held_and_what_is_replayed_lead_to_the_same_set(
    changes: list[tuple[KvEventKind, list[int], Tier]], capacity: int, seq: int
) -> None:
    log, held, after = KvEventLog(capacity), Held(), [frozenset[tuple[Tier, BlockDigest]]()]
    for number, (kind, numbers, tier) in enumerate(changes, 1):
        event = KvEvent(number, kind, tuple(map(digest, numbers)), tier)
        log.append([event])
        _apply(held, event)
        after.append(frozenset(held))
    assert {(tier, digest) for tier, digests in log.held().items() for digest in digests} == held
    replay = log.since(seq)
    if replay is not None:
        copy = set(after[seq - 1])
        for event in replay:
            _apply(copy, event)
        assert copy == held
    else:
        assert seq > log.next_seq or log.next_seq - seq > capacity


def _apply(held: Held, event: KvEvent) -> None:
    named = {(event.tier, digest) for digest in event.digests}
    if event.kind is KvEventKind.STORED:
        held.update(named)
    elif event.kind is KvEventKind.REMOVED:
        held.difference_update(named)
    else:
        held.difference_update([one for one in held if one[0] is event.tier])
