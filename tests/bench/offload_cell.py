"""What tiers below the device do for conversations that return: time to first token with and without, live.

Real processes on one machine: two workers, one thread each, whose devices hold a few histories; one of them uses a
kv-offload. Every conversation is had with both, turn by turn in turns, so that whatever else the machine does falls on
both alike; ratios count, not seconds. `returning`: the second turn of each, after the device has forgotten the first.
`new`: prompts that nobody has seen and that return to nobody, after the others: what offering and looking costs.

A run for each tier, its sizes such that the histories end up there: `host`, `disk` (host memory holds a tenth of them),
`remote` (likewise, with Redis below) and `s3` (with an S3 server below, rclone's).
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from armature.runtime.processes import start_etcd, start_valkey
from tests.support.models import Shape, make_model
from tests.support.offload_node import Conversation, Node, offload_node, onboarded, until_offloaded, words
from tests.support.s3 import S3Server

SHAPE = Shape(hidden=512, layers=8, heads=8, kv_heads=4, head_dim=64, ffn=1408, vocab=8192, context=4096)
"""About 32 million parameters."""
BLOCK_BYTES = (8 * 2 * 16 + 1) * 4 * 64 * 4
ANSWER_TOKENS, MORE_TOKENS = 16, 32
DEVICE_HISTORIES = 3
RUNS = ("host", "disk", "remote", "s3")


def store_flags(run: str, history_blocks: int, conversations: int, folder: Path, place: Sequence[str]) -> list[str]:
    """Sizes such that the conversations' blocks end up in the run's tier; `place`: where the remote one is."""
    all_bytes = int(1.3 * history_blocks * conversations * BLOCK_BYTES)
    part = max(all_bytes // 10, history_blocks * BLOCK_BYTES)
    flags = ["--policy", "all", "--host-bytes", str(all_bytes if run == "host" else part)]
    if run == "disk":
        flags += ["--disk-dir", str(folder / "disk"), "--disk-bytes", str(all_bytes)]
    if place:
        flags += [*place, "--remote-bytes", str(all_bytes)]
    return flags


def ratio(on: Sequence[float], off: Sequence[float]) -> dict[str, float]:
    """Medians, and how they compare: pair by pair, and all in all."""
    pairs = [one / other for one, other in zip(on, off, strict=True)]
    return {
        "on_ttft_s_median": statistics.median(on),
        "off_ttft_s_median": statistics.median(off),
        "on_over_off_median_of_pairs": statistics.median(pairs),
        "on_over_off_of_sums": sum(on) / sum(off),
        "on_over_off_of_fastest": min(on) / min(off),
    }


async def cpu_s(node: Node) -> dict[str, float]:
    """Processor seconds of each worker so far."""
    return {name: (await node.services[name].metrics())["process_cpu_seconds_total"] for name in ("on", "off")}


async def both(node: Node, talks: dict[str, Conversation], more: list[int], first: str) -> dict[str, Any]:
    """One turn with each worker, `first` first."""
    order = ("on", "off") if first == "on" else ("off", "on")
    answers = {name: await talks[name].turn(node.clients[name], more, ANSWER_TOKENS) for name in order}
    # A long run that is ended early has said something all the same.
    told = {name: round(talks[name].ttft_s[-1], 3) for name in order}
    told |= {"turn": len(talks["on"].ttft_s), "onboarded": onboarded([answers["on"]])}
    print(json.dumps(told), file=sys.stderr, flush=True)
    return answers


async def measure(node: Node, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    history_blocks = (options.history_tokens + ANSWER_TOKENS - 1) // 16
    talks = [
        {name: Conversation(list(history)) for name in ("on", "off")}
        for history in (words(rng, options.history_tokens, SHAPE.vocab) for _ in range(options.conversations))
    ]
    for number, talk in enumerate(talks, 1):
        await both(node, talk, [], "on" if number % 2 else "off")
        await until_offloaded(node.services["on"], number * history_blocks)
    answers = []
    for number, talk in enumerate(talks):
        answers.append(await both(node, talk, words(rng, MORE_TOKENS, SHAPE.vocab), "on" if number % 2 else "off"))
    same = sum(answer["on"].tokens == answer["off"].tokens for answer in answers)
    before = await cpu_s(node)
    fresh = []
    for number in range(options.new):
        history = words(rng, options.history_tokens, SHAPE.vocab)
        fresh.append({name: Conversation(list(history)) for name in ("on", "off")})
        await both(node, fresh[-1], [], "on" if number % 2 else "off")
    after = await cpu_s(node)
    return {
        "conversations": options.conversations,
        "same_answers": same,
        "onboarded_tokens": onboarded([answer["on"] for answer in answers]),
        "cached_tokens_off": sum(answer["off"].info.cached_tokens for answer in answers),
        "returning": ratio(*([talk[name].ttft_s[1] for talk in talks] for name in ("on", "off"))),
        "new": ratio(*([talk[name].ttft_s[0] for talk in fresh] for name in ("on", "off")))
        | {"on_over_off_cpu": (after["on"] - before["on"]) / (after["off"] - before["off"])},
    }


async def compare(options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model", **vars(SHAPE))
        etcd, valkey = await start_etcd(folder / "etcd"), await start_valkey(folder / "valkey")
        s3 = S3Server(folder / "s3")
        await s3.start()
        places = {"remote": ["--redis", f"redis://{valkey.address}"], "s3": s3.flags}
        history_blocks = -(-(options.history_tokens + 2 * ANSWER_TOKENS + MORE_TOKENS) // 16)
        small = (
            "--num-blocks", str(DEVICE_HISTORIES * history_blocks), "--max-num-batched-tokens", "512",
            "--dtype", "float32",
        )  # fmt: skip
        try:
            for seed, run in enumerate(options.runs):
                store = store_flags(run, history_blocks, options.conversations, folder, places.get(run, ()))
                workers = {"on": (*small, "--offload", "--transport", options.transport), "off": small}
                async with offload_node(folder / run, etcd.address, model, workers=workers, store=store) as node:
                    results[run] = await measure(node, options, seed)
                print(json.dumps({run: results[run]}), file=sys.stderr, flush=True)
        finally:
            await s3.kill()
            await valkey.stop()
            await etcd.stop()
    return results


def run(arguments: Sequence[str] = ()) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench offload_cell", description=__doc__)
    parser.add_argument("--conversations", type=int, default=40)
    parser.add_argument("--history-tokens", type=int, default=2000)
    parser.add_argument("--new", type=int, default=20, help="prompts that return to nobody, at least one")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--transport", choices=("nixl", "grpc"), default="nixl")
    return asyncio.run(compare(parser.parse_args(arguments)))
