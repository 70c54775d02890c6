"""From tensors to an `Ask`.

A request has the text in `text_input`. What OpenAI's completions take besides comes as further tensors of one element,
as parameters of the request, or as JSON in `sampling_parameters`, which is how Triton's vLLM backend has it; so it is
checked by the same rules as a completion over REST. Where a name comes more than once, a tensor counts most.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import Any

import msgspec

from armature.openai.asks import completion_asks
from armature.openai.errors import ApiError, invalid, unsupported
from armature.openai.rules import Ask
from armature.openai.schema import BodyDecoder, CompletionBody
from armature.third_party.kserve.v2.inference_pb2 import InferParameter, InferTensorContents, ModelInferRequest

TEXT_INPUT, STREAM, SAMPLING = "text_input", ("stream", "streaming"), "sampling_parameters"
TEXT_OUTPUT, FINISH_REASON = "text_output", "finish_reason"

Value = bool | int | float | str

_NEUTRAL = {"n": 1, "best_of": 1, "echo": False, "logprobs": None}
_FIELDS = frozenset(CompletionBody.__struct_fields__) - {"model", "prompt", "stream", "stream_options", *_NEUTRAL}
_DECODER = BodyDecoder(CompletionBody)
# By datatype: format of an element in raw contents, and the field that holds elements otherwise.
_NUMBERS = {
    "BOOL": ("?", "bool_contents"),
    "INT32": ("i", "int_contents"),
    "INT64": ("q", "int64_contents"),
    "UINT32": ("I", "uint_contents"),
    "UINT64": ("Q", "uint64_contents"),
    "FP32": ("f", "fp32_contents"),
    "FP64": ("d", "fp64_contents"),
}


@dataclass(frozen=True, slots=True)
class Inference:
    """What a request asks for."""

    ask: Ask
    text: str
    streams: bool
    repeats_input: bool
    """Whether the answer begins with the text that it answers."""
    outputs: frozenset[str]
    """Names of the wanted tensors."""


def inference_of(request: ModelInferRequest) -> Inference:
    """Check a request.

    Raises:
        ApiError: 400 that names the tensor or parameter.
    """
    values = _values(request)
    text = values.pop(TEXT_INPUT, None)
    if not isinstance(text, str):
        raise invalid(TEXT_INPUT, "a BYTES tensor with one text is needed")
    streams = _flag(values, STREAM[0]) | _flag(values, STREAM[1])
    repeats_input = not _flag(values, "exclude_input_in_output", default=True)
    if streams and repeats_input:
        raise unsupported("exclude_input_in_output", "a streamed answer never begins with its input; leave it out")
    fields = {name: value for name, value in values.items() if name in _FIELDS}
    for name, neutral in _NEUTRAL.items():
        if values.get(name, neutral) != neutral:
            raise unsupported(name, "one plain answer is made per request; leave it out")
    body = _DECODER.decode(msgspec.json.encode({**fields, "model": request.model_name, "prompt": text}))
    (ask,) = completion_asks(body)
    return Inference(
        ask=replace(ask, prompt_field=TEXT_INPUT),
        text=text,
        streams=streams,
        repeats_input=repeats_input,
        outputs=_outputs(request),
    )


def check_version(model: str, version: str) -> None:
    """Raise unless this is the one version that every model has."""
    if version not in ("", "1"):
        raise ApiError(404, f"The model '{model[:200]}' has the version 1 only", param="model_version")


def _outputs(request: ModelInferRequest) -> frozenset[str]:
    known = frozenset({TEXT_OUTPUT, FINISH_REASON})
    wanted = frozenset(output.name for output in request.outputs)
    for name in wanted - known:
        raise invalid("outputs", f"'{name[:40]}' is none of {', '.join(sorted(known))}")
    return wanted or known


def _values(request: ModelInferRequest) -> dict[str, Any]:
    """Everything that the request says, by name."""
    raws: Sequence[bytes | None] = request.raw_input_contents or [None] * len(request.inputs)
    if len(raws) != len(request.inputs):
        raise invalid("raw_input_contents", f"there are {len(raws)} for {len(request.inputs)} inputs")
    tensors: dict[str, Value] = {}
    for tensor, raw in zip(request.inputs, raws, strict=True):
        name = tensor.name
        if name not in _FIELDS and name not in (TEXT_INPUT, *STREAM, SAMPLING, "exclude_input_in_output", *_NEUTRAL):
            raise invalid("inputs", f"'{name[:40]}' is no input of a language model")
        if name in tensors:
            raise invalid(name, "it was given twice")
        if prod(tensor.shape) != 1:
            raise invalid(name, f"it must have one element; send several requests instead of shape {[*tensor.shape]}")
        tensors[name] = _element(tensor.datatype, name, tensor.contents, raw)
    parameters = {name: _parameter(value) for name, value in request.parameters.items()}
    values = {**parameters, **_sampling(tensors.pop(SAMPLING, None)), **tensors}
    for name, value in values.items():
        if isinstance(value, float) and not isfinite(value):
            raise invalid(name, f"it must be a number, not {value}")
    return values


def _sampling(text: Value | None) -> dict[str, Any]:
    """JSON's fields. vLLM's users put numbers into strings: those are numbers all the same."""
    if text is None or text == "":
        return {}
    try:
        found = msgspec.json.decode(str(text), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise invalid(SAMPLING, f"it must be a JSON object ({error})") from None
    return {name: _number(value) if isinstance(value, str) else value for name, value in found.items()}


def _number(text: str) -> Any:
    try:
        return msgspec.json.decode(text, type=bool | int | float)
    except msgspec.DecodeError:
        return text


def _flag(values: dict[str, Any], name: str, *, default: bool = False) -> bool:
    value = values.pop(name, default)
    if not isinstance(value, bool):
        raise invalid(name, "it must be a BOOL")
    return value


def _parameter(value: InferParameter) -> Value | None:
    kind = value.WhichOneof("parameter_choice")
    return getattr(value, kind) if kind else None


def _element(datatype: str, name: str, contents: InferTensorContents, raw: bytes | None) -> Value:
    if datatype == "BYTES":
        elements = _texts(raw) if raw is not None else contents.bytes_contents
        if len(elements) == 1:
            try:
                return elements[0].decode()
            except UnicodeDecodeError:
                raise invalid(name, "it is not UTF-8") from None
    elif datatype in _NUMBERS:
        form, field = _NUMBERS[datatype]
        if raw is None:
            found: Sequence[Value] = getattr(contents, field)
        else:
            found = struct.unpack(f"<{form}", raw) if len(raw) == struct.calcsize(f"<{form}") else ()
        if len(found) == 1:
            return found[0]
    else:
        raise invalid(name, f"its datatype '{datatype[:20]}' is none of BYTES, {', '.join(_NUMBERS)}")
    raise invalid(name, f"its contents are not one element of {datatype}")


def _texts(raw: bytes) -> list[bytes]:
    """Elements of a raw BYTES tensor, each after its length; none if it is not that."""
    elements: list[bytes] = []
    position = 0
    while position + 4 <= len(raw):
        end = position + 4 + int.from_bytes(raw[position : position + 4], "little")
        elements.append(raw[position + 4 : end])
        position = end
    return elements if position == len(raw) else []
