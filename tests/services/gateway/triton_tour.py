"""What a user of tritonclient does, against the gateway at the address given; prints what came back as JSON.

A process of its own: tritonclient brings stubs with the names of ours.
"""

import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton


def tensor(name: str, value: Any, datatype: str, kind: Any) -> triton.InferInput:
    made = triton.InferInput(name, [1], datatype)
    made.set_data_from_numpy(np.array([value], dtype=kind))
    return made


def text(value: str) -> triton.InferInput:
    return tensor("text_input", value.encode(), "BYTES", object)


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


def streamed(client: triton.InferenceServerClient, model: str, requests: dict[str, list[Any]]) -> list[Any]:
    """All answers of one stream, in the order in which they came; errors as texts."""
    came: queue.Queue[Any] = queue.Queue()
    client.start_stream(callback=lambda result, error: came.put(str(error) if error else shown(result)))
    for request_id, inputs in requests.items():
        client.async_stream_infer(model, inputs, request_id=request_id, enable_empty_final_response=True)
    answers: list[Any] = []
    while sum(isinstance(answer, str) or answer["is_last"] for answer in answers) < len(requests):
        answers.append(came.get(timeout=20))
    client.stop_stream()
    return answers


def main(address: str, model: str) -> None:
    client = triton.InferenceServerClient(address)
    stream = tensor("stream", True, "BOOL", bool)
    few = tensor("max_tokens", 4, "INT32", np.int32)
    sampling = tensor(
        "sampling_parameters", json.dumps({"temperature": "0", "max_tokens": 4}).encode(), "BYTES", object
    )
    try:
        client.infer(model, [text("hello"), tensor("max_tokens", 0, "INT32", np.int32)])
        refused = ""
    except triton.InferenceServerException as error:
        refused = f"{error.status()}: {error.message()}"
    report = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model),
        "other_ready": client.is_model_ready("other"),
        "server": client.get_server_metadata(as_json=True),
        "metadata": client.get_model_metadata(model, as_json=True),
        "config": client.get_model_config(model, as_json=True)["config"],
        "whole": shown(client.infer(model, [text("hello"), few], request_id="r1")),
        "by_parameters": shown(client.infer(model, [text("hello")], parameters={"max_tokens": 4})),
        "by_json": shown(client.infer(model, [text("hello"), sampling])),
        "refused": refused,
        "streamed": streamed(
            client, model, {"s1": [text("hello"), stream, tensor("max_tokens", 99, "INT32", np.int32)]}
        ),
        "together": streamed(client, model, {"a": [text("hello"), stream, few], "b": [text("x"), few], "c": [stream]}),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
