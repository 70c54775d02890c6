"""One tenant at ten times its share: what that does to the time to first token of another that stays within its own.

A live cell of simulated workers that take a real model's time. Two tenants each send their share, together most of
what the workers can do; then one of them sends ten times as much. No tenant has limits: what protects the other one is
how requests wait. Both ways take turns within the run, so their ratio means something also on a busy machine, unless it
is so busy that requests are sent late. `fairness_simulated` has no such noise.

Every round begins with what the one before has left, so the first seconds of each flood count too: it is then that a
tenant is most easily pushed aside. In both ways of a round the quiet tenant sends at the same instants prompts of the
same lengths, of other tokens.

A tail needs samples: it runs until each way has `--samples` of the quiet tenant, and tells between which ratios nine of
ten repetitions would lie, drawn in runs of `RUN` samples, since those that come together wait together. `held` says
whether the 99th percentile has moved by less than a fifth: yes or no if all of that lies on one side, and no if any
request of the quiet tenant was not answered. Shares go with the speed of the engines, so that the load is the same:
where workers are mostly idle, a quiet tenant is hardly ever behind anybody, and a ratio would compare that with waiting
at all. `--speed-up 0.5 --samples 500` takes eight minutes.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from armature.openai.tenancy.keys import digest_of, new_key
from armature.runtime.processes import start_etcd
from tests.support.cell import Cell, running_cell

PRESET = "qwen3-32b-tp2-h200"
QUIET, LOUD = "quiet", "loud"
WORKERS, OUTPUT_TOKENS = 2, 24
SPEED_UP, SHARE_PER_S = 0.3, 5.0
"""Slow engines: what this machine is late by is then little beside their steps. The share is that at speed 1."""
ROUND_S = 60.0
BOOTSTRAPS, RUN = 2000, 25
MOST_P99_RATIO = 1.2
PROMPT_TOKENS = (1000, 4000)
TIMEOUT_S = 90.0


@dataclass
class Seen:
    """What became of one tenant's requests."""

    ttft_s: list[float] = field(default_factory=list[float])
    statuses: Counter[int] = field(default_factory=Counter[int])

    def figures(self) -> dict[str, object]:
        p50, p99 = np.quantile(self.ttft_s, (0.5, 0.99)) if self.ttft_s else (0.0, 0.0)
        answers = {str(status): count for status, count in sorted(self.statuses.items())}
        return {
            "samples": len(self.ttft_s),
            "ttft_s_p50": round(float(p50), 4),
            "ttft_s_p99": round(float(p99), 4),
            "answers": answers,
        }


class Tenant:
    """Sends requests at a steady mean rate, whatever becomes of those before."""

    def __init__(self, address: str, key: str, rng: random.Random) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._key = key
        self._rng = rng
        """For what prompts say, which nobody may find in a cache."""
        self._running: set[asyncio.Task[None]] = set()
        self.late_s: list[float] = []
        """By how much this process sent later than it meant to."""

    async def send(self, per_s: float, seconds: float, seen: Seen, seed: str) -> None:
        """Send for so long, when and how much by `seed`; answers may still be on their way afterwards."""
        rng = random.Random(seed)
        ends_s = time.monotonic() + seconds
        due_s = time.monotonic()
        while (due_s := due_s + rng.expovariate(per_s)) < ends_s:
            await asyncio.sleep(due_s - time.monotonic())
            self.late_s.append(max(0.0, time.monotonic() - due_s))
            task = asyncio.create_task(self._request(seen, rng.randint(*PROMPT_TOKENS)))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def finish(self) -> None:
        """Wait for the answers."""
        await asyncio.gather(*self._running)

    async def leave(self) -> None:
        """Close all connections, whether answered or not."""
        for task in (leaving := list(self._running)):
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)

    async def _request(self, seen: Seen, prompt_tokens: int) -> None:
        tokens = self._rng.choices(range(300, 1000), k=prompt_tokens)
        fields = {"model": "demo", "prompt": tokens, "stream": True, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True}
        body = json.dumps(fields).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {self._host}\r\nauthorization: Bearer {self._key}\r\n"
        head += f"content-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        began_s = time.monotonic()
        reader, writer = await asyncio.open_connection(self._host, int(self._port))
        try:
            async with asyncio.timeout(TIMEOUT_S):
                writer.write(head.encode() + body)
                status = int((await reader.readline()).split()[1])
                while (await reader.readline()).strip():
                    pass
                await reader.readline()
                first_s = time.monotonic() - began_s
                await reader.read()
        except (TimeoutError, OSError, IndexError):
            status, first_s = 0, 0.0
        finally:
            writer.close()
        seen.statuses[status] += 1
        if status == 200:
            seen.ttft_s.append(first_s)


