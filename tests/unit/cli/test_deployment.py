"""`armature plan`: what is told, drawn, replayed and written of a search, and what is said of wrong questions."""

import argparse
import importlib.util
import json
import shutil
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from rich.console import Console

from armature.cli.deployment.manifests import overlay, write_overlay
from armature.cli.deployment.pictures import page, pareto
from armature.cli.deployment.rehearsal import rehearse
from armature.cli.deployment.replicas import Found
from armature.cli.deployment.request import Asked, add_request, asked_of
from armature.cli.deployment.solve import Solved, solve
from armature.cli.deployment.tables import best_table, document, sized_table
from armature.cli.main import main
from armature.cli.options import UsageError
from armature.cli.report.png import png
from armature.performance.linear import LinearModel
from armature.planning.search.replica import Replica, Split
from tests.support.containers import ROOT, built, check_manifest, known_variables

IS_INSTALLED = importlib.util.find_spec("aiconfigurator_core") is not None
needs_tables = pytest.mark.skipif(not IS_INSTALLED, reason="the extra `silicon` (some 400 MB) is not installed")
TRAFFIC = ("--isl", "2000", "--osl", "100", "--rate", "12", "--requests", "200", "--gpu", "small,large", "--gpus", "16")


def asked(*more: str) -> Asked:
    parser = argparse.ArgumentParser()
    add_request(parser)
    return asked_of(parser.parse_args(["lab/some-model", *TRAFFIC, *more]))


def replica(gpu: str, tp: int, gain: float) -> Replica:
    model = LinearModel(0.02 / gain, 1e-5 / gain, 2e-8 / gain, 1e-4 / gain, 0.0)
    return Replica(gpu=gpu, split=Split(tp=tp), performance=model, kv_tokens=80_000 * tp, token_bytes=100_000)


FOUND = Found([replica("small", 1, 1.0), replica("small", 2, 1.7), replica("large", 1, 3.0)], ["large tp2: no tables"])


def solved(question: Asked) -> Solved:
    return solve(question, FOUND, lambda done, total, text: None)


def told(question: Asked) -> str:
    console = Console(width=140, record=True, file=StringIO())
    found = solved(question)
    console.print(best_table(found))
    console.print(sized_table(found, question))
    return console.export_text()


def test_tables_tell_the_best_of_each_kind_and_what_the_traffic_takes() -> None:
    lines = told(asked()).splitlines()
    rows = [line for line in lines if line.startswith(("small", "large"))]
    assert [" ".join(line.split()[:2]) for line in rows[:4]] == [
        "small aggregated", "small disaggregated", "large aggregated", "large disaggregated"
    ]  # fmt: skip
    assert "x" in rows[1].split()[-1]
    assert rows[4].split()[-1] == "yes"


def test_json_holds_every_frontier_and_the_winner_is_the_cheapest_that_holds() -> None:
    question = asked("--price", "small=1,large=9")
    plain = json.loads(json.dumps(document(question, solved(question))))
    assert {(line["gpu"], line["mode"]) for line in plain["frontiers"]} == {
        (gpu, mode) for gpu in ("small", "large") for mode in ("aggregated", "disaggregated")
    }
    holding = [one for one in plain["fitted"] if one["holds"]]
    assert plain["winner"] == min(holding, key=lambda one: one["cost_per_hour"])["deployment"]
    assert plain["winner"]["gpu"] == "small"
    assert solved(asked()).winner.gpu == "large"  # pyright: ignore[reportOptionalMemberAccess]
    assert plain["missing"] == ["large tp2: no tables"]


def test_without_traffic_the_most_throughput_for_the_money_wins() -> None:
    parser = argparse.ArgumentParser()
    add_request(parser)
    words = ["m", "--isl", "2000", "--osl", "100", "--gpu", "small,large"]
    found = solved(asked_of(parser.parse_args(words)))
    assert not found.fitted
    assert found.winner == max(found.best.values(), key=lambda one: one.tokens_per_s_per_gpu)


def test_pictures_draw_every_frontier() -> None:
    question = asked()
    found = solved(question)
    html = page(question, found)
    assert html.count("<polyline") == 4 and "lab/some-model" in html
    file = png(pareto(found))
    image = Image.open(BytesIO(file)).convert("RGB")
    colors = {color for _, color in image.getcolors(1 << 20)}  # pyright: ignore[reportOptionalIterable]
    assert image.size == (1200, 760)
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colors


