"""A trace replayed on memory tiers, and `armature offload-bench` around it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from armature.cli.main import main
from armature.index.tiers import Tier
from armature.offload.policy import OffloadPolicy, TierPolicy, TierShape
from armature.offload.reading import worthwhile
from armature.performance.presets import PRESETS
from armature.runtime.policies import load_offload_policy
from armature.sim.tier_replay import SiteShape, TierReplay, TierReplayer, prompts_of
from armature.sim.trace import Trace, TraceRequest

SLICE = Path(__file__).parents[2] / "data" / "mooncake_conversation_200.jsonl"
BENCH = ["offload-bench", str(SLICE), "--workers", "1", "--disk-blocks", "3000"]
BLOCK_SIZE, BLOCK_BYTES = 512, 1 << 27
PERFORMANCE = PRESETS["qwen3-32b-tp2-h200"].performance


def replay(
    asked: list[list[int]], *, device: int, host: int, disk: int, policy: OffloadPolicy, disk_bytes_per_s: float = 12e9
) -> TierReplay:
    requests = [
        TraceRequest(float(i), len(contents) * BLOCK_SIZE + 1, 1, [*contents, 0]) for i, contents in enumerate(asked)
    ]
    tiers = {
        Tier.G2: TierShape(num_blocks=host, block_bytes=BLOCK_BYTES, read_bytes_per_s=50e9),
        Tier.G3: TierShape(num_blocks=disk, block_bytes=BLOCK_BYTES, read_bytes_per_s=disk_bytes_per_s),
    }
    site = SiteShape(device, tiers, PERFORMANCE)
    return TierReplayer(site, policy, BLOCK_SIZE).run(prompts_of(Trace(requests, BLOCK_SIZE)))


def conversation(number: int, blocks: int) -> list[int]:
    return [1000 * number + i for i in range(blocks)]


def test_every_block_comes_back_from_the_tier_it_has_sunk_to() -> None:
    """Twelve prompts of 10 blocks in turn, 30 blocks on the device, 64 in host memory, the rest on disk."""
    asked = [conversation(number % 12, 10) for number in range(36)]
    done = replay(asked, device=30, host=64, disk=500, policy=load_offload_policy("all"))
    assert done.prompt_blocks == 360
    assert done.device_hits == 0
    assert done.hit_blocks == 240
    assert done.tiers[Tier.G3].hit_blocks > 0
    host_s = BLOCK_BYTES / 50e9
    assert done.tiers[Tier.G2].saved_s <= done.compute_s - done.tiers[Tier.G2].hit_blocks * host_s
    assert done.tiers[Tier.G3].hit_bytes == done.tiers[Tier.G3].hit_blocks * BLOCK_BYTES


def test_frequency_costs_the_first_return_of_a_block_and_spares_the_writes_of_all_that_never_return() -> None:
    """Every second prompt is one of five that are asked for again and again, the others come once."""
    asked = [conversation(number // 2 % 5 if number % 2 else 100 + number, 10) for number in range(80)]
    everything, frequent = (
        replay(asked, device=20, host=64, disk=2000, policy=load_offload_policy(name)) for name in ("all", "frequency")
    )
    assert frequent.tiers[Tier.G3].written_bytes < everything.tiers[Tier.G3].written_bytes / 2
    assert (everything.hit_blocks, frequent.hit_blocks) == (7 * 50, 6 * 50)


def test_a_disk_that_is_slower_than_computing_is_not_read() -> None:
    asked = [conversation(number % 12, 10) for number in range(36)]
    done = replay(asked, device=30, host=10, disk=500, policy=OffloadPolicy(g2=TierPolicy()), disk_bytes_per_s=1e9)
    assert done.tiers[Tier.G3].hit_blocks == 0
    assert done.slow_blocks > 0


def test_the_run_that_saves_most_may_pass_a_slow_block() -> None:
    shapes = {
        Tier.G2: TierShape(num_blocks=1, block_bytes=10, read_bytes_per_s=10.0),
        Tier.G3: TierShape(num_blocks=1, block_bytes=10, read_bytes_per_s=2.0, read_latency_s=0.5),
    }
    fast, slow = Tier.G2, Tier.G3
    assert worthwhile([fast, slow, fast], [3.0, 5.0, 2.0], shapes).num_blocks == 3
    assert worthwhile([fast, slow, fast], [3.0, 5.0, 1.2], shapes).num_blocks == 1
    run = worthwhile([fast, slow], [3.0, 7.0], shapes)
    assert (run.num_blocks, run.saved_s) == (2, {fast: 2.0, slow: 1.5})
    assert worthwhile([slow], [5.0], shapes) == (0, {})


def test_the_bench_gives_the_same_bytes_under_any_hash_seed(tmp_path: Path) -> None:
    written: list[bytes] = []
    for hash_seed in ("0", "1"):
        path = tmp_path / hash_seed
        command = "import sys; from armature.cli.main import main; sys.exit(main())"
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        argv = [*BENCH, "--host-blocks", "400", "--remote-blocks", "900", "--json", str(path)]
        subprocess.run([sys.executable, "-c", command, *argv], env=environment, check=True, timeout=60)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    results = json.loads(written[0])["results"]
    assert [row["policy"] for row in results] == ["all", "frequency", "tinylfu", "cost"]
    assert list(results[0]["tiers"]) == ["G2", "G3", "G4"]


def test_the_bench_draws_each_size_for_each_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    argv = [*BENCH, "--policies", "all,frequency", "--host-blocks", "300,900", "--requests", "80"]
    assert main([*argv, "--report", str(path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows if row and row[0].isdigit()] == [
        ["300", "all"], ["300", "frequency"], ["900", "all"], ["900", "frequency"],
    ]  # fmt: skip
    page = path.read_text()
    assert page.count("<svg") == 1 + 2 * 3
    assert "http" not in page


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--policies", "al"], "there is no policy 'al'"),
        (["--policies", ","], "--policies names none"),
        (["--host-blocks", "x"], "--host-blocks is 'x'"),
        (["--host-blocks", "0"], "each size must be at least 1"),
        (["--requests", "-1"], "--requests is -1"),
        (["--workers", "0"], "device_blocks is 0"),
        (["--preset", "x"], "there is no preset 'x'"),
        (["--disk-blocks", "-1"], "--disk-blocks is -1"),
        (["--disk-bytes-per-s", "0"], "read_bytes_per_s is 0"),
    ],
)
def test_a_wrong_option_is_named(argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["offload-bench", str(SLICE), *argv]) == 2
    assert complaint in capsys.readouterr().err
