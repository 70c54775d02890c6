"""Prompts computed for another worker: announced as they grow, held until released."""

from armature.performance.fit import StepFit
from armature.scheduling.request import EngineLoad, Request, Sampling, StepOutput, Work
from tests.support.scheduler_world import Client, World

PROMPT = list(range(10, 40))
"""Seven whole blocks and a tail that is the reader's."""


def world(*, num_blocks: int = 40) -> World:
    return World(0, num_blocks=num_blocks, max_num_seqs=4, budget=16)


def prefill(world: World, prompt: list[int] = PROMPT, first_block: int = 0, *, cached_only: bool = False) -> Client:
    request = Request(
        f"r{len(world.clients)}", prompt, len(prompt), 1, world.roots[0], Sampling(), work=Work.PREFILL,
        first_block=first_block, cached_only=cached_only,
    )  # fmt: skip
    return world.submit(request)


def load(world: World) -> EngineLoad:
    return world.scheduler.load(StepFit())


def announced(world: World) -> list[tuple[int, int, bool]]:
    """Every announcement so far as (first block, blocks, whether it is the last)."""
    outputs = [output for output in world.log if isinstance(output, StepOutput)]
    return [(s.first_block, len(s.block_ids), s.is_last) for output in outputs for s in output.staged]


def test_blocks_are_announced_chunk_by_chunk_and_the_tail_is_left_to_the_reader():
    w = world()
    client = prefill(w)
    w.step()
    assert announced(w) == [(0, 4, False)]
    w.step()
    assert announced(w) == [(0, 4, False), (4, 3, True)]
    assert not w.step()
    assert load(w).staged_blocks == 7
    assert load(w).running_seqs == 0
    w.release(client, None)
    assert load(w).free_blocks == load(w).total_blocks
    w.settle()


def test_cached_blocks_are_announced_before_anything_is_computed():
    w = world()
    w.release(prefill(w, PROMPT[:17]), None)
    first = prefill(w, PROMPT[:17])
    w.step()
    w.release(first, None)
    client = prefill(w)
    plan = w.scheduler.schedule()
    assert plan is not None
    w.listen()
    assert sorted(client.staged) == [0, 1, 2, 3]
    w.scheduler.complete(plan, w.runner.execute(plan))
    w.listen()
    assert client.has_last
    w.settle()


def test_a_fully_cached_prompt_needs_no_step():
    w = world()
    first = prefill(w)
    w.step()
    w.step()
    w.release(first, None)
    second = prefill(w)
    assert not w.step()
    assert second.has_last
    assert len(second.staged) == 7
    w.settle()


def test_what_is_cached_is_staged_at_once_for_a_peer_and_nothing_is_computed():
    w = world()
    w.release(prefill(w, PROMPT[:17]), None)
    w.step()
    first = prefill(w, PROMPT[:17])
    w.step()
    w.release(first, None)
    w.step()
    computed = load(w).computed_prefill_tokens
    peers = [prefill(w, first_block=first_block, cached_only=True) for first_block in (0, 3, 6)]
    w.listen()
    assert [sorted(peer.staged) for peer in peers] == [[0, 1, 2, 3], [3], []]
    assert all(peer.has_last for peer in peers)
    assert load(w).free_blocks == load(w).total_blocks - 4
    assert not w.step()
    w.settle()
    assert load(w).computed_prefill_tokens == computed


def test_blocks_that_the_reader_has_are_computed_but_not_announced():
    w = world()
    prefill(w, first_block=5)
    w.step()
    assert announced(w) == []
    w.step()
    assert announced(w) == [(5, 2, True)]
    assert load(w).free_blocks == load(w).total_blocks - 2
    w.settle()


def test_a_prompt_without_a_whole_block_is_over_at_once():
    w = world()
    client = prefill(w, [1, 2, 3, 4])
    assert not w.step()
    assert announced(w) == [(0, 0, True)]
    assert load(w).free_blocks == load(w).total_blocks
    w.release(client, None)
    w.settle()


def test_released_blocks_are_free_while_later_ones_are_held():
    w = world()
    client = prefill(w)
    w.step()
    w.release(client, 3)
    # They are still needed to compute what follows.
    assert load(w).free_blocks == load(w).total_blocks - 7
    assert load(w).staged_blocks == 1
    w.step()
    assert load(w).free_blocks == load(w).total_blocks - 4
    w.release(client, 6)
    w.release(client, 2)
    assert (load(w).free_blocks, load(w).staged_blocks) == (load(w).total_blocks - 1, 1)
    w.release(client, None)
    w.settle()


def test_releasing_block_by_block_to_the_end_ends_the_request():
    w = world()
    client = prefill(w)
    w.step()
    w.step()
    for index in range(1, 8):
        w.release(client, index)
    assert not w.scheduler.has_work
    client.is_released = True
    w.settle()


def test_a_released_prefix_is_still_evicted_from_its_tail():
    w = world(num_blocks=9)
    client = prefill(w)
    w.step()
    w.step()
    for index in range(1, 8):
        w.release(client, index)
    client.is_released = True
    digests = w.hasher.extend(w.roots[0], PROMPT)
    assert w.pool.allocate(4) is not None
    assert len(w.pool.find(digests)) == 4


def test_a_stopped_prefill_computes_no_more_but_holds_what_is_staged():
    w = world()
    client = prefill(w)
    w.step()
    w.scheduler.stop_prefill("r0")
    assert not w.step()
    assert announced(w) == [(0, 4, False), (4, 0, True)]
    assert load(w).free_blocks == load(w).total_blocks - 4
    w.release(client, None)
    w.settle()


def test_a_prefill_stopped_before_it_began_says_that_nothing_comes():
    w = world()
    client = prefill(w)
    w.scheduler.stop_prefill("r0")
    w.listen()
    assert announced(w) == [(0, 0, True)]
    w.release(client, None)
    w.settle()


def test_an_aborted_prefill_answers_nothing():
    w = world()
    client = prefill(w)
    w.step()
    w.abort(client)
    w.settle()
    assert client.end is None


def test_staged_blocks_are_never_preempted():
    w = world(num_blocks=10)
    client = prefill(w)
    w.step()
    w.step()
    answers = [w.submit(Request(f"r{n}", [n] * 3, 3, 9, w.roots[0], Sampling(ignore_eos=True))) for n in (1, 2)]
    for _ in range(40):
        w.step()
    assert len(client.staged) == 7
    w.release(client, None)
    w.settle()
    assert [len(answer.tokens) for answer in answers] == [9, 9]


def test_release_and_stop_are_for_prefills_only():
    w = world()
    client = w.submit(Request("r0", [1, 2, 3], 3, 3, w.roots[0], Sampling(ignore_eos=True)))
    w.step()
    w.scheduler.release("r0")
    w.scheduler.stop_prefill("r0")
    w.scheduler.release("nobody")
    w.settle()
    assert len(client.tokens) == 3
