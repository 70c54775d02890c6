"""Requests become an engine's words with the contract's defaults, or are refused with the field's name."""

import math
from array import array
from typing import Any

import pytest

from armature.engines.engine import EngineInfo
from armature.engines.host.conversion import (
    check_lengths,
    check_model,
    check_prompt,
    logprobs_of,
    pack_tokens,
    sampling_of,
    unpack_tokens,
)
from armature.runtime.errors import CallerError, NotFoundError
from armature.scheduling.request import Sampling, TokenLogprobs
from armature.v1.common_pb2 import SamplingParams
from armature.v1.worker_pb2 import DecodeRequest

INFO = EngineInfo(
    name="simulated", model="m", model_path="", context_length=100, vocab_size=1000, eos_token_ids=(2,), block_size=4,
    block_bytes=64, num_blocks=11, max_num_seqs=4, max_num_batched_tokens=16, kv_fingerprint=b"f",
)  # fmt: skip


def test_an_empty_message_means_the_defaults() -> None:
    assert sampling_of(SamplingParams(), INFO) == Sampling()


def test_zero_is_a_value_of_optional_fields() -> None:
    assert sampling_of(SamplingParams(temperature=0.0, seed=0), INFO).temperature == 0.0


def test_every_field_arrives() -> None:
    params = SamplingParams(
        temperature=0.5, top_p=0.25, top_k=7, min_p=0.125, presence_penalty=1.5, frequency_penalty=-0.5,
        repetition_penalty=1.25, seed=2**63, logit_bias={5: -1.5}, logprobs=True, top_logprobs=3,
        stop_token_ids=[8, 9], ignore_eos=True, min_tokens=6,
    )  # fmt: skip
    assert sampling_of(params, INFO) == Sampling(
        temperature=0.5, top_p=0.25, top_k=7, min_p=0.125, presence_penalty=1.5, frequency_penalty=-0.5,
        repetition_penalty=1.25, seed=2**63, logit_bias={5: -1.5}, top_logprobs=3,
        stop_token_ids=frozenset({8, 9}), ignore_eos=True, min_tokens=6,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("top_p", 0.0), ("top_p", 1.1),
        ("min_p", -0.1), ("min_p", 1.1), ("presence_penalty", 2.1), ("frequency_penalty", -2.1),
        ("repetition_penalty", 0.0), ("repetition_penalty", math.inf), ("top_logprobs", 21),
        ("stop_token_ids", [1000]), ("logit_bias", {1000: 1.0}), ("logit_bias", {1: math.nan}),
    ],
)  # fmt: skip
def test_sampling_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(CallerError, match=field):
        sampling_of(SamplingParams(**{field: value}), INFO)


def test_tokens_come_back_as_they_were_packed() -> None:
    assert unpack_tokens(pack_tokens([0, 7, 999]), INFO).tolist() == [0, 7, 999]


@pytest.mark.parametrize("packed", [b"", b"abc", array("I", [1000]).tobytes(), array("I", [2**32 - 1]).tobytes()])
def test_tokens_that_are_none_broken_or_unknown_are_refused(packed: bytes) -> None:
    with pytest.raises(CallerError, match="token_ids"):
        unpack_tokens(packed, INFO)


def test_another_model_is_not_found() -> None:
    check_model("m", INFO)
    with pytest.raises(NotFoundError, match="serves 'm'"):
        check_model("other", INFO)


@pytest.mark.parametrize(("prompt_tokens", "complaint"), [(40, "pool"), (100, "context")])
def test_a_prompt_without_room_for_an_answer_is_refused(prompt_tokens: int, complaint: str) -> None:
    check_prompt(39, INFO)
    with pytest.raises(CallerError, match=complaint):
        check_prompt(prompt_tokens, INFO)


@pytest.mark.parametrize(
    "request_", [DecodeRequest(max_tokens=0), DecodeRequest(max_tokens=4, prompt_tokens=11),
                 DecodeRequest(max_tokens=3, prompt_tokens=7), DecodeRequest(max_tokens=1, timeout_s=-1),
                 DecodeRequest(max_tokens=1, timeout_s=math.nan)],
)  # fmt: skip
def test_numbers_that_contradict_each_other_are_refused(request_: DecodeRequest) -> None:
    with pytest.raises(CallerError):
        check_lengths(request_, 10)


def test_a_moved_request_counts_its_output() -> None:
    assert check_lengths(DecodeRequest(max_tokens=4, prompt_tokens=7), 10) == 7
    assert check_lengths(DecodeRequest(max_tokens=1), 10) == 10


def test_log_probabilities_keep_their_order() -> None:
    logprobs = logprobs_of(TokenLogprobs((4, 2), (-0.5, -0.25)))
    assert [(one.token_id, one.logprob) for one in logprobs.tokens] == [(4, -0.5), (2, -0.25)]
