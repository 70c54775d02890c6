"""The state file and its lock."""

import subprocess
import sys
from pathlib import Path

from armature.cli.state import CellDirectory, CellState, ProcessState
from armature.runtime.tls import TlsFiles

STATE = CellState(
    namespace="blue",
    pid=1,
    url="http://127.0.0.1:8000",
    grpc="127.0.0.1:9000",
    etcd="127.0.0.1:2379",
    model="demo",
    processes=(ProcessState("router", "router", "ready", 2, "router-1", "a:1", "a:2", 3, "router.log"),),
    certificate="/gateway.pem",
    tls=TlsFiles(Path("/cert.pem"), Path("/key.pem"), Path("/ca.pem"), "cell"),
)


def test_a_state_reads_back_as_it_was_written() -> None:
    assert CellState.from_json(STATE.to_json()) == STATE


def test_only_one_can_run_a_cell(tmp_path: Path) -> None:
    first, second = CellDirectory(tmp_path), CellDirectory(tmp_path)
    assert not second.is_running()
    assert first.acquire()
    assert not second.acquire()
    first.write(STATE)
    assert second.read() == STATE
    first.release()
    assert second.read() is None
    assert second.acquire()
    second.release()


def test_a_secret_is_made_once_and_read_by_its_owner_only(tmp_path: Path) -> None:
    made = CellDirectory(tmp_path).secret()
    assert len(made) == 32
    assert CellDirectory(tmp_path).secret() == made
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert CellDirectory(tmp_path.parent).secret() != made


def test_a_cell_that_was_killed_is_no_running_cell(tmp_path: Path) -> None:
    holder = (
        "import sys, pathlib; from armature.cli.state import *; d = CellDirectory(pathlib.Path(sys.argv[1]));"
        "assert d.acquire(); d.write(CellState('n', 1, *[''] * 4, ())); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert CellDirectory(tmp_path).is_running()
        assert not CellDirectory(tmp_path).acquire()
        process.kill()
    assert (tmp_path / "cell.json").exists()
    assert CellDirectory(tmp_path).read() is None
    successor = CellDirectory(tmp_path)
    assert successor.acquire()
    successor.release()