async def measure(cell: Cell, keys: dict[str, str], options: argparse.Namespace) -> dict[str, object]:
    rng = random.Random(5)
    address = cell.services["gateway"].addresses["http"]
    share = options.share * options.speed_up
    tenants = {name: Tenant(address, key, random.Random(rng.random())) for name, key in keys.items()}
    seen = {way: {name: Seen() for name in keys} for way in ("fair", "flooded")}
    rounds = 0
    await _round(tenants, dict.fromkeys(keys, share), 5.0, {name: Seen() for name in keys}, rounds)
    while (done := min(len(seen[way][QUIET].ttft_s) for way in seen)) < options.samples:
        print(f"\r{done} of {options.samples} samples", end="", file=sys.stderr, flush=True)
        rounds += 1
        seconds = min(ROUND_S, max(10.0, (options.samples - done) / share))
        for way, times in (("fair", 1.0), ("flooded", options.times)):
            rates = {QUIET: share, LOUD: share * times}
            await _round(tenants, rates, seconds, seen[way], rounds)
    print(f"\r{options.samples} samples          ", file=sys.stderr, flush=True)
    fair, flooded = (np.array(seen[way][QUIET].ttft_s) for way in ("fair", "flooded"))
    low, high = interval(fair, flooded)
    return {
        "compared": f"both tenants at their share against one of them at {options.times:g} times its share",
        "share_per_s": round(share, 3),
        "times": options.times,
        **{way: {name: one.figures() for name, one in by_tenant.items()} for way, by_tenant in seen.items()},
        "quiet_ttft_p50_ratio": round(float(np.median(flooded) / np.median(fair)), 3),
        "quiet_ttft_p99_ratio": round(float(np.quantile(flooded, 0.99) / np.quantile(fair, 0.99)), 3),
        "quiet_ttft_p99_ratio_90_percent_interval": [low, high],
        "held": _verdict(low, high, seen["flooded"][QUIET].statuses),
        "sent_late_s_p99": round(
            float(np.quantile([late for one in tenants.values() for late in one.late_s], 0.99)), 4
        ),
    }


async def _round(
    tenants: dict[str, Tenant], rates: dict[str, float], seconds: float, seen: dict[str, Seen], number: int
) -> None:
    """Each sends for so long; when the quiet one has its answers, the loud one gives up what it still waits for."""
    await asyncio.gather(
        *(tenant.send(rates[name], seconds, seen[name], f"{name} {number}") for name, tenant in tenants.items())
    )
    await tenants[QUIET].finish()
    await tenants[LOUD].leave()


def _verdict(low: float, high: float, statuses: Counter[int]) -> str:
    if low > MOST_P99_RATIO or set(statuses) != {200}:
        return "no"
    return "yes" if high <= MOST_P99_RATIO else "too few samples to say"


def interval(fair: np.ndarray, flooded: np.ndarray) -> list[float]:
    """Where the ratio of the 99th percentiles lies with samples drawn again from these: its 5th and 95th percentile."""
    rng = np.random.default_rng(1)

    def again(seen: np.ndarray) -> float:
        length = min(RUN, max(len(seen) // 8, 1))
        begins = rng.integers(0, len(seen) - length + 1, -(-len(seen) // length))
        return float(np.quantile(np.concatenate([seen[begin : begin + length] for begin in begins]), 0.99))

    ratios = [again(flooded) / again(fair) for _ in range(BOOTSTRAPS)]
    return [round(float(value), 3) for value in np.quantile(ratios, (0.05, 0.95))]


async def _run(options: argparse.Namespace) -> dict[str, object]:
    keys = {name: new_key()[0] for name in (QUIET, LOUD)}
    book = {"keys": {key[:12]: {"tenant": name, "digest": digest_of(key)} for name, key in keys.items()}}
    worker_flags = (
        "--performance", PRESET, "--max-num-seqs", "256", "--max-num-batched-tokens", "2048",
        "--speed-up", str(options.speed_up),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "keys.yaml").write_text(yaml.safe_dump(book))
        etcd = await start_etcd(folder / "etcd")
        flags = {"gateway": ("--keys", str(folder / "keys.yaml"), "--max-concurrent-requests", "8192")}
        async with running_cell(
            folder, etcd.address, prefill=0, decode=0, fleets=(WORKERS,), worker_flags=worker_flags, flags=flags
        ) as cell:
            result = await measure(cell, keys, options)
        await etcd.stop()
    return result


def run(arguments: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(prog="fairness", description=__doc__)
    parser.add_argument("--speed-up", type=float, default=SPEED_UP, help="how fast engines are, 1 is the real model")
    parser.add_argument(
        "--share", type=float, default=SHARE_PER_S, help="a tenant's share of engines at speed 1, requests per second"
    )
    parser.add_argument("--times", type=float, default=10.0, help="how many times its share the loud tenant sends")
    parser.add_argument("--samples", type=int, default=2000, help="first tokens of the quiet tenant in each way")
    return asyncio.run(_run(parser.parse_args(arguments or [])))


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
