"""`tritonclient[grpc]`, which speaks KServe v2 with Triton's streams."""

import json
import queue
from functools import cache
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from tests.tour.steps import QUESTION, Step, Target, main


@cache
def client(target: Target) -> triton.InferenceServerClient:
    return triton.InferenceServerClient(target.grpc)


def headers(target: Target) -> dict[str, str]:
    return {"authorization": f"Bearer {target.key}"}


def tensor(name: str, value: Any, datatype: str, kind: Any) -> triton.InferInput:
    made = triton.InferInput(name, [1], datatype)
    made.set_data_from_numpy(np.array([value], dtype=kind))
    return made


TEXT = tensor("text_input", QUESTION.encode(), "BYTES", object)
FEW = tensor("max_tokens", 8, "INT32", np.int32)
COLD = tensor("temperature", 0.0, "FP32", np.float32)
STREAM = tensor("stream", True, "BOOL", bool)


def shown(result: triton.InferResult) -> dict[str, Any]:
    reason = result.as_numpy("finish_reason")
    response = result.get_response()
    return {
        "id": response.id,
        "text": result.as_numpy("text_output")[0].decode(),
        "reason": None if reason is None else reason[0].decode(),
        "is_last": response.parameters["triton_final_response"].bool_param,
        "tokens": response.parameters["completion_tokens"].int64_param,
    }


def streamed(target: Target, requests: dict[str, list[Any]]) -> list[Any]:
    """All answers of one stream, in the order in which they came; errors as texts."""
    came: queue.Queue[Any] = queue.Queue()
    client(target).start_stream(
        callback=lambda result, error: came.put(str(error) if error else shown(result)), headers=headers(target)
    )
    for request_id, inputs in requests.items():
        client(target).async_stream_infer(target.model, inputs, request_id=request_id, enable_empty_final_response=True)
    answers: list[Any] = []
    while sum(isinstance(answer, str) or answer["is_last"] for answer in answers) < len(requests):
        answers.append(came.get(timeout=60))
    client(target).stop_stream()
    return answers


def server_and_model_are_ready_and_described(target: Target) -> None:
    told = {"headers": headers(target)}
    assert client(target).is_server_live() and client(target).is_server_ready()
    assert client(target).is_model_ready(target.model, **told)
    assert not client(target).is_model_ready("nobody", **told)
    assert client(target).get_server_metadata(as_json=True, **told)["name"] == "armature"
    metadata = client(target).get_model_metadata(target.model, as_json=True, **told)
    assert [output["name"] for output in metadata["outputs"]] == ["text_output", "finish_reason"]
    config = client(target).get_model_config(target.model, as_json=True, **told)["config"]
    assert config["model_transaction_policy"] == {"decoupled": True}


def an_inference_takes_tensors_parameters_and_json(target: Target) -> None:
    infer, told = client(target).infer, {"headers": headers(target)}
    by_tensors = shown(infer(target.model, [TEXT, FEW, COLD], request_id="r1", **told))
    assert by_tensors["text"] and by_tensors["is_last"]
    assert (by_tensors["id"], by_tensors["reason"], by_tensors["tokens"]) == ("r1", "length", 8)
    by_parameters = infer(target.model, [TEXT, COLD], parameters={"max_tokens": 8}, **told)
    sampling = json.dumps({"temperature": "0", "max_tokens": 8}).encode()
    by_json = infer(target.model, [TEXT, tensor("sampling_parameters", sampling, "BYTES", object)], **told)
    assert shown(by_parameters) == shown(by_json) == by_tensors | {"id": ""}


def a_stream_says_the_same_piece_by_piece(target: Target) -> None:
    whole = shown(client(target).infer(target.model, [TEXT, FEW, COLD], headers=headers(target)))
    parts = streamed(target, {"s1": [TEXT, FEW, COLD, STREAM]})
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert [part["reason"] for part in parts] == [None] * (len(parts) - 1) + ["length"]


def one_stream_carries_several_requests(target: Target) -> None:
    whole = shown(client(target).infer(target.model, [TEXT, FEW, COLD], headers=headers(target)))
    parts = streamed(target, {"a": [TEXT, FEW, COLD, STREAM], "b": [TEXT, FEW, COLD], "c": [STREAM]})
    assert ["text_input" in part for part in parts if isinstance(part, str)] == [True]
    for request_id in ("a", "b"):
        own = [part for part in parts if isinstance(part, dict) and part["id"] == request_id]
        assert "".join(part["text"] for part in own) == whole["text"]
        assert [part["is_last"] for part in own] == [False] * (len(own) - 1) + [True]


def mistakes_name_the_input(target: Target) -> None:
    try:
        none = tensor("max_tokens", 0, "INT32", np.int32)
        client(target).infer(target.model, [TEXT, none], headers=headers(target))
    except triton.InferenceServerException as error:
        assert error.status() == "StatusCode.INVALID_ARGUMENT" and "max_tokens" in error.message()
    else:
        raise AssertionError("max_tokens 0 was taken")


STEPS: tuple[Step, ...] = (
    server_and_model_are_ready_and_described,
    an_inference_takes_tensors_parameters_and_json,
    a_stream_says_the_same_piece_by_piece,
    one_stream_carries_several_requests,
    mistakes_name_the_input,
)

if __name__ == "__main__":
    main("kserve", STEPS)
