"""Starting, keeping and stopping real processes."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from armature.cli.launch import ServiceLauncher
from armature.cli.supervisor import Cell, State, Supervised
from armature.runtime.errors import StartError
from tests.support.eventually import eventually

FAKE = str(Path(__file__).with_name("fake_service.py"))


class Bench:
    """Makes fake services that share a journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        self.journal.touch()
        self.seen: list[tuple[str, State]] = []
        self._changed = asyncio.Event()

    def service(self, name: str, behaviour: str = "serve", timeout_s: float = 20.0) -> Supervised:
        command = (sys.executable, FAKE, behaviour, name)
        env = {"FAKE_JOURNAL": str(self.journal)}
        launch = ServiceLauncher(name, command, env, self.folder / "logs" / f"{name}.log", timeout_s)
        return Supervised(name, name, launch, self._told)

    def lines(self) -> list[str]:
        return self.journal.read_text().splitlines()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a change of state after which the condition holds."""
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def _told(self, process: Supervised) -> None:
        self.seen.append((process.name, process.state))
        self._changed.set()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@asynccontextmanager
async def a_cell(drain_timeout_s: float = 5.0) -> AsyncIterator[Cell]:
    async with asyncio.TaskGroup() as tasks:
        cell = Cell(tasks, drain_timeout_s)
        try:
            yield cell
        finally:
            await cell.stop()


def pid_of(process: Supervised) -> int:
    assert process.running is not None
    return process.running.child.pid


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_groups_stop_in_reverse_order_and_each_ends_before_the_next_is_told(bench: Bench) -> None:
    async with a_cell() as cell:
        await cell.start([bench.service("router")], [bench.service("worker-0"), bench.service("worker-1")])
        await cell.start([bench.service("gateway")])
        assert [p.state for p in cell.processes] == [State.READY] * 4
    stops = [line for line in bench.lines() if not line.endswith("starts")]
    assert stops[:2] == ["gateway told to stop", "gateway ends"]
    assert stops[-2:] == ["router told to stop", "router ends"]
    assert [p.state for p in cell.processes] == [State.STOPPED] * 4


async def test_a_service_that_fails_at_the_start_is_told_with_its_last_line_and_its_log(bench: Bench) -> None:
    async with a_cell() as cell:
        good = bench.service("router")
        with pytest.raises(StartError) as caught:
            await cell.start([good, bench.service("worker-0", "refuse")])
        told = str(caught.value)
        assert "worker-0 exited with status 1: worker-0: the moon is not full: wait for it" in told
        assert "logs/worker-0.log" in told
    assert good.running is None


async def test_a_service_that_never_gets_ready_is_given_up_and_killed(bench: Bench) -> None:
    async with a_cell() as cell:
        with pytest.raises(StartError, match=r"worker-0 was not ready after 0\.5 s"):
            await cell.start([bench.service("worker-0", "mute", timeout_s=0.5)])
        assert cell.processes[0].running is None


async def test_a_crashed_service_is_started_again_and_counts_it(bench: Bench) -> None:
    async with a_cell() as cell:
        worker, router = bench.service("worker-0"), bench.service("router")
        await cell.start([router, worker])
        first = pid_of(worker)
        os.kill(first, 9)
        await bench.until(lambda: worker.state is State.READY and worker.restarts == 1)
        assert pid_of(worker) != first
        assert worker.last_error == "worker-0 was killed by signal 9"
        assert (worker.restarts, router.restarts) == (1, 0)
        assert bench.lines().count("worker-0 starts") == 2
        assert (bench.folder / "logs" / "worker-0.log.1").exists()


async def test_a_service_that_cant_come_back_is_tried_again_later_each_time(bench: Bench) -> None:
    async with a_cell() as cell:
        worker = bench.service("worker-0")
        await cell.start([worker])
        worker._launch = bench.service("worker-0", "refuse")._launch  # pyright: ignore[reportPrivateUsage]
        started_s = time.monotonic()
        os.kill(pid_of(worker), 9)
        await bench.until(lambda: worker.restarts == 2 and worker.state is State.CRASHED)
        # 0.5 s, then 1 s, each spread by a quarter
        assert time.monotonic() - started_s > 0.75 * 1.5
        assert "the moon is not full" in worker.last_error


async def test_a_service_that_ignores_being_told_is_killed_after_the_deadline(bench: Bench) -> None:
    worker = bench.service("worker-0", "deaf")
    await worker.start()
    pid = pid_of(worker)
    started_s = time.monotonic()
    await worker.stop(deadline_s=0.3)
    assert 0.3 <= time.monotonic() - started_s < 5.0
    assert not is_alive(pid)
    assert "worker-0 told to stop" in bench.lines()


async def test_a_stop_that_is_cancelled_kills_at_once(bench: Bench) -> None:
    async with asyncio.TaskGroup() as tasks:
        cell = Cell(tasks, drain_timeout_s=60.0)
        worker = bench.service("worker-0", "deaf")
        await cell.start([worker])
        pid = pid_of(worker)
        stopping = asyncio.create_task(cell.stop())
        await bench.until(lambda: worker.state is State.STOPPING)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert not is_alive(pid)


async def test_stopping_while_services_still_load_leaves_nothing(bench: Bench) -> None:
    async with a_cell() as cell:
        starting = asyncio.create_task(cell.start([bench.service("worker-0", "mute", timeout_s=60.0)]))
        await bench.until(lambda: ("worker-0", State.STARTING) in bench.seen)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if "fake_service" in Path(f"/proc/{pid}/cmdline").read_text()]


async def test_a_gateway_on_a_free_port_gets_the_same_one_back(bench: Bench) -> None:
    command = (sys.executable, FAKE, "serve", "gateway", "--http-port=0")
    launch = ServiceLauncher("gateway", command, {"FAKE_JOURNAL": str(bench.journal)}, bench.folder / "g.log", 20.0)
    first = await launch()
    await first.child.kill()
    second = await launch()
    await second.child.kill()
    assert first.ready.http == second.ready.http


async def test_a_process_that_joins_later_is_kept_and_one_that_leaves_is_forgotten(bench: Bench) -> None:
    async with a_cell() as cell:
        first, second = bench.service("first"), bench.service("second")
        group = [first]
        await cell.start(group)
        cell.add(second, group)
        await bench.until(lambda: second.state is State.READY)
        assert cell.processes == [first, second]
        await cell.remove(first, group)
        assert first.state is State.STOPPED and cell.processes == [second]
        os.kill(pid_of(second), 9)
        await bench.until(lambda: second.restarts == 1 and second.state is State.READY)


async def test_one_that_leaves_while_it_starts_is_told_so_that_it_can_leave_the_cell_as_well(bench: Bench) -> None:
    async with a_cell() as cell:
        group: list[Supervised] = []
        await cell.start(group)
        slow = bench.service("slow", "mute", timeout_s=60.0)
        cell.add(slow, group)
        await eventually(lambda: "slow starts" in bench.lines(), what="it loads")
        await cell.remove(slow, group)
        assert not cell.processes
    assert bench.lines() == ["slow starts", "slow told to stop"]


async def test_one_that_fails_at_its_start_is_tried_again_until_it_leaves(bench: Bench) -> None:
    async with a_cell() as cell:
        group: list[Supervised] = []
        await cell.start(group)
        broken = bench.service("broken", "refuse")
        cell.add(broken, group)
        await bench.until(lambda: broken.restarts == 1)
        await cell.remove(broken, group)
        assert not cell.processes
