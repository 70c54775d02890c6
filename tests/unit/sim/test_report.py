"""What simulations leave behind: the page with plots, a line for each request, numbers that don't change."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from armature.cli.main import main
from armature.cli.report.axes import Axis, linear, logarithmic, written
from armature.sim.timeline import Timeline

SLICE = Path(__file__).parents[2] / "data" / "mooncake_conversation_200.jsonl"


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [f"{name}={value}" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_has_a_picture_for_every_question_and_needs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    argv = ["compare", str(SLICE), "--policies", "seconds,round_robin", "--requests", "60", "--report", str(path)]
    assert main(argv) == 0
    html = path.read_text()
    page = Page()
    page.feed(html)
    assert not page.links
    assert "http" not in html
    titles = " ".join(page.text)
    for title in (
        "TTFT",
        "ITL",
        "E2E",
        "found cached",
        "first token",
        "waiting",
        "running",
        "Load of workers",
        "round_robin",
    ):
        assert title in titles
    pictures = [f"<svg{part.split('</svg>')[0]}</svg>" for part in html.split("<svg")[1:]]
    assert len(pictures) == 3 + 7 + 2
    for picture in pictures[:10]:
        assert len(list(ElementTree.fromstring(picture).iter("polyline"))) >= 2


def test_every_request_has_a_line(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    argv = ["compare", str(SLICE), "--policies", "seconds,random", "--requests", "30", "--requests-out", str(path)]
    assert main(argv) == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["policy"] for line in lines] == ["seconds"] * 30 + ["random"] * 30
    assert all(line["arrival_s"] < line["first_token_s"] <= line["finish_s"] for line in lines)


def test_a_cell_with_everything_gives_the_same_bytes_under_any_hash_seed(tmp_path: Path) -> None:
    written_files: list[list[bytes]] = []
    for hash_seed in ("0", "1"):
        folder = tmp_path / hash_seed
        folder.mkdir()
        command = "import sys; from armature.cli.main import main; sys.exit(main())"
        argv = ["compare", "--synthetic", "rate=15,isl=2000,osl=60", "--requests", "120", "--block-size", "64"]
        argv += ["--policies", "seconds,random", "--prefill", "2", "--decode", "3", "--workers", "1", "--routers", "3"]
        argv += ["--event-lag-s", "0.1", "--report-interval-s", "0.5", "--share-lag-s", "0.01", "--fail", "d1@3+2"]
        argv += ["--json", str(folder / "a"), "--report", str(folder / "b"), "--requests-out", str(folder / "c")]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        subprocess.run([sys.executable, "-c", command, *argv], env=environment, check=True, timeout=120)
        written_files.append([(folder / name).read_bytes() for name in "abc"])
    assert written_files[0] == written_files[1]
    migrated = [json.loads(line)["migrations"] for line in written_files[0][2].splitlines()]
    assert sum(migrated) > 0


def test_a_file_that_can_not_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "no" / "report.html"
    assert main(["simulate", str(SLICE), "--requests", "5", "--report", str(missing)]) == 2
    assert str(missing) in capsys.readouterr().err


def test_a_timeline_keeps_its_sums_when_it_grows() -> None:
    timeline = Timeline(["busy"])
    timeline.hold("busy", 1.0, 0.5, 2.25)
    assert timeline.means("busy") == [0.5, 1.0, 0.25]
    timeline.hold("busy", 2.0, 1000.0, 1003.0)
    means = timeline.means("busy")
    assert timeline.width_s == 2.0
    assert sum(means) * timeline.width_s == pytest.approx(1.75 + 6.0)
    assert means[:2] == [0.75, 0.125]


@pytest.mark.parametrize("values", [[0.0], [3.0, 7.5], [0.004], [123_456.0]])
def test_an_axis_reaches_beyond_all_values_with_a_few_round_marks(values: list[float]) -> None:
    axis = linear(values)
    assert axis.high > max(values)
    assert 3 <= len(axis.ticks) <= 8
    assert all(0.0 <= axis.at(tick) <= 1.0 for tick in axis.ticks)


def test_a_logarithmic_axis_is_marked_at_powers_of_ten() -> None:
    assert logarithmic([0.03, 20.0]) == Axis(0.01, 100.0, is_log=True)
    assert [written(tick) for tick in logarithmic([0.03, 20.0]).ticks] == ["0.01", "0.1", "1", "10", "100"]
