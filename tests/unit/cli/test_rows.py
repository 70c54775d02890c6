"""The table, from what etcd, metrics and the supervisor know."""

import pytest

from armature.cli.observe import parse_metrics
from armature.cli.ready import Ready, parse_ready
from armature.cli.rows import HEADERS, Rates, Row, Seen, rows
from armature.cli.show import table
from armature.cli.state import ProcessState
from armature.v1.common_pb2 import MEMBER_STATE_DRAINING, MEMBER_STATE_READY, ROLE_DECODE, Member, WorkerInfo

METRICS = """# HELP armature_worker_running_seqs Requests in the engine's current step.
# TYPE armature_worker_running_seqs gauge
armature_worker_running_seqs 3.0
armature_worker_waiting_seqs 1.0
armature_worker_free_blocks 75.0
armature_worker_total_blocks 100.0
armature_worker_cached_tokens_total 300.0
armature_worker_prefill_tokens_total 100.0
armature_worker_decode_tokens_total{model="a b"} 40.0
armature_worker_decode_tokens_total{model="c"} 2.0
armature_worker_decode_tokens_created 1.7e+09
"""


def process(**changes: object) -> ProcessState:
    fields: dict[str, object] = {
        "name": "decode-worker-0", "kind": "decode-worker", "state": "ready", "pid": 7, "member_id": "decode-worker-1",
        "address": "127.0.0.1:5", "metrics_address": "127.0.0.1:6", "restarts": 0, "log": "x.log",
    }  # fmt: skip
    return ProcessState(**{**fields, **changes})  # type: ignore[arg-type]


def cell(row: Row, header: str) -> str:
    return row.cells[HEADERS.index(header)]


def member(state: int = MEMBER_STATE_READY) -> Member:
    return Member(id="decode-worker-1", state=state, worker=WorkerInfo(role=ROLE_DECODE))  # type: ignore[arg-type]


def test_a_worker_shows_its_role_load_cache_and_speed() -> None:
    seen = Seen({"decode-worker-1": member()}, {"decode-worker-1": parse_metrics(METRICS)}, {"decode-worker-1": 41.6})
    [row] = rows([process(restarts=2)], seen)
    shown = {header: cell(row, header) for header in HEADERS}
    assert shown == {
        "service": "decode-worker-0", "id": "1", "address": "127.0.0.1:5", "pid": "7", "role": "decode",
        "state": "ready", "run+wait": "3+1", "kv": "25%", "cached tokens": "300", "tokens/s": "42",
        "restarts": "2",
    }  # fmt: skip
    assert row.is_well


@pytest.mark.parametrize(
    ("ready", "draining", "state"),
    [(2, 0, "ready"), (1, 0, "1 of 2 ready"), (1, 1, "1 of 2 ready"), (0, 0, "0 of 2 ready")],
)
def test_processes_behind_one_port_are_counted(ready: int, draining: int, state: str) -> None:
    states = [MEMBER_STATE_READY] * ready + [MEMBER_STATE_DRAINING] * draining
    members = {str(n): Member(id=str(n), kind="gateway", state=one) for n, one in enumerate(states)}
    other = {"decode-worker-1": member()}
    [row] = rows([process(kind="gateway", member_id="gateway-a,gateway-b")], Seen({**members, **other}))
    assert (cell(row, "id"), cell(row, "state"), row.is_well) == ("a,b", state, state == "ready")


def test_samples_are_summed_over_labels() -> None:
    assert parse_metrics(METRICS)["armature_worker_decode_tokens_total"] == 42.0


@pytest.mark.parametrize(
    ("seen", "state", "expected", "is_well"),
    [
        (Seen({"decode-worker-1": member()}), "ready", "ready", True),
        (Seen({"decode-worker-1": member(MEMBER_STATE_DRAINING)}), "ready", "draining", False),
        (Seen({}), "ready", "not registered", False),
        (Seen(None), "ready", "ready", True),
        (Seen({}), "crashed", "crashed", False),
    ],
)
def test_the_state_is_what_supervisor_and_etcd_say_together(
    seen: Seen, state: str, expected: str, is_well: bool
) -> None:
    [row] = rows([process(state=state)], seen)
    assert (cell(row, "state"), row.is_well) == (expected, is_well)


def test_processes_that_are_no_members_need_no_registration() -> None:
    [row] = rows([process(name="etcd", kind="etcd", member_id="")], Seen({}))
    assert cell(row, "state") == "ready"


def test_rates_are_tokens_between_two_looks() -> None:
    rates = Rates()
    assert rates.tokens_per_s("decode-worker-1", {"armature_worker_decode_tokens_total": 100.0}, now_s=10.0) is None
    assert rates.tokens_per_s("decode-worker-1", {"armature_worker_decode_tokens_total": 150.0}, now_s=12.0) == 25.0
    assert rates.tokens_per_s("d-2", {"armature_worker_decode_tokens_total": 1.0}, now_s=12.0) is None


def test_a_ready_line_says_who_and_where() -> None:
    line = "READY gateway gateway-1a2b grpc=127.0.0.1:1 metrics=127.0.0.1:2 http=0.0.0.0:8000 later=thing"
    assert parse_ready(line) == Ready("gateway", "gateway-1a2b", "127.0.0.1:1", "127.0.0.1:2", "0.0.0.0:8000")


@pytest.mark.parametrize("line", ["READY", "READY gateway", "READYgateway a b"])
def test_a_line_that_is_no_ready_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="expected 'READY"):
        parse_ready(line)


@pytest.mark.parametrize(
    ("width", "left_out"), [(200, set()), (99, {"pid"}), (60, {"pid", "role", "id", "address", "cached tokens"})]
)
def test_a_narrow_terminal_leaves_out_what_can_be_done_without(width: int, left_out: set[str]) -> None:
    seen = Seen({"decode-worker-1": member()}, {"decode-worker-1": parse_metrics(METRICS)}, {"decode-worker-1": 41.6})
    shown = {str(column.header) for column in table(rows([process(restarts=1)], seen), width).columns}
    assert set(HEADERS) - shown == left_out


def test_columns_in_which_nothing_is_known_are_left_out() -> None:
    made = table(rows([process(name="etcd", kind="etcd", member_id="")]), 200)
    assert [column.header for column in made.columns] == ["service", "address", "pid", "state"]
