"""What an answer must match: checked at the gateway, sent to every worker that the answer comes from."""

import json
from typing import Any

import grpc
import pytest

from armature.v1.common_pb2 import Grammar, SamplingParams
from armature.v1.inference_pb2 import GenerateRequest
from tests.services.gateway.fakes import breaking_after
from tests.services.gateway.harness import MODEL, TEXT, make_worker, running_gateway
from tests.services.gateway.test_inference import inference

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


async def test_every_worker_of_a_moved_request_is_told_the_grammar_and_the_priority() -> None:
    first, second = make_worker("a", script=breaking_after(3)), make_worker("b")
    async with running_gateway(first, second) as gateway:
        reply = await gateway.chat(response_format=json_schema(SCHEMA), armature={"hints": {"priority": 4}})
    assert reply.json()["choices"][0]["message"]["content"] == TEXT
    requests = [*first.requests, *second.requests]
    assert len(requests) == 2
    assert all('"additionalProperties"' in request.grammar.json_schema for request in requests)
    assert all(request.priority == 4 for request in requests)


@pytest.mark.parametrize(
    ("fields", "param", "complaint"),
    [
        (
            {"response_format": json_schema({"type": "objekt"})},
            "response_format.json_schema.schema",
            "objekt",
        ),
        ({"response_format": json_schema({"not": {}})}, "response_format.json_schema.schema", "not"),
        ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
        ({"guided_choice": []}, "guided_choice", "nothing to choose"),
        ({"structured_outputs": {"grammar": "root ::= ("}}, "structured_outputs.grammar", "Expected"),
        ({"guided_json": {"const": "x" * 300_000}}, "guided_json", "bytes"),
    ],
)
async def test_a_grammar_that_cannot_be_followed_is_refused_before_any_work(
    fields: dict[str, Any], param: str, complaint: str
) -> None:
    worker = make_worker()
    async with running_gateway(worker) as gateway:
        reply = await gateway.chat(**fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, param, "invalid_grammar")
    assert complaint in error["message"]
    assert not worker.requests


async def test_a_response_may_have_a_schema_too() -> None:
    worker = make_worker()
    wanted = {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}
    async with running_gateway(worker) as gateway:
        body = {"model": MODEL, "input": "x", "text": {"format": wanted}}
        reply = await gateway.client.post("/v1/responses", json=body)
        assert reply.status_code == 200, reply.text
        assert json.loads(worker.requests[0].grammar.json_schema) == SCHEMA
        wanted["schema"] = {"type": "objekt"}
        reply = await gateway.client.post("/v1/responses", json=body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "text.format.schema")


async def test_grpc_clients_may_send_a_grammar_too() -> None:
    worker = make_worker()
    async with inference(worker) as stub:
        assert [
            one async for one in stub.Generate(GenerateRequest(model=MODEL, prompt="x", grammar=Grammar(regex="a")))
        ]
        assert worker.requests[0].grammar == Grammar(regex="a")
        for wrong, complaint in (
            ({"grammar": Grammar(regex="(")}, "grammar"),
            ({"grammar": Grammar(json_object=True), "sampling": SamplingParams(min_tokens=2)}, "min_tokens"),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=complaint) as refused:
                _ = [one async for one in stub.Generate(GenerateRequest(model=MODEL, prompt="x", **wrong))]
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
