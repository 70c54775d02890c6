"""How requests share steps and blocks. Blocks hold 4 tokens here; a pool of n blocks hands out n - 1."""

from array import array

import pytest

from armature.performance.fit import StepFit
from armature.scheduling.plan import SampledToken
from armature.scheduling.request import EngineLoad, FinishReason, Request, Sampling, TokenOutput
from tests.support.scheduler_world import EOS, VOCAB_SIZE, Client, World

ENDLESS = Sampling(ignore_eos=True)


def world(*, num_blocks: int = 40, max_num_seqs: int = 4, budget: int = 16, max_waiting: int = 1000) -> World:
    return World(0, num_blocks=num_blocks, max_num_seqs=max_num_seqs, budget=budget, max_waiting=max_waiting)


def generate(
    world: World, prompt: list[int], max_tokens: int = 4, sampling: Sampling = ENDLESS, tenant: str = ""
) -> Client:
    request_id = f"r{len(world.clients)}"
    return world.submit(Request(request_id, prompt, len(prompt), max_tokens, world.roots[0], sampling, tenant=tenant))


def load(world: World) -> EngineLoad:
    return world.scheduler.load(StepFit())


def planned(world: World) -> list[tuple[str, int, int]]:
    """The next step as (request, start, count), computed at once."""
    plan = world.scheduler.schedule()
    assert plan is not None
    slices = [(piece.sequence.request.request_id, piece.start, piece.count) for piece in plan.slices()]
    world.scheduler.complete(plan, world.runner.execute(plan))
    world.listen()
    return slices


def test_a_long_prompt_is_computed_in_chunks_of_the_budget():
    w = world(budget=16)
    generate(w, list(range(10, 50)))
    assert [planned(w), planned(w), planned(w)] == [[("r0", 0, 16)], [("r0", 16, 16)], [("r0", 32, 8)]]
    assert planned(w) == [("r0", 40, 1)]


def test_decodes_come_first_and_prefill_takes_the_rest_of_the_budget():
    w = world(budget=16)
    generate(w, [1, 2, 3])
    planned(w)
    generate(w, list(range(10, 40)))
    assert planned(w) == [("r0", 3, 1), ("r1", 0, 15)]
    assert planned(w) == [("r0", 4, 1), ("r1", 15, 15)]


def test_no_more_requests_run_than_there_are_seats():
    w = world(max_num_seqs=2)
    for _ in range(3):
        generate(w, [1, 2, 3], max_tokens=2)
    assert [request_id for request_id, _, _ in planned(w)] == ["r0", "r1"]
    assert (load(w).running_seqs, load(w).waiting_seqs) == (2, 1)
    planned(w)
    assert planned(w) == [("r2", 0, 3)]


def test_a_known_prefix_is_not_computed_again_but_its_last_token_is():
    w = world()
    prompt = list(range(10, 22))
    first = generate(w, prompt, max_tokens=1)
    planned(w)
    second = generate(w, prompt, max_tokens=1)
    assert planned(w) == [("r1", 8, 4)]
    assert second.end is not None
    assert second.end.cached_tokens == 8
    assert second.tokens == first.tokens


def test_an_answer_can_be_found_in_the_cache_by_the_next_turn():
    w = world()
    first = generate(w, [1, 2, 3], max_tokens=9)
    w.settle()
    generate(w, [1, 2, 3, *first.tokens, 30], max_tokens=1)
    # 3 + 9 tokens, of which the last was never computed: two whole blocks.
    assert planned(w) == [("r1", 8, 5)]


def test_namespaces_do_not_share_blocks():
    w = world()
    generate(w, list(range(10, 22)), max_tokens=1)
    planned(w)
    w.submit(Request("r1", list(range(10, 22)), 12, 1, w.roots[1], ENDLESS))
    assert planned(w) == [("r1", 0, 12)]


def test_blocks_of_a_step_are_found_only_after_it():
    w = world(budget=32)
    generate(w, list(range(10, 22)), max_tokens=1)
    generate(w, list(range(10, 22)), max_tokens=1)
    assert planned(w) == [("r0", 0, 12), ("r1", 0, 12)]


