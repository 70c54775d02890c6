"""The lines in which requests stand."""

from armature.blocks.hashing import BlockDigest
from armature.scheduling.job import Job, open_job
from armature.scheduling.lifecycle import Event
from armature.scheduling.limits import Limits
from armature.scheduling.queues import Queues
from armature.scheduling.request import Request

LIMITS = Limits(max_num_seqs=4, max_num_batched_tokens=8, context_length=100, vocab_size=100)


def job(arrival: int, priority: int = 0) -> Job:
    request = Request(f"r{arrival}", [1] * 6, 6, 4, BlockDigest(b"root"), priority=priority)
    return open_job(request, (-priority, 0.0, arrival), LIMITS, 4, 100)


def test_whoever_comes_back_stands_where_it_stood():
    queues = Queues(4)
    for arrival in (1, 3, 5, 4, 2):
        queues.enqueue(job(arrival))
    assert [waiting.rank[2] for waiting in queues.waiting] == [1, 2, 3, 4, 5]


def test_every_line_is_in_order_of_arrival():
    queues = Queues(4)
    jobs = [job(arrival) for arrival in (1, 2, 3)]
    for waiting in jobs:
        queues.enqueue(waiting)
    for starting in reversed(jobs):
        queues.start(starting)
    assert queues.prefilling == jobs
    for answering in reversed(jobs):
        queues.answer(answering)
    assert queues.decoding == jobs
    assert queues.num_running == 3
    queues.leave(jobs[1])
    assert queues.decoding == [jobs[0], jobs[2]]


def test_the_backlog_is_what_is_still_to_be_computed():
    queues = Queues(4)
    waiting = job(1)
    queues.enqueue(waiting)
    assert queues.backlog == 6
    queues.start(waiting)
    waiting.computed = 5
    queues.note_backlog(waiting)
    assert queues.backlog == 1
    queues.answer(waiting)
    assert queues.backlog == 0
    waiting.advance(Event.FINISH)
    queues.forget(waiting)
    assert queues.backlog == 0


def test_a_higher_priority_stands_before_all_lower_ones_and_behind_its_equals():
    queues = Queues(4)
    for arrival, priority in ((1, 0), (2, -1), (3, 2), (4, 0), (5, 2)):
        queues.enqueue(job(arrival, priority))
    assert [waiting.request_id for waiting in queues.waiting] == ["r3", "r5", "r1", "r4", "r2"]
