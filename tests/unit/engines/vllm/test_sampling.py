"""What a request asks for reaches vLLM, and what vLLM can't do is refused."""

from typing import Any

import pytest

from armature.blocks.hashing import BlockDigest
from armature.engines.vllm.sampling import UnfollowableError, sampling_fields
from armature.scheduling.request import Request, Sampling, Work

ROOT = BlockDigest(bytes(16))
PLAIN = Sampling()


def request(made: int = 0, sampling: Sampling = PLAIN, **more: Any) -> Request:
    return Request("r", list(range(10, 15 + made)), 5, 20, ROOT, sampling, **more)


def test_parameters_have_the_same_names_and_meanings() -> None:
    sampling = Sampling(
        temperature=0.7, top_p=0.9, top_k=40, min_p=0.1, presence_penalty=0.5, frequency_penalty=-0.5,
        repetition_penalty=1.1, seed=7, logit_bias={3: -1.5}, top_logprobs=2, stop_token_ids=frozenset({9}),
        min_tokens=4, prompt_logprobs=1,
    )  # fmt: skip
    assert sampling_fields(request(sampling=sampling), (2, 0)) == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "presence_penalty": 0.5,
        "frequency_penalty": -0.5, "repetition_penalty": 1.1, "seed": 7, "logit_bias": {3: -1.5}, "logprobs": 2,
        "prompt_logprobs": 1, "stop_token_ids": [0, 2, 9], "ignore_eos": False, "max_tokens": 20, "min_tokens": 4,
        "detokenize": False,
    }  # fmt: skip


def test_end_tokens_are_no_stops_where_they_are_ignored_and_greedy_answers_need_no_seed() -> None:
    fields = sampling_fields(request(sampling=Sampling(temperature=0.0, ignore_eos=True)), (2,))
    assert (fields["stop_token_ids"], fields["ignore_eos"], fields["seed"]) == ([], True, None)


def test_of_an_answer_that_was_begun_elsewhere_only_the_rest_is_made_with_other_random_numbers() -> None:
    fields = sampling_fields(request(made=3, sampling=Sampling(seed=7, min_tokens=5)), (2,))
    assert (fields["max_tokens"], fields["min_tokens"]) == (17, 2)
    seeds = {sampling_fields(request(made=made, sampling=Sampling(seed=7)), ())["seed"] for made in range(5)}
    assert len(seeds) == 5 and 7 in seeds


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (request(made=1, sampling=Sampling(presence_penalty=0.1)), "presence_penalty"),
        (request(made=1, sampling=Sampling(frequency_penalty=0.1)), "frequency_penalty"),
        (request(made=1, grammar="start: /a/"), "grammar"),
        (request(work=Work.PREFILL), "prefill"),
        (request(work=Work.EMBED), "embed"),
    ],
)
def test_what_vllm_can_t_follow_is_refused_by_name(wrong: Request, name: str) -> None:
    with pytest.raises(UnfollowableError, match=name):
        sampling_fields(wrong, (2,))
