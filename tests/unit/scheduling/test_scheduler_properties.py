"""Whatever comes in whatever order, every request is answered as if it were alone, and no block is lost."""

from hypothesis import given, settings
from hypothesis import strategies as st

from armature.scheduling.request import Work
from tests.support.scheduler_world import Client, World


def act(world: World) -> None:
    """Do one random thing."""
    rnd = world.random
    clients = list(world.clients.values())
    fetching = [client for client in clients if client.is_fetching]
    readers = [client for client in clients if client.request.work is Work.PREFILL and not client.is_released]
    deed = rnd.random()
    if deed < 0.25:
        client = world.submit(world.random_request())
        if rnd.random() < 0.03:
            world.poison.add(client.request.request_id)
    elif deed < 0.30 and clients:
        world.abort(rnd.choice(clients))
    elif deed < 0.45 and fetching:
        fetch(world, rnd.choice(fetching))
    elif deed < 0.55 and readers:
        read(world, rnd.choice(readers))
    elif deed < 0.60:
        world.unquarantine()
    else:
        world.step(raises=rnd.random() < 0.02)


def fetch(world: World, client: Client) -> None:
    assert client.reserved is not None
    block_ids = client.reserved.block_ids
    if world.random.random() < 0.6:
        world.land(client, world.random.randint(client.landed, len(block_ids)))
    else:
        lost = block_ids[client.landed :]
        world.finish_remote(client, [block_id for block_id in lost if world.random.random() < 0.5])


def read(world: World, client: Client) -> None:
    deed = world.random.random()
    if deed < 0.1:
        world.scheduler.stop_prefill(client.request.request_id)
    elif deed < 0.3 and client.has_last:
        world.release(client, None)
    elif client.staged:
        world.release(client, world.random.randint(0, max(client.staged) + 1))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    num_blocks=st.sampled_from([6, 9, 16, 40]),
    max_num_seqs=st.sampled_from([1, 2, 5]),
    budget=st.sampled_from([5, 8, 64]),
)
def test_every_request_is_answered_as_if_it_were_alone(seed: int, num_blocks: int, max_num_seqs: int, budget: int):
    world = World(seed, num_blocks=num_blocks, max_num_seqs=max_num_seqs, budget=budget)
    for _ in range(120):
        act(world)
    world.settle()
