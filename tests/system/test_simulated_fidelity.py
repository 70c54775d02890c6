"""A live cell of simulated workers takes the time that the simulator says, told in the engines' own seconds."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from armature.sim.trace import Trace
from tests.support.fidelity import Setting, figures, live, simulate

SETTING = Setting(limit=24, workers=3, rate=2.0, policy="round_robin")
LONGEST_ANSWER = 150
ATTEMPTS = 2
SENDING_LATE_S, ENGINES_LATE_S = 0.25, 0.01
"""A machine that is later than this keeps no time, and the comparison would say nothing."""


def short_answers(trace: Trace) -> Trace:
    shorter = [replace(one, output_tokens=min(one.output_tokens, LONGEST_ANSWER)) for one in trace.requests]
    return replace(trace, requests=shorter)


@pytest.mark.slow
async def test_a_live_cell_is_as_fast_as_the_simulator_says(tmp_path: Path) -> None:
    trace = short_answers(SETTING.load_trace())
    expected = figures(await asyncio.to_thread(simulate, SETTING, trace), SETTING.speed_up)
    for attempt in range(ATTEMPTS):
        served, engines_late_s = await live(SETTING, trace, tmp_path / str(attempt))
        assert not [one.error for one in served if one.error]
        assert [one.output_tokens for one in served] == [one.output_tokens for one in trace.requests]
        sending_late_s = max(one.sent_s - one.arrival_s for one in served)
        if sending_late_s < SENDING_LATE_S and engines_late_s < ENGINES_LATE_S:
            break
    else:
        pytest.skip(
            f"this machine is too busy to keep time: {sending_late_s:.3f} s late, engines {engines_late_s:.3f} s"
        )
    seen = figures(served, SETTING.speed_up)
    for name in ("ttft_s_mean", "ttft_s_p90", "itl_s_p50", "e2e_s_mean"):
        assert seen[name] == pytest.approx(expected[name], rel=0.3), name
    assert seen["reuse"] == pytest.approx(expected["reuse"], abs=0.02)
