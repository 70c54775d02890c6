"""Prompts whose blocks another worker computes: reserved, landed, ended; and what happens when they never come."""

from armature.performance.fit import StepFit
from armature.scheduling.lifecycle import State
from armature.scheduling.request import EngineLoad, FinishReason, Request, Sampling
from tests.support.scheduler_world import Client, World

ENDLESS = Sampling(ignore_eos=True)
PROMPT = list(range(10, 24))
"""Three whole blocks to fetch and a tail of two tokens."""


def world(*, num_blocks: int = 40, max_num_seqs: int = 4) -> World:
    return World(0, num_blocks=num_blocks, max_num_seqs=max_num_seqs, budget=16)


def submit(world: World, prompt: list[int], *, remote: bool = True, max_tokens: int = 3) -> Client:
    request_id = f"r{len(world.clients)}"
    return world.submit(Request(request_id, prompt, len(prompt), max_tokens, world.roots[0], ENDLESS, remote=remote))


def load(world: World) -> EngineLoad:
    return world.scheduler.load(StepFit())


def test_room_is_reserved_and_nothing_is_computed_until_the_blocks_are_there():
    w = world()
    client = submit(w, PROMPT)
    assert not w.step()
    assert client.reserved is not None
    assert (client.reserved.first_block, len(client.reserved.block_ids)) == (0, 3)
    assert load(w).waiting_prefill_tokens == 2
    w.land(client, 3)
    assert not w.step()
    w.finish_remote(client, [])
    plan = w.scheduler.schedule()
    assert plan is not None
    assert [(piece.start, piece.count) for piece in plan.slices()] == [(12, 2)]
    w.scheduler.complete(plan, w.runner.execute(plan))
    w.settle()


def test_landed_blocks_are_shared_before_the_rest_has_come():
    w = world()
    client = submit(w, PROMPT)
    w.step()
    w.land(client, 2)
    other = submit(w, PROMPT[:9], remote=False, max_tokens=1)
    w.step()
    assert other.end is not None
    assert other.end.cached_tokens == 8
    w.settle()


def test_only_blocks_that_are_not_cached_are_fetched():
    w = world()
    submit(w, PROMPT[:9], remote=False, max_tokens=1)
    w.step()
    client = submit(w, PROMPT)
    w.step()
    assert client.reserved is not None
    assert (client.reserved.first_block, len(client.reserved.block_ids)) == (2, 1)
    w.settle()
    assert client.end is not None
    assert client.end.cached_tokens == 8


def test_with_everything_cached_there_is_nothing_to_fetch_and_nothing_to_wait_for():
    w = world()
    submit(w, PROMPT, remote=False, max_tokens=1)
    w.step()
    client = submit(w, PROMPT, max_tokens=1)
    w.step()
    assert client.reserved is not None
    assert client.reserved.block_ids == ()
    assert client.end is not None
    w.scheduler.finish_remote("r1", 0)
    w.settle()


def test_what_did_not_come_is_computed_here():
    w = world()
    client = submit(w, PROMPT)
    w.step()
    w.land(client, 1)
    w.finish_remote(client, [])
    plan = w.scheduler.schedule()
    assert plan is not None
    assert [(piece.start, piece.count) for piece in plan.slices()] == [(4, 10)]
    w.scheduler.complete(plan, w.runner.execute(plan))
    w.settle()


def test_blocks_that_a_late_read_may_overwrite_are_given_to_nobody():
    w = world(num_blocks=9)
    client = submit(w, PROMPT)
    w.step()
    assert client.reserved is not None
    w.finish_remote(client, list(client.reserved.block_ids))
    assert load(w).quarantined_blocks == 3
    # The late bytes are written before every step and would show as foreign KV.
    while w.step():
        pass
    assert client.end is not None
    w.settle()


def test_an_abort_waits_until_nothing_writes_to_the_blocks():
    w = world()
    client = submit(w, PROMPT)
    w.step()
    w.abort(client)
    w.step()
    assert client.end is None
    assert load(w).free_blocks == load(w).total_blocks - 3
    w.finish_remote(client, [])
    w.listen()
    assert client.end is not None
    assert client.end.finish_reason is FinishReason.CANCELLED
    w.settle()


def test_landing_for_a_request_that_fetches_nothing_is_ignored():
    w = world()
    client = submit(w, PROMPT, remote=False)
    w.step()
    w.scheduler.land("r0", 3)
    w.scheduler.finish_remote("r0", 3, [])
    w.scheduler.finish_remote("nobody", 3, [])
    w.settle()
    assert client.end is not None


def test_reservations_that_fill_the_pool_do_not_block_it():
    # Two prompts of three whole blocks in a pool of six: nobody has room for a tail until one gives way.
    w = world(num_blocks=7)
    clients = [submit(w, [n, *PROMPT[1:]]) for n in (1, 2)]
    w.step()
    for client in clients:
        w.land(client, 3)
        w.finish_remote(client, [])
    w.settle()
    assert [len(client.tokens) for client in clients] == [3, 3]


def test_running_answers_outlive_reservations():
    w = world(num_blocks=8)
    running = submit(w, [1] * 8, remote=False, max_tokens=12)
    w.step()
    fetching = submit(w, PROMPT)
    w.step()
    assert fetching.is_fetching
    for _ in range(10):
        w.step()
    # The answer has no room left but its own; the transport's blocks can't be taken.
    assert not running.end
    w.land(fetching, 3)
    w.finish_remote(fetching, [])
    w.settle()
    assert len(running.tokens) == 12


def test_a_running_answer_takes_blocks_from_who_came_later_and_only_waits():
    w = world(num_blocks=7, max_num_seqs=1)
    running = submit(w, [1] * 4, remote=False, max_tokens=20)
    w.step()
    fetched = submit(w, PROMPT)
    w.step()
    w.land(fetched, 3)
    w.finish_remote(fetched, [])
    while running.end is None:
        w.step()
    assert load(w).preemptions == 0
    w.settle()


def test_no_more_requests_fetch_at_a_time_than_there_are_seats():
    w = world(max_num_seqs=2)
    clients = [submit(w, [n, *PROMPT[1:]]) for n in range(3)]
    w.step()
    assert [client.is_fetching for client in clients] == [True, True, False]
    w.finish_remote(clients[0], [])
    w.step()
    assert clients[2].is_fetching
    w.settle()


def test_a_fetched_prompt_that_is_preempted_is_not_fetched_again():
    w = world(num_blocks=8, max_num_seqs=2)
    first = submit(w, [1] * 8, remote=False, max_tokens=16)
    second = submit(w, PROMPT[:9], max_tokens=8)
    w.step()
    w.land(second, 2)
    w.finish_remote(second, [])
    w.settle()
    assert load(w).preemptions > 0
    assert (len(first.tokens), len(second.tokens)) == (16, 8)
    assert sum(len(output.reserved) for output in w.log) == 1


def test_the_state_of_a_remote_request_follows_the_table():
    w = world()
    client = submit(w, PROMPT)
    w.step()
    job = w.scheduler._jobs["r0"]
    states = [job.state]
    w.land(client, 3)
    w.finish_remote(client, [])
    states.append(job.state)
    w.step()
    states.append(job.state)
    w.settle()
    states.append(job.state)
    assert states == [State.FETCHING, State.WAITING, State.DECODING, State.FINISHED]
