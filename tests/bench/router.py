"""A live router: decisions a second as Poisson arrivals over one Route stream, with 64 and 512 workers.

etcd, kv-index and router are processes of their own; the workers are fakes (`tests/support/fake_fleet.py`) that stream
loads ten times a second each, and KV events, and whose caches hold beginnings of the prompts that are asked for. What
following the workers costs is measured first, without queries; the rest is the decisions'. One client asks, as a
gateway does: what waits when the stream is free goes out in one message.

    python -m tests.bench router
    python -m tests.bench router --workers 64 --rate 1000 --seconds 20
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from armature.index.packing import pack_hashes
from armature.openai.serving.frames import FrameStream
from armature.openai.serving.router_client import ROUTE
from armature.runtime.channels import ChannelPool
from armature.runtime.processes import start_etcd
from armature.v1.router_pb2 import Progress, Query, RouteRequest, RouteResponse
from tests.support.cell import Service
from tests.support.cpu_time import cpu_s
from tests.support.eventually import eventually
from tests.support.fake_fleet import BLOCK_SIZE, prompts

COPIES = 10
"""Of the sample's 200 prompts."""
FIRST_TOKEN_AFTER_S, FINISHED_AFTER_S = 0.3, 2.0
QUIET_S = 5.0
HISTOGRAM = "armature_router_decision_seconds_bucket"


