"""What a running cell writes down, so that `armature status`, `down` and `chat` find it.

A lock on a file beside it says whether the cell runs: the kernel lets go of it when the process ends, however it ends,
so a state file left behind by a crash is never taken for a living cell.
"""

import fcntl
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from armature.runtime.errors import StartError
from armature.runtime.tls import TlsFiles

_STATE_FILE = "cell.json"
_LOCK_FILE = "lock"
_SECRET_FILE = "secret"
# Whoever looks whether a cell runs holds the lock for an instant.
_LOCK_ATTEMPTS, _LOCK_PAUSE_S = 5, 0.02


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process of the cell, as its supervisor last saw it."""

    name: str
    kind: str
    state: str
    pid: int
    member_id: str
    address: str
    metrics_address: str
    restarts: int
    log: str


@dataclass(frozen=True, slots=True)
class CellState:
    """The whole cell."""

    namespace: str
    pid: int
    """Of `armature up` itself."""
    url: str
    """Of the gateway, empty until it serves."""
    grpc: str
    """The gateway's address for gRPC clients, empty until it serves."""
    etcd: str
    model: str
    processes: tuple[ProcessState, ...]
    certificate: str = ""
    """File with the gateway's certificate, if it speaks HTTPS."""
    tls: TlsFiles | None = None
    """By which the services know each other, if they do."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, default=str) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields: dict[str, Any] = json.loads(text)
        processes = tuple(ProcessState(**process) for process in fields.pop("processes"))
        tls: dict[str, str] | None = fields.pop("tls")
        if tls is not None:
            fields["tls"] = TlsFiles(Path(tls["cert"]), Path(tls["key"]), Path(tls["ca"]), tls["name"])
        return cls(**fields, processes=processes)


class CellDirectory:
    """`.armature/<namespace>`: the state file, its lock, the cell's secret, logs, etcd's data and blocks on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    def acquire(self) -> bool:
        """Become the one who runs this cell; False if somebody does already.

        Raises:
            StartError: the directory can't be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartError(f"can't keep state in {self.path} ({error.strerror}): pass another --state-dir") from error
        for _ in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_LOCK_PAUSE_S)
            else:
                self._lock = descriptor
                return True
        os.close(descriptor)
        return False

    def release(self) -> None:
        (self.path / _STATE_FILE).unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1

    def is_running(self) -> bool:
        """Whether another process runs this cell now."""
        if not (self.path / _LOCK_FILE).exists():
            return False
        with (self.path / _LOCK_FILE).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def secret(self) -> str:
        """The key of the cell's block digests: made once, so that blocks on its disk are found again by a later run."""
        path = self.path / _SECRET_FILE
        try:
            kept = path.read_text().strip()
        except FileNotFoundError:
            kept = ""
        if not kept:
            kept = secrets.token_hex(16)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(kept)
        return kept

    def write(self, state: CellState) -> None:
        """Replace the state; a reader sees the old or the new one, never a part."""
        draft = self.path / f"{_STATE_FILE}.new"
        draft.write_text(state.to_json())
        draft.replace(self.path / _STATE_FILE)

    def read(self) -> CellState | None:
        """The state of the running cell, None if there is none, or none yet."""
        if not self.is_running():
            return None
        try:
            return CellState.from_json((self.path / _STATE_FILE).read_text())
        except FileNotFoundError:
            return None
