"""The queue's part of a policy file: what it says, and what is said of one that is wrong."""

from typing import Any

import pytest

from armature.routing.parts import PolicyError
from armature.routing.policy import policy_of, with_option
from armature.routing.queueing.gates import Always, PrefillBatches, Wait
from armature.routing.queueing.orders import Aged, Fcfs, Wspt
from armature.routing.queueing.settings import QueuePolicy
from armature.runtime.policies import load_policy, read_policy


def test_a_policy_without_a_queue_section_lets_wait_whom_nobody_can_take() -> None:
    assert policy_of({}).queue == QueuePolicy(order=Fcfs(), gate=Always())


def test_what_the_section_says_is_taken_over() -> None:
    section = {"order": {"aged": {"stretch": 2}}, "gate": {"wait": {"below_s": 3}}, "floor": 0, "tenants": False}
    wanted = QueuePolicy(order=Aged(stretch=2), gate=Wait(below_s=3), floor=0, tenants=False)
    assert policy_of({"queue": section}).queue == wanted


def test_dynamos_queue_has_neither_bands_nor_turns_nor_a_floor() -> None:
    queue = load_policy("dynamo_wspt").queue
    assert (queue.order, queue.gate) == (Wspt(), PrefillBatches(below=4.0))
    assert (queue.bands, queue.tenants, queue.floor) == (False, False, 0)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("aged", "queue: 'aged' are no options; write NAME: VALUE"),
        ({"order": "lifo"}, "queue: order: there is no 'lifo'; there are aged, fcfs, wspt"),
        ({"order": {"aged": {"strech": 1}}}, "queue: order: aged: there is no 'strech'; did you mean 'stretch'?"),
        ({"gate": {"wait": {"below_s": -1}}}, "queue: gate: wait: below_s is -1; it must be a finite number of at"),
        ({"gate": {"wait": {"below_s": float("nan")}}}, "queue: gate: wait: below_s is nan; it must be a finite"),
        ({"floor": 1.5}, "queue: floor is 1.5; it is a share, from 0 to 1"),
        ({"bands": "yes"}, "queue: bands is 'yes'; it must be true or false"),
        ({"max_requests": 0}, "queue: max_requests is 0; it must be above 0"),
        ({"max_request": 5}, "queue: there is no 'max_request'; did you mean 'max_requests'?"),
    ],
)
def test_a_wrong_section_is_refused_with_what_to_write(section: Any, message: str) -> None:
    with pytest.raises(PolicyError) as error:
        policy_of({"queue": section}, "mine")
    assert str(error.value).startswith(f"policy mine: {message}")


def test_single_options_can_be_changed_by_the_names_of_their_parts() -> None:
    plain = read_policy("seconds")
    for path, value in (("queue.floor", 0.5), ("aged.patience_s", 7.0), ("wait.below_s", 2.5)):
        plain = with_option(plain, path, value)
    queue = policy_of(plain).queue
    assert queue.floor == 0.5
    assert isinstance(queue.order, Aged) and queue.order.patience_s == 7.0
    assert isinstance(queue.gate, Wait) and queue.gate.below_s == 2.5
    with pytest.raises(PolicyError, match=r"wspt\.x: the policy has no part 'wspt'"):
        with_option(plain, "wspt.x", 1)
