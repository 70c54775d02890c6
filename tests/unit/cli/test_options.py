"""What is refused before anything starts."""

from pathlib import Path

import pytest

from armature.cli.arguments import Parser, add_place, add_up, up_options
from armature.cli.options import CellOptions, UsageError, check, parse_settings


def options(*argv: str) -> CellOptions:
    parser = Parser()
    add_up(parser)
    add_place(parser)
    return up_options(parser.parse_args(argv))


def test_without_arguments_the_demo_cell_is_started() -> None:
    assert options() == CellOptions()
    check(options())


def test_flags_reach_the_options() -> None:
    seen = options(
        "--decode=4", "--no-valkey", "--namespace=blue", "--drain-timeout=3", "--start-timeout=7", "--set=router.a=b=c"
    )  # fmt: skip
    assert (seen.decode, seen.valkey, seen.namespace) == (4, False, "blue")
    assert (seen.drain_timeout_s, seen.start_timeout_s) == (3.0, 7.0)
    assert seen.settings == {"router": {"a": "b=c"}}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (CellOptions(prefill=-1), "0 or more"),
        (CellOptions(namespace=""), "--namespace"),
        (CellOptions(namespace="a/b"), "--namespace"),
        (CellOptions(namespace=".."), "--namespace"),
        (CellOptions(http_port=99999), "--http-port 99999"),
        (CellOptions(http_port=-1), "--http-port -1"),
        (CellOptions(start_timeout_s=0), "--start-timeout"),
        (CellOptions(drain_timeout_s=-1), "--drain-timeout"),
        (CellOptions(threads=-1), "--threads"),
        (CellOptions(max_workers=3), "pass --planner"),
        (CellOptions(planner="local", ttft_s=-1), "--ttft-s"),
        (CellOptions(planner="local", planners=0), "--planners counts"),
        (CellOptions(planner="local", min_workers=4, max_workers=3), "is above --max-workers 3"),
        (CellOptions(planner="local", planner_policy="nope"), "--planner-policy"),
        (CellOptions(kv_cache_bytes=-5), "--kv-cache-bytes"),
        (CellOptions(offload_disk_bytes=-1), "--offload-disk-bytes"),
        (CellOptions(offload=False, offload_host_bytes=1), "--no-offload"),
        (CellOptions(offload_policy="lots"), "--offload-policy: there is no policy 'lots'"),
        (CellOptions(offload_remote_bytes=1, valkey=False), "--no-valkey"),
        (CellOptions(offload_remote="s3://bucket"), "--offload-remote-bytes"),
        (CellOptions(offload_remote="bucket", offload_remote_bytes=1), "--offload-remote takes s3://bucket"),
        (CellOptions(offload=False, offload_remote="s3://bucket"), "--no-offload"),
        (CellOptions(decode=0, prefill=0), "--aggregated 1"),
        (CellOptions(decode=0, prefill=1, aggregated=1), "--prefill 0"),
        (CellOptions(model=Path("/no/such/model")), "no model directory /no/such/model"),
    ],
)
def test_impossible_cells_are_refused_with_what_to_do(given: CellOptions, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check(given)


def test_a_folder_that_is_no_model_is_refused_by_what_it_lacks(tmp_path: Path) -> None:
    for missing, created in (("config.json", "config.json"), ("tokenizer.json", "tokenizer.json"), ("safetensors", "")):
        with pytest.raises(UsageError, match=missing):
            check(CellOptions(model=tmp_path))
        if created:
            (tmp_path / created).write_text("{}")
    check(CellOptions(model=tmp_path, engine="simulated"))


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ("router", "SERVICE.KEY=VALUE"),
        ("router.x", "SERVICE.KEY=VALUE"),
        ("x=1", "SERVICE.KEY=VALUE"),
        ("router.=1", "SERVICE.KEY=VALUE"),
        ("rooter.x=1", "did you mean 'router'"),
        ("zebra.x=1", "there are kv-index, router"),
    ],
)
def test_a_wrong_set_says_how_to_write_it(item: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_settings([item])


def test_set_takes_names_of_services_and_keys_either_way() -> None:
    assert parse_settings(["kv_index.log-level=debug", "*.id="]) == {
        "kv-index": {"log_level": "debug"},
        "*": {"id": ""},
    }
