"""With tiers below the device: whatever is copied there, lost there or read from there, answers are the same."""

from hypothesis import given, settings
from hypothesis import strategies as st

from armature.scheduling.offloading import OffloadTiming
from armature.scheduling.request import Request, Sampling
from tests.support.scheduler_world import World
from tests.unit.scheduling.test_scheduler_properties import act

TIMINGS = [
    OffloadTiming(max_in_flight_blocks=5),
    OffloadTiming(max_waiting_blocks=3),
    OffloadTiming(when="evicting", ahead=0.5),
]


def disturb(world: World) -> None:
    """Do something random below."""
    rnd = world.random
    if rnd.random() < 0.6 and world.runs:
        world.copy_below(rnd.choice(world.runs))
    elif rnd.random() < 0.2 and world.below:
        world.evict_below(rnd.choice(list(world.below)))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    num_blocks=st.sampled_from([9, 16, 40]),
    max_num_seqs=st.sampled_from([1, 5]),
    timing=st.sampled_from(TIMINGS),
)
def test_every_request_is_answered_as_if_nothing_was_kept_below(
    seed: int, num_blocks: int, max_num_seqs: int, timing: OffloadTiming
):
    world = World(seed, num_blocks=num_blocks, max_num_seqs=max_num_seqs, budget=8, below=timing)
    for _ in range(150):
        act(world)
        disturb(world)
    world.settle()
    assert not world.runs


def answered(world: World, prompt: list[int]) -> int:
    """Prompt tokens of a request that were not computed; transports bring all that was asked for."""
    sampling = Sampling(ignore_eos=True)
    client = world.submit(Request(f"r{len(world.clients)}", prompt, len(prompt), 1, world.roots[0], sampling))
    while client.end is None:
        world.step()
        for run in world.runs[:]:
            world.copy_below(run)
        if client.is_fetching:
            assert client.reserved is not None
            world.land(client, len(client.reserved.block_ids))
            world.finish_remote(client, [])
    world.step()
    for run in world.runs[:]:
        world.copy_below(run)
    return client.end.cached_tokens


def test_prompts_that_the_device_has_evicted_are_read_back_and_count_as_cached():
    world = World(1, num_blocks=9, max_num_seqs=2, budget=64, below=OffloadTiming())
    prompts = [[number] * 21 for number in range(10, 16)]
    assert [answered(world, prompt) for prompt in prompts] == [0] * 6
    assert [answered(world, prompt) for prompt in prompts] == [20] * 6
    assert len(world.below) == 30
    world.settle()


def test_the_head_that_is_on_the_device_is_not_read_again():
    world = World(1, num_blocks=30, max_num_seqs=2, budget=64, below=OffloadTiming())
    answered(world, [10] * 21)
    del world.log[:]
    answered(world, [10] * 21)
    assert not any(output.reserved for output in world.log)


def test_what_is_held_below_is_not_offered_again():
    world = World(1, num_blocks=30, max_num_seqs=2, budget=64, below=OffloadTiming())
    answered(world, [10] * 21)
    del world.log[:]
    answered(world, [10] * 21 + [11] * 8)
    runs = [run for output in world.log if output.offload for run in output.offload.runs]
    assert [len(run.digests) for run in runs] == [2]


def test_just_before_eviction_nothing_is_offered_while_there_is_room():
    world = World(1, num_blocks=41, max_num_seqs=2, budget=64, below=OffloadTiming(when="evicting", ahead=0.5))
    for number in range(10, 13):
        answered(world, [number] * 21)
    assert not world.below
    for number in range(13, 30):
        answered(world, [number] * 21)
    assert all(answered(world, [number] * 21) == 20 for number in range(10, 30))


def test_prompts_are_told_once_they_are_served():
    world = World(1, num_blocks=30, max_num_seqs=2, budget=64, below=OffloadTiming())
    answered(world, [10] * 21)
    answered(world, [10] * 3)
    seen = [prompt for output in world.log if output.offload for prompt in output.offload.seen]
    assert [prompt.digests for prompt in seen] == [tuple(world.hasher.extend(world.roots[0], [10] * 20))]
