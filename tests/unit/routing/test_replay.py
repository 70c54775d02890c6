"""The same queries, loads and events give the same placements and reasons, byte for byte, under any PYTHONHASHSEED."""

import os
import random
import subprocess
import sys
from hashlib import sha256

from armature.routing.decision import Placed
from tests.unit.routing.cell import cell, load, query


def replay() -> str:
    """A digest of 300 placements in a cell with churn."""
    rng = random.Random(7)
    names = [f"{kind}{number}" for kind in "dpa" for number in range(4)]
    core, said = cell(*names), sha256()
    for number in range(300):
        now_s = number * 0.02
        name = rng.choice(names)
        core.report(name, load(running_seqs=rng.randrange(9), waiting_prefill_tokens=rng.randrange(2000)), now_s)
        shared = [rng.randrange(5) * 100 + block for block in range(rng.randrange(40))]
        asked = query(f"r{number}", 10 * len(shared) + 205, hashes=shared, excluded=frozenset(rng.sample(names, 2)))
        outcome = core.place(asked, now_s)
        said.update(outcome.reason.encode())
        if isinstance(outcome, Placed):
            core.index.store(outcome.chosen.decode_id, shared)
        if number % 3:
            core.first_token("gateway", f"r{number - 1}")
            core.finish("gateway", f"r{number - 2}")
        if number % 50 == 49:
            core.remove_worker(name)
            core.index.drop(name)
            names.remove(name)
    return said.hexdigest()


def test_a_replay_gives_the_same_bytes_under_any_hash_seed() -> None:
    program = "from tests.unit.routing.test_replay import replay; print(replay())"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True, timeout=60,
        ).stdout
        for seed in ("0", "1", "4711")
    }  # fmt: skip
    assert digests == {replay() + "\n"}
