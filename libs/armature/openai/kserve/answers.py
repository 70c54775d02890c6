"""From an answer's text to tensors, and what a model says of itself."""

from armature.openai.answers import Usage
from armature.openai.kserve.requests import FINISH_REASON, SAMPLING, TEXT_INPUT, TEXT_OUTPUT, Inference
from armature.third_party.kserve.v2 import inference_pb2 as pb

PLATFORM, VERSION = "armature", "1"

# Inputs that a model tells of; requests may carry more, see `requests`. Name, datatype twice, whether it is needed.
_INPUTS = (
    (TEXT_INPUT, "BYTES", pb.TYPE_STRING, True),
    ("stream", "BOOL", pb.TYPE_BOOL, False),
    (SAMPLING, "BYTES", pb.TYPE_STRING, False),
    ("exclude_input_in_output", "BOOL", pb.TYPE_BOOL, False),
    ("max_tokens", "INT32", pb.TYPE_INT32, False),
    ("temperature", "FP32", pb.TYPE_FP32, False),
    ("top_p", "FP32", pb.TYPE_FP32, False),
    ("top_k", "INT32", pb.TYPE_INT32, False),
    ("seed", "INT64", pb.TYPE_INT64, False),
    ("stop", "BYTES", pb.TYPE_STRING, False),
)
_OUTPUTS = (TEXT_OUTPUT, FINISH_REASON)


def infer_response(
    request: pb.ModelInferRequest, inference: Inference, text: str, reason: str | None, usage: Usage | None
) -> pb.ModelInferResponse:
    """A part of an answer, or all of it. The last part has a `reason`, and the `usage` among its parameters."""
    response = pb.ModelInferResponse(model_name=request.model_name, model_version=VERSION, id=request.id)
    for name, value in ((TEXT_OUTPUT, text), (FINISH_REASON, reason)):
        if name in inference.outputs and value is not None:
            data = value.encode(errors="replace")
            response.outputs.add(name=name, datatype="BYTES", shape=[1])
            response.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
    response.parameters["triton_final_response"].bool_param = reason is not None
    if usage is not None:
        response.parameters["prompt_tokens"].int64_param = usage.prompt_tokens
        response.parameters["completion_tokens"].int64_param = usage.completion_tokens
    return response


def model_metadata(name: str) -> pb.ModelMetadataResponse:
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=name,
        versions=[VERSION],
        platform=PLATFORM,
        inputs=[tensor(name=input_name, datatype=datatype, shape=[1]) for input_name, datatype, _, _ in _INPUTS],
        outputs=[tensor(name=output, datatype="BYTES", shape=[1]) for output in _OUTPUTS],
    )


def model_config(name: str) -> pb.ModelConfigResponse:
    return pb.ModelConfigResponse(
        config=pb.ModelConfig(
            name=name,
            platform=PLATFORM,
            backend=PLATFORM,
            max_batch_size=0,
            input=[
                pb.ModelInput(name=input_name, data_type=kind, dims=[1], optional=not is_needed)
                for input_name, _, kind, is_needed in _INPUTS
            ],
            output=[pb.ModelOutput(name=output, data_type=pb.TYPE_STRING, dims=[1]) for output in _OUTPUTS],
            model_transaction_policy=pb.ModelTransactionPolicy(decoupled=True),
        )
    )
