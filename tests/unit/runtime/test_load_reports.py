"""What a worker tells of its load, as placement understands it."""

import pytest

from armature.performance.linear import LinearModel
from armature.runtime.errors import PeerError
from armature.runtime.placement import load_of
from armature.v1.worker_pb2 import LoadReport, StepCosts

COSTS = StepCosts(fixed_s=0.01, decode_s=2e-5, context_token_s=3e-8, prefill_token_s=5e-5, prefill_pair_s=2e-9)


def test_step_costs_arrive_as_a_model():
    load = load_of(LoadReport(running_seqs=3, step_costs=COSTS))
    assert load.steps == LinearModel(0.01, 2e-5, 3e-8, 5e-5, 2e-9)


def test_a_worker_that_has_measured_nothing_tells_no_steps():
    assert load_of(LoadReport(running_seqs=3)).steps is None


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1e-9])
def test_senseless_step_costs_are_refused_by_name(wrong: float):
    costs = StepCosts(prefill_token_s=5e-5, prefill_pair_s=wrong)
    with pytest.raises(PeerError, match="prefill_pair_s"):
        load_of(LoadReport(step_costs=costs))
