"""A real cell for tests: real services as real processes, each of which a test may kill and start again."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from armature.runtime.children import tethered

READY_TIMEOUT_S = 90.0
SCRAPE_TIMEOUT_S = 10.0


@dataclass
class Service:
    """One service process; `spawn` starts it, also again under the same flags after it was killed."""

    name: str
    module: str
    flags: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    package: str = "services"
    python: str = sys.executable
    ready_timeout_s: float = READY_TIMEOUT_S
    process: asyncio.subprocess.Process | None = None
    member_id: str = ""
    addresses: dict[str, str] = field(default_factory=dict)

    async def spawn(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *tethered([self.python, "-m", f"{self.package}.{self.module}", *self.flags]),
                env={**os.environ, **self.env}, stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        assert self.process.stdout is not None
        async with asyncio.timeout(self.ready_timeout_s):
            while line := (await self.process.stdout.readline()).decode():
                if line.startswith("READY "):
                    _, _, self.member_id, *addresses = line.split()
                    self.addresses = dict(address.split("=", 1) for address in addresses)
                    return
        raise AssertionError(f"{self.name} ended before it was ready:\n{self.log.read_text()[-2000:]}")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        await self.process.wait()

    async def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM, and the exit status; SIGKILL after `timeout_s`."""
        assert self.process is not None
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                return await self.process.wait()
        except TimeoutError:
            await self.kill()
            return -signal.SIGKILL

    async def scrape(self) -> str:
        """What Prometheus would get."""
        address = self.addresses["http"] if "http" in self.addresses else self.addresses["metrics"]
        async with httpx.AsyncClient(timeout=SCRAPE_TIMEOUT_S, verify=False, trust_env=False) as client:
            return (await client.get(f"http://{address}/metrics")).text

    async def samples(self) -> list[tuple[str, dict[str, str], float]]:
        """All samples as (name, labels, value)."""
        families = text_string_to_metric_families(await self.scrape())
        return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]

    async def metrics(self) -> dict[str, float]:
        """Sums of all samples by name, over their labels."""
        sums: dict[str, float] = {}
        for name, _, value in await self.samples():
            sums[name] = sums.get(name, 0.0) + value
        return sums


@dataclass
class Cell:
    services: dict[str, Service]

    @property
    def url(self) -> str:
        return f"http://{self.services['gateway'].addresses['http']}"

    @property
    def grpc(self) -> str:
        return self.services["gateway"].addresses["grpc"]

    def workers(self) -> list[Service]:
        return [service for name, service in self.services.items() if "worker" in name]

    def by_id(self, member_id: str) -> Service:
        return next(service for service in self.services.values() if service.member_id == member_id)


@contextlib.asynccontextmanager
async def running_cell(
    folder: Path,
    etcd_address: str,
    *,
    prefill: int = 1,
    decode: int = 2,
    aggregated: int = 0,
    fleets: Sequence[int] = (),
    kv_offload: tuple[str, ...] | None = None,
    worker_flags: tuple[str, ...] = (),
    flags: Mapping[str, tuple[str, ...]] | None = None,
    env: Mapping[str, str] | None = None,
    worker_python: str = sys.executable,
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> AsyncIterator[Cell]:
    """Start a whole cell, in a namespace named like `folder`, and stop it.

    Each of `fleets` is a process with so many simulated workers. `worker_flags` go to every worker,
    `flags` to services by their module, e.g. `{"router": (...)}`. `kv_offload` starts one with these flags.
    `worker_python` is the interpreter of an environment that has another engine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    extra = flags or {}
    namespace = folder.name
    common = ("--etcd", etcd_address, "--namespace", namespace, "--drain-timeout-s", "10")
    plan = [("kv-index", "kv_index", ()), ("router", "router", ())]
    plan += [("kv-offload", "kv_offload", kv_offload)] if kv_offload is not None else []
    plan += [(f"prefill-worker-{i}", "prefill_worker", worker_flags) for i in range(prefill)]
    plan += [(f"decode-worker-{i}", "decode_worker", worker_flags) for i in range(decode)]
    plan += [
        (f"aggregated-worker-{i}", "decode_worker", (*worker_flags, "--role", "aggregated")) for i in range(aggregated)
    ]
    plan += [("gateway", "gateway", ("--http-port", "0"))]
    services = {
        name: Service(name, module, (*common, *own, *extra.get(module, ())), env or {}, folder / f"{name}.log")
        for name, module, own in plan
    }
    for i, workers in enumerate(fleets):
        own = (*common, *worker_flags, "--engine", "simulated", "--workers", str(workers))
        log = folder / f"fleet-{i}.log"
        services[f"fleet-{i}"] = Service(f"fleet-{i}", "simulated_fleet", own, env or {}, log, package="tests.support")
    cell = Cell(services)
    for service in services.values():
        service.ready_timeout_s = ready_timeout_s
    for worker in cell.workers():
        worker.python = worker_python
    try:
        # Workers load a model: a few at once keeps two cores busy without starving the first READY.
        await asyncio.gather(*(service.spawn() for service in services.values()))
        yield cell
    finally:
        await asyncio.gather(*(service.stop() for service in services.values() if service.process is not None))
