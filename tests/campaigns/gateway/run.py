"""The campaign: what is sent, in which order, and what must hold afterwards."""

import asyncio
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import grpc

from tests.campaigns.gateway import grpc_cases, http_cases, http_client
from tests.campaigns.gateway.bodies import MODEL
from tests.campaigns.gateway.flatness import judged, stretches
from tests.campaigns.gateway.leaving import Doors, come_and_go, holding_grpc, holding_http
from tests.campaigns.gateway.state import REST_TIMEOUT_S, STILL_S, State, resident_mib, rested
from tests.support.cell import Cell, running_cell
from tests.support.conformity import ADMIN_KEY, conformity, key_book
from tests.support.eventually import eventually
from tests.support.rest import until_at_rest

AT_ONCE = 16
WRITE_TIMEOUT_S = 5.0
KEPT_FAILURES = 20
TENTHS = (1, 5, 10)
"""How much of the cases has been sent when the state is taken; the first tenth warms the gateway up."""

Case = TypeVar("Case")
Judge = Callable[[Case], Awaitable[tuple[Any, str]]]


@dataclass
class Findings:
    """What came of the cases so far."""

    answers: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    """By kind of case: how often which status was answered."""
    failures: list[str] = field(default_factory=list[str])

    def add(self, kind: str, number: int, status: Any, wrong: str) -> None:
        self.answers.setdefault(kind, Counter())[str(status)] += 1
        if wrong and len(self.failures) < KEPT_FAILURES:
            self.failures.append(f"{kind} {number}: {wrong}")

    def figures(self) -> dict[str, dict[str, int]]:
        return {kind: dict(sorted(counts.items())) for kind, counts in sorted(self.answers.items())}


class Progress:
    """A bar on stderr."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, max(1, total), 0

    def __call__(self) -> None:
        self._done += 1
        if self._done % max(1, self._total // 50) == 0 or self._done == self._total:
            filled = 40 * self._done // self._total
            end = "\n" if self._done == self._total else ""
            print(
                f"\r{self._what:22} [{'=' * filled}{' ' * (40 - filled)}] {self._done}",
                end=end,
                file=sys.stderr,
                flush=True,
            )


@asynccontextmanager
async def fuzzed_cell(folder: Path, etcd_address: str) -> AsyncIterator[Cell]:
    """A cell of two simulated workers whose gateway has keys, and caches that are soon full."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "keys.yaml").write_text(key_book())
    flags = {
        "gateway": (
            "--keys", str(folder / "keys.yaml"), "--admin-key", ADMIN_KEY, "--local-response-bytes", "1000000",
            "--write-timeout-s", str(WRITE_TIMEOUT_S), "--body-timeout-s", "5",
        )
    }  # fmt: skip
    workers = (
        "--performance",
        "qwen3-32b-tp2-h200",
        "--speed-up",
        "4",
        "--max-num-seqs",
        "128",
        "--num-blocks",
        "8192",
    )
    async with running_cell(
        folder / "cell", etcd_address, prefill=0, decode=0, fleets=(2,), worker_flags=workers, flags=flags
    ) as cell:

        async def is_served() -> bool:
            async with grpc.aio.insecure_channel(cell.grpc) as channel:
                case = grpc_cases.GrpcCase("", grpc_cases.METHODS[0], (b"\x0a\x04demo\x12\x01x\x30\x01",))
                return (await grpc_cases.verdict(channel, case))[0] == "OK"

        await eventually(is_served, 60.0, what=f"{MODEL} is served")
        yield cell


def doors_of(cell: Cell) -> Doors:
    return Doors(cell.services["gateway"].addresses["http"], cell.grpc)


