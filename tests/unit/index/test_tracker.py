"""What a tracker does with every kind of message, and that no history of losses can make it miss an event."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armature.index.tracker import BatchHeader, Position, SourceTracker, Step, Verdict


def live(first_seq: int, num_events: int, epoch: int = 7) -> BatchHeader:
    return BatchHeader(epoch, first_seq, num_events)


def dump(next_seq: int, num_events: int = 1, *, first: bool = True, more: bool = False, epoch: int = 7) -> BatchHeader:
    return BatchHeader(epoch, next_seq, num_events, is_reset=first, has_more=more)


APPLY, REPLACE = Step(Verdict.APPLY), Step(Verdict.REPLACE)


def resync(reason: str) -> Step:
    return Step(Verdict.RESYNC, reason)


@pytest.mark.parametrize(
    ("messages", "steps", "position", "is_exact"),
    [
        pytest.param([live(1, 0)], [REPLACE], Position(7, 1), True, id="a worker that has done nothing yet"),
        pytest.param([live(1, 3)], [REPLACE], Position(7, 4), True, id="a young worker's whole history"),
        pytest.param([dump(41)], [REPLACE], Position(7, 41), True, id="a dump in one message"),
        pytest.param([dump(41, more=True)], [REPLACE], Position(7, 41), False, id="a dump that goes on"),
        pytest.param(
            [dump(41, more=True), dump(41, first=False, more=True), dump(41, first=False), live(41, 2)],
            [REPLACE, APPLY, APPLY, APPLY], Position(7, 43), True, id="a dump in three messages, then events",
        ),
        pytest.param([dump(41), live(41, 1), live(42, 2)], [REPLACE, APPLY, APPLY], Position(7, 44), True, id="events"),
        pytest.param(
            [dump(41), live(39, 4)], [REPLACE, Step(Verdict.APPLY, first_event=2)], Position(7, 43), True,
            id="events of which two are known",
        ),
        pytest.param(
            [dump(41), live(38, 2)], [REPLACE, Step(Verdict.APPLY, first_event=2)], Position(7, 41), True,
            id="nothing but known events",
        ),
        pytest.param([dump(41), live(43, 1)], [REPLACE, resync("gap")], Position(7, 41), False, id="a gap"),
        pytest.param(
            [dump(41), live(43, 1), live(43, 1)], [REPLACE, resync("gap"), resync("gap")], Position(), False,
            id="a gap that the replay ring can't fill",
        ),
        pytest.param(
            [dump(41), live(43, 1), live(41, 3)], [REPLACE, resync("gap"), APPLY], Position(7, 44), True,
            id="a gap that the replay ring fills",
        ),
        pytest.param([dump(41), live(50, 1, epoch=8)], [REPLACE, resync("epoch")], Position(), False, id="new epoch"),
        pytest.param([dump(41), live(1, 2, epoch=8)], [REPLACE, REPLACE], Position(8, 3), True, id="new epoch, whole"),
        pytest.param([dump(41), dump(5, epoch=8)], [REPLACE, REPLACE], Position(8, 5), True, id="new epoch, dump"),
        pytest.param([dump(41), live(40, 0)], [REPLACE, resync("behind")], Position(), False, id="a forgetful worker"),
        pytest.param([dump(9, more=True), live(10, 1)], [REPLACE, resync("behind")], Position(), False, id="torn dump"),
        pytest.param([dump(41), live(41, 0)], [REPLACE, APPLY], Position(7, 41), True, id="nothing was missed"),
    ],
)  # fmt: skip
def test_a_message_is_applied_or_refused(
    messages: list[BatchHeader], steps: list[Step], position: Position, is_exact: bool
) -> None:
    tracker = SourceTracker()
    assert [tracker.receive(message) for message in messages] == steps
    assert tracker.position == position
    assert tracker.is_exact == is_exact


def test_a_broken_stream_is_resumed_where_it_broke() -> None:
    tracker = SourceTracker()
    tracker.receive(dump(41))
    tracker.disconnected()
    assert tracker.position == Position(7, 41)
    assert not tracker.is_exact


def test_half_a_dump_is_asked_for_again_from_its_start() -> None:
    tracker = SourceTracker()
    tracker.receive(dump(41, more=True))
    tracker.disconnected()
    assert tracker.position == Position()


class Worker:
    """A worker that stores block n in event n; its ring holds the last `ring` events."""

    def __init__(self, epoch: int, ring: int) -> None:
        self.epoch, self.ring, self.last_seq = epoch, ring, 0

    def answer(self, asked: Position) -> list[tuple[BatchHeader, list[int]]]:
        oldest = max(1, self.last_seq - self.ring + 1)
        if asked.epoch == self.epoch and oldest <= asked.next_seq <= self.last_seq + 1:
            events = list(range(asked.next_seq, self.last_seq + 1))
            return [(BatchHeader(self.epoch, asked.next_seq, len(events)), events)]
        held, following = list(range(1, self.last_seq + 1)), self.last_seq + 1
        parts = [held[start : start + 3] for start in range(0, len(held), 3)] or [[]]
        return [
            (BatchHeader(self.epoch, following, min(1, len(part)), number == 0, number < len(parts) - 1), part)
            for number, part in enumerate(parts)
        ]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["work", "break", "lose", "restart"]), st.integers(0, 8)), max_size=40))
def test_after_any_losses_one_answer_or_two_bring_everything_back(history: list[tuple[str, int]]) -> None:
    worker, tracker, known = Worker(epoch=1, ring=6), SourceTracker(), set[int]()

    def take(messages: list[tuple[BatchHeader, list[int]]]) -> bool:
        for header, events in messages:
            step = tracker.receive(header)
            if step.verdict is Verdict.RESYNC:
                return False
            if step.verdict is Verdict.REPLACE:
                known.clear()
            known.update(events[step.first_event :])
        return True

    def work(num_events: int) -> tuple[BatchHeader, list[int]]:
        first = worker.last_seq + 1
        worker.last_seq += num_events
        return BatchHeader(worker.epoch, first, num_events), list(range(first, first + num_events))

    for action, amount in history:
        if action == "work":
            take([work(amount)] if tracker.is_exact and amount else [])
        elif action == "lose":
            work(amount)
            if amount:
                take([work(1)])
        elif action == "restart":
            worker = Worker(worker.epoch + 1, ring=6)
            work(amount)
        else:
            tracker.disconnected()
            take(worker.answer(tracker.position)[: amount or None])
    for _ in range(2):
        tracker.disconnected()
        if take(worker.answer(tracker.position)):
            break
    assert tracker.is_exact
    assert known == set(range(1, worker.last_seq + 1))
    assert tracker.position == Position(worker.epoch, worker.last_seq + 1)
