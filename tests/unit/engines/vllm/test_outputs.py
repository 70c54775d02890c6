"""vLLM's outputs in our words, log probabilities too."""

import numpy as np
import pytest

from armature.blocks.hashing import BlockDigest
from armature.engines.vllm.outputs import token_output
from armature.scheduling.request import FinishReason, Request, Sampling, TokenLogprobs
from tests.support.fake_vllm import FakeCompletion, FakeOutput, FakeScore

ROOT = BlockDigest(bytes(16))
PLAIN = Sampling()


def request(sampling: Sampling = PLAIN, token_ids: tuple[int, ...] = (5, 6, 7)) -> Request:
    return Request("r", token_ids, 3, 9, ROOT, sampling)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (None, None),
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("abort", FinishReason.CANCELLED),
        ("repetition", FinishReason.ERROR),
    ],
)
def test_an_answer_ends_for_the_same_reason(told: str | None, reason: FinishReason | None) -> None:
    output = token_output(request(), FakeOutput([FakeCompletion([8, 2], told)], num_cached_tokens=2), 4)
    assert (output.output_index, output.token_ids, output.finish_reason, output.cached_tokens) == (4, (8, 2), reason, 2)
    assert bool(output.error) == (reason is FinishReason.ERROR)


def test_of_an_answer_begun_elsewhere_only_the_prompt_counts_as_cached() -> None:
    output = token_output(request(token_ids=(5, 6, 7, 8, 9)), FakeOutput([FakeCompletion([1])], num_cached_tokens=4), 2)
    assert output.cached_tokens == 3


def test_log_probabilities_begin_with_the_chosen_token_and_go_on_with_the_likeliest_in_falling_order() -> None:
    scores = [
        {4: FakeScore(-2.0, 5), 8: FakeScore(-0.5, 1), 3: FakeScore(-0.75, 2)},
        {8: FakeScore(-0.25, 1), 3: FakeScore(-1.5, 2)},
    ]
    asked = request(Sampling(top_logprobs=2))
    output = token_output(asked, FakeOutput([FakeCompletion([4, 8], None, scores)]), 0)
    assert output.logprobs == (
        TokenLogprobs((4, 8, 3), (-2.0, -0.5, -0.75)),
        TokenLogprobs((8, 8, 3), (-0.25, -0.25, -1.5)),
    )


def test_log_probabilities_of_a_prompt_leave_out_its_first_token_and_what_was_made_elsewhere() -> None:
    places = [
        None,
        {6: FakeScore(-3.0, 9), 1: FakeScore(-0.5, 1)},
        {7: FakeScore(-0.25, 1)},
        {8: FakeScore(-1.0, 1)},
    ]
    asked = request(Sampling(prompt_logprobs=1), token_ids=(5, 6, 7, 8))
    told = token_output(asked, FakeOutput([FakeCompletion([1])], prompt_logprobs=places), 1).prompt_logprobs
    assert told is not None and told.top == 1
    assert np.frombuffer(told.token_ids, "<u4").tolist() == [6, 1, 7, 7]
    assert np.frombuffer(told.logprobs, "<f4").tolist() == [-3.0, -0.5, -0.25, -0.25]
    assert np.frombuffer(told.ranks, "<u4").tolist() == [9, 1]
