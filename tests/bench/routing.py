"""What a decision costs: the index, the routing core, and a whole query through the router's gRPC stream.

All figures are CPU time of one process (another one's work on the machine does not count) and the best of several
runs. Run as a program it is the server of the last part.
"""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from armature.index.packing import pack_hashes
from armature.index.prefix_index import PrefixIndex
from armature.routing.decision import Query
from armature.routing.history import History
from armature.routing.queueing.dispatcher import Dispatcher
from armature.routing.router import RoutingCore
from armature.routing.worker import Load, Role, Speeds, Worker
from armature.runtime.placement import WORKER_KINDS
from armature.runtime.policies import load_policy
from armature.runtime.server import RpcServer
from armature.v1 import router_pb2
from armature.v1.common_pb2 import Member
from armature.v1.router_pb2_grpc import RouterStub, add_RouterServicer_to_server
from services.router.servicer import RouterServicer

RUNS = 5
DEPTHS = (25, 200, 860)
"""Blocks of a prompt: 400, 3,200 and 13,760 tokens in blocks of 16."""
BLOCK_SIZE = 16


def best_us(work: Callable[[], object], times: int) -> float:
    """Microseconds of CPU that one of `times` repetitions inside `work` takes, at best."""
    taken_s: list[float] = []
    for _ in range(RUNS):
        began_s = time.process_time()
        work()
        taken_s.append(time.process_time() - began_s)
    return round(min(taken_s) / times * 1e6, 2)


