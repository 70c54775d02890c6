"""What the campaign of fleet sizes makes of its runs."""

from typing import Any

from tests.campaigns.fleet_sizes import summed, table


def way(met: int, gpu_hours: float) -> dict[str, Any]:
    return {"met": met, "windows": 10, "gpu_hours": gpu_hours, "most": round(gpu_hours * 2), "mean": gpu_hours}


def test_ratios_are_to_the_foresight_of_the_same_seed() -> None:
    results = [{"usual": way(10, 11.0), "foresight": way(10, 10.0)}, {"usual": way(9, 6.0), "foresight": way(10, 5.0)}]
    row = summed(results, "usual")
    assert (row["met"], row["windows"], row["gpu_hours"], row["most"]) == (19, 20, 17.0, 22)
    assert row["ratio"] == round(17 / 15, 3)
    assert row["ratios"] == [1.1, 1.2]
    assert "| usual | 19 of 20 (95.0%) | 17.0 | 22 | 1.13 (1.10 to 1.20) |" in table({"usual": row})


def test_without_foresight_there_is_no_ratio() -> None:
    row = summed([{"usual": way(10, 11.0)}], "usual")
    assert row["ratio"] is None
    assert table({"usual": row}).endswith("| - |")
