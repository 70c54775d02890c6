"""`armature up` as a process: a real etcd, fake services, real signals."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from armature.cli.main import main
from armature.cli.state import CellDirectory, CellState

FAKE_CELL = str(Path(__file__).with_name("fake_cell.py"))
DEADLINE_S = 30.0


class UpProcess:
    def __init__(self, folder: Path, http_port: int = 0) -> None:
        self.state_dir = folder / "state"
        self.journal = folder / "journal"
        self.directory = CellDirectory(self.state_dir / "default")
        command = [sys.executable, FAKE_CELL, str(self.state_dir), str(self.journal), str(http_port)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.output = ""

    def read_until(self, text: str) -> str:
        """Read what it prints, up to and with the line that contains `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return line
        raise AssertionError(f"it ended without {text!r}:\n{self.output}")

    def state(self) -> CellState:
        state = self.directory.read()
        assert state is not None
        return state

    def pids(self) -> dict[str, int]:
        return {process.name: process.pid for process in self.state().processes}

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        self.output += self.process.communicate(timeout=DEADLINE_S)[0]
        return self.process.returncode


@pytest.fixture
def up(tmp_path: Path) -> Iterator[UpProcess]:
    running = UpProcess(tmp_path)
    yield running
    running.process.kill()
    running.process.communicate()


def until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_cell_greets_serves_and_ends_cleanly_when_told_to(up: UpProcess) -> None:
    greeting = up.read_until("serving demo on http://")
    chat = up.read_until('What does os.path.join do?"\n')
    url = greeting.split()[-1]
    assert f" chat --url {url} " in chat
    assert up.state().url == url
    assert httpx.get(f"{url}/v1/models").json() == {"data": [{"id": "fake"}]}
    assert "curl -s " + url in up.output
    assert up.read_until("console for").endswith(f"no admin key is set: {url}/console\n")
    pids = up.pids()
    assert set(pids) == {"etcd", "router", "gateway"}
    assert up.end(signal.SIGTERM) == 0
    stops = [line for line in up.journal.read_text().splitlines() if line.endswith("ends")]
    assert stops == ["gateway ends", "router ends"]
    assert not any(is_alive(pid) for pid in pids.values())
    assert up.directory.read() is None


def test_no_child_outlives_a_killed_cell(up: UpProcess) -> None:
    up.read_until("serving demo")
    pids = up.pids()
    assert all(is_alive(pid) for pid in pids.values())
    up.end(signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in pids.values()))


def test_ctrl_c_while_it_starts_leaves_nothing(up: UpProcess) -> None:
    up.read_until("etcd ready")
    pid = up.pids()["etcd"]
    assert up.end(signal.SIGINT) == 0
    assert not is_alive(pid)


@pytest.mark.parametrize("name", ["gateway", "etcd"])
def test_a_killed_process_comes_back_where_it_was(up: UpProcess, name: str) -> None:
    up.read_until("serving demo")
    before = next(p for p in up.state().processes if p.name == name)
    os.kill(before.pid, signal.SIGKILL)
    up.read_until(f"{name} was killed by signal 9")
    up.read_until(f"{name} ready")
    after = next(p for p in up.state().processes if p.name == name)
    assert after.pid != before.pid
    assert (after.address, after.restarts) == (before.address, 1)
    assert up.end(signal.SIGTERM) == 0


def test_a_second_cell_of_that_name_is_refused_and_down_stops_the_first(
    up: UpProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    up.read_until("serving demo")
    second = UpProcess(tmp_path)
    assert second.process.wait(DEADLINE_S) == 1
    output, _ = second.process.communicate()
    assert f"cell 'default' runs already (pid {up.process.pid}): stop it with `armature down`" in output
    place = ["--state-dir", str(up.state_dir)]
    assert main(["status", *place]) == 1  # fake services are in no etcd
    shown = capsys.readouterr().out
    assert "router" in shown
    assert "not registered" in shown
    assert f"127.0.0.1:{up.state().etcd.rpartition(':')[2]}" in shown
    assert main(["down", *place]) == 0
    assert up.process.wait(DEADLINE_S) == 0
    assert main(["down", *place]) == 1
    assert "no cell runs in" in capsys.readouterr().err


def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = UpProcess(tmp_path, http_port=port)
        output, _ = up.process.communicate(timeout=DEADLINE_S)
    assert up.process.returncode == 1
    told = f"armature: can't serve HTTP on 127.0.0.1:{port} (Address already in use): pass another --http-port"
    assert told in output
    assert len(output.splitlines()) == 1
    assert not up.journal.exists()


@pytest.mark.parametrize(
    ("argv", "status", "told"),
    [
        (["up", "--model", "/no/such"], 2, "no model directory /no/such"),
        (["up", "--set", "rooter.x=1"], 2, "did you mean 'router'?"),
        (["up", "--prefil", "1"], 2, "unrecognized arguments: --prefil"),
        (["up", "--prefill", "many"], 2, "invalid int value: 'many'"),
        (["up", "--etcd", "127.0.0.1:1", "--http-port", "0"], 1, "etcd at 127.0.0.1:1 does not answer"),
        (["up", "--etcd", "etcd", "--http-port", "0"], 1, "pass --etcd HOST:PORT"),
        (["up", "--host", "192.0.2.1", "--http-port", "0"], 1, "pass another --host"),
        (["up", "--namespace", "lock/x", "--http-port", "0"], 2, "--namespace consists of"),
        ([], 2, "the following arguments are required: COMMAND"),
    ],
)
def test_what_cant_work_is_one_line_and_an_exit_status(
    argv: list[str], status: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--state-dir", str(tmp_path)] if argv else []
    assert main([*argv, *place]) == status
    printed, error = capsys.readouterr()
    assert told in error
    assert error.startswith("armature: ")
    assert len(error.splitlines()) == 1
    assert "ready" not in printed


def test_a_state_dir_that_cant_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["up", "--http-port", "0", "--state-dir", str(tmp_path / "file")]) == 1
    assert "pass another --state-dir" in capsys.readouterr().err
