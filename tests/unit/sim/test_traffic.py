"""Where traffic comes from: request logs, and made-up requests."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from armature.cli.main import main
from armature.cli.options import UsageError
from armature.cli.trace_files import read_trace
from armature.sim.synthetic import SyntheticRequests, TrafficShape

FIRST = 2**64 - 5


def line(timestamp: int, input_length: int, hash_ids: list[int], **more: Any) -> dict[str, Any]:
    known = {"timestamp": timestamp, "input_length": input_length, "output_length": 7, "hash_ids": hash_ids}
    return {**known, "block_size": 16, "model": "m", "finish_reason": "length", "ttft_s": None, **more}


def log(tmp_path: Path, *lines: dict[str, Any]) -> Path:
    path = tmp_path / "requests.jsonl"
    path.write_text("".join([json.dumps(one) + "\n" for one in lines]))
    return path


def test_a_request_log_is_replayed_in_order_of_arrival_with_its_shared_beginnings(tmp_path: Path) -> None:
    path = log(
        tmp_path,
        line(1_700_000_002_500, 40, [FIRST, 9], tenant="a", session_id="s", priority=3),
        line(1_700_000_000_000, 50, [FIRST, 9, 11]),
    )
    trace = read_trace(path)
    early, late = trace.requests
    assert trace.block_size == 16
    assert (early.arrival_s, late.arrival_s) == (0.0, 2.5)
    assert list(early.contents)[:2] == list(late.contents)[:2]
    assert len({*early.contents, *late.contents}) == 3 + 1 + 1
    assert (late.tenant, late.session_id, late.priority) == ("a", "s", 3)
    assert main(["simulate", str(path), "--workers", "1"]) == 0


def test_a_request_that_was_never_answered_is_left_out(tmp_path: Path) -> None:
    path = log(tmp_path, line(5, 20, [1], output_length=0), line(7, 20, [1]))
    assert len(read_trace(path).requests) == 1


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"block_size": 32}, "block_size is 32, in the first line 16"),
        ({"hash_ids": [1, 2]}, "hash_ids: there are 2; 20 tokens are 1 whole blocks of 16"),
        ({"priority": 11}, "priority is 11"),
        ({"tenant": 5}, "tenant"),
        ({"timestamp": "now"}, "timestamp"),
    ],
)
def test_a_broken_line_of_a_log_is_named_with_its_key(tmp_path: Path, changed: dict[str, Any], complaint: str) -> None:
    path = log(tmp_path, line(5, 20, [1]), {**line(6, 20, [1]), **changed})
    with pytest.raises(UsageError, match="line 2") as failure:
        read_trace(path)
    assert complaint in str(failure.value)


def made(seed: int = 0, num_requests: int = 4000, **shape: Any) -> SyntheticRequests:
    return SyntheticRequests(TrafficShape(**shape), num_requests, 64, lambda: random.Random(seed))


def test_made_up_requests_are_the_same_however_often_and_others_for_another_seed() -> None:
    requests = made(1)
    assert list(requests) == list(requests)
    assert list(requests) != list(made(2))


def test_made_up_requests_have_the_means_that_were_asked_for() -> None:
    requests = list(made(rate=5.0, isl=2000, osl=100, isl_cv=0.5))
    for one in requests:
        one.check(64)
    assert requests[-1].arrival_s == pytest.approx(4000 / 5.0, rel=0.1)
    assert sum(one.prompt_tokens for one in requests) / 4000 == pytest.approx(2000, rel=0.1)
    assert sum(one.output_tokens for one in requests) / 4000 == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.9])
def test_made_up_prompts_share_as_much_as_was_asked_for(shared: float) -> None:
    seen: set[int] = set()
    blocks = again = 0
    for one in made(shared=shared, prefixes=5, isl=4000, isl_cv=0.0):
        blocks += len(one.contents)
        again += len(seen.intersection(one.contents))
        seen.update(one.contents)
    assert again / blocks == pytest.approx(shared, abs=0.05)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--synthetic", "isl=0"], "isl is 0"),
        (["--synthetic", "rat=5"], "did you mean 'rate'?"),
        (["--synthetic", "rate=fast"], "rate must be a number"),
        (["--synthetic", "rate=nan"], "rate is nan"),
        (["--synthetic", "", "--start-s", "5"], "--start-s"),
        (["--synthetic", "", "trace.jsonl"], "name a trace, or"),
        ([], "name a trace, or"),
    ],
)
def test_senseless_traffic_is_named(capsys: pytest.CaptureFixture[str], argv: list[str], complaint: str) -> None:
    assert main(["simulate", *argv]) == 2
    assert complaint in capsys.readouterr().err


def test_made_up_traffic_runs_through_a_cell(tmp_path: Path) -> None:
    argv = ["simulate", "--synthetic", "rate=20,isl=1000,osl=20", "--requests", "80", "--block-size", "64"]
    assert main([*argv, "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["results"]["seconds"]["served"] == 80
