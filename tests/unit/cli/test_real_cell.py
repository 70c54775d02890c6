"""`armature up` with the real services, and everything else that the command can do to a cell."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from armature.cli.main import main
from armature.cli.state import CellDirectory
from tests.support.certificates import Authority

DEADLINE_S = 90.0


def until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


def test_a_whole_cell_comes_up_under_tls_answers_and_goes_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Authority(tmp_path).issue("member")
    monkeypatch.setenv("ARMATURE_ADMIN_KEY", "an admin key of some length")
    command = [sys.executable, "-c", "from armature.cli.main import main; raise SystemExit(main())", "up"]
    command += ["--engine=simulated", "--http-port=0", "--decode=1", "--state-dir", str(tmp_path)]
    command += ["--set=decode-worker.simulated_answer_tokens=5", "--set=prefill-worker.simulated_answer_tokens=5"]
    command += [f"--set=*.tls_{name}={getattr(files, name)}" for name in ("cert", "key", "ca")]
    command += [f"--set=gateway.http_tls_{name}={getattr(files, name)}" for name in ("cert", "key")]
    command += ["--set=gateway.keys=etcd", "--gateway-processes=2"]
    place = ["--state-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as up:
        assert up.stdout is not None
        try:
            lines: list[str] = []
            for line in up.stdout:
                lines.append(line)
                if "Ctrl-C stops the cell" in line:
                    break
            assert "serving demo on https://" in "".join(lines)
            assert main(["status", *place]) == 0
            shown = capsys.readouterr().out
            assert "prefill-worker-0" in shown
            assert "kv-offload" in shown
            assert "crashed" not in shown
            assert main(["chat", "What does len do?", *place]) == 1
            assert "An API key is needed" in capsys.readouterr().err
            assert main(["keys", "create", "acme", *place]) == 0
            monkeypatch.setenv("ARMATURE_API_KEY", capsys.readouterr().out.split()[0])
            until(lambda: main(["chat", "What does len do?", *place]) == 0)  # the other process hears of the key soon
            assert "| first token after" in "".join(capsys.readouterr().out.split("decode-worker-", 1)[1:])
            assert main(["explain", "--limit=1", *place]) == 0
            explained = capsys.readouterr().out
            assert "prompt tokens for demo" in explained and "→" in explained and "round_robin" in explained
            assert main(["explain", "chatcmpl-0", *place]) == 1
            assert "no decision on request 0 is remembered" in capsys.readouterr().err
            state = CellDirectory(tmp_path / "default").read()
            assert state is not None
            assert [process.restarts for process in state.processes] == [0] * 8
            assert main(["down", *place, f"--timeout={DEADLINE_S}"]) == 0
            assert up.wait(DEADLINE_S) == 0
        finally:
            up.send_signal(signal.SIGKILL)
