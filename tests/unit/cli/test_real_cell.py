"""`armature up` with the real services, and everything else that the command can do to a cell."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from armature.cli.main import main
from armature.cli.state import CellDirectory

DEADLINE_S = 90.0


def test_a_whole_cell_comes_up_answers_and_goes_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-c", "from armature.cli.main import main; raise SystemExit(main())", "up"]
    command += ["--engine=simulated", "--http-port=0", "--decode=1", "--state-dir", str(tmp_path)]
    command += ["--set=decode-worker.simulated_answer_tokens=5", "--set=prefill-worker.simulated_answer_tokens=5"]
    place = ["--state-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as up:
        assert up.stdout is not None
        try:
            lines: list[str] = []
            for line in up.stdout:
                lines.append(line)
                if "Ctrl-C stops the cell" in line:
                    break
            assert "serving demo on http://" in "".join(lines)
            assert main(["status", *place]) == 0
            shown = capsys.readouterr().out
            assert "prefill-worker-0" in shown
            assert "kv-offload" in shown
            assert "crashed" not in shown
            assert main(["chat", "What does len do?", *place]) == 0
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
