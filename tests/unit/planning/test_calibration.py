"""What measurements say of predictions, and when they say nothing."""

import pytest

from armature.planning.calibration import Calibration
from armature.planning.capacity import Capacity, Correction, Targets, demand_of
from armature.planning.fleet import Counts, Fleet
from armature.planning.observer import Seen
from armature.planning.sketch import Sketch
from tests.unit.planning.kinds import kind, poisson


@pytest.mark.parametrize(("target_s", "learns"), [(2.0, True), (30.0, False)])
def test_only_what_comes_near_its_target_corrects_predictions(target_s: float, learns: bool) -> None:
    """Prompts of a second, far from a busy fleet, that took 1.6 s."""
    asked = poisson(0.5, 60)
    calibration = Calibration(Capacity(kind(), Targets(ttft_s=target_s, itl_s=1.0)), 60.0)
    for now_s in (0.0, 30.0, 120.0):
        seen = Seen(now_s, now_s - 1, Fleet(Counts(5)), asked, ttft_s=Sketch([1.6] * 40))
        if calibration.add(seen):
            calibration.learn(demand_of(asked, kind(), 0.0), now_s)
    assert (calibration.correction.ttft > 1.05) is learns
    assert learns or calibration.correction == Correction()
