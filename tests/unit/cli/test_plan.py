"""What a cell consists of."""

import importlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from armature.cli.options import CellOptions
from armature.cli.plan import CellPlan, ServicePlan, Surroundings, log_path, plan_cell, plan_worker, threads_per_worker
from armature.engines.demo_model import DEMO_MODEL_PATH
from armature.runtime.settings import load
from armature.v1.common_pb2 import ROLE_AGGREGATED, ROLE_PREFILL

AROUND = Surroundings(etcd="127.0.0.1:2379", cluster_secret="s3cret", cores=8, redis="redis://127.0.0.1:6379")


def planned(**options: object) -> CellPlan:
    return plan_cell(CellOptions(**options), AROUND)  # type: ignore[arg-type]


def one(plan: CellPlan, name: str) -> ServicePlan:
    return next(service for service in plan.services if service.name == name)


def test_a_cell_has_control_services_then_workers_then_the_gateway() -> None:
    groups = [[service.name for service in group] for group in planned().groups]
    assert groups == [
        ["kv-index", "router", "kv-offload"],
        ["prefill-worker-0", "decode-worker-0", "decode-worker-1"],
        ["gateway"],
    ]


def test_blocks_are_kept_in_the_cells_directory_and_remotely_only_if_asked(tmp_path: Path) -> None:
    command = one(planned(state_dir=tmp_path, offload_host_bytes=5 << 20), "kv-offload").command
    assert f"--disk-dir={tmp_path.resolve() / 'default' / 'kv'}" in command
    assert f"--host-bytes={5 << 20}" in command
    assert not [part for part in command if part.startswith(("--redis", "--remote", "--policy", "--disk-bytes"))]
    remote = one(planned(offload_remote_bytes=1 << 20, offload_policy="all"), "kv-offload").command
    assert {"--redis=redis://127.0.0.1:6379", f"--remote-bytes={1 << 20}", "--policy=all"} <= set(remote)
    bucket = one(planned(offload_remote_bytes=1 << 20, offload_remote="s3://kv/here"), "kv-offload").command
    assert {"--remote=s3://kv/here", f"--remote-bytes={1 << 20}"} <= set(bucket)
    assert not any(flag.startswith("--redis") for flag in bucket)


def test_nothing_is_kept_if_told_so() -> None:
    plan = planned(offload=False)
    assert "kv-offload" not in {service.kind for service in plan.services}
    assert "--offload" not in one(plan, "decode-worker-0").command
    assert "--offload" in one(planned(), "decode-worker-0").command


def test_numbers_of_workers_are_as_asked_and_names_are_unique() -> None:
    plan = planned(prefill=2, decode=3, aggregated=2)
    assert Counter(service.kind for service in plan.services)["decode-worker"] == 5
    assert Counter(service.kind for service in plan.services)["prefill-worker"] == 2
    assert len({service.name for service in plan.services}) == len(plan.services)
    assert sum("--role=aggregated" in service.command for service in plan.services) == 2


def test_every_service_is_told_where_its_cell_is() -> None:
    for service in planned(namespace="blue").services:
        assert "--namespace=blue" in service.command
        assert "--etcd=127.0.0.1:2379" in service.command


def test_who_shares_memory_through_redis_is_told_where_it_is() -> None:
    told = [s.kind for s in planned().services if "--redis=redis://127.0.0.1:6379" in s.command]
    assert told == ["kv-index", "router", "gateway"]
    without = plan_cell(CellOptions(), Surroundings("127.0.0.1:2379", "s3cret", 8))
    assert not [part for service in without.services for part in service.command if part.startswith("--redis")]


def test_the_secret_is_in_the_environment_and_in_no_command_line() -> None:
    for service in planned().services:
        assert service.env["ARMATURE_CLUSTER_SECRET"] == "s3cret"
        assert not any("s3cret" in part for part in service.command)


