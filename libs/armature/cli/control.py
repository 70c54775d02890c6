"""What a planner may do with the workers of `armature up`: gRPC on a socket that only its owner can open."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import grpc

from armature.cli.plan import ServicePlan
from armature.cli.supervisor import Cell, State, Supervised
from armature.runtime.boundary import Boundary
from armature.runtime.errors import CallerError, NotFoundError
from armature.runtime.tasks import Spawn
from armature.v1 import cell_pb2 as pb
from armature.v1 import cell_pb2_grpc
from armature.v1.common_pb2 import ROLE_AGGREGATED, ROLE_DECODE, ROLE_PREFILL, Role

_STATES = {
    State.WAITING: pb.WorkerProcess.STATE_STARTING,
    State.STARTING: pb.WorkerProcess.STATE_STARTING,
    State.CRASHED: pb.WorkerProcess.STATE_STARTING,
    State.READY: pb.WorkerProcess.STATE_READY,
    State.STOPPING: pb.WorkerProcess.STATE_STOPPING,
    State.STOPPED: pb.WorkerProcess.STATE_STOPPING,
}

PlanWorker = Callable[["Role.ValueType", int], ServicePlan]
"""The plan of one more worker, by its role and a number that no worker of its kind has had."""


class WorkerPool:
    """The worker processes of a cell. `changed` is called after one is gone."""

    def __init__(
        self,
        cell: Cell,
        spawn: Spawn,
        plan: PlanWorker,
        supervise: Callable[[ServicePlan], Supervised],
        changed: Callable[[Supervised], None],
    ) -> None:
        self._cell = cell
        self._spawn = spawn
        self._plan = plan
        self._supervise = supervise
        self._changed = changed
        self._roles: dict[str, Role.ValueType] = {}
        self._leaving: set[str] = set()
        self._numbers: dict[str, int] = {}
        self.group: list[Supervised] = []
        """All of them, as the cell knows them."""

    def take(self, plan: ServicePlan) -> Supervised:
        """A worker that the cell starts with: the caller has it started with `group`."""
        process = self._supervise(plan)
        self.group.append(process)
        self._note(plan)
        return process

    def start(self, role: "Role.ValueType") -> Supervised:
        """One more."""
        kind = self._plan(role, 0).kind
        plan = self._plan(role, self._numbers.get(kind, 0))
        self._note(plan)
        process = self._supervise(plan)
        self._cell.add(process, self.group)
        return process

    def stop(self, name: str) -> None:
        """One less; nothing happens to one that leaves already.

        Raises:
            NotFoundError: there is none of this name.
        """
        process = next((one for one in self.group if one.name == name), None)
        if process is None:
            raise NotFoundError(f"name is {name!r}; there are {', '.join(one.name for one in self.group) or 'none'}")
        if name not in self._leaving:
            self._leaving.add(name)
            self._spawn(self._leave(process))

    def tell(self, process: Supervised) -> pb.WorkerProcess:
        """What a planner has to know of one."""
        leaves = process.name in self._leaving
        return pb.WorkerProcess(
            name=process.name,
            state=pb.WorkerProcess.STATE_STOPPING if leaves else _STATES[process.state],
            role=self._roles[process.name],
            member_id=process.running.ready.member_id if process.running else "",
            restarts=process.restarts,
            last_error=process.last_error,
        )

    async def _leave(self, process: Supervised) -> None:
        await self._cell.remove(process, self.group)
        self._leaving.discard(process.name)
        self._changed(process)

    def _note(self, plan: ServicePlan) -> None:
        self._roles[plan.name] = plan.role
        self._numbers[plan.kind] = self._numbers.get(plan.kind, 0) + 1


class _Servicer(cell_pb2_grpc.CellControlServicer):
    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    async def ListWorkers(self, request: pb.ListWorkersRequest, context: object) -> pb.ListWorkersResponse:
        return pb.ListWorkersResponse(workers=[self._pool.tell(one) for one in self._pool.group])

    async def StartWorker(self, request: pb.StartWorkerRequest, context: object) -> pb.StartWorkerResponse:
        roles = (ROLE_AGGREGATED, ROLE_PREFILL, ROLE_DECODE)
        if request.role not in roles:
            raise CallerError(f"role is {request.role}; it must be one of {', '.join(map(Role.Name, roles))}")
        return pb.StartWorkerResponse(worker=self._pool.tell(self._pool.start(request.role)))

    async def StopWorker(self, request: pb.StopWorkerRequest, context: object) -> pb.StopWorkerResponse:
        self._pool.stop(request.name)
        return pb.StopWorkerResponse()


class ControlServer:
    """Lets a planner at a pool, once it `serve`s.

    The socket lies in a folder of its own that nobody else may enter; a cell's state may have too long a path for one.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._server: grpc.aio.Server | None = None

    async def serve(self, pool: WorkerPool) -> str:
        """Begin to answer; return what gRPC clients are given as the address."""
        self._folder = Path(tempfile.mkdtemp(prefix="armature-"))
        address = f"unix:{self._folder / 'control'}"
        self._server = grpc.aio.server(interceptors=[Boundary()])
        cell_pb2_grpc.add_CellControlServicer_to_server(_Servicer(pool), self._server)
        self._server.add_insecure_port(address)
        await self._server.start()
        return address

    async def close(self) -> None:
        """Answer nobody any more. Nothing happens if it does not serve."""
        if self._server is not None:
            await self._server.stop(None)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
