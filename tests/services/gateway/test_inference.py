"""`armature.v1.Inference` over gRPC: the same generation as REST."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from armature.openai.serving.options import ServingOptions
from armature.runtime.server import RpcServer
from armature.v1.common_pb2 import FINISH_REASON_LENGTH, FINISH_REASON_STOP, FINISH_REASON_TOOL_CALLS, SamplingParams
from armature.v1.hints_pb2 import Hints
from armature.v1.inference_pb2 import (
    ChatMessage,
    ChatMessages,
    DetokenizeRequest,
    EmbedInput,
    EmbedRequest,
    GenerateRequest,
    GetModelRequest,
    ListModelsRequest,
    TokenIds,
    TokenizeRequest,
    Tool,
    ToolCall,
)
from armature.v1.inference_pb2_grpc import InferenceStub, add_InferenceServicer_to_server
from armature.v1.worker_pb2 import WorkerError
from services.gateway.servicer import InferenceServicer
from tests.services.gateway.fakes import FakeRouter, FakeWorker, breaking_after, error, listening
from tests.services.gateway.harness import EOS, MODEL, QUICK, TEXT, answer, card, encode, make_worker, running_core
from tests.support.connections import clients_of
from tests.support.eventually import eventually

CHAT = ChatMessages(messages=[ChatMessage(role="user", content="hello")])

SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16))
"""So that a client which does not read takes little: gRPC's own would grow to megabytes here."""


@asynccontextmanager
async def inference(
    *workers: FakeWorker, router: FakeRouter | None = None, options: ServingOptions = QUICK
) -> AsyncIterator[Any]:
    async with listening_gateway(*workers, router=router, options=options) as address, client_of(address) as stub:
        yield stub


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[Any]:
    """Over a connection of its own."""
    options = (*SMALL_WINDOW, ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield InferenceStub(channel)


@asynccontextmanager
async def listening_gateway(
    *workers: FakeWorker, router: FakeRouter | None, options: ServingOptions
) -> AsyncIterator[str]:
    router = router or FakeRouter(list(workers))
    async with listening(*workers, router), running_core(workers, [router], options) as (core, _):
        server = RpcServer("127.0.0.1")
        server.add(add_InferenceServicer_to_server, InferenceServicer(core), "armature.v1.Inference")
        await server.start()
        try:
            yield server.address
        finally:
            await server.stop()


@pytest.mark.parametrize(
    "prompt", [{"prompt": "Where?"}, {"chat": CHAT}, {"tokens": TokenIds(ids=[5, 6, 7])}], ids=lambda p: next(iter(p))
)
async def test_every_kind_of_prompt_is_answered(prompt: dict[str, Any]) -> None:
    worker = make_worker(batch=2)
    async with inference(worker) as stub:
        responses = [
            r async for r in stub.Generate(GenerateRequest(model=MODEL, include_info=True, **prompt), timeout=10)
        ]
    assert "".join(response.text for response in responses) == TEXT
    assert [token_id for response in responses for token_id in response.token_ids] == list(answer())
    assert responses[-1].finish_reason == FINISH_REASON_STOP
    assert responses[-1].usage.completion_tokens == len(answer())
    assert responses[-1].usage.prompt_tokens == worker.requests[0].prompt_tokens
    assert [response.HasField("info") for response in responses] == [True, *[False] * (len(responses) - 1)]
    assert responses[0].info.decode_worker == worker.worker_id


async def test_log_probabilities_come_one_per_token() -> None:
    request = GenerateRequest(
        model=MODEL, prompt="x", max_tokens=5, stop=["zzz"], sampling=SamplingParams(logprobs=True, top_logprobs=2)
    )
    async with inference(make_worker(batch=2)) as stub:
        responses = [response async for response in stub.Generate(request, timeout=10)]
    assert all(len(response.logprobs) == len(response.token_ids) for response in responses)
    assert [len(entry.tokens) for response in responses for entry in response.logprobs] == [3] * 5
    assert responses[-1].finish_reason == FINISH_REASON_LENGTH


async def test_hints_reach_the_router_and_wrong_ones_are_refused_by_name() -> None:
    worker = make_worker()
    router = FakeRouter([worker])
    async with inference(worker, router=router) as stub:
        right = GenerateRequest(model=MODEL, prompt="x", session_id="s", hints=Hints(priority=-2, cache_ttl_s=60))
        async for _ in stub.Generate(right, timeout=10):
            pass
        for wrong, field in (
            (GenerateRequest(model=MODEL, prompt="x", hints=Hints(priority=11)), "priority"),
            (GenerateRequest(model=MODEL, prompt="x", hints=Hints(ttft_target_s=float("nan"))), "ttft_target_s"),
            (GenerateRequest(model=MODEL, prompt="x", session_id="x" * 300), "session_id"),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=field) as caught:
                async for _ in stub.Generate(wrong, timeout=10):
                    pass
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    (query,) = router.queries
    assert (query.session_id, query.hints.priority, query.hints.cache_ttl_s) == ("s", -2, 60)


async def test_a_move_is_told() -> None:
    workers = make_worker("a", script=breaking_after(5)), make_worker("b")
    async with inference(*workers) as stub:
        request = GenerateRequest(model=MODEL, tokens=TokenIds(ids=encode("hi")), include_info=True)
        responses = [response async for response in stub.Generate(request, timeout=10)]
    assert "".join(response.text for response in responses) == TEXT
    infos = [response.info for response in responses if response.HasField("info")]
    assert [(info.decode_worker, info.migrations) for info in infos] == [("a", 0), ("b", 1)]


@pytest.mark.parametrize(
    ("fields", "code", "told"),
    [
        ({"model": "nobody", "prompt": "x"}, grpc.StatusCode.NOT_FOUND, "nobody"),
        ({"prompt": ""}, grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        ({}, grpc.StatusCode.INVALID_ARGUMENT, "input"),
        ({"tokens": TokenIds(ids=[512])}, grpc.StatusCode.INVALID_ARGUMENT, "tokens"),
        ({"tokens": TokenIds(ids=[5] * 512)}, grpc.StatusCode.INVALID_ARGUMENT, "tokens"),
        (
            {"chat": ChatMessages(messages=[ChatMessage(role="robot")])},
            grpc.StatusCode.INVALID_ARGUMENT,
            "chat.messages[0].role",
        ),
        (
            {"prompt": "x", "sampling": SamplingParams(top_p=float("nan"))},
            grpc.StatusCode.INVALID_ARGUMENT,
            "top_p",
        ),
        ({"prompt": "x", "sampling": SamplingParams(temperature=-1)}, grpc.StatusCode.INVALID_ARGUMENT, "temperature"),
        ({"prompt": "x", "sampling": SamplingParams(top_logprobs=2)}, grpc.StatusCode.INVALID_ARGUMENT, "top_logprobs"),
        ({"prompt": "x", "stop": [""]}, grpc.StatusCode.INVALID_ARGUMENT, "stop"),
        ({"prompt": "x", "max_tokens": 2**31}, grpc.StatusCode.INVALID_ARGUMENT, "max_tokens"),
    ],
)
async def test_errors_are_statuses_that_name_the_field(
    fields: dict[str, Any], code: grpc.StatusCode, told: str
) -> None:
    async with inference(make_worker()) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(stub.Generate(GenerateRequest(**({"model": MODEL} | fields)), timeout=10)))
    assert caught.value.code() == code
    assert told in (caught.value.details() or "")


async def test_failing_workers_are_unavailable_and_late_ones_a_deadline() -> None:
    worker = make_worker(script=breaking_after(0))
    request = GenerateRequest(model=MODEL, prompt="x")
    async with inference(worker) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(stub.Generate(request, timeout=10)))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        worker.script = breaking_after(0, error(WorkerError.CODE_DEADLINE_EXCEEDED))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(stub.Generate(request, timeout=10)))
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("tokens", [0, 5])
async def test_a_cancelled_call_cancels_the_work(tokens: int) -> None:
    worker = make_worker(script=breaking_after(tokens, "silence"))
    async with inference(worker) as stub:
        call = stub.Generate(GenerateRequest(model=MODEL, prompt="x"), timeout=10)
        for _ in range(1 if tokens else 0):
            await call.read()
        await eventually(lambda: worker.requests)
        call.cancel()
        await eventually(lambda: worker.cancelled, what="the worker is told")


