"""The prefix index on recorded conversations, beside Dynamo's RadixTree binding where that is installed.

Usage: python -m tests.bench index [--trace FILE] [--dynamo-python PYTHON] [--workers N,N...]

Every prompt is held by a worker chosen at random. Trace blocks of 512 tokens are cut into 1, 8 or 32 blocks, which
makes prompts of about 27, 215 and 860 blocks. Both sides get the same prompts, ours here and theirs in a child process,
turn by turn in one run; each figure is the best of several. All are processor time, of all threads; `_wall` is how
long a caller waits, which on a busy machine says little.

`reach_*_us` is a match with lower tiers, in nodes of eight workers: nobody has told of any (`none`); the node of each
prompt holds all of it in host memory (`whole`); the device has lost the last four fifths, of which the node holds the
first half in host memory and the rest on disk (`tails`); or every other stretch of 16 blocks is only there (`torn`).

Of theirs, `unknown` is a prompt of which nothing is held and `event` one whose event changes nothing: what it costs to
get there (a thread hop, lists converted, JSON read). `scores` makes a dict of the result. `net` is what is left.
"""

import argparse
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from armature.index.packing import pack_hashes, unpack_hashes
from armature.index.prefix_index import PrefixIndex
from armature.index.tiers import Tier

Prompt = tuple[int, list[int], list[int]]
"""A worker, the sequence hashes that it holds, and which of them no earlier prompt has given it."""

RUNS = 3
CUTS = (1, 8, 32)
MOST_BLOCKS = 400_000
"""Of all prompts of a case; the longer they are, the fewer there are."""
SLICE = Path(__file__).parent.parent / "data" / "mooncake_conversation_200.jsonl"
DYNAMO = Path(__file__).parent / "dynamo_index.py"
PAGE_BYTES = 4096
NODE_WORKERS = 8


def prompts_of(trace: Path, cut: int, num_workers: int) -> list[Prompt]:
    rng, blocks = random.Random(0), dict[int, list[int]]()
    made, held = list[Prompt](), dict[int, set[int]]()
    left = MOST_BLOCKS
    with trace.open() as lines:
        for line in lines:
            hashes: list[int] = []
            for block in json.loads(line)["hash_ids"]:
                if block not in blocks:
                    blocks[block] = [rng.getrandbits(63) for _ in range(cut)]
                hashes += blocks[block]
            left -= len(hashes)
            if left < 0:
                break
            worker = rng.randrange(num_workers)
            known = held.setdefault(worker, set())
            made.append((worker, hashes, [block for block in hashes if block not in known]))
            known.update(hashes)
    return made


class Ours:
    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = [(f"worker-{worker:05}", hashes, pack_hashes(hashes)) for worker, hashes, _ in prompts]
        self.tails_first = [(f"worker-{worker:05}", pack_hashes(new[::-1])) for worker, _, new in reversed(prompts)]
        self.index = PrefixIndex()

    def timed_us(self, name: str, work: Callable[[], object]) -> dict[str, float]:
        gc.collect()
        began_s, wall_s = time.process_time(), time.perf_counter()
        work()
        used_s, waited_s = time.process_time() - began_s, time.perf_counter() - wall_s
        return {name: used_s / len(self.prompts) * 1e6, f"{name}_wall": waited_s / len(self.prompts) * 1e6}

    def store(self) -> None:
        for worker, _, packed in self.prompts:
            self.index.store(worker, unpack_hashes(packed))

    def remove(self) -> None:
        for worker, packed in self.tails_first:
            self.index.remove(worker, unpack_hashes(packed))

    def match(self) -> None:
        for _, hashes, _ in self.prompts:
            self.index.match(hashes)

    def round(self, best: dict[str, float]) -> None:
        keep_best(best, self.timed_us("store", self.store))
        keep_best(best, self.timed_us("match_first", self.match))
        for _ in range(3):
            keep_best(best, self.timed_us("match", self.match))
        best["depths"] = self.depths()
        keep_best(best, self.timed_us("store_known", self.store))
        keep_best(best, self.timed_us("remove", self.remove))

    def depths(self) -> int:
        """The sum of all depths that matches find."""
        return sum(sum(self.index.match(hashes).values()) for _, hashes, _ in self.prompts)

    def memory(self) -> dict[str, float]:
        """What is resident for an index, against its own estimate, and how long it takes to drop a worker."""
        self.index = PrefixIndex()
        gc.collect()
        before = resident_bytes()
        self.store()
        self.match()
        size, resident = self.index.size(), resident_bytes() - before
        dropped = max(self.index.worker_ids, key=self.index.num_blocks)
        held = self.index.num_blocks(dropped)
        began_s = time.perf_counter()
        self.index.drop(dropped)
        drop_us = (time.perf_counter() - began_s) * 1e6
        return {
            "blocks": size.blocks, "holdings": size.holdings, "linked_blocks": size.linked_blocks,
            "estimated_bytes": size.size_bytes, "resident_bytes": resident,
            "resident_bytes_per_holding": round(resident / size.holdings, 1), "drop_us_per_block": drop_us / held,
        }  # fmt: skip


