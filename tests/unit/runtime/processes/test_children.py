import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from armature.runtime.children import is_listening, spawn
from armature.runtime.errors import StartError
from tests.support.eventually import eventually

SLEEPS = [sys.executable, "-c", "import signal; print('READY', flush=True); signal.pause()"]
DEFIES = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('READY', flush=True)\nwhile 1: signal.pause()",
]


def is_running(pid: int) -> bool:
    try:
        # A zombie that nobody has reaped yet runs no more.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_child_runs_in_a_session_of_its_own_until_it_is_stopped(tmp_path: Path) -> None:
    child = spawn("sleeper", SLEEPS, log_path=tmp_path / "log")
    assert await child.line("READY", 20) == "READY"
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    assert child.returncode is None
    assert await child.stop() == -signal.SIGTERM
    assert child.returncode == -signal.SIGTERM
    assert await child.stop() == -signal.SIGTERM


async def test_a_child_that_will_not_end_is_killed(tmp_path: Path) -> None:
    child = spawn("defiant", DEFIES, log_path=tmp_path / "log")
    await child.line("READY", 20)
    assert await child.stop(deadline_s=0.2) == -signal.SIGKILL


async def test_a_frozen_child_can_be_stopped(tmp_path: Path) -> None:
    child = spawn("sleeper", SLEEPS, log_path=tmp_path / "log")
    await child.line("READY", 20)
    child.signal(signal.SIGSTOP)
    assert await child.stop() == -signal.SIGTERM


async def test_an_exit_is_seen_by_who_waits(tmp_path: Path) -> None:
    child = spawn("brief", [sys.executable, "-c", "raise SystemExit(7)"], log_path=tmp_path / "log")
    assert await child.wait() == 7
    assert await child.wait() == 7


async def test_a_child_that_ends_before_its_line_is_told_with_what_it_printed(tmp_path: Path) -> None:
    child = spawn("broken", [sys.executable, "-c", "raise SystemExit('no such model')"], log_path=tmp_path / "log")
    with pytest.raises(StartError, match="broken exited with status 1: no such model"):
        await child.line("READY", 20)


async def test_a_child_that_prints_no_line_in_time_is_told(tmp_path: Path) -> None:
    child = spawn("sleeper", SLEEPS, log_path=tmp_path / "log")
    with pytest.raises(StartError, match=r"did not start within 0\.1 s"):
        await child.line("NEVER", 0.1)
    await child.kill()


async def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    child = spawn("missing", ["/no/such/command"], log_path=tmp_path / "log")
    assert await child.wait() == 1
    assert "can't run /no/such/command: No such file or directory" in child.log_tail()
    with pytest.raises(StartError, match="can't start missing"):
        spawn("missing", SLEEPS, log_path=tmp_path / "nowhere" / "log")


async def test_the_environment_is_ours_and_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    shows = [sys.executable, "-c", "import os; print('READY', os.environ['OURS'], os.environ['MORE'], flush=True)"]
    child = spawn("shows", shows, log_path=tmp_path / "log", env={"MORE": "2"})
    assert await child.line("READY", 20) == "READY 1 2"
    await child.wait()


async def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = textwrap.dedent(f"""
        import asyncio, pathlib, signal
        from armature.runtime.processes import start_etcd
        from armature.runtime.children import spawn

        async def main():
            child = spawn("sleeper", {SLEEPS!r}, log_path=pathlib.Path({str(tmp_path / "child")!r}))
            await child.line("READY", 20)
            etcd = await start_etcd(pathlib.Path({str(tmp_path)!r}))
            print("READY", child.pid, etcd.pid, flush=True)
            signal.pause()

        asyncio.run(main())
    """)
    process = spawn("parent", [sys.executable, "-c", parent], log_path=tmp_path / "parent")
    pids = [int(word) for word in (await process.line("READY", 60)).split()[1:]]
    assert all(map(is_running, pids))
    await process.kill()
    await eventually(lambda: not any(map(is_running, pids)))


def test_a_child_whose_parent_is_already_gone_does_not_begin(tmp_path: Path) -> None:
    shim = Path(sys.modules["armature.runtime.children"].__file__ or "").with_name("die_with_parent.py")
    mark = tmp_path / "mark"
    # Process 1 is alive, but nobody's parent here.
    command = [sys.executable, str(shim), "1", "touch", str(mark)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "the parent is gone" in done.stderr
    assert not mark.exists()


def test_a_stranger_on_the_port_is_not_taken_for_the_child() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        assert not is_listening(os.getpid(), port)
        listener.listen()
        assert is_listening(os.getpid(), port)
        assert not is_listening(os.getppid(), port)
    assert not is_listening(os.getpid(), port)
