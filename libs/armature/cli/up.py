"""`armature up`: runs a whole cell on this machine until it is told to stop."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from armature.cli.access import tls_files
from armature.cli.arguments import DEFAULTS
from armature.cli.control import ControlServer, WorkerPool
from armature.cli.display import Display
from armature.cli.launch import ServerLauncher, ServiceLauncher
from armature.cli.observe import Observer
from armature.cli.options import CellOptions, check
from armature.cli.plan import CellPlan, ServicePlan, Surroundings, log_path, plan_cell, plan_worker
from armature.cli.preflight import ask_etcd, refuse_taken_port, until_model_listed
from armature.cli.rows import rows
from armature.cli.show import greeting
from armature.cli.state import CellDirectory, CellState, ProcessState
from armature.cli.supervisor import Cell, Supervised
from armature.runtime.errors import StartError
from armature.runtime.tasks import Spawn

REFRESH_S = 1.0


Plan = Callable[[CellOptions, Surroundings], CellPlan]


def up(options: CellOptions, console: Console, plan: Plan = plan_cell) -> int:
    """Run a cell; return the exit status once it has stopped. `plan` says what it consists of.

    Raises:
        UsageError: the options can't work.
        StartError: the cell does not start; nothing is left running.
    """
    check(options)
    directory = CellDirectory(options.directory)
    if not directory.acquire():
        running = directory.read()
        who = f" (pid {running.pid})" if running else ""
        raise StartError(
            f"cell {options.namespace!r} runs already{who}: stop it with `armature down`, or name another --namespace"
        )
    try:
        refuse_taken_port(options.host, options.http_port)
        asyncio.run(_Up(options, directory, console, plan).run())
    except asyncio.CancelledError:
        return 1
    finally:
        directory.release()
    return 0


class _Up:
    """One run of a cell."""

    def __init__(self, options: CellOptions, directory: CellDirectory, console: Console, plan: Plan) -> None:
        self._options = options
        self._directory = directory
        self._display = Display(console, f"cell {options.namespace}, model {options.served_name}")
        self._plan = plan
        self._cell: Cell | None = None
        self._etcd = options.etcd
        self._tls = tls_files(options.settings.get("*", {}))
        self._observer: Observer | None = None

    async def run(self) -> None:
        """Return when told to stop and all has stopped.

        Raises:
            StartError: the cell did not start; all has stopped.
            CancelledError: told to stop a second time; all was killed.
        """
        _stop_on_signals()
        with self._display:
            async with asyncio.TaskGroup() as tasks:
                failure = await self._run(tasks)
        if failure:
            raise failure
        self._display.say("stopped")

    async def _run(self, tasks: asyncio.TaskGroup) -> StartError | None:
        cell = self._cell = Cell(tasks, self._options.drain_timeout_s)
        self._directory.write(self._state())
        refreshing = tasks.create_task(self._refresh(), name="table")
        control = ControlServer()
        try:
            url = await self._start(cell, control, tasks.create_task)
            has_key = self._options.has_admin_key
            self._display.say(
                "\n" + greeting(url, self._options.served_name, _chat_command(url), has_admin_key=has_key)
            )
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self._display.say("stopping; once more kills")
        except StartError as error:
            return error
        finally:
            try:
                await control.close()
                await cell.stop()
            finally:
                refreshing.cancel()
                if self._observer:
                    await self._observer.close()
        return None

    async def _start(self, cell: Cell, control: ControlServer, spawn: Spawn) -> str:
        """Start everything; return the gateway's URL."""
        if self._options.etcd:
            await ask_etcd(self._options.etcd, self._tls)
        await cell.start(self._servers())
        self._etcd = self._options.etcd or _address_of(cell, "etcd")
        self._observer = Observer(self._etcd, self._options.namespace, self._tls)
        redis = f"redis://{_address_of(cell, 'valkey')}" if self._options.valkey else ""
        around = Surroundings(self._etcd, self._directory.secret(), len(os.sched_getaffinity(0)), redis)
        pool = WorkerPool(cell, spawn, partial(plan_worker, self._options, around), self._service, self._changed)
        if self._options.planner == "local":
            around = replace(around, control=await control.serve(pool))
        plan = self._plan(self._options, around)
        await cell.start(*(self._group(group, pool) for group in plan.groups))
        url = self._state().url
        await until_model_listed(url)
        return url

    def _servers(self) -> list[Supervised]:
        """etcd and Valkey; etcd's data is of one run only, since it names processes that are gone."""
        wanted = {"etcd": not self._options.etcd, "valkey": self._options.valkey}
        made: list[Supervised] = []
        for kind in (kind for kind, is_wanted in wanted.items() if is_wanted):
            folder = self._directory.path.resolve() / kind
            shutil.rmtree(folder, ignore_errors=True)
            made.append(Supervised(kind, kind, ServerLauncher(kind, folder), self._changed))
        return made

    def _group(self, plans: Sequence[ServicePlan], pool: WorkerPool) -> Sequence[Supervised]:
        """Workers are the pool's: a planner may add some, and let some go."""
        if any(plan.role for plan in plans):
            for plan in plans:
                pool.take(plan)
            return pool.group
        return [self._service(plan) for plan in plans]

    def _service(self, plan: ServicePlan) -> Supervised:
        log = log_path(self._options, plan.name)
        launch = ServiceLauncher(plan.name, plan.command, plan.env, log, self._options.start_timeout_s)
        return Supervised(plan.name, plan.kind, launch, self._changed)

    def _changed(self, process: Supervised) -> None:
        self._directory.write(self._state())
        self._display.changed(process)

    async def _refresh(self) -> None:
        """Keep the table true; without a terminal there is none."""
        while self._display.is_live:
            processes = self._state().processes
            self._display.show(await self._observer.look(processes) if self._observer else rows(processes))
            await asyncio.sleep(REFRESH_S)

    def _state(self) -> CellState:
        processes = self._cell.processes if self._cell else []
        certificate = self._options.settings.get("gateway", {}).get("http_tls_cert", "")
        scheme = "https" if certificate else "http"
        gateway = next((p.running.ready for p in processes if p.running and p.running.ready.http), None)
        return CellState(
            namespace=self._options.namespace,
            pid=os.getpid(),
            url=f"{scheme}://{gateway.http}" if gateway else "",
            grpc=gateway.grpc if gateway else "",
            etcd=self._etcd,
            model=self._options.served_name,
            processes=tuple(_process_state(p, self._log_of(p)) for p in processes),
            certificate=str(Path(certificate).resolve()) if certificate else "",
            tls=self._tls,
        )

    def _log_of(self, process: Supervised) -> Path:
        return process.running.child.log_path if process.running else log_path(self._options, process.name)


def _process_state(process: Supervised, log: Path) -> ProcessState:
    ready = process.running.ready if process.running else None
    return ProcessState(
        name=process.name,
        kind=process.kind,
        state=process.state.value,
        pid=process.running.child.pid if process.running else 0,
        member_id=ready.member_id if ready else "",
        address=(ready.http or ready.grpc) if ready else "",
        metrics_address=ready.metrics if ready else "",
        restarts=process.restarts,
        log=str(log),
    )


def _stop_on_signals() -> None:
    """The first signal lets everything drain, the next one doesn't."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)


def _chat_command(url: str) -> str:
    """How to talk to this cell from where it was started."""
    program = "armature" if shutil.which("armature") else sys.argv[0]
    is_default = url == f"http://{DEFAULTS.host}:{DEFAULTS.http_port}"
    return f"{program} chat" if is_default else f"{program} chat --url {url}"


def _address_of(cell: Cell, kind: str) -> str:
    return next(p.running.ready.grpc for p in cell.processes if p.kind == kind and p.running)