def test_who_came_last_is_preempted_and_nothing_is_told_twice():
    w = world(num_blocks=8, max_num_seqs=2)
    first = generate(w, [1] * 8, max_tokens=14)
    second = generate(w, [2] * 8, max_tokens=14)
    w.settle()
    assert w.scheduler.load(StepFit()).preemptions > 0
    assert first.end is not None and second.end is not None
    assert len(first.tokens) == len(second.tokens) == 14
    ends = [token.request_id for output in w.log for token in output.tokens if token.finish_reason]
    assert ends == ["r0", "r1"]


def test_a_request_of_higher_priority_is_served_first_and_gives_way_last():
    w = world(num_blocks=8, max_num_seqs=2)
    for index, priority in enumerate((-1, 0, 3)):
        w.submit(Request(f"r{index}", [index] * 8, 8, 14, w.roots[0], ENDLESS, priority=priority))
    assert [request_id for request_id, _, _ in planned(w)] == ["r2", "r1"]
    w.settle()
    assert w.scheduler.load(StepFit()).preemptions > 0
    ends = [token.request_id for output in w.log for token in output.tokens if token.finish_reason]
    assert ends == ["r2", "r1", "r0"]


def test_a_preempted_request_comes_back_before_those_that_came_later():
    w = world(num_blocks=8, max_num_seqs=2)
    generate(w, [1] * 8, max_tokens=14)
    generate(w, [2] * 8, max_tokens=14)
    generate(w, [3] * 8, max_tokens=14)
    w.settle()
    ends = [token.request_id for output in w.log for token in output.tokens if token.finish_reason]
    assert ends == ["r0", "r1", "r2"]


def test_an_answer_that_fills_the_whole_pool_ends_with_length():
    w = world(num_blocks=4)
    client = generate(w, [1, 2, 3], max_tokens=50)
    w.settle()
    assert client.end is not None
    assert (client.end.finish_reason, len(client.tokens)) == (FinishReason.LENGTH, 9)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([], "prompt_tokens is 0"),
        ([1] * 60, "the context length is 60"),
        ([1, VOCAB_SIZE], "outside the vocabulary"),
        ([1, -1], "outside the vocabulary"),
    ],
)
def test_what_can_never_be_served_is_refused_with_the_reason(prompt: list[int], reason: str):
    w = world()
    client = generate(w, prompt)
    w.listen()
    assert client.end is not None
    assert client.end.finish_reason is FinishReason.ERROR
    assert reason in client.end.error


def test_a_prompt_larger_than_the_pool_is_refused():
    w = world(num_blocks=4)
    client = generate(w, [1] * 12)
    w.listen()
    assert client.end is not None
    assert client.end.error == "the prompt has 12 tokens; the KV pool holds 12"


def test_a_bias_for_an_unknown_token_is_refused():
    w = world()
    client = generate(w, [1], sampling=Sampling(logit_bias={VOCAB_SIZE: 1.0}))
    w.listen()
    assert client.end is not None
    assert "logit bias" in client.end.error


def test_a_full_queue_refuses_and_says_so():
    w = world(max_num_seqs=1, max_waiting=2)
    clients = [generate(w, [1, 2]) for _ in range(4)]
    w.listen()
    assert clients[3].end is not None
    assert clients[3].end.error.startswith("queue full")
    w.settle()
    assert [client.end.finish_reason for client in clients[:3] if client.end] == [FinishReason.LENGTH] * 3


def test_a_request_id_that_is_in_use_is_refused():
    w = world()
    client = generate(w, [1, 2])
    w.scheduler.submit(client.request)
    output = w.scheduler.take(load(w))
    assert [token.error for token in output.tokens] == ["request id r0 is in use"]
    w.settle()


def test_an_aborted_request_frees_its_blocks_at_once():
    w = world()
    waiting, running = generate(w, [1] * 9), generate(w, [2] * 9)
    planned(w)
    w.abort(running)
    w.abort(waiting)
    w.listen()
    assert load(w).free_blocks == load(w).total_blocks
    assert [client.end and client.end.finish_reason for client in (waiting, running)] == [FinishReason.CANCELLED] * 2
    w.scheduler.abort("nobody")