def prompts(rng: random.Random, depth: int, number: int) -> list[list[int]]:
    """Hashes of prompts that share their first fifth with one in ten others."""
    heads = [[rng.getrandbits(64) for _ in range(depth // 5)] for _ in range(max(1, number // 10))]
    return [[*rng.choice(heads), *(rng.getrandbits(64) for _ in range(depth - depth // 5))] for _ in range(number)]


def filled(rng: random.Random, num_workers: int) -> tuple[PrefixIndex, dict[int, list[list[int]]]]:
    """An index in which each prompt is held by four workers as far as a random depth, and by one whole."""
    index, asked = PrefixIndex(), dict[int, list[list[int]]]()
    for depth in DEPTHS:
        asked[depth] = prompts(rng, depth, 300)
        for hashes in asked[depth]:
            for worker in rng.sample(range(num_workers), 4):
                index.store(name(worker), hashes[: rng.randint(1, depth)])
            index.store(name(rng.randrange(num_workers)), hashes)
    return index, asked


def name(number: int) -> str:
    return f"worker-{number:02}"


def cell(num_workers: int, num_prefill: int, index: PrefixIndex, rng: random.Random) -> RoutingCore:
    core = RoutingCore(load_policy("seconds"), random.Random(0), index)
    for number in range(num_workers):
        worker = Worker(
            name(number), Role.PREFILL if number < num_prefill else Role.DECODE, "m", BLOCK_SIZE, 4_000_000, 20_000,
            256, 8192, b"same",
        )  # fmt: skip
        core.put_worker(worker)
        load = Load(
            running_seqs=rng.randrange(30), free_blocks=15_000, speeds=Speeds(rng.uniform(8e3, 9e3), 0.02, 2e10),
        )  # fmt: skip
        core.report(worker.worker_id, load, 0.0)
    return core


def bench_index() -> dict[str, float]:
    index, asked = filled(random.Random(1), 64)
    results: dict[str, float] = {"blocks": index.size().blocks}
    for depth, many in asked.items():

        def match(many: Sequence[Sequence[int]]) -> None:
            for hashes in many:
                index.match(hashes)

        results[f"match_us_depth_{depth}"] = best_us(lambda many=many: match(many), len(many))
        few = many[:10] * 30
        results[f"match_us_depth_{depth}_hot"] = best_us(lambda few=few: match(few), len(few))
    blocks = [random.Random(2).getrandbits(64) for _ in range(20_000)]
    index.store("writer", blocks)
    results["bytes_per_holding"] = round(index.size().size_bytes / index.size().holdings, 1)

    def churn() -> None:
        for start in range(0, len(blocks), 32):
            index.remove("writer", blocks[start : start + 32])
            index.store("writer", blocks[start : start + 32])

    results["store_and_remove_us_per_block"] = best_us(churn, len(blocks))
    fresh = PrefixIndex()
    results["store_us_per_new_block"] = best_us(lambda: (fresh.clear("w"), fresh.store("w", blocks)), len(blocks))
    results["drop_ms_per_20000_blocks"] = round(
        best_us(lambda: (index.store("x", blocks), index.drop("x")), 1) / 1e3, 2
    )
    return results


def bench_core() -> dict[str, float]:
    results: dict[str, float] = {}
    for num_workers, num_prefill in ((8, 0), (8, 3), (64, 0), (64, 24)):
        rng = random.Random(3)
        index, asked = filled(rng, num_workers)
        for depth, many in asked.items():
            core = cell(num_workers, num_prefill, index, rng)
            queries = [
                Query(f"r{n}", "m", depth * BLOCK_SIZE + 5, hashes, owner="gateway") for n, hashes in enumerate(many)
            ]
            clock = iter(range(10**9))

            def place(queries: list[Query] = queries, core: RoutingCore = core, clock: Any = clock) -> None:
                for query in queries:
                    core.place(query, next(clock) * 0.1)
                    core.first_token("gateway", query.request_id)
                    core.finish("gateway", query.request_id)

            kind = f"{num_workers - num_prefill}_decode_{num_prefill}_prefill"
            results[f"place_us_{kind}_depth_{depth}"] = best_us(place, len(queries))
    return results


async def bench_service(per_message: int, num_messages: int, depth: int = 200) -> dict[str, float]:
    """A gateway's stream to a router of eight workers in a process of its own; each answer is read before the next."""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.routing", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert server.stdin is not None and server.stdout is not None
    reader, writer = server.stdout, server.stdin

    async def cpu_s() -> float:
        writer.write(b"cpu\n")
        return float(await reader.readline())

    try:
        address = (await reader.readline()).decode().strip()
        rng = random.Random(4)
        packed = [pack_hashes(hashes) for hashes in prompts(rng, depth, 200)]
        async with grpc.aio.insecure_channel(address) as channel:
            call: Any = RouterStub(channel).Route()
            number = 0

            async def exchange() -> None:
                nonlocal number
                asked, number = range(number, number + per_message), number + per_message
                queries = [
                    router_pb2.Query(
                        query_id=n, request_id=f"r{n}", model="m", prompt_tokens=depth * BLOCK_SIZE + 5,
                        sequence_hashes=packed[n % len(packed)],
                    )
                    for n in asked
                ]  # fmt: skip
                kinds = (router_pb2.Progress.KIND_FIRST_TOKEN, router_pb2.Progress.KIND_FINISHED)
                ended = [
                    router_pb2.Progress(request_id=f"r{n - per_message}", kind=kind) for n in asked for kind in kinds
                ]
                await call.write(router_pb2.RouteRequest(queries=queries, progress=ended))
                answer = await call.read()
                assert len(answer.placements) == per_message

            for _ in range(num_messages // 5):
                await exchange()
            ours_s, theirs_s, began_s = time.process_time(), await cpu_s(), time.perf_counter()
            for _ in range(num_messages):
                await exchange()
            took_s, ours_s, theirs_s = (
                time.perf_counter() - began_s, time.process_time() - ours_s, await cpu_s() - theirs_s,
            )  # fmt: skip
            call.cancel()
    finally:
        writer.close()
        await asyncio.wait_for(server.wait(), 10)
    done = num_messages * per_message
    return {
        "router_cpu_us_per_request": round(theirs_s / done * 1e6, 1),
        "client_cpu_us_per_request": round(ours_s / done * 1e6, 1),
        "wall_us_per_message": round(took_s / num_messages * 1e6, 1),
    }


def run() -> dict[str, object]:
    return {
        "index_64_workers": bench_index(),
        "core": bench_core(),
        "service_8_workers_depth_200": {
            "one_query_a_message": asyncio.run(bench_service(1, 1500)),
            "32_queries_a_message": asyncio.run(bench_service(32, 100)),
        },
    }


async def _serve() -> None:
    rng = random.Random(5)
    core = cell(8, 3, filled(rng, 8)[0], rng)
    members = {name(number): Member(id=name(number), kind=WORKER_KINDS[0], address="h:1") for number in range(8)}
    server = RpcServer("127.0.0.1")
    servicer = RouterServicer(Dispatcher(core), members, History(core.policy, 1 << 26), asyncio.Event())
    server.add(add_RouterServicer_to_server, servicer, "armature.v1.Router")
    await server.start()
    print(server.address, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(time.process_time(), flush=True)
    await server.stop(0)


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve())
