"""`armature simulate` and `armature compare` from the outside."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from armature.cli.main import main

SLICE = Path(__file__).parents[2] / "data" / "mooncake_conversation_200.jsonl"
GOOD = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}'


def failure(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main([str(word) for word in argv]) == 2
    return capsys.readouterr().err


def test_same_seed_same_bytes_under_any_hash_seed(tmp_path: Path) -> None:
    written: list[bytes] = []
    for hash_seed in ("0", "1"):
        path = tmp_path / f"{hash_seed}.json"
        command = "import sys; from armature.cli.main import main; sys.exit(main())"
        argv = ["compare", str(SLICE), "--speed-up", "3", "--requests", "120", "--seed", "7", "--json", str(path)]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, "-c", command, *argv], env=environment, check=True, timeout=60)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert json.loads(written[0])["results"]["seconds"]["served"] == 120


def test_another_seed_draws_other_lots(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        argv = ["simulate", str(SLICE), "--policy", "random", "--requests", "60", "--seed", seed]
        assert main([*argv, "--json", str(tmp_path / seed)]) == 0
    one, other = (json.loads((tmp_path / seed).read_text())["results"] for seed in ("1", "2"))
    assert one != other


def test_the_weights_of_our_policy_can_be_set(tmp_path: Path) -> None:
    for name, given in (("default", []), ("other", ["--set", "work.weight=5", "--set", "crowding.weight=20"])):
        argv = ["simulate", str(SLICE), "--speed-up", "4", "--requests", "100", *given]
        assert main([*argv, "--json", str(tmp_path / name)]) == 0
    one, other = (json.loads((tmp_path / name).read_text())["results"] for name in ("default", "other"))
    assert one != other


def test_compare_prints_a_row_for_each_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(SLICE), "--policies", "round_robin,seconds", "--requests", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.strip()][-2:] == ["round_robin", "seconds"]
    assert "…" not in "".join(lines)


def test_an_unknown_policy_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    told = failure(capsys, "compare", SLICE, "--policies", "round_robin,fastest")
    assert "'fastest'" in told
    assert "seconds, dynamo, dynamo_wspt, least_loaded, power_of_two, random, round_robin" in told


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 3"),
        ('{"timestamp": 5, "input_length": 600, "output_length": 5}', "hash_ids"),
        ('{"timestamp": 5, "input_length": "x", "output_length": 5, "hash_ids": [0]}', "input_length"),
        ('{"timestamp": 5, "input_length": 600, "output_length": 0, "hash_ids": [0, 1]}', "0 output tokens"),
        ('{"timestamp": 5, "input_length": 600, "output_length": 5, "hash_ids": [0, 1, 2]}', "3 block ids"),
        ('{"timestamp": 5, "input_length": 600, "output_length": 5, "hash_ids": [0, -1]}', "hash id"),
        ('{"timestamp": -5, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}', "-0.005"),
        ('{"timestamp": 0, "input_length": 0, "output_length": 5, "hash_ids": []}', "0 prompt"),
    ],
)
def test_a_broken_trace_line_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, complaint: str
) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{GOOD}\n{GOOD}\n{line}\n")
    told = failure(capsys, "simulate", path)
    assert "line 3" in told
    assert complaint in told


def test_azure_traces_are_read_and_their_broken_lines_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "trace.csv", tmp_path / "out.json"
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:17:03.9799600,4808,10"]
    path.write_text("\n".join([*rows, "2023-11-16 18:17:04.0319600,3180,8"]))
    assert main(["simulate", str(path), "--block-size", "64", "--json", str(out)]) == 0
    result = json.loads(out.read_text())["results"]["seconds"]
    assert (result["prompt_tokens"], result["output_tokens"], result["reuse"]) == (7988, 18, 0.0)
    path.write_text("\n".join([*rows, "2023-11-16 18:17:04.0319600,many,8"]))
    assert "line 3" in failure(capsys, "simulate", path)
    path.write_text("a,b\n1,2\n")
    assert "line 1" in failure(capsys, "simulate", path)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--speed-up", "0"], "speed-up is 0"),
        (["--speed-up", "nan"], "speed-up is nan"),
        (["--workers", "0"], "num_workers is 0"),
        (["--preset", "abacus"], "qwen3-32b-tp2-h200"),
        (["--event-lag-s", "-1"], "event_lag_s is -1"),
        (["--block-size", "16"], "its blocks have 512 tokens"),
        (["--requests", "-1"], "--requests is -1"),
        (["--set", "inference.weight=1"], "the policy has no part 'inference'"),
        (["--set", "work.weigth=1"], "did you mean 'weight'?"),
        (["--set", "work.weight=much"], "weight is 'much'; it must be a number"),
        (["--set", "work.weight=nan"], "weight is nan"),
        (["--set", "work.weight"], "write NAME=VALUE"),
    ],
)
def test_a_senseless_option_is_named(capsys: pytest.CaptureFixture[str], argv: list[str], complaint: str) -> None:
    assert complaint in failure(capsys, "simulate", SLICE, *argv)


def test_a_file_that_is_not_there_or_empty_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.jsonl" in failure(capsys, "simulate", tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "has no requests" in failure(capsys, "simulate", tmp_path / "empty.jsonl")
