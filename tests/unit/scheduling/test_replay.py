"""The same commands give the same steps, byte for byte, whatever Python's hash seed."""

import os
import subprocess
import sys
from hashlib import sha256

from tests.support.scheduler_world import World
from tests.unit.scheduling.test_scheduler_properties import act


def transcript() -> str:
    """A digest of everything that ten worlds were told."""
    hasher = sha256()
    for seed in range(10):
        world = World(seed, num_blocks=9, max_num_seqs=3, budget=8)
        for _ in range(100):
            act(world)
        world.settle()
        for output in world.log:
            hasher.update(repr(output).encode())
    return hasher.hexdigest()


def test_the_same_commands_give_the_same_steps_under_any_hash_seed():
    program = "from tests.unit.scheduling.test_replay import transcript; print(transcript())"
    children = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
        )
        for seed in ("1", "2")
    ]
    assert [child.stdout.strip() or child.stderr for child in children] == [transcript()] * 2
