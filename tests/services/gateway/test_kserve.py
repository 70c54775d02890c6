"""`inference.GRPCInferenceService`, message by message."""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from armature.openai.kserve import servicer as kserve
from armature.openai.kserve.servicer import KServeServicer
from armature.openai.serving.core import ServingCore
from armature.runtime.server import RpcServer
from armature.third_party.kserve.v2 import inference_pb2 as pb
from armature.third_party.kserve.v2.inference_pb2_grpc import (
    GRPCInferenceServiceStub,
    add_GRPCInferenceServiceServicer_to_server,
)
from tests.services.gateway.fakes import FakeRouter, FakeWorker, breaking_after, listening
from tests.services.gateway.harness import MODEL, QUICK, TEXT, answer, make_worker, running_core
from tests.support.eventually import eventually

Tensor = pb.ModelInferRequest.InferInputTensor


@asynccontextmanager
async def serving(*workers: FakeWorker) -> AsyncIterator[tuple[str, Any, ServingCore]]:
    router = FakeRouter(list(workers))
    async with listening(*workers, router), running_core(workers, [router], QUICK) as (core, _):
        server = RpcServer("127.0.0.1")
        server.add(add_GRPCInferenceServiceServicer_to_server, KServeServicer(core), "inference.GRPCInferenceService")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(server.address) as channel:
                yield server.address, GRPCInferenceServiceStub(channel), core
        finally:
            await server.stop()


def tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, bool):
        contents, datatype = pb.InferTensorContents(bool_contents=[value]), "BOOL"
    elif isinstance(value, int):
        contents, datatype = pb.InferTensorContents(int_contents=[value]), "INT32"
    elif isinstance(value, float):
        contents, datatype = pb.InferTensorContents(fp32_contents=[value]), "FP32"
    else:
        contents, datatype = pb.InferTensorContents(bytes_contents=[value.encode()]), "BYTES"
    return Tensor(name=name, datatype=datatype, shape=[1], contents=contents)


def request(request_id: str = "r", model: str = MODEL, **values: Any) -> pb.ModelInferRequest:
    inputs = [tensor(name, value) for name, value in values.items()]
    return pb.ModelInferRequest(model_name=model, id=request_id, inputs=inputs)


def texts(response: pb.ModelInferResponse) -> dict[str, str]:
    assert all(struct.unpack("<I", raw[:4])[0] == len(raw) - 4 for raw in response.raw_output_contents), (
        "a length is wrong"
    )
    named = zip(response.outputs, response.raw_output_contents, strict=True)
    return {output.name: raw[4:].decode() for output, raw in named}


async def test_an_answer_begins_with_its_input_only_if_that_is_wished() -> None:
    async with serving(make_worker()) as (_, stub, _):
        plain = await stub.ModelInfer(request(text_input="hello", max_tokens=99), timeout=10)
        with_input = await stub.ModelInfer(
            request(text_input="hello", max_tokens=99, exclude_input_in_output=False), timeout=10
        )
        only_reason = request(text_input="hello", max_tokens=1)
        only_reason.outputs.add(name="finish_reason")
        short = await stub.ModelInfer(only_reason, timeout=10)
    assert texts(plain) == {"text_output": TEXT, "finish_reason": "stop"}
    assert texts(with_input)["text_output"] == "hello" + TEXT
    assert texts(short) == {"finish_reason": "length"}
    assert plain.parameters["completion_tokens"].int64_param == len(answer())


def raw(*contents: bytes, **values: Any) -> pb.ModelInferRequest:
    made = request(**values)
    for one in made.inputs:
        one.ClearField("contents")
    made.raw_input_contents.extend(contents)
    return made


def shaped(*shape: int) -> pb.ModelInferRequest:
    made = request(text_input="x")
    made.inputs[0].shape[:] = shape
    return made


def typed(datatype: str) -> pb.ModelInferRequest:
    made = request(text_input="x")
    made.inputs[0].datatype = datatype
    return made


def twice() -> pb.ModelInferRequest:
    made = request(text_input="x")
    made.inputs.append(made.inputs[0])
    return made


def versioned(version: str) -> pb.ModelInferRequest:
    made = request(text_input="x")
    made.model_version = version
    return made


INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("wrong", "code", "told"),
    [
        (request(), INVALID, "text_input"),
        (request(text_input=1), INVALID, "text_input"),
        (request(text_input=""), INVALID, "prompt"),
        (request(text_input="x", model="other"), grpc.StatusCode.NOT_FOUND, "other"),
        (versioned("2"), grpc.StatusCode.NOT_FOUND, "version"),
        (request(text_input="x", nonsense=1), INVALID, "nonsense"),
        (request(text_input="x", max_tokens=-1), INVALID, "max_tokens"),
        (request(text_input="x", max_tokens="many"), INVALID, "max_tokens"),
        (request(text_input="x", temperature=9.0), INVALID, "temperature"),
        (request(text_input="x", temperature=float("nan")), INVALID, "temperature"),
        (request(text_input="x", stream=1), INVALID, "stream"),
        (request(text_input="x", stream=True), INVALID, "ModelStreamInfer"),
        (request(text_input="x", n=2), INVALID, "n"),
        (request(text_input="x", sampling_parameters="{"), INVALID, "sampling_parameters"),
        (request(text_input="x", sampling_parameters="[1]"), INVALID, "sampling_parameters"),
        (request(text_input="x", sampling_parameters='{"top_p": 2}'), INVALID, "top_p"),
        (shaped(2), INVALID, "text_input"),
        (shaped(0), INVALID, "text_input"),
        (shaped(-1), INVALID, "text_input"),
        (typed("FP16"), INVALID, "FP16"),
        (typed("BOOL"), INVALID, "text_input"),
        (twice(), INVALID, "text_input"),
        (raw(text_input="x"), INVALID, "text_input"),
        (raw(b"x", b"y", text_input="x"), INVALID, "raw_input_contents"),
        (raw(b"\x01\x00\x00\x00", text_input="x"), INVALID, "text_input"),
        (raw(b"\xff\xff\xff\xffx", text_input="x"), INVALID, "text_input"),
        (raw(b"\x01\x00\x00\x00\xff", text_input="x"), INVALID, "UTF-8"),
        (raw(b"\x01\x00\x00\x00x", b"\x01", text_input="x", max_tokens=1), INVALID, "max_tokens"),
    ],
)
async def test_wrong_requests_are_refused_by_name(
    wrong: pb.ModelInferRequest, code: grpc.StatusCode, told: str
) -> None:
    async with serving(make_worker()) as (_, stub, core):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(wrong, timeout=10)
        assert (caught.value.code(), told in (caught.value.details() or "")) == (code, True), caught.value
        assert core.inflight == 0


async def test_a_stream_that_ends_ends_the_work_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kserve, "MAX_REQUESTS_ON_A_STREAM", 3)
    worker = make_worker(script=breaking_after(3, "silence"))
    async with serving(worker) as (_, stub, core):
        stream = stub.ModelStreamInfer()
        for number in range(5):
            await stream.write(request(str(number), text_input="hello", stream=True, max_tokens=9))
        assert (await stream.read()).infer_response.model_name == MODEL
        await eventually(lambda: len(worker.requests) == 3 and core.inflight == 3)
        stream.cancel()
        await eventually(lambda: len(worker.cancelled) == 3 and core.inflight == 0)


async def test_bytes_on_a_stream_that_are_no_message_end_it_and_blame_the_client() -> None:
    async def twice() -> AsyncIterator[bytes]:
        yield request(text_input="x", max_tokens=3).SerializeToString()
        yield b"\xff no message"

    async with serving(make_worker()) as (address, _, core), grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(twice(), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        await eventually(lambda: core.inflight == 0)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_client_that_has_asked_everything_still_gets_every_answer() -> None:
    async with serving(make_worker(batch=4)) as (_, stub, _):
        stream = stub.ModelStreamInfer()
        for number in range(100):
            await stream.write(request(str(number), text_input="hello", max_tokens=1 + number % 20))
        await stream.done_writing()
        answers = {response.infer_response.id: response.infer_response async for response in stream}
    assert answers.keys() == {str(number) for number in range(100)}
    for number in range(100):
        tokens = min(1 + number % 20, len(answer()))
        assert answers[str(number)].parameters["completion_tokens"].int64_param == tokens