@dataclass
class Client:
    """Asks over one stream and tells the router what became of its requests."""

    asked: list[tuple[bytes, int]]
    """Packed hashes and length of each prompt."""
    rng: random.Random
    round_trips_s: list[float] = field(default_factory=list[float])
    batches: list[int] = field(default_factory=list[int])
    refused: int = 0
    queued: int = 0
    overlap_tokens: int = 0
    prompt_tokens: int = 0
    sent: dict[int, tuple[float, int]] = field(default_factory=dict[int, tuple[float, int]])
    queries: list[Query] = field(default_factory=list[Query])
    progress: list[Progress] = field(default_factory=list[Progress])

    async def run(self, address: str, rate: float, seconds: float) -> None:
        """Ask at random times, `rate` a second on average, and wait for all answers."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            frames = FrameStream[RouteRequest, RouteResponse](
                ChannelPool().method(address, ROUTE), RouteResponse.FromString, self._take, self._on_frames
            )
            running = tasks.create_task(frames.run())
            due_s, number = loop.time(), 0
            end_s = due_s + seconds
            while due_s < end_s:
                due_s += self.rng.expovariate(rate)
                wait_s = due_s - loop.time()
                if wait_s > 0.0005:
                    await asyncio.sleep(wait_s)
                number += 1
                self._ask(number)
                frames.wake()
            await eventually(lambda: not self.sent, 60.0, what="all answers")
            running.cancel()

    def _ask(self, number: int) -> None:
        packed, tokens = self.rng.choice(self.asked)
        self.sent[number] = time.perf_counter(), tokens
        self.queries.append(
            Query(
                query_id=number,
                request_id=f"r{number}",
                model="m",
                prompt_tokens=tokens,
                sequence_hashes=packed,
                omit_reason=True,
            )
        )

    def _take(self) -> RouteRequest:
        if self.queries:
            self.batches.append(len(self.queries))
        request = RouteRequest(queries=self.queries, progress=self.progress)
        self.queries.clear()
        self.progress.clear()
        return request

    def _on_frames(self, responses: list[RouteResponse]) -> None:
        now_s, loop = time.perf_counter(), asyncio.get_running_loop()
        for placement in [placement for response in responses for placement in response.placements]:
            if placement.HasField("waiting"):
                self.queued += 1
                continue
            sent_s, tokens = self.sent.pop(placement.query_id)
            self.round_trips_s.append(now_s - sent_s)
            if not placement.HasField("assigned"):
                self.refused += 1
                continue
            self.prompt_tokens += tokens
            self.overlap_tokens += placement.assigned.overlap_tokens
            request_id, cached = f"r{placement.query_id}", placement.assigned.overlap_tokens
            # Progress rides along with the queries that come next.
            for delay_s, kind in (
                (FIRST_TOKEN_AFTER_S, Progress.KIND_FIRST_TOKEN),
                (FINISHED_AFTER_S, Progress.KIND_FINISHED),
            ):
                progress = Progress(request_id=request_id, kind=kind, cached_tokens=cached)
                loop.call_later(delay_s, self.progress.append, progress)


@asynccontextmanager
async def routing_cell(folder: Path, num_workers: int, prompts_per_s: float) -> AsyncIterator[dict[str, Service]]:
    """etcd, a fake fleet, kv-index and router, in this order."""
    folder.mkdir()
    etcd = await start_etcd(folder / "etcd")
    common = ("--etcd", etcd.address, "--namespace", "bench")
    patient = ("--warm-up-s", "60", "--etcd-timeout-s", "60")
    plan = {
        "fleet": ("tests.support.fake_fleet", ("--workers", str(num_workers), "--prompts-per-s", str(prompts_per_s))),
        "kv-index": ("services.kv_index", patient),
        "router": ("services.router", patient),
    }
    services: dict[str, Service] = {}
    try:
        for name, (module, flags) in plan.items():
            package, _, last = module.rpartition(".")
            log = folder / f"{name}.log"
            services[name] = Service(name, last, (*common, *flags), {}, log, package=package)
            await services[name].spawn()
        yield services
    finally:
        for service in reversed(services.values()):
            await service.stop()
        await etcd.stop()


async def bucket_counts(router: Service) -> Counter[float]:
    async with httpx.AsyncClient(timeout=10.0, trust_env=False) as client:
        text = (await client.get(f"http://{router.addresses['metrics']}/metrics")).text
    found = Counter[float]()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == HISTOGRAM:
                found[float(sample.labels["le"])] += int(sample.value)
    return found


def histogram_quantile(before: Counter[float], after: Counter[float], share: float) -> float:
    """Linear within its bucket."""
    wanted = share * (after[float("inf")] - before[float("inf")])
    low_s = low_count = 0.0
    for high_s in sorted(after):
        count = after[high_s] - before[high_s]
        if count >= wanted:
            return (
                low_s
                if high_s == float("inf")
                else low_s + (high_s - low_s) * (wanted - low_count) / max(count - low_count, 1)
            )
        low_s, low_count = high_s, count
    return low_s


async def measure(num_workers: int, rate: float, seconds: float, prompts_per_s: float, folder: Path) -> dict[str, Any]:
    asked = [(pack_hashes(hashes), len(hashes) * BLOCK_SIZE + 9) for hashes in prompts(COPIES)]
    async with routing_cell(folder, num_workers, prompts_per_s) as services:
        router, kv_index = services["router"], services["kv-index"]
        await Client(asked, random.Random(1)).run(router.addresses["streams"], rate / 2, 3.0)  # caches, connections
        quiet_s, quiet_index_s, began_s = cpu_s(router.pid), cpu_s(kv_index.pid), time.perf_counter()
        await asyncio.sleep(QUIET_S)
        took_s = time.perf_counter() - began_s
        following = (cpu_s(router.pid) - quiet_s) / took_s
        index_following = (cpu_s(kv_index.pid) - quiet_index_s) / took_s
        before, client = await bucket_counts(router), Client(asked, random.Random(2))
        used_s, began_s, own_s = cpu_s(router.pid), time.perf_counter(), time.process_time()
        await client.run(router.addresses["streams"], rate, seconds)
        took_s, used_s = time.perf_counter() - began_s, cpu_s(router.pid) - used_s
        own_s, after = time.process_time() - own_s, await bucket_counts(router)
        blocks = (await router.metrics())["armature_router_index_blocks"]
    done = len(client.round_trips_s)
    ordered = sorted(client.round_trips_s)
    return {
        "workers": num_workers,
        "decisions": done,
        "decisions_per_s": round(done / took_s, 1),
        "refused": client.refused,
        "queued": client.queued,
        "index_blocks": blocks,
        "mean_depth_blocks": round(client.prompt_tokens / BLOCK_SIZE / max(done, 1), 1),
        "overlap_share": round(client.overlap_tokens / max(client.prompt_tokens, 1), 3),
        "queries_a_message": round(done / len(client.batches), 2),
        "decision_us_p50": round(1e6 * histogram_quantile(before, after, 0.5), 1),
        "decision_us_p99": round(1e6 * histogram_quantile(before, after, 0.99), 1),
        "round_trip_ms_p50": round(1e3 * ordered[done // 2], 3),
        "round_trip_ms_p99": round(1e3 * ordered[done * 99 // 100], 3),
        "router_cpu_us_per_decision": round(1e6 * (used_s - following * took_s) / done, 1),
        "router_cpu_share_following": round(following, 4),
        "router_cpu_share_in_all": round(used_s / took_s, 4),
        "kv_index_cpu_share": round(index_following, 4),
        "client_cpu_us_per_decision": round(1e6 * own_s / done, 1),
        "machine_load": round(os.getloadavg()[0], 1),
    }


def run(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="router", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--rate", type=float, default=1000.0, help="decisions asked for per second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--prompts-per-s", type=float, default=0.0, help="prompts that workers compute and tell of")
    options = parser.parse_args(arguments or [])
    found: dict[str, Any] = {"rate": options.rate, "stored_prompts_per_s": options.prompts_per_s}
    with tempfile.TemporaryDirectory() as folder:
        for number in options.workers:
            print(f"router with {number} workers", file=sys.stderr, flush=True)
            place = Path(folder) / str(number)
            measuring = measure(number, options.rate, options.seconds, options.prompts_per_s, place)
            found[f"{number}_workers"] = uvloop.run(measuring)
    return found


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1:]), indent=2))