async def test_a_chat_with_tools_has_calls_and_reasoning_apart_from_its_text() -> None:
    said = '<think>Hm.</think>Let me see.\n<tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call>'
    described = card(tool_call_parser="hermes", reasoning_parser="think")
    worker = make_worker(answer=(*encode(said), EOS), card=described)
    earlier = ChatMessage(role="assistant", tool_calls=[ToolCall(id="call_1", name="f", arguments='{"a": "x"}')])
    chat = ChatMessages(
        messages=[*CHAT.messages, earlier, ChatMessage(role="tool", tool_call_id="call_1", content="22")],
        tools=[Tool(name="f", parameters_json='{"type": "object"}')],
    )
    async with inference(worker) as stub:
        responses = [r async for r in stub.Generate(GenerateRequest(model=MODEL, chat=chat), timeout=10)]
        for wrong, field in (
            (ChatMessages(messages=[ChatMessage(role="tool", content="x")]), "chat.messages[0].tool_call_id"),
            (ChatMessages(messages=CHAT.messages, tools=[Tool(name="f", parameters_json="{")]), "parameters_json"),
            (ChatMessages(messages=CHAT.messages, tools=[Tool(name="f")], must_call="g"), "tool_choice"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(stub.Generate(GenerateRequest(model=MODEL, chat=wrong), timeout=10)))
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert field in (caught.value.details() or "")
    assert "".join(response.text for response in responses) == "Let me see."
    assert "".join(response.reasoning for response in responses) == "Hm."
    parts = [part for response in responses for part in response.tool_calls]
    assert [(part.name, bool(part.id)) for part in parts if part.name] == [("f", True)]
    assert "".join(part.arguments for part in parts) == '{"a": "é"}'
    assert {part.index for part in parts} == {0}
    assert responses[-1].finish_reason == FINISH_REASON_TOOL_CALLS
    assert responses[-1].usage.reasoning_tokens == len(encode("<think>Hm."))


async def test_models_are_listed() -> None:
    worker = make_worker()
    async with inference(worker) as stub:
        listed = await stub.ListModels(ListModelsRequest(), timeout=10)
    assert list(listed.models) == [worker.card]


async def test_many_calls_at_once_keep_their_answers_apart() -> None:
    async with inference(make_worker(batch=3)) as stub:

        async def text(tokens: int) -> str:
            request = GenerateRequest(model=MODEL, prompt="x", max_tokens=tokens)
            return "".join([response.text async for response in stub.Generate(request, timeout=10)])

        texts = await asyncio.gather(*(text(1 + n % len(answer())) for n in range(40)))
    whole = {1 + n: text for n, text in enumerate(texts[: len(answer())])}
    assert all(text == whole[1 + n % len(answer())] for n, text in enumerate(texts))
    assert whole[len(answer())] == TEXT


async def test_a_model_is_described() -> None:
    worker = make_worker()
    async with inference(worker) as stub:
        assert await stub.GetModel(GetModelRequest(model=MODEL), timeout=10) == worker.card
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetModel(GetModelRequest(model="other"), timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_texts_and_tokens_are_embedded() -> None:
    inputs = [EmbedInput(text=TEXT), EmbedInput(tokens=TokenIds(ids=[5, 6]))]
    async with inference(make_worker()) as stub:
        made = await stub.Embed(EmbedRequest(model=MODEL, inputs=inputs), timeout=10)
        for wrong in ([], [EmbedInput()], [EmbedInput(tokens=TokenIds(ids=[512]))], [EmbedInput(text="x")] * 2049):
            with pytest.raises(grpc.aio.AioRpcError, match="input") as caught:
                await stub.Embed(EmbedRequest(model=MODEL, inputs=wrong), timeout=10)
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    tokens = encode(TEXT)
    assert [list(one.values)[:3] for one in made.embeddings] == [[len(tokens), tokens[0], tokens[-1]], [2, 5, 6]]
    assert made.usage.prompt_tokens == len(tokens) + 2


async def test_texts_become_tokens_and_tokens_texts() -> None:
    async with inference(make_worker()) as stub:
        made = await stub.Tokenize(TokenizeRequest(model=MODEL, prompt=TEXT, with_token_strings=True), timeout=10)
        back = await stub.Detokenize(DetokenizeRequest(model=MODEL, token_ids=made.token_ids), timeout=10)
        chat = await stub.Tokenize(TokenizeRequest(model=MODEL, chat=CHAT), timeout=10)
        rendered = await stub.Detokenize(DetokenizeRequest(model=MODEL, token_ids=chat.token_ids), timeout=10)
        with pytest.raises(grpc.aio.AioRpcError, match="input"):
            await stub.Tokenize(TokenizeRequest(model=MODEL), timeout=10)
    assert (list(made.token_ids), made.context_length, back.text) == (encode(TEXT), 512, TEXT)
    assert len(made.token_strings) == len(made.token_ids)
    assert rendered.text.startswith("<|im_start|>user\nhello<|im_end|>")
    assert not chat.token_strings


async def test_clients_that_do_not_read_are_given_up_and_hold_neither_slots_nor_work_nor_descriptors() -> None:
    worker = make_worker(answer=(*(answer()[:-1] * 400), EOS), batch=50, card=card(context_length=1_000_000))
    router, clients = FakeRouter([worker]), 2
    options = ServingOptions(write_timeout_s=0.3, max_buffered_bytes=100_000_000, max_concurrent_requests=clients)
    async with listening_gateway(worker, router=router, options=options) as address, client_of(address) as other:
        port = int(address.rpartition(":")[2])
        async with AsyncExitStack() as held:
            for _ in range(clients):
                await hold(await held.enter_async_context(client_of(address)), held)
            await eventually(lambda: len(router.finished()) == clients, what="they are given up")
            await eventually(lambda: len(worker.cancelled) == clients, what="their work ends")
            few = GenerateRequest(model=MODEL, prompt="x", max_tokens=3)
            assert [r async for r in other.Generate(few, timeout=10)], "a slot is free while they hold on"
            assert len(clients_of(port)) == clients + 1
        await eventually(lambda: len(clients_of(port)) == 1, what="their connections are gone")


async def hold(stub: Any, held: AsyncExitStack) -> None:
    """Begin to read an answer, without a deadline, and stop."""
    asked = GenerateRequest(model=MODEL, prompt="x", sampling=SamplingParams(logprobs=True, top_logprobs=20))
    call = stub.Generate(asked)
    held.callback(call.cancel)
    assert (await call.read()).token_ids