async def fuzz(cell: Cell, seed: str, bodies: int, messages: int, found: Findings) -> None:
    """Send so many requests over HTTP and so many calls over gRPC; equal seeds send equal ones."""
    doors = doors_of(cell)
    host, _, port = doors.http.rpartition(":")
    http, calls = random.Random(f"http {seed}"), random.Random(f"gRPC {seed}")
    progress = Progress(f"fuzzing {seed}", bodies + messages)
    async with grpc.aio.insecure_channel(doors.grpc) as channel:
        jobs = [
            (bodies, lambda: http_cases.http_case(http), lambda case: http_client.verdict(host, int(port), case)),
            (messages, lambda: grpc_cases.grpc_case(calls), lambda case: grpc_cases.verdict(channel, case)),
        ]
        for count, make, judge in jobs:
            numbers = iter(range(count))

            async def send(numbers: Any = numbers, make: Any = make, judge: Any = judge) -> None:
                for number in numbers:
                    case = make()
                    status, wrong = await judge(case)
                    found.add(case.kind, number, status, wrong)
                    progress()

            async with asyncio.TaskGroup() as tasks:
                for _ in range(AT_ONCE):
                    tasks.create_task(send())


async def held(cell: Cell, clients: int, hold: Callable[[Doors], Any], warm: State) -> dict[str, float]:
    """What clients that hold answers without reading them cost the gateway, at most and when it has given them up.

    They hold until it has given up each of them.
    """
    before = await rested(cell, warm)
    peak_mib = before.resident_mib
    async with AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(hold(doors_of(cell))) for _ in range(clients)))
        ends_s = asyncio.get_running_loop().time() + 2 * WRITE_TIMEOUT_S
        while asyncio.get_running_loop().time() < ends_s:
            peak_mib = max(peak_mib, resident_mib(cell))
            await asyncio.sleep(0.2)
        await until_at_rest(cell, REST_TIMEOUT_S)
        held_mib = resident_mib(cell)
    added = {"peak": peak_mib, "given_up": held_mib}
    each = {f"{name}_mib_per_client": round((mib - before.resident_mib) / clients, 3) for name, mib in added.items()}
    return {"clients": clients, **each}


async def campaign(
    cell: Cell,
    *,
    seed: int,
    bodies: int,
    messages: int,
    clients: int,
    slow_readers: int,
    examples: int,
    is_measured: bool = True,
) -> dict[str, Any]:
    """All of it, and what was found; `is_measured` also says how memory has grown, which takes waiting and repeating.

    Raises:
        AssertionError: something is left when all clients are gone.
    """
    found = Findings()
    states: list[tuple[str, State]] = []
    still_s = STILL_S if is_measured else 0.0
    for sent, tenths in pairwise((0, *TENTHS)):
        name, part = f"{tenths} of 10", tenths - sent
        await fuzz(cell, f"{seed}, {name}", bodies * part // 10, messages * part // 10, found)
        states.append((name, await rested(cell, states[0][1] if states else None, still_s=still_s)))
    warm = states[0][1]
    result: dict[str, Any] = {"seed": seed, "cases": found.figures(), "failures": found.failures, "left": {}}
    for name, part in (("half have left", clients // 2), ("all have left", clients - clients // 2)):
        result["left"][name] = await come_and_go(doors_of(cell), part, f"{seed} {name}", Progress("leaving", part))
        states.append((name, await rested(cell, warm, still_s=still_s)))
    result["unread_answers"] = unread = {}
    for way, hold in ({"http": holding_http, "grpc": holding_grpc} if slow_readers else {}).items():
        for name in (f"{way} unread", f"{way} unread again")[: 2 if is_measured else 1]:
            unread[name] = await held(cell, slow_readers, hold, warm)
            states.append((name, await rested(cell, warm, still_s=still_s)))
    if examples:
        url = f"http://{doors_of(cell).http}"
        report = await conformity(
            url, MODEL, phases="coverage,fuzzing,stateful", examples=examples, seed=seed, timeout_s=3600.0
        )
        result["conforms"] = report.is_conform
        if not report.is_conform:
            found.failures.append(report.text)
    states.append(("end", await rested(cell, warm, still_s=still_s)))
    if is_measured:
        parts = stretches(dict(states), cases=bodies + messages, clients=clients, silent_readers=slow_readers)
        result["growth"] = judged(dict(states), parts)
    return {**result, "states": {name: state.figures() for name, state in states}}