@pytest.mark.parametrize("mode", ["aggregated", "disaggregated"])
def test_the_simulator_confirms_that_the_winner_holds_the_targets(mode: str) -> None:
    question = asked("--modes", mode, "--gpu", "small", "--ttft-s", "1.5", "--itl-s", "0.06")
    found = solved(question)
    assert found.winner is not None
    replayed = rehearse(question, found.winner)
    predicted = found.fitted[0].predicted
    assert replayed["unserved"] == 0
    assert replayed["ttft_s"] <= 1.5 * 1.1 and replayed["itl_s"] <= 0.06 * 1.1
    assert replayed["ttft_s"] == pytest.approx(predicted.ttft_s, rel=0.5)


@pytest.mark.parametrize("mode", ["aggregated", "disaggregated"])
def test_an_overlay_for_the_winner_is_valid_and_says_what_was_found(mode: str, tmp_path: Path) -> None:
    question = asked("--modes", mode, "--gpu", "large")
    found = solved(question)
    assert found.winner is not None
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    folder = tmp_path / "k8s" / "overlays" / "mine"
    write_overlay(folder, question, found.winner)
    manifests = {(one["kind"], one["metadata"]["name"]): one for one in built(folder)}
    for one in manifests.values():
        check_manifest(one)
    counts = {pool.role: pool.num_replicas for pool in found.winner.pools}
    decode, prefill = (manifests["Deployment", f"{role}-worker"] for role in ("decode", "prefill"))
    assert decode["spec"]["replicas"] == counts.get("decode", counts.get("aggregated"))
    assert prefill["spec"]["replicas"] == counts.get("prefill", 0)
    env = {service: env_of(manifests["Deployment", service]) for service in ("decode-worker", "planner", "router")}
    assert env["decode-worker"]["ARMATURE_MAX_NUM_SEQS"] == str(found.winner.pools[-1].batch)
    assert env["decode-worker"].get("ARMATURE_ROLE") == ("aggregated" if mode == "aggregated" else None)
    assert (env["planner"]["ARMATURE_CONNECTOR"], env["planner"]["ARMATURE_MODE"]) == ("kubernetes", mode)
    assert all(known_variables(service) >= variables.keys() for service, variables in env.items())
    assert {name for kind, name in manifests if kind == "HorizontalPodAutoscaler"} == {"gateway"}


def env_of(deployment: dict[str, Any]) -> dict[str, str | None]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {one["name"]: one.get("value") for one in container["env"]}


def test_replicas_of_several_gpus_get_no_manifests_that_could_not_work(tmp_path: Path) -> None:
    question = asked("--gpu", "small")
    wide = solve(question, Found([FOUND.replicas[1]], []), lambda done, total, text: None).winner
    assert wide is not None
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "kustomization.yaml").touch()
    with pytest.raises(UsageError, match="runs a replica on one GPU; say --replica-gpus 1"):
        write_overlay(tmp_path / "mine", question, wide)
    with pytest.raises(UsageError, match="beside the overlay `gpu`"):
        write_overlay(tmp_path / "elsewhere" / "mine", question, wide)


def test_an_overlay_is_the_same_each_time() -> None:
    question = asked("--gpu", "large")
    winner = solved(question).winner
    assert winner is not None
    files = overlay(question, winner)
    assert files == overlay(question, winner)
    assert all(yaml.safe_load(text) for text in files.values())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--isl", "10"), "say how long requests are"),
        ((*TRAFFIC, "--modes", "both"), "--modes both: there are aggregated, disaggregated"),
        ((*TRAFFIC, "--price", "small=1"), "every type of --gpu needs one"),
        ((*TRAFFIC, "--price", "cheap"), "--price small=cheap: write TYPE=COST"),
        ((*TRAFFIC, "--cached-share", "1"), "--cached-share is 1.0"),
        ((*TRAFFIC, "--ttft-s", "0"), "ttft_s is 0"),
        (("--isl", "9", "--osl", "9", "--rehearse"), "--rehearse replays traffic"),
        ((*TRAFFIC, "--trace", "x.jsonl"), "--rate and --trace exclude each other"),
    ],
)
def test_what_is_wrong_is_named(words: tuple[str, ...], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "some-model", *words]) == 2
    assert why in capsys.readouterr().err


@pytest.mark.skipif(IS_INSTALLED, reason="the tables are installed")
def test_without_the_tables_the_error_names_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "Qwen/Qwen3-32B", "--isl", "1000", "--osl", "100"]) == 2
    assert "pip install armature[silicon]" in capsys.readouterr().err


@needs_tables
def test_the_tables_give_a_plan_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    words = ["--gpu", "h200_sxm", "--gpus", "4", "--isl", "3000", "--osl", "150", "--json", str(out)]
    assert main(["plan", "Qwen/Qwen3-32B", *words]) == 0
    plain = json.loads(out.read_text())
    assert plain["winner"]["gpus"] <= 4
    assert 0.5 < plain["gains"]["h200_sxm"] < 4
