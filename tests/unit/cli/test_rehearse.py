"""`armature rehearse` from the outside."""

import json
from pathlib import Path

import pytest

from armature.cli.main import main
from armature.cli.sizing import RIVALS

TRAFFIC = ["--synthetic", "rate=5", "--requests", "250", "--worker-speed", "0.25", "--ttft-s", "8", "--itl-s", "0.5"]


def failure(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main(["rehearse", *map(str, argv)]) == 2
    return capsys.readouterr().err


def test_every_way_gets_a_row_and_the_planner_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, page, decisions = (tmp_path / name for name in ("all.json", "all.html", "why.jsonl"))
    argv = ["--json", str(results), "--report", str(page), "--decisions-out", str(decisions), "--workers", "1"]
    assert main(["rehearse", *TRAFFIC, *argv]) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert rows[-5:] == ["usual", *RIVALS]
    told = json.loads(results.read_text())["results"]
    assert set(told) == {"usual", *RIVALS}
    assert told["foresight"]["attained"] >= 0.99
    assert told["foresight"]["gpu_hours"] <= told["static"]["gpu_hours"] * 1.05
    assert all(one["unserved"] == 0 for one in told.values())
    assert page.read_text().count("<svg") == 3
    first = json.loads(decisions.read_text().splitlines()[0])
    assert first["text"]
    assert first["rejected"]


def test_a_replay_in_outline_leaves_the_first_minutes_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "all.json"
    common = [*TRAFFIC[:1], "rate=3", "--requests", "500", *TRAFFIC[4:], "--against", "", "--workers", "4", "--outline"]
    assert main(["rehearse", *common, "--warm-up-s", "70", "--json", str(out)]) == 0
    told = json.loads(out.read_text())["results"]["usual"]
    assert min([window["from_s"] for window in told["windows"]]) == 120.0
    assert told["unserved"] == 0
    assert "it must leave a window" in failure(capsys, *common, "--warm-up-s", "1000")
    assert "left out of a replay in outline" in failure(capsys, *common, "--pull")


def test_prefill_and_decode_workers_are_sized_apart(tmp_path: Path) -> None:
    policy = tmp_path / "split.yaml"
    policy.write_text("mode: disaggregated\ntargets: {ttft_s: 8.0, itl_s: 0.3}\nlimits: {max_workers: 16}\n")
    out = tmp_path / "all.json"
    argv = ["--planner", str(policy), "--prefill", "3", "--decode", "1", "--against", "", "--json", str(out)]
    assert main(["rehearse", *TRAFFIC[:-4], *argv]) == 0
    told = json.loads(out.read_text())["results"]["split"]
    assert told["unserved"] == 0
    assert told["changes"] > 0


def test_what_is_wrong_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--against fastest: there are static, threshold" in failure(capsys, *TRAFFIC, "--against", "fastest")
    assert "there is no policy 'ususal'" in failure(capsys, *TRAFFIC, "--planner", "ususal")
    assert "ttft_s is -1" in failure(capsys, *TRAFFIC[:-4], "--ttft-s", "-1")
    assert "--copies multiplies a trace" in failure(capsys, *TRAFFIC, "--copies", "2")
    split = tmp_path / "split.yaml"
    split.write_text("mode: disaggregated\ntargets: {ttft_s: 8.0, itl_s: 0.3}\n")
    assert "aggregated workers only" in failure(capsys, *TRAFFIC, "--planner", split)
    split.write_text("targets: {ttft_s: 8.0}\n")
    assert "there is no itl_s" in failure(capsys, *TRAFFIC, "--planner", split)