def reaches(prompts: Sequence[Prompt]) -> dict[str, float]:
    """What it takes to tell how far workers reach, over all prompts, where nodes hold blocks for their workers."""
    best: dict[str, float] = {}
    for kind in ("none", "whole", "tails", "torn"):
        ours = Ours(prompts)
        for worker, hashes, _ in prompts:
            worker_id, node_id = f"worker-{worker:05}", f"node-{worker // NODE_WORKERS:04}"
            kept, host, disk = parts_of(kind, hashes)
            ours.index.store(worker_id, kept)
            for tier, blocks in ((Tier.G2, host), (Tier.G3, disk)):
                if blocks:
                    ours.index.store(node_id, blocks, tier)
            if kind != "none":
                first = worker // NODE_WORKERS * NODE_WORKERS
                ours.index.attach(node_id, [f"worker-{first + i:05}" for i in range(NODE_WORKERS)])
        for run in range(1 + RUNS):
            found = ours.timed_us(
                f"reach_{kind}", lambda ours=ours: [ours.index.reach(one) for _, one, _ in ours.prompts]
            )
            if run:
                keep_best(best, found)
    return best


def parts_of(kind: str, hashes: list[int]) -> tuple[list[int], list[int], list[int]]:
    """What the device, host memory and disk hold of a prompt."""
    kept, middle = len(hashes) // 5, len(hashes) * 3 // 5
    if kind == "none":
        return hashes, [], []
    if kind == "whole":
        return hashes[:kept], hashes, []
    if kind == "tails":
        return hashes[:kept], hashes[kept:middle], hashes[middle:]
    stretches = [hashes[first : first + 16] for first in range(0, len(hashes), 16)]
    return list(chain.from_iterable(stretches[::2])), list(chain.from_iterable(stretches[1::2])), []


class Theirs:
    def __init__(self, child: "subprocess.Popen[str]") -> None:
        self._child = child
        self._answer()

    def round(self, best: dict[str, float]) -> None:
        for command in ("store", "match", "match", "match", "floor", "remove"):
            assert self._child.stdin is not None
            self._child.stdin.write(f"{command}\n")
            self._child.stdin.flush()
            keep_best(best, self._answer())

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"Dynamo's process ended with code {self._child.wait(10)}")
        return json.loads(line)


def keep_best(best: dict[str, float], found: dict[str, float]) -> None:
    for name, taken_us in found.items():
        best[name] = min(taken_us, best.get(name, taken_us))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


@contextmanager
def dynamo(python: str | None, prompts: Sequence[Prompt]) -> Generator[Theirs | None]:
    if python is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        path.write_text("".join(f"{json.dumps(prompt)}\n" for prompt in prompts))
        child = subprocess.Popen(
            [python, str(DYNAMO), str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield Theirs(child)
        finally:
            child.kill()
            child.communicate()


def case(trace: Path, cut: int, num_workers: int, python: str | None) -> dict[str, object]:
    prompts = prompts_of(trace, cut, num_workers)
    num_blocks = sum(len(hashes) for _, hashes, _ in prompts)
    ours, best, their_best = Ours(prompts), dict[str, float](), dict[str, float]()
    with dynamo(python, prompts) as theirs:
        for _ in range(RUNS):
            ours.index = PrefixIndex()
            ours.round(best)
            assert not ours.index.size().holdings
            if theirs:
                theirs.round(their_best)
    result: dict[str, object] = {
        "prompts": len(prompts), "mean_depth": round(num_blocks / len(prompts)), "us_per_prompt": rounded(best),
        "blocks_per_s": {name: round(num_blocks / len(prompts) / best[name] * 1e6) for name in ("store", "remove")},
        "reach_us_per_prompt": rounded(reaches(prompts)), "memory": rounded(ours.memory()),
    }  # fmt: skip
    if their_best:
        assert best["depths"] == their_best["depths"], "they find other matches than we do"
        their_best["match_net"] = their_best["match"] - their_best["unknown"] - their_best["scores"]
        their_best["store_net"] = their_best["store"] - their_best["event"]
        result["dynamo_us_per_prompt"] = rounded(their_best)
        ratios = {name: their_best[name] / best[name] for name in ("match", "match_wall", "store", "remove")}
        ratios |= {f"{name}_net": their_best[f"{name}_net"] / best[name] for name in ("match", "store")}
        result["times_faster"] = rounded(ratios)
    return result


def rounded(figures: dict[str, float]) -> dict[str, float]:
    return {name: round(figure, 2) for name, figure in figures.items()}


def run(options: Sequence[str] = ()) -> dict[str, object]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench index")
    parser.add_argument("--trace", type=Path, default=SLICE, help="Mooncake trace (default: 200 requests of it)")
    parser.add_argument("--dynamo-python", help="a Python that has ai-dynamo (default: none)")
    parser.add_argument("--workers", default="64,1000,10000", help="numbers of workers (default: %(default)s)")
    asked = parser.parse_args(options)
    if asked.dynamo_python is None:
        print("no --dynamo-python: Dynamo's tree is left out", file=sys.stderr)
    return {
        f"{num_workers}_workers_cut_{cut}": case(asked.trace, cut, num_workers, asked.dynamo_python)
        for num_workers in map(int, asked.workers.split(","))
        for cut in CUTS
    }