def test_workers_serve_the_demo_model_under_its_name_unless_told_otherwise(tmp_path: Path) -> None:
    demo = one(planned(), "decode-worker-0").command
    assert f"--model={DEMO_MODEL_PATH.resolve()}" in demo
    assert "--model-name=demo" in demo
    own = tmp_path / "my-model"
    assert "--model-name=my-model" in one(planned(model=own), "decode-worker-0").command
    assert "--model-name=x" in one(planned(model=own, model_name="x"), "decode-worker-0").command


def test_what_was_not_asked_for_is_left_to_the_services() -> None:
    command = one(planned(), "prefill-worker-0").command
    assert not [part for part in command if part.startswith(("--dtype", "--kv-cache-bytes", "--otlp-endpoint"))]
    assert "--kv-cache-bytes=4096" in one(planned(kv_cache_bytes=4096), "prefill-worker-0").command


def test_all_who_move_blocks_get_the_transport() -> None:
    told = [service.kind for service in planned(transport="grpc").services if "--transport=grpc" in service.command]
    assert told == ["kv-offload", "prefill-worker", "decode-worker", "decode-worker"]


def test_a_plan_uses_only_settings_that_the_services_have() -> None:
    for service in planned(aggregated=1, otlp_endpoint="127.0.0.1:4317").services:
        module = importlib.import_module(f"{service.command[3]}.settings")
        [settings] = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
        load(settings, service.command[4:], prog=service.kind, env=service.env)


def test_a_set_option_replaces_the_cells_own_choice() -> None:
    plan = planned(
        settings={"gateway": {"http_port": "9"}, "*": {"log_level": "debug"}, "router": {"log_level": "error"}}
    )
    assert "--http-port=9" in one(plan, "gateway").command
    assert "--http-port=8000" not in one(plan, "gateway").command
    assert "--log-level=debug" in one(plan, "kv-index").command
    assert "--log-level=error" in one(plan, "router").command


def test_switches_are_turned_on_and_off_as_the_settings_loader_wants_it() -> None:
    plan = planned(settings={"router": {"explain": "true", "self_check": "false"}})
    assert {"--explain", "--no-self-check"} < set(one(plan, "router").command)


@pytest.mark.parametrize(("cores", "threads", "expected"), [(8, 0, 2), (2, 0, 1), (1, 0, 1), (8, 5, 5)])
def test_cores_are_shared_out_among_workers(cores: int, threads: int, expected: int) -> None:
    assert threads_per_worker(CellOptions(threads=threads), cores) == expected


def test_services_run_from_any_folder() -> None:
    assert one(planned(), "kv-index").command[1:4] == ("-P", "-m", "services.kv_index")


def test_logs_go_where_asked_else_into_the_cells_state(tmp_path: Path) -> None:
    assert log_path(CellOptions(namespace="blue"), "router") == Path(".armature/blue/logs/router.log")
    assert log_path(CellOptions(log_dir=tmp_path), "router") == tmp_path / "router.log"


def test_planners_come_last_and_are_told_targets_and_where_workers_are_started() -> None:
    around = replace(AROUND, control="unix:/tmp/c")
    options = CellOptions(planner="local", planners=2, max_workers=6, ttft_s=0.5, planner_policy="patient")
    plan = plan_cell(options, around)
    assert [service.name for service in plan.groups[-1]] == ["gateway", "planner-0", "planner-1"]
    flags = set(one(plan, "planner-1").command)
    assert {
        "--connector=local",
        "--control=unix:/tmp/c",
        "--max-workers=6",
        "--ttft-s=0.5",
        "--policy=patient",
    } <= flags
    assert not [flag for flag in flags if flag.startswith(("--min-workers", "--itl-s"))]
    assert not [service for service in planned().services if service.kind == "planner"]


def test_one_more_worker_is_like_those_of_its_role() -> None:
    more = plan_worker(CellOptions(kv_cache_bytes=1 << 20), AROUND, ROLE_AGGREGATED, 7)
    assert (more.name, more.kind, more.role) == ("decode-worker-7", "decode-worker", ROLE_AGGREGATED)
    assert {"--role=aggregated", f"--kv-cache-bytes={1 << 20}"} <= set(more.command)
    assert one(planned(), "prefill-worker-0").role == ROLE_PREFILL
