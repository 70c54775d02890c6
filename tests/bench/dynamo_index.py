"""Dynamo's RadixTree binding on the prompts that `index.py` has written to a file; run by Dynamo's own Python.

Usage: PYTHON dynamo_index.py FILE. FILE has a JSON list `[worker, hashes, new]` a line, `new` being
those hashes that the worker holds for the first time. For every line `store`, `match`,
`floor` or `remove` on stdin, in that order at first, one line comes back: microseconds a prompt by name, as JSON.
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("DYN_LOG", "error")

from dynamo.llm import RadixTree  # pyright: ignore


def timed_us(name: str, calls: Any) -> dict[str, float]:
    """Microseconds a call: of processor time in all threads (the tree has one of its own), and as the caller waits."""
    began_s, wall_s = time.process_time(), time.perf_counter()
    for call, arguments in calls:
        call(*arguments)
    used_s, waited_s = time.process_time() - began_s, time.perf_counter() - wall_s
    return {name: used_s / len(calls) * 1e6, f"{name}_wall": waited_s / len(calls) * 1e6}


def event(number: int, data: Any) -> bytes:
    return json.dumps({"event_id": number, "data": data}).encode()


def stored(number: int, hashes: list[int]) -> bytes:
    blocks = [{"block_hash": block, "tokens_hash": block} for block in hashes]
    return event(number, {"stored": {"parent_hash": None, "blocks": blocks}})


def removed(number: int, hashes: list[int]) -> bytes:
    return event(number, {"removed": {"block_hashes": hashes}})


def refused(tree: Any, told: bytes) -> None:
    """Have an event read and rejected, since it is about blocks that nobody holds."""
    with suppress(RuntimeError):
        tree.apply_event(0, told)


def scores_of(tree: Any, hashes: list[int]) -> object:
    return tree.find_matches(hashes).scores


def main(path: str) -> None:
    with Path(path).open() as lines:
        prompts = [json.loads(line) for line in lines]
    events = [(worker, stored(number, hashes)) for number, (worker, hashes, _) in enumerate(prompts)]
    removals = [
        (worker, removed(number, new[::-1])) for number, (worker, _, new) in reversed(list(enumerate(prompts))) if new
    ]
    misses = [removed(number, [1] * len(hashes)) for number, (_, hashes, _) in enumerate(prompts)]
    tree = RadixTree()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "store":
            tree = RadixTree()
            answer = timed_us("store", [(tree.apply_event, told) for told in events])
        elif command == "remove":
            answer = timed_us("remove", [(tree.apply_event, told) for told in removals])
        elif command == "match":
            answer = timed_us("match", [(scores_of, (tree, hashes)) for _, hashes, _ in prompts])
        else:
            found = [tree.find_matches(hashes) for _, hashes, _ in prompts]
            depths = sum(sum(one.scores.values()) for one in found)
            answer = timed_us("empty", [(tree.find_matches, ([],))] * len(prompts))
            answer |= timed_us("unknown", [(tree.find_matches, ([1] * len(hashes),)) for _, hashes, _ in prompts])
            answer |= timed_us("scores", [(getattr, (one, "scores")) for one in found])
            answer |= timed_us("event", [(refused, (tree, told)) for told in misses]) | {"depths": depths}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
