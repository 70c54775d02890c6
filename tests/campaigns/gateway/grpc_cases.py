"""Messages for every method that clients can call over gRPC, filled at random by what their contract says."""

import contextlib
import random
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from armature.third_party.kserve.v2 import inference_pb2 as kserve_pb2
from armature.v1 import inference_pb2
from tests.campaigns.gateway.bodies import MODEL, damaged
from tests.support.conformity import KEY

_SERVICES = (
    inference_pb2.DESCRIPTOR.services_by_name["Inference"],
    kserve_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
)
METHODS: tuple[MethodDescriptor, ...] = tuple(method for service in _SERVICES for method in service.methods)
ALLOWED = frozenset(
    {
        grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED,
    }
)  # fmt: skip
"""Statuses that blame the caller, or say that it is not now. UNKNOWN and INTERNAL would be the gateway's failure."""
TIMEOUT_S = 20.0
_WORDS = (
    "",
    "x",
    MODEL,
    "user",
    "assistant",
    "tool",
    "{}",
    "{",
    '{"type":"object"}',
    "\x00",
    "é" * 300,
    "[a-z]+",
    "1",
    "a" * 9000,
)
_NUMBERS = (0, 1, 2, 9, 16, 127, 300, 4096, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63))
_FRACTIONS = (0.0, 1.0, -1.0, 0.5, 1e-40, 1e38, float("nan"), float("inf"), 2.0)
_DATATYPES = ("BYTES", "INT32", "FP32", "BOOL", "x", "UINT64")
_NAMES = ("text_input", "stream", "sampling_parameters", "max_tokens", "temperature", "exclude_input_in_output")
_PLAUSIBLE = 0.7
"""How often a field has a value that means something."""


@dataclass(frozen=True, slots=True)
class GrpcCase:
    kind: str
    method: MethodDescriptor
    messages: tuple[bytes, ...]
    """One, unless the client streams."""


def grpc_case(rng: random.Random) -> GrpcCase:
    """The next case; equal generators give equal cases."""
    method = rng.choice((*METHODS, *(one for one in METHODS if one.name in ("Generate", "ModelInfer"))))
    kind = rng.choices(("filled message", "damaged message", "random bytes"), weights=(8, 3, 1))[0]
    count = rng.randint(0, 4) if method.client_streaming else 1
    messages = tuple(_message(rng, method, kind) for _ in range(count))
    return GrpcCase(kind, method, messages)


async def verdict(channel: grpc.aio.Channel, case: GrpcCase) -> tuple[str, str]:
    """The status's name, and what is wrong with it, empty if nothing is."""
    path = f"/{case.method.containing_service.full_name}/{case.method.name}"
    metadata = (("authorization", f"Bearer {KEY}"),)
    call: Any
    if case.method.client_streaming:
        call = channel.stream_stream(path)(timeout=TIMEOUT_S, metadata=metadata)
    elif case.method.server_streaming:
        call = channel.unary_stream(path)(case.messages[0], timeout=TIMEOUT_S, metadata=metadata)
    else:
        call = channel.unary_unary(path)(case.messages[0], timeout=TIMEOUT_S, metadata=metadata)
    with contextlib.suppress(grpc.aio.AioRpcError):
        if case.method.client_streaming:
            await _converse(call, case.messages)
        elif case.method.server_streaming:
            async for _ in call:
                pass
        else:
            await call
    code = await call.code()
    wrong = "" if code in ALLOWED else f"{path}: {code.name}: {str(await call.details())[:300]}"
    return code.name, wrong


async def _converse(call: Any, messages: tuple[bytes, ...]) -> None:
    """Send each message when there is an answer to the one before.

    So nothing is being written when the server ends the stream; grpc.aio would tell of that instead of the status.
    """
    for message in messages:
        await call.write(message)
        if await call.read() is grpc.aio.EOF:
            return
    await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        pass


def _message(rng: random.Random, method: MethodDescriptor, kind: str) -> bytes:
    if kind == "random bytes":
        return rng.randbytes(rng.choice((1, 10, 300)))
    message = GetMessageClass(method.input_type)()
    _fill(rng, message, 0)
    data = message.SerializeToString()
    return damaged(rng, data) if kind == "damaged message" else data


def _fill(rng: random.Random, message: Message, depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        if rng.random() > (0.35 if field.name not in ("model", "model_name", "max_tokens") else 0.95):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(rng, message, field, depth)
        elif field.is_repeated:
            for _ in range(rng.choice((0, 1, 1, 2, 5))):
                if field.message_type is not None:
                    if depth < 5:
                        _fill(rng, getattr(message, field.name).add(), depth + 1)
                else:
                    getattr(message, field.name).append(_scalar(rng, field))
        elif field.message_type is not None:
            if depth < 5:
                inner = getattr(message, field.name)
                inner.SetInParent()
                _fill(rng, inner, depth + 1)
        else:
            setattr(message, field.name, _scalar(rng, field))


def _fill_map(rng: random.Random, message: Message, field: FieldDescriptor, depth: int) -> None:
    assert field.message_type is not None
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    for _ in range(rng.choice((0, 1, 3))):
        held = getattr(message, field.name)
        name = rng.choice(_NAMES) if key.type == FieldDescriptor.TYPE_STRING else _scalar(rng, key)
        if value.message_type is not None:
            _fill(rng, held[name], depth + 1)
        else:
            held[name] = _scalar(rng, value)


def _scalar(rng: random.Random, field: FieldDescriptor) -> Any:
    plausible = rng.random() < _PLAUSIBLE
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return rng.choice((b"", b"\x01\x00\x00\x00x", rng.randbytes(9), b"\xff" * 40))
            if plausible and field.name in ("model", "model_name"):
                return MODEL
            known = {"name": _NAMES, "datatype": _DATATYPES, "role": ("user", "assistant", "system")}.get(field.name)
            return rng.choice(known) if plausible and known else rng.choice(_WORDS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice((0.5, 0.9, 1.0)) if plausible else rng.choice(_FRACTIONS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice((0, 1, 2, 99))
        case kind:
            if plausible:
                return rng.choice((1, 2, 5))
            low, high = _BOUNDS[kind]
            return min(high, max(low, rng.choice(_NUMBERS)))


_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