def test_a_moved_request_goes_on_where_it_stopped():
    w = world()
    whole = generate(w, [1, 2, 3], max_tokens=8)
    w.settle()
    moved = w.submit(Request("r1", [1, 2, 3, *whole.tokens[:5]], 3, 8, w.roots[0], ENDLESS))
    w.settle()
    assert moved.tokens == whole.tokens


def test_a_moved_request_with_nothing_left_to_do_ends_at_once():
    w = world()
    client = w.submit(Request("r0", [1, 2, 3, 9, 9], 3, 2, w.roots[0], ENDLESS))
    w.listen()
    assert client.end is not None
    assert (client.end.finish_reason, client.end.output_index) == (FinishReason.LENGTH, 2)


def test_an_end_token_counts_only_after_min_tokens():
    w = world()
    early = generate(w, [5, 6], max_tokens=40, sampling=Sampling(seed=3))
    late = generate(w, [5, 6], max_tokens=40, sampling=Sampling(seed=3, min_tokens=39))
    w.settle()
    assert early.tokens[-1] == EOS
    assert late.tokens[: len(early.tokens)] == early.tokens
    assert len(late.tokens) == 40


def test_of_a_failed_step_only_the_request_at_fault_ends():
    w = world(max_num_seqs=4, budget=64)
    clients = [generate(w, [n] * 9) for n in range(4)]
    w.step()
    w.poison.add("r2")
    w.settle()
    ends = [client.end for client in clients if client.end]
    assert [end.error for end in ends] == ["", "", "step failed: on purpose", ""]
    assert [len(client.tokens) for client in clients] == [4, 4, 1, 4]


def test_requests_of_a_failed_step_are_tried_alone_and_then_together_again():
    w = world(max_num_seqs=3, budget=64)
    for n in range(3):
        generate(w, [n] * 9)
    w.step()
    w.step(raises=True)
    sizes = [len(planned(w)) for _ in range(4)]
    assert sizes == [1, 1, 1, 3]
    w.settle()


def test_the_load_counts_prompt_tokens_still_to_compute():
    w = world(budget=16, max_num_seqs=4)
    generate(w, list(range(10, 50)))
    assert load(w).waiting_prefill_tokens == 40
    planned(w)
    assert load(w).waiting_prefill_tokens == 24
    generate(w, [9] * 7)
    assert load(w).waiting_prefill_tokens == 31
    w.settle()


def test_a_cleared_cache_finds_nothing_but_harms_nobody():
    w = world()
    client = generate(w, list(range(10, 22)), max_tokens=6)
    planned(w)
    w.scheduler.clear_cache()
    w.cached.clear()
    w.settle()
    assert len(client.tokens) == 6


def test_answers_that_nobody_reads_end_where_the_others_do_and_hold_the_same_blocks():
    """The same requests, with every token told and with none but the first and the last."""

    def run(*, is_read: bool) -> tuple[list[object], list[object]]:
        w = world(num_blocks=12)
        answers = {f"r{i}": array("I", [i + 10]) for i in range(3)}
        for i, max_tokens in enumerate((6, 9, 17)):
            request_id = f"r{i}"
            sampling = Sampling(ignore_eos=True)
            w.scheduler.submit(Request(request_id, [i] * 5, 5, max_tokens, w.roots[0], sampling))
        told: list[TokenOutput] = []
        events: list[object] = []
        while (plan := w.scheduler.schedule()) is not None:
            if is_read:
                ids = [piece.sequence.request.request_id for piece in plan.slices() if piece.samples]
                w.scheduler.complete(plan, [SampledToken(answers[request_id][0]) for request_id in ids])
            else:
                w.scheduler.complete_unread(plan, w.scheduler.num_equal_steps(), answers)
            w.scheduler.take_opened()
            output = w.scheduler.take(load(w))
            told += output.tokens
            events += [(event.kind, event.digests) for event in output.kv_events]
        first_and_last = [one for one in told if one.output_index == 0 or one.finish_reason]
        return [*first_and_last], events

    assert run(is_read=True) == run(is_read=False)
