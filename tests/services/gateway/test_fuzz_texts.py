"""Whatever is sent to the routes that make no text, or in a KServe message, is answered or refused: never a failure."""

import asyncio
import json
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armature.openai.kserve.servicer import KServeServicer
from armature.openai.texts import DetokenizeBody, EmbeddingBody, TokenizeBody
from armature.runtime.server import RpcServer
from armature.third_party.kserve.v2 import inference_pb2 as pb
from armature.third_party.kserve.v2.inference_pb2_grpc import (
    GRPCInferenceServiceStub,
    add_GRPCInferenceServiceServicer_to_server,
)
from tests.services.gateway.fakes import FakeRouter, listening
from tests.services.gateway.harness import MODEL, QUICK, make_worker, running_core, running_gateway
from tests.services.gateway.test_fuzz import FUZZ, JSON, MESSAGES, PROMPT, SCALARS
from tests.support.eventually import eventually

BODIES = {
    "/v1/embeddings": (EmbeddingBody, {"input": PROMPT | st.lists(st.text(max_size=5), max_size=4)}),
    "/tokenize": (TokenizeBody, {"prompt": st.text(max_size=20)}),
    "/detokenize": (DetokenizeBody, {"tokens": st.lists(st.integers(-1, 520), max_size=6)}),
}
NAMES = [
    "text_input", "stream", "streaming", "sampling_parameters", "exclude_input_in_output", "max_tokens", "temperature",
    "top_p", "seed", "stop", "logit_bias", "response_format", "n", "echo", "x",
]  # fmt: skip
BYTES = st.binary(max_size=8) | st.text(max_size=8).map(str.encode) | JSON.map(json.dumps).map(str.encode)
CONTENTS = st.builds(
    pb.InferTensorContents,
    bool_contents=st.lists(st.booleans(), max_size=2),
    int_contents=st.lists(st.integers(-5, 40), max_size=2),
    fp32_contents=st.lists(st.floats(width=32), max_size=2),
    bytes_contents=st.lists(BYTES, min_size=1, max_size=2),
)
TENSORS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(NAMES),
    datatype=st.sampled_from(["BYTES", "BYTES", "BOOL", "INT32", "FP32", "FP16", ""]),
    shape=st.sampled_from([[1], [1], [1, 1], [], [0], [2], [-1, -1], [2**40, 2**40]]),
    contents=CONTENTS,
)
PARAMETERS = st.dictionaries(
    st.sampled_from(NAMES),
    st.one_of(
        st.builds(pb.InferParameter, bool_param=st.booleans()),
        st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
        st.builds(pb.InferParameter, double_param=st.floats()),
        st.builds(pb.InferParameter, string_param=st.text(st.characters(exclude_categories=["Cs"]), max_size=8)),
        st.just(pb.InferParameter()),
    ),
    max_size=3,
)


@st.composite
def requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """Mostly with a text, so that what is wrong gets as far as it can."""
    made = pb.ModelInferRequest(model_name=draw(st.sampled_from([MODEL, MODEL, MODEL, "", "other"])), id="r")
    if draw(st.integers(0, 4)):
        contents = pb.InferTensorContents(bytes_contents=[b"hello"])
        made.inputs.add(name="text_input", datatype="BYTES", shape=[1], contents=contents)
    made.inputs.extend(draw(st.lists(TENSORS, max_size=3)))
    if not draw(st.integers(0, 3)):
        made.raw_input_contents.extend(draw(st.lists(BYTES, max_size=4)))
    for name, value in draw(PARAMETERS).items():
        made.parameters[name].CopyFrom(value)
    return made


@st.composite
def bodies(draw: st.DrawFn, route: str) -> bytes:
    struct, valid = BODIES[route]
    body: dict[str, Any] = {"model": MODEL} | {name: draw(values) for name, values in valid.items()}
    wrong = st.sampled_from([*struct.__struct_fields__])
    body |= draw(st.dictionaries(wrong, JSON | SCALARS | MESSAGES, max_size=2))
    return json.dumps(body).encode()


@pytest.mark.parametrize("route", BODIES)
async def test_no_body_for_embeddings_or_tokens_is_a_server_error(route: str) -> None:
    loop = asyncio.get_running_loop()
    async with running_gateway(make_worker()) as gateway:

        async def check(content: bytes) -> None:
            async with asyncio.timeout(5):
                response = await gateway.client.post(route, content=content)
            if response.status_code != 200:
                assert 400 <= response.status_code < 500, (content, response.text)
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            await eventually(lambda: gateway.core.inflight == 0)

        @FUZZ
        @given(bodies(route))
        def examples(content: bytes) -> None:
            asyncio.run_coroutine_threadsafe(check(content), loop).result()

        await asyncio.to_thread(examples)


async def test_no_kserve_message_is_a_server_error() -> None:
    worker = make_worker(batch=5)
    router = FakeRouter([worker])
    loop = asyncio.get_running_loop()
    fine = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    async with listening(worker, router), running_core([worker], [router], QUICK) as (core, _):
        server = RpcServer("127.0.0.1")
        server.add(add_GRPCInferenceServiceServicer_to_server, KServeServicer(core), "inference.GRPCInferenceService")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(server.address) as channel:
                stub: Any = GRPCInferenceServiceStub(channel)

                async def check(request: pb.ModelInferRequest) -> None:
                    try:
                        response = await stub.ModelInfer(request, timeout=5)
                        assert response.outputs[0].name == "text_output"
                    except grpc.aio.AioRpcError as error:
                        assert error.code() in fine, (request, error)
                    stream = stub.ModelStreamInfer(timeout=5)
                    await stream.write(request)
                    await stream.done_writing()
                    async for part in stream:
                        assert part.infer_response.id == "r"
                    assert await stream.code() == grpc.StatusCode.OK

                @FUZZ
                @given(requests())
                def examples(request: pb.ModelInferRequest) -> None:
                    asyncio.run_coroutine_threadsafe(check(request), loop).result()

                await asyncio.to_thread(examples)
                await eventually(lambda: core.inflight == 0)
        finally:
            await server.stop()
